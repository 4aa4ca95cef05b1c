//! `onggi vmm`, and a client of its API that knows what to expect.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use onggi_tests::command::onggi;
use onggi_tests::probe;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::contract::Contract;

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process with an API, in a folder of its own. It is killed when this is dropped.
pub struct Monitor {
    pub child: Child,
    pub folder: TempDir,
    contract: Contract,
}

impl Monitor {
    /// Starts one, and waits until its API is there.
    ///
    /// # Panics
    /// Where it never is.
    pub fn start(flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self::start_in(folder, vmm().args(flags))
    }

    /// The same, by any command and in any folder.
    ///
    /// # Panics
    /// Where its API is never there.
    pub fn start_in(folder: TempDir, command: &mut Command) -> Self {
        // What can fail comes before there is a process to leave behind.
        let contract = Contract::load();
        let console = fs::File::create(folder.path().join("console")).expect("a file");
        let child = command
            .args(["--api-sock", "api.sock"])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(console)
            .stderr(Stdio::null())
            .spawn();
        let monitor = Monitor {
            child: child.expect("onggi can be started"),
            folder,
            contract,
        };
        eventually("an API", || monitor.try_connect().is_ok());
        monitor
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn try_connect(&self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(self.path("api.sock"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// A client that has not said anything.
    ///
    /// # Panics
    /// Where there is no API.
    pub fn connect(&self) -> UnixStream {
        self.try_connect().expect("the API is there")
    }

    /// Makes a request; the answer is one that clients may expect.
    ///
    /// # Panics
    /// Where it is not.
    #[track_caller]
    pub fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let mut client = self.connect();
        client
            .write_all(request(method, path, body.as_bytes()).as_slice())
            .expect("the API listens");
        let (status, answer) = answer(&mut client).expect("an answer");
        self.contract.check_answer(method, path, status, &answer);
        (status, answer)
    }

    /// # Panics
    /// Where there is no such thing.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        let (status, answer) = self.ask("GET", path, &Value::Null);
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    /// # Panics
    /// Where it is refused.
    #[track_caller]
    pub fn put(&self, path: &str, body: &Value) {
        let (status, answer) = self.ask("PUT", path, body);
        assert_eq!(status, 204, "{path}: {answer}");
    }

    /// # Panics
    /// Where it is refused.
    #[track_caller]
    pub fn patch(&self, path: &str, body: &Value) {
        let (status, answer) = self.ask("PATCH", path, body);
        assert_eq!(status, 204, "{path}: {answer}");
    }

    /// # Panics
    /// Where it is done.
    #[track_caller]
    pub fn refuses(&self, method: &str, path: &str, body: &Value) {
        let (status, _) = self.ask(method, path, body);
        assert_eq!(status, 400, "{method} {path} {body}");
    }

    /// Describes a VM that writes to a disk and counts on its console, for ever, and starts it.
    ///
    /// # Panics
    /// Where that is refused.
    #[track_caller]
    pub fn start_counting(&self) {
        let disk = fs::File::create(self.path("disk")).expect("a disk");
        disk.set_len(4 << 20).expect("a disk");
        self.put("/boot-source", &boot_source("blk-soak", ""));
        self.put(
            "/machine-config",
            &json!({ "vcpu_count": 1, "mem_size_mib": 64 }),
        );
        let disk = json!({ "drive_id": "disk", "path_on_host": "disk", "is_root_device": false });
        self.put("/drives/disk", &disk);
        self.put("/actions", &json!({ "action_type": "InstanceStart" }));
        self.progresses();
    }

    /// # Panics
    /// Where the guest stands still.
    #[track_caller]
    pub fn progresses(&self) {
        let before = self.console().len();
        eventually("progress", || self.console().len() > before + 100);
    }

    /// What the guest has said.
    ///
    /// # Panics
    /// Where that can't be read.
    pub fn console(&self) -> String {
        fs::read_to_string(self.path("console")).expect("a console")
    }

    /// # Panics
    /// Where it can't be told.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([format!("-{name}"), self.child.id().to_string()])
            .status();
        assert!(sent.is_ok_and(|status| status.success()));
    }

    /// Waits for the end of the process.
    ///
    /// # Panics
    /// Where that never comes.
    pub fn end(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("an end", || {
            status = self.child.try_wait().expect("a child");
            status.is_some()
        });
        status.expect("it has ended")
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `onggi vmm`
pub fn vmm() -> Command {
    let mut command = onggi();
    command.arg("vmm");
    command
}

/// The probe, as a body of `/boot-source`.
pub fn boot_source(probes: &str, options: &str) -> Value {
    json!({
        "kernel_image_path": probe::path(),
        "boot_args": format!("probe={probes} virtio=0xd0000000+0x1000*4 {options}"),
    })
}

/// A request as bytes.
pub fn request(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// The next answer, `Null` where it has no body.
///
/// # Errors
/// The connection's, and what is no answer.
pub fn answer(client: &mut impl Read) -> io::Result<(u16, Value)> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    let status = head.split(' ').nth(1).and_then(|it| it.parse().ok());
    let status = status.ok_or(io::ErrorKind::InvalidData)?;
    let length = head.split("Content-Length: ").nth(1);
    let length = length.and_then(|it| it.split('\r').next()?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    client.read_exact(&mut body)?;
    let body = match body.is_empty() {
        true => Value::Null,
        false => serde_json::from_slice(&body)?,
    };
    Ok((status, body))
}

/// Waits for something to come true.
///
/// # Panics
/// Where it doesn't.
#[track_caller]
pub fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_true() {
        assert!(Instant::now() < deadline, "there never was {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Makes a link to the `onggi` binary.
///
/// # Panics
/// Where that can't be.
pub fn link(at: &Path) {
    std::os::unix::fs::symlink(onggi().get_program(), at).expect("a link");
}
