//! QEMU's storage daemon, which serves a disk by vhost-user.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use std::{fs, thread};

/// Until it must listen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon, killed when it is dropped.
pub struct StorageDaemon {
    child: Child,
    socket: PathBuf,
}

impl StorageDaemon {
    /// Serves the raw file `disk` at a socket beside it, with `queues`. Words of `options` are added
    /// to the export.
    ///
    /// # Panics
    /// Where the daemon is not installed, or does not start.
    pub fn start(disk: &Path, queues: u16, options: &str) -> Self {
        let socket = disk.with_extension("socket");
        let _ = fs::remove_file(&socket); // of one that was killed
        let (file, address) = (disk.display(), socket.display());
        let mut command = Command::new("qemu-storage-daemon");
        command.arg("--blockdev");
        command.arg(format!("driver=file,node-name=disk,filename={file}"));
        command.arg("--export").arg(format!(
            "type=vhost-user-blk,id=export,node-name=disk,num-queues={queues},\
             addr.type=unix,addr.path={address},{options}"
        ));
        // It has much to say of hostile guests.
        let log = disk.with_extension("log");
        command.stderr(File::create(&log).expect("the folder can be written to"));
        let child = command.spawn();
        let child = child.expect("qemu-storage-daemon (Debian's qemu-system-common) is installed");
        let mut daemon = Self { child, socket };
        let deadline = Instant::now() + PATIENCE;
        while !daemon.socket.exists() {
            let ended = daemon.child.try_wait().expect("the daemon is a child");
            let said = || fs::read_to_string(&log).unwrap_or_default();
            assert_eq!(ended, None, "the daemon ended: {}", said());
            assert!(Instant::now() < deadline, "the daemon does not listen");
            thread::sleep(Duration::from_millis(2));
        }
        daemon
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `kill -9`, and waits for its end.
    ///
    /// # Panics
    /// Where it has ended before.
    pub fn kill(&mut self) {
        self.child.kill().expect("the daemon runs");
        self.child.wait().expect("the daemon is a child");
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may be gone
        let _ = self.child.wait();
    }
}
