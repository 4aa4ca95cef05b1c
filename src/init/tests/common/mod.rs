//! A guest without a VM: the session of `onggi-init` as PID 1 of namespaces of its own, with a Unix
//! socket for the vsock and directories for the disks; and the host's side of the conversation.
#![allow(dead_code)] // Each of the tests that share this uses a part of it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{env, fs, thread};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use onggi_init::container::Workshop;
use onggi_init::failure::Failure;
use onggi_init::roots::Roots;
use onggi_init::runtime::Runtime;
use onggi_init::storage::{Source, Storage};
use onggi_init::transport::Host;
use onggi_init::{session, signals};
use onggi_protocol::{
    Assist, Container, Exec, ExitStatus, FailureKind, GuestMessage, Hello, HostMessage, Layer,
    Opening, Process, ProcessId, Resolver, Run, StreamKind, Task, VERSION, read_frame, write_frame,
};

/// Where the guest finds what the test has laid out, and that it is to be a guest at all.
const GUEST: &str = "ONGGI_TEST_GUEST";

/// Where the guest has control groups of version 2.
const CGROUPS: &str = "/run/cgroup";

/// Much longer than anything here takes: a test that waits so long has failed.
pub const SOON: Duration = Duration::from_secs(60);

/// What every process has that a container runs.
pub const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Directories in place of disks.
struct Directories(PathBuf);

impl Storage for Directories {
    fn layers(&mut self, layers: &[Layer]) -> Result<PathBuf, Failure> {
        let directory = self.0.join("layers");
        for layer in layers {
            let number = layer.partition;
            if !directory.join(number.to_string()).is_dir() {
                let message = format!("there is no layer {number}");
                return Err(Failure::new(FailureKind::Storage, message));
            }
        }
        Ok(directory)
    }

    fn scratch(&mut self) -> Result<PathBuf, Failure> {
        Ok(self.0.join("scratch"))
    }

    fn acquire(&mut self, source: &Source) -> Result<PathBuf, Failure> {
        let directory = self.locate(source);
        if !directory.is_dir() {
            let message = format!("there is no {source:?}");
            return Err(Failure::new(FailureKind::Storage, message));
        }
        Ok(directory)
    }

    fn locate(&self, source: &Source) -> PathBuf {
        match source {
            Source::Disk(serial) => self.0.join("volumes").join(serial),
            Source::Share(tag) => self.0.join("shares").join(tag),
        }
    }

    fn release(&mut self, _source: &Source) {}
}

/// The guest, if this process is to be one; does not return then.
pub fn be_the_guest() {
    let Some(directory) = env::var_os(GUEST).map(PathBuf::from) else {
        return;
    };
    assert_eq!(std::process::id(), 1, "the guest is PID 1 of its namespace");
    // crun does not take the machine's mixture of both versions of cgroups.
    let _ = umount2("/sys/fs/cgroup/unified", MntFlags::MNT_DETACH);
    for (kind, target) in [("tmpfs", "/run"), ("cgroup2", CGROUPS)] {
        fs::create_dir_all(target).unwrap();
        let (flags, options) = (MsFlags::empty(), None::<&str>);
        mount(Some(kind), target, Some(kind), flags, options).unwrap();
    }
    signals::hold_back().unwrap();
    let end = session::run(Workshop {
        host: Host::Unix(directory.join("host")),
        runtime: Runtime(directory.join("runtime")),
        roots: Roots::new(Box::new(Directories(directory)), "/run/onggi/roots".into()),
        bundles: "/run/onggi/containers".into(),
        helper: env!("CARGO_BIN_EXE_onggi-init").into(),
        cgroups: CGROUPS.into(),
        address: OnceLock::new(),
    });
    let _ = writeln!(std::io::stderr(), "{end}");
    std::process::exit(0);
}

/// crun takes the machine's control groups for those of version 1, which they are but for one
/// hierarchy. The guest's are of version 2: so the process is moved there when it runs.
const RUNTIME: &str = r#"#!/bin/sh
/usr/bin/crun "$@" || exit
while [ "$1" != --pid-file ]; do shift; done
pid=$(cat "$2")
for name; do :; done
mkdir -p /run/cgroup/onggi/"$name"
echo "$pid" 2>/dev/null >/run/cgroup/onggi/"$name"/cgroup.procs || :
"#;

