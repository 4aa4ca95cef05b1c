//! A guest without a VM: the session of `onggi-init` as PID 1 of namespaces of its own, with a Unix
//! socket for the vsock and directories for the disks; and the host's side of the conversation.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{env, fs, thread};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use onggi_init::container::Workshop;
use onggi_init::failure::Failure;
use onggi_init::runtime::Runtime;
use onggi_init::storage::Storage;
use onggi_init::transport::Host;
use onggi_init::{session, signals};
use onggi_protocol::{
    Container, ExitStatus, FailureKind, GuestMessage, Hello, HostMessage, Opening, Process,
    ProcessId, Resolver, Run, StreamKind, VERSION, read_frame, write_frame,
};

/// Where the guest finds what the test has laid out, and that it is to be a guest at all.
const GUEST: &str = "ONGGI_TEST_GUEST";

/// Much longer than anything here takes: a test that waits so long has failed.
pub const SOON: Duration = Duration::from_secs(60);

/// Directories in place of disks.
struct Directories(PathBuf);

impl Storage for Directories {
    fn layers(&mut self, count: u32) -> Result<PathBuf, Failure> {
        let layers = self.0.join("layers");
        if !layers.join(count.to_string()).is_dir() {
            return Err(Failure::new(
                FailureKind::Storage,
                format!("there is no layer {count}"),
            ));
        }
        Ok(layers)
    }

    fn scratch(&mut self) -> Result<PathBuf, Failure> {
        Ok(self.0.join("scratch"))
    }
}

/// The guest, if this process is to be one; does not return then.
pub fn be_the_guest() {
    let Some(directory) = env::var_os(GUEST).map(PathBuf::from) else {
        return;
    };
    assert_eq!(std::process::id(), 1, "the guest is PID 1 of its namespace");
    // crun does not take the machine's mixture of both versions of cgroups.
    let _ = umount2("/sys/fs/cgroup/unified", MntFlags::MNT_DETACH);
    mount(
        Some("tmpfs"),
        "/run",
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
    signals::hold_back().unwrap();
    let end = session::run(Workshop {
        host: Host::Unix(directory.join("host")),
        storage: Box::new(Directories(directory)),
        bundles: "/run/onggi".into(),
        runtime: Runtime("/usr/bin/crun".into()),
    });
    let _ = writeln!(std::io::stderr(), "{end}");
    std::process::exit(0);
}

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
    used: Vec<ProcessId>,
    _directory: tempfile::TempDir,
}

/// What has become of a process.
#[derive(Debug)]
pub struct Outcome {
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
        });
        guest
    }

    /// A guest that has said hello and waits.
    pub fn start_unwelcomed() -> Self {
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
        let (waiting, used) = (HashMap::new(), Vec::new());
        Self {
            control,
            hello,
            process,
            streams,
            waiting,
            used,
            _directory: directory,
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

    /// Asks for a process with the container's first `layers` layers.
    pub fn run(&mut self, process: Process, layers: u32) -> ProcessId {
        // The machine's cgroups know these names: no two tests may share one.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let base = std::process::id() << 8;
        let id = ProcessId(base + NEXT.fetch_add(1, Ordering::Relaxed));
        self.used.push(id);
        let container = Container {
            hostname: "jar".into(),
            layers,
            hosts: Vec::new(),
            resolver: Resolver {
                nameservers: vec!["10.1.2.3".parse().unwrap()],
                ..Resolver::default()
            },
        };
        self.send(&HostMessage::Run(Box::new(Run {
            id,
            process,
            container,
        })));
        id
    }

    /// Waits until a process has started; returns its PID.
    pub fn started(&self, id: ProcessId) -> u32 {
        match self.receive() {
            GuestMessage::Started { id: started, pid } if started == id => pid,
            other => panic!("{other:?} in place of started"),
        }
    }

    pub fn exited(&self, id: ProcessId) -> ExitStatus {
        match self.receive() {
            GuestMessage::Exited { id: exited, status } if exited == id => status,
            other => panic!("{other:?} in place of exited"),
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
        self.started(id);
        let [stdout, stderr] = [StreamKind::Stdout, StreamKind::Stderr].map(|which| {
            let stream = self.stream(id, which);
            thread::spawn(move || read_all(stream))
        });
        let status = self.exited(id);
        Outcome {
            stdout: stdout.join().unwrap(),
            stderr: stderr.join().unwrap(),
            status,
        }
    }

    /// Runs a process that doesn't start.
    pub fn fail(&mut self, process: Process, layers: u32) -> (FailureKind, String) {
        let asked = self.run(process, layers);
        match self.receive() {
            GuestMessage::Failed { id, kind, message } if id == Some(asked) => (kind, message),
            other => panic!("{other:?} in place of failed"),
        }
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
        for id in &self.used {
            for hierarchy in fs::read_dir("/sys/fs/cgroup")
                .into_iter()
                .flatten()
                .flatten()
            {
                let _ = fs::remove_dir(hierarchy.path().join(format!("onggi/{id}")));
            }
        }
    }
}

pub fn read_all(mut stream: UnixStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
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
