//! A registry for tests.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::source::test_image::TestLayout;

/// Debian's docker-registry on a free port of the loopback interface.
pub(crate) struct RealRegistry {
    pub(crate) address: SocketAddr,
    process: Child,
    pub(crate) directory: tempfile::TempDir,
}

/// `user` with the password `secret`, as htpasswd has it.
const HTPASSWD: &str = "user:$2b$04$SjET60.ZN0jXC2gp7QNzQuCKHnQySGHhNdcVHYNsVx/jAfGPYUTS6\n";

impl RealRegistry {
    /// None where a program is missing; that is said loudly.
    pub(crate) fn start(with_login: bool) -> Option<Self> {
        for program in ["docker-registry", "skopeo"] {
            let found = Command::new(program).arg("--version").output().is_ok();
            if !found {
                eprintln!(
                    "SKIPPED: {program} is not installed; nothing of a real registry is tested"
                );
                return None;
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let root = directory.path().display();
        let mut yaml = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {root}/data\n\
             http:\n  addr: {address}\n"
        );
        if with_login {
            std::fs::write(directory.path().join("htpasswd"), HTPASSWD).unwrap();
            yaml += &format!("auth:\n  htpasswd:\n    realm: test\n    path: {root}/htpasswd\n");
        }
        std::fs::write(directory.path().join("config.yml"), yaml).unwrap();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(directory.path().join("config.yml"))
            .stdout(log)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self {
            address,
            process,
            directory,
        };
        let patience = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < patience, "docker-registry does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(registry)
    }

    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    pub(crate) fn push(&self, layout: &TestLayout, tag: &str, to: &str, arguments: &[&str]) {
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--dest-tls-verify=false"])
            .args(arguments)
            .arg(format!("oci:{}:{tag}", layout.path.display()))
            .arg(format!("docker://{}", self.name(to)))
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{message}");
    }

    /// Copies an image of the registry to a layout.
    pub(crate) fn copy_out(&self, from: &str, layout: &Path, arguments: &[&str]) {
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--src-tls-verify=false"])
            .args(arguments)
            .arg(format!("docker://{}", self.name(from)))
            .arg(format!("oci:{}:copy", layout.display()))
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{message}");
    }

    /// The requests since the last call: `METHOD PATH`, without what is behind a `?`, and the status.
    /// An upload's own name is a `*`.
    pub(crate) fn requests(&self) -> Vec<String> {
        let log = self.directory.path().join("log");
        let text = std::fs::read_to_string(&log).unwrap();
        std::fs::File::options()
            .write(true)
            .open(&log)
            .and_then(|log| log.set_len(0))
            .unwrap();
        let request = |line: &str| {
            let mut quoted = line.split('"');
            let mut words = quoted.nth(1)?.split(' ');
            let (method, path) = (words.next()?, words.next()?);
            let status = quoted.next()?.split_whitespace().next()?;
            let path = path.split('?').next()?;
            let path = match path.split_once("/uploads/") {
                Some((repository, name)) if !name.is_empty() => format!("{repository}/uploads/*"),
                _ => path.to_owned(),
            };
            Some(format!("{method} {path} {status}"))
        };
        text.lines().filter_map(request).collect()
    }

    pub(crate) fn stop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a [`Proxy`] does when a connection has carried as much as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// Ends it.
    Cut,
    /// Ends it, and every later one as it comes.
    Die,
    /// Carries nothing more.
    Stall,
}

/// Carries connections to a registry, each only so far.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
}

impl Proxy {
    /// Connections may carry `up` bytes to the registry and `down` bytes back.
    pub(crate) fn start(registry: &RealRegistry, up: u64, down: u64, then: Then) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let registry = registry.address;
        let dead = Arc::new(AtomicBool::new(false));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if dead.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(registry) else {
                    continue;
                };
                for (from, to, limit) in [(&client, &server, up), (&server, &client, down)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let dead = dead.clone();
                    std::thread::spawn(move || carry(from, to, limit, then, &dead));
                }
            }
        });
        Self { address }
    }

    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, mut limit: u64, then: Then, dead: &AtomicBool) {
    let mut buffer = [0; 16384];
    loop {
        let read = from.read(&mut buffer).unwrap_or(0);
        let carried = limit.min(read as u64) as usize;
        limit -= carried as u64;
        let went = to.write_all(&buffer[..carried]).is_ok();
        if read > carried && then == Then::Stall {
            std::thread::park();
        }
        if read == 0 || read > carried || !went {
            if read > carried && then == Then::Die {
                dead.store(true, Ordering::SeqCst);
            }
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
            return;
        }
    }
}
