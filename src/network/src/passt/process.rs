//! A passt of our own: started with one end of a socket pair, so that nothing needs a name.
//!
//! It gives up its privileges itself, and ends when the other end of its socket is closed: with the
//! VM, however that ends.

use std::env;
use std::fs;
use std::io::{self, PipeReader, Read};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use super::{Passt, Protocol, Publish};
use crate::sys;

const PROGRAM: &str = "passt";
/// How long passt has to get ready.
const PATIENCE: Duration = Duration::from_secs(10);
/// Room for frames on their way, in each direction; the kernel may give less.
const SOCKET_BUFFER: usize = 4 << 20;
/// Lines of passt's that are shown.
const LINES: usize = 3;

/// Why there is no passt.
#[derive(Debug, thiserror::Error)]
pub enum PasstError {
    /// The program is not there.
    #[error("user-mode networking needs the program 'passt', which is not installed")]
    Missing,
    /// The program can't be started.
    #[error("passt can't be started")]
    Start(#[source] io::Error),
    /// It ended before it was ready.
    #[error("passt did not start: {0}")]
    Refused(String),
    /// It never came so far.
    #[error("passt did not get ready in {} seconds", PATIENCE.as_secs())]
    Late,
}

/// What a passt is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PasstOptions {
    /// Ports of the host that lead to the guest.
    pub publish: Vec<Publish>,
    /// Whether the gateway's address, to the guest, is the host itself, with what listens on its
    /// loopback interface.
    pub host: bool,
    /// The largest packet, of which the guest is told when it asks for an address.
    pub mtu: u16,
    /// Addresses for a guest that knows them without asking; else passt tells it those of the host.
    pub addresses: Option<Addresses>,
}

/// A guest's addresses, which need have nothing to do with the host's: to the world the guest is the
/// host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The guest's.
    pub guest: Ipv4Addr,
    /// The length of the network's prefix.
    pub prefix: u8,
    /// The router's.
    pub gateway: Ipv4Addr,
    /// Where the guest finds the host's first name server.
    pub resolver: Ipv4Addr,
}

/// A passt that runs.
#[derive(Debug)]
pub struct Process {
    child: Child,
    said: PipeReader,
}

impl Passt {
    /// Starts a passt, and waits until it is ready.
    ///
    /// # Errors
    /// See [`PasstError`].
    pub fn start(options: &PasstOptions) -> Result<(Passt, Process), PasstError> {
        start(PROGRAM, &arguments(options))
    }

    /// Whether the program is there.
    #[must_use]
    pub fn is_installed() -> bool {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path).any(|directory| directory.join(PROGRAM).is_file())
    }
}

impl Process {
    /// Waits for its end, and returns what it has said, if anything.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(mut self) -> io::Result<String> {
        self.child.wait()?;
        Ok(essence(&mut self.said))
    }
}

fn arguments(options: &PasstOptions) -> Vec<String> {
    // Its own number, which is written to a file once it is ready, tells just that.
    let mut arguments = ["--foreground", "--quiet", "--pid", "/dev/stdout", "--mtu"]
        .map(str::to_owned)
        .to_vec();
    arguments.push(options.mtu.to_string());
    if !options.host {
        arguments.push("--no-map-gw".to_owned());
    }
    if let Some(addresses) = options.addresses {
        for (flag, value) in [
            ("--address", addresses.guest.to_string()),
            ("--netmask", addresses.prefix.to_string()),
            ("--gateway", addresses.gateway.to_string()),
            ("--dns-forward", addresses.resolver.to_string()),
        ] {
            arguments.extend([flag.to_owned(), value]);
        }
        arguments.extend(["--ipv4-only", "--no-dhcp"].map(str::to_owned));
    }
    for publish in &options.publish {
        let flag = match publish.protocol {
            Protocol::Tcp => "--tcp-ports",
            Protocol::Udp => "--udp-ports",
        };
        arguments.extend([flag.to_owned(), publish.to_string()]);
    }
    arguments
}

fn start(program: &str, arguments: &[String]) -> Result<(Passt, Process), PasstError> {
    let (ours, theirs) = UnixStream::pair().map_err(PasstError::Start)?;
    for socket in [&ours, &theirs] {
        // What the kernel gives without being asked will do, only slower.
        let _ = setsockopt(socket, sockopt::SndBuf, &SOCKET_BUFFER);
    }
    let (mut ready, ready_writer) = io::pipe().map_err(PasstError::Start)?;
    let (mut said, said_writer) = io::pipe().map_err(PasstError::Start)?;
    // A passt that root starts opens the file after it has become nobody.
    let path = format!("/proc/self/fd/{}", ready_writer.as_raw_fd());
    fs::set_permissions(path, fs::Permissions::from_mode(0o622)).map_err(PasstError::Start)?;
    // Nobody reads what it says before it ends: what is too much is lost, and does not stop it.
    fcntl(&said_writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map_err(|errno| PasstError::Start(errno.into()))?;

    let mut command = Command::new(program);
    command
        .args(arguments)
        .args(["--fd", &theirs.as_raw_fd().to_string()])
        .stdin(Stdio::null())
        .stdout(ready_writer)
        .stderr(said_writer);
    sys::inherit(&mut command, theirs.as_raw_fd());
    let child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => PasstError::Missing,
        _ => PasstError::Start(error),
    });
    // With it go this process's copies of the pipes.
    drop(command);
    let mut child = child?;
    drop(theirs);
    match await_ready(&mut ready) {
        Ok(true) => {}
        Ok(false) => {
            end(&mut child);
            return Err(PasstError::Refused(essence(&mut said)));
        }
        Err(error) => {
            end(&mut child);
            return Err(error);
        }
    }
    let link = Passt::new(ours).map_err(PasstError::Start)?;
    Ok((link, Process { child, said }))
}

/// Waits for passt to say that it is ready. `false` where it ends instead.
fn await_ready(ready: &mut PipeReader) -> Result<bool, PasstError> {
    let end = Instant::now() + PATIENCE;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(ready.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) => return Err(PasstError::Late),
            Ok(_) => break,
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(PasstError::Start(errno.into())),
        }
    }
    let count = ready.read(&mut [0; 32]).map_err(PasstError::Start)?;
    Ok(count > 0)
}

/// Ends a passt that is of no use.
fn end(child: &mut Child) {
    // Neither fails: it is ours, and nobody has waited for it.
    let _ = child.kill();
    let _ = child.wait();
}

/// The first lines of what passt has said, without its talk of itself.
fn essence(said: &mut PipeReader) -> String {
    let mut text = Vec::new();
    // It has ended, and so does this.
    let _ = said.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    let idle = ["Failed to send", "Don't run as root"];
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !idle.iter().any(|idle| line.starts_with(idle)));
    lines.take(LINES).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
#[path = "process_test.rs"]
mod tests;
