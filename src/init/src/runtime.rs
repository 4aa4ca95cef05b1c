//! The OCI runtime, crun, which makes a container of a bundle.
//!
//! It is called once per container, as `crun run --detach`: it returns when the program has been
//! executed, and the program is then a child of PID 1, who so learns its exact status. Creating
//! and starting apart would execute the runtime twice and tell no more.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use onggi_protocol::FailureKind;
use serde::Deserialize;

use crate::failure::Failure;
use crate::kernel;
use crate::wiring::StandardStreams;

const LOG: &str = "runtime.log";
const PID: &str = "pid";
const CONSOLE: &str = "console";

/// What crun takes for its state where nobody says otherwise.
const STATE: &str = "/run/crun";

/// The most of the log that is read.
const MAX_LOG: u64 = 64 << 10;

/// The runtime's program.
#[derive(Debug, Clone)]
pub struct Runtime(pub PathBuf);

/// A line of the runtime's log.
#[derive(Deserialize)]
struct LogLine {
    msg: String,
}

impl Runtime {
    /// A command that runs the bundle as the container `name`, and the socket on which a terminal
    /// will arrive.
    ///
    /// # Errors
    /// When there can be no such socket.
    pub fn run(
        &self,
        bundle: &Path,
        name: &str,
        streams: StandardStreams,
    ) -> Result<(Command, Option<UnixListener>), Failure> {
        let mut command = Command::new(&self.0);
        command
            .arg("--log")
            .arg(bundle.join(LOG))
            .args(["--log-format", "json"]);
        command.args(["--cgroup-manager", "cgroupfs", "run", "--detach"]);
        command
            .arg("--bundle")
            .arg(bundle)
            .arg("--pid-file")
            .arg(bundle.join(PID));
        let mut console = None;
        if let StandardStreams::Terminal = streams {
            let path = bundle.join(CONSOLE);
            let listen = || {
                let listener = UnixListener::bind(&path)?;
                listener.set_nonblocking(true)?;
                Ok::<_, io::Error>(listener)
            };
            console = Some(listen().map_err(Failure::because(
                FailureKind::Internal,
                "no terminal can be received",
            ))?);
            command.arg("--console-socket").arg(path);
        }
        streams.give_to(&mut command);
        command.arg("--").arg(name).current_dir("/").env_clear();
        Ok((command, console))
    }

    /// Where the runtime keeps what it knows of a container.
    #[must_use]
    pub fn state(&self, name: &str) -> PathBuf {
        Path::new(STATE).join(name)
    }
}

/// The PID of the program of a bundle that runs.
///
/// # Errors
/// When the runtime has left none.
pub fn pid(bundle: &Path) -> Result<i32, Failure> {
    let text = fs::read_to_string(bundle.join(PID)).unwrap_or_default();
    // The numbers 0 and below mean many processes to kill(2).
    text.trim()
        .parse()
        .ok()
        .filter(|pid| *pid > 1)
        .ok_or_else(|| {
            Failure::new(
                FailureKind::Runtime,
                "the OCI runtime did not say what it has started",
            )
        })
}

/// Takes the terminal that the runtime has sent.
///
/// # Errors
/// When it has sent none.
pub fn terminal(console: &UnixListener) -> Result<OwnedFd, Failure> {
    let receive = || {
        let (connection, _) = console.accept()?;
        let (_, terminal) = kernel::receive(connection.as_fd())?;
        terminal.ok_or_else(|| io::Error::other("the message holds none"))
    };
    receive().map_err(Failure::because(
        FailureKind::Runtime,
        "no terminal has come from the OCI runtime",
    ))
}

/// Why the runtime has failed, by its log.
#[must_use]
pub fn failure(bundle: &Path) -> Failure {
    let mut log = String::new();
    if let Ok(file) = File::open(bundle.join(LOG)) {
        // What can't be read is as good as not there: the failure is then one without words.
        let _ = io::Read::read_to_string(&mut io::Read::take(file, MAX_LOG), &mut log);
    }
    let last = log
        .lines()
        .rev()
        .find_map(|line| serde_json::from_str::<LogLine>(line).ok());
    let Some(LogLine { msg }) = last else {
        return Failure::new(
            FailureKind::Runtime,
            "the OCI runtime failed without a word",
        );
    };
    Failure::new(
        kind(&msg),
        format!("the container could not be started: {msg}"),
    )
}

/// The runtime has words only. These are crun's, as of 1.8.
fn kind(message: &str) -> FailureKind {
    if message.starts_with("executable file") {
        FailureKind::NotFound
    } else if message.starts_with("open executable") {
        FailureKind::NotExecutable
    } else {
        FailureKind::Runtime
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure_of(log: &str) -> Failure {
        let bundle = tempfile::tempdir().unwrap();
        fs::write(bundle.path().join(LOG), log).unwrap();
        failure(bundle.path())
    }

    #[test]
    fn the_last_word_of_the_runtime_tells_the_kind() {
        let log = r#"{"msg":"a warning","level":"warning","time":"t"}
{"msg":"executable file `x` not found in $PATH: No such file or directory","level":"error"}
"#;
        let failure = failure_of(log);
        assert_eq!(failure.kind, FailureKind::NotFound);
        assert!(
            failure
                .message
                .ends_with("$PATH: No such file or directory"),
            "{failure}"
        );
        let denied = r#"{"msg":"open executable: Permission denied"}"#;
        assert_eq!(failure_of(denied).kind, FailureKind::NotExecutable);
        assert_eq!(
            failure_of(r#"{"msg":"mount `proc`"}"#).kind,
            FailureKind::Runtime
        );
    }

    #[test]
    fn a_log_that_is_empty_absent_or_no_log_is_a_failure_without_words() {
        for log in ["", "\n", "crun: text", "{}", "[1]"] {
            assert_eq!(
                failure_of(log).message,
                "the OCI runtime failed without a word",
                "{log}"
            );
        }
        assert_eq!(
            failure(Path::new("/nonexistent")).kind,
            FailureKind::Runtime
        );
    }

    #[test]
    fn only_a_real_pid_is_taken() {
        let bundle = tempfile::tempdir().unwrap();
        assert!(pid(bundle.path()).is_err());
        for (text, expected) in [
            ("42", Some(42)),
            ("42\n", Some(42)),
            ("-1", None),
            ("0", None),
            ("1", None),
            ("", None),
        ] {
            fs::write(bundle.path().join(PID), text).unwrap();
            assert_eq!(pid(bundle.path()).ok(), expected, "{text}");
        }
    }
}