/// Whether guests can be run here. If not, says so past the test harness' capture.
pub fn possible() -> bool {
    let missing = ["/usr/bin/crun", "/bin/busybox"]
        .into_iter()
        .find(|p| !Path::new(p).exists());
    let reason = match missing {
        Some(path) => format!("there is no {path} (apt-get install crun busybox-static)"),
        None if !nix::unistd::geteuid().is_root() => "containers here need root".to_string(),
        None => return true,
    };
    let _ = writeln!(std::io::stderr(), "SKIPPED, NOT TESTED: {reason}");
    false
}

/// A guest that runs, as its host sees it.
pub struct Guest {
    /// The control connection.
    pub control: UnixStream,
    /// What the guest has said of itself.
    pub hello: Hello,
    process: Child,
    streams: Receiver<(ProcessId, StreamKind, UnixStream)>,
    waiting: HashMap<(ProcessId, StreamKind), UnixStream>,
    unread: RefCell<Vec<GuestMessage>>,
    names: Vec<String>,
    /// What has been laid out for it.
    pub directory: tempfile::TempDir,
}

/// What has become of a process.
#[derive(Debug)]
pub struct Outcome {
    pub bytes: Vec<u8>,
    pub stdout: String,
    pub stderr: String,
    pub status: ExitStatus,
}

impl Guest {
    /// A guest that has been welcomed.
    pub fn start() -> Self {
        let guest = Self::start_unwelcomed();
        let time_ns = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_nanos();
        let time_ns = time_ns.try_into().unwrap();
        guest.send(&HostMessage::Welcome {
            version: VERSION,
            time_ns,
            interfaces: Vec::new(),
        });
        guest
    }

    /// A guest that has said hello and waits.
    pub fn start_unwelcomed() -> Self {
        Self::start_after("")
    }

    /// A guest with a network of its own, which these commands have made, that waits.
    pub fn start_with_network(commands: &str) -> Self {
        Self::start_after(commands)
    }

    fn start_after(network: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        lay_out(directory.path());
        let listener = UnixListener::bind(directory.path().join("host")).unwrap();
        let process = Command::new("unshare")
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--uts",
                "--ipc",
                "--mount-proc",
            ])
            .args((!network.is_empty()).then_some("--net"))
            .args(["sh", "-ec", &format!("{network}\nexec \"$@\""), "sh"])
            .args(["env", "--block-signal=CHLD,INT,PWR,TERM"])
            .arg(env::current_exe().unwrap())
            .args(["guest", "--exact", "--nocapture"])
            .env(GUEST, directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (found, streams) = channel();
        let (greeted, control) = channel();
        thread::spawn(move || {
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                match read_frame(&mut connection) {
                    Ok(Some(Opening::Hello(hello))) => greeted.send((hello, connection)).unwrap(),
                    Ok(Some(Opening::Stream { id, which })) => {
                        if found.send((id, which, connection)).is_err() {
                            return;
                        }
                    }
                    other => panic!("{other:?} is no opening"),
                }
            }
        });
        let (hello, control) = control.recv_timeout(SOON).expect("the guest says hello");
        control.set_read_timeout(Some(SOON)).unwrap();
        Self {
            control,
            hello,
            process,
            streams,
            waiting: HashMap::new(),
            unread: RefCell::default(),
            names: Vec::new(),
            directory,
        }
    }

    pub fn send(&self, message: &HostMessage) {
        write_frame(&mut &self.control, message).unwrap();
    }

    pub fn receive(&self) -> GuestMessage {
        read_frame(&mut &self.control)
            .unwrap()
            .expect("the guest says something")
    }

    /// The next message about a process.
    fn receive_of(&self, wanted: ProcessId) -> GuestMessage {
        let of = |message: &GuestMessage| match message {
            GuestMessage::Started { id, .. } | GuestMessage::Exited { id, .. } => Some(*id),
            GuestMessage::Failed { id, .. } => *id,
        };
        let mut unread = self.unread.borrow_mut();
        loop {
            if let Some(at) = unread
                .iter()
                .position(|message| of(message) == Some(wanted))
            {
                return unread.remove(at);
            }
            unread.push(self.receive());
        }
    }

    /// An id that no other process of this test's has.
    fn id() -> ProcessId {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        ProcessId(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Asks for a process in a new container with the first `layers` layers.
    pub fn run(&mut self, process: Process, layers: u32) -> ProcessId {
        let container = container(layers);
        self.run_in(process, container)
    }

    /// Asks for a process in this container.
    pub fn run_in(&mut self, process: Process, container: Container) -> ProcessId {
        let id = Self::id();
        self.names.push(container.name.clone());
        self.send(&HostMessage::Run(Box::new(Run {
            id,
            process,
            container,
        })));
        id
    }

    /// Asks for another process in a container that runs.
    pub fn exec(&mut self, container: ProcessId, process: Process) -> ProcessId {
        let id = Self::id();
        self.send(&HostMessage::Exec(Box::new(Exec {
            id,
            container,
            process,
            privileged: false,
        })));
        id
    }

    /// Asks for a task about a container.
    pub fn assist(&mut self, container: &Container, task: Task) -> ProcessId {
        let id = Self::id();
        let container = container.clone();
        self.send(&HostMessage::Assist(Box::new(Assist {
            id,
            container,
            task,
        })));
        id
    }

    /// Waits until a process has started; returns its PID.
    pub fn started(&self, id: ProcessId) -> u32 {
        match self.receive_of(id) {
            GuestMessage::Started { pid, .. } => pid,
            other => panic!("{other:?} in place of started"),
        }
    }

    /// Waits until a process has started, or has failed to.
    pub fn started_or_failed(&self, id: ProcessId) -> Option<(FailureKind, String)> {
        match self.receive_of(id) {
            GuestMessage::Started { .. } => None,
            GuestMessage::Failed { kind, message, .. } => Some((kind, message)),
            other => panic!("{other:?} in place of started"),
        }
    }

    pub fn exited(&self, id: ProcessId) -> ExitStatus {
        match self.receive_of(id) {
            GuestMessage::Exited { status, .. } => status,
            other => panic!("{other:?} in place of exited"),
        }
    }

    pub fn failed(&self, id: ProcessId) -> (FailureKind, String) {
        match self.receive_of(id) {
            GuestMessage::Failed { kind, message, .. } => (kind, message),
            other => panic!("{other:?} in place of failed"),
        }
    }

    /// One of a process's streams.
    pub fn stream(&mut self, id: ProcessId, which: StreamKind) -> UnixStream {
        loop {
            if let Some(stream) = self.waiting.remove(&(id, which)) {
                stream.set_read_timeout(Some(SOON)).unwrap();
                return stream;
            }
            let (id, which, stream) = self.streams.recv_timeout(SOON).expect("a stream comes");
            self.waiting.insert((id, which), stream);
        }
    }

    /// Runs a shell command to its end in the top layer.
    pub fn shell(&mut self, command: &str) -> Outcome {
        self.finish(shell(command))
    }

    /// Runs a process to its end in the top layer.
    pub fn finish(&mut self, process: Process) -> Outcome {
        let id = self.run(process, 2);
        self.outcome(id)
    }

    /// Runs a shell command to its end in this container.
    pub fn shell_in(&mut self, container: &Container, command: &str) -> Outcome {
        let id = self.run_in(shell(command), container.clone());
        self.outcome(id)
    }

    /// Waits for the start and the end of what has been asked for.
    pub fn outcome(&mut self, id: ProcessId) -> Outcome {
        self.started(id);
        let [stdout, stderr] = [StreamKind::Stdout, StreamKind::Stderr].map(|which| {
            let stream = self.stream(id, which);
            thread::spawn(move || read_bytes(stream))
        });
        let status = self.exited(id);
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let bytes = stdout.join().unwrap();
        Outcome {
            stdout: text(bytes.clone()),
            bytes,
            stderr: text(stderr.join().unwrap()),
            status,
        }
    }

    /// Runs a process that doesn't start.
    pub fn fail(&mut self, process: Process, layers: u32) -> (FailureKind, String) {
        let id = self.run(process, layers);
        self.failed(id)
    }

    /// A file of PID 1's directory in /proc, as this process sees it.
    pub fn proc(&self, file: &str) -> PathBuf {
        let children = format!("/proc/{0}/task/{0}/children", self.process.id());
        let children = fs::read_to_string(children).unwrap();
        Path::new("/proc").join(children.trim()).join(file)
    }

    /// Waits for the guest's end; returns its last words.
    pub fn end(mut self) -> String {
        let mut words = String::new();
        self.process
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut words)
            .unwrap();
        assert!(self.process.wait().unwrap().success(), "{words}");
        words.lines().last().unwrap_or_default().to_string()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // PID 1 of the namespace dies with it, and all others with PID 1.
        let _ = self.process.kill();
        let _ = self.process.wait();
        for hierarchy in fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            for name in &self.names {
                let _ = fs::remove_dir(hierarchy.path().join("onggi").join(name));
            }
        }
    }
}

pub fn read_bytes(mut stream: UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// A container with the first `layers` layers, under a name of its own: the machine's control groups
/// know it, so no two tests may share one.
pub fn container(layers: u32) -> Container {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Container {
        name: format!("test-{}-{number}", std::process::id()),
        hostname: "jar".into(),
        layers: self::layers(layers),
        mounts: Vec::new(),
        read_only: false,
        capabilities: CAPABILITIES.map(String::from).into(),
        privileged: false,
        shm_bytes: 0,
        hosts: Vec::new(),
        resolver: Resolver {
            nameservers: vec!["10.1.2.3".parse().unwrap()],
            ..Resolver::default()
        },
    }
}

/// The first layers.
pub fn layers(count: u32) -> Vec<Layer> {
    let layer = |partition| Layer {
        partition,
        start: 0,
        sectors: 0,
    };
    (1..=count).map(layer).collect()
}

pub fn read_all(stream: UnixStream) -> String {
    String::from_utf8(read_bytes(stream)).unwrap()
}

pub fn shell(command: &str) -> Process {
    program(&["sh", "-c", command])
}

pub fn program(args: &[&str]) -> Process {
    Process {
        args: args.iter().map(ToString::to_string).collect(),
        env: Vec::new(),
        cwd: "/".into(),
        user: String::new(),
        terminal: None,
        stdin: false,
    }
}

/// As many layers as a GPT of the usual size has room for: busybox at the bottom, above it what the
/// tests look for, and a mark in the topmost.
pub const LAYERS: u32 = 127;

fn lay_out(directory: &Path) {
    let lower = directory.join("layers/1");
    let upper = directory.join("layers/2");
    for path in ["bin", "etc", "tmp", "dev", "proc", "sys"] {
        fs::create_dir_all(lower.join(path)).unwrap();
    }
    fs::create_dir_all(upper.join("etc")).unwrap();
    for number in 3..=LAYERS {
        fs::create_dir(directory.join("layers").join(number.to_string())).unwrap();
    }
    fs::write(directory.join(format!("layers/{LAYERS}/top")), "").unwrap();
    fs::create_dir(directory.join("scratch")).unwrap();
    let runtime = directory.join("runtime");
    fs::write(&runtime, RUNTIME).unwrap();
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy("/bin/busybox", lower.join("bin/busybox")).unwrap();
    let applets = Command::new("/bin/busybox")
        .arg("--list")
        .output()
        .unwrap()
        .stdout;
    for applet in String::from_utf8(applets)
        .unwrap()
        .lines()
        .filter(|name| *name != "busybox")
    {
        std::os::unix::fs::symlink("busybox", lower.join("bin").join(applet)).unwrap();
    }
    fs::write(lower.join("etc/which"), "lower").unwrap();
    fs::write(lower.join("etc/lower"), "").unwrap();
    fs::write(upper.join("etc/which"), "upper").unwrap();
    fs::write(
        upper.join("etc/passwd"),
        "root:x:0:0::/root:\nalice:x:1000:1000::/home/a:\n",
    )
    .unwrap();
    fs::write(upper.join("etc/group"), "alice:x:1000:\nstaff:x:50:alice\n").unwrap();
}
