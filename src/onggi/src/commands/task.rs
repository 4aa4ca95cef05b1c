//! What the guest does about a container for a command.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::thread::{self, JoinHandle};

use onggi_protocol::Task as Question;

use crate::client::{self, Connection};
use crate::error::{Explain, Failure};
use crate::monitor::wire::{Reply, Request, StreamName};
use crate::state::{Container, Containers};

/// How much of a task's complaint is shown.
const MAX_SAID: u64 = 4096;

/// What a task could not do, in the guest's words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

impl Explain for Error {
    fn status(&self) -> u8 {
        1
    }
}

/// The failure of a task that said this.
pub fn failed(said: String) -> Failure {
    let said = said.trim();
    let said = if said.is_empty() {
        "the guest could not do it"
    } else {
        said
    };
    Error(said.to_owned()).into()
}

/// A task under way.
#[derive(Debug)]
pub struct Task {
    connection: Connection,
    pub input: Option<File>,
    pub output: Option<File>,
    said: Option<JoinHandle<String>>,
}

/// How a task ended.
#[derive(Debug)]
pub struct Finished {
    pub code: u8,
    /// What it has to say.
    pub said: String,
}

/// Begins a task, in a VM that is booted for it if the container's does not run.
///
/// # Errors
/// It can't begin.
pub fn begin(
    containers: &Containers,
    container: &Container,
    task: Question,
) -> Result<Task, Failure> {
    let vm = containers.read_vm(&container.record.vm)?;
    let request = Request::Assist {
        container: container.record.id.clone(),
        task,
    };
    let (connection, reply, descriptors) = Connection::start(&vm, &request)?;
    let Reply::Streams { streams } = reply else {
        return Err(client::Error::Unexpected.into());
    };
    let mut task = Task {
        connection,
        input: None,
        output: None,
        said: None,
    };
    for (name, stream) in streams.into_iter().zip(descriptors) {
        match name {
            StreamName::Input => task.input = Some(File::from(stream)),
            StreamName::Output => task.output = Some(File::from(stream)),
            StreamName::Error => task.said = Some(listen(stream)),
            StreamName::Terminal => return Err(client::Error::Unexpected.into()),
        }
    }
    Ok(task)
}

fn listen(stream: OwnedFd) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut said = Vec::new();
        let mut stream = File::from(stream);
        let _ = stream.by_ref().take(MAX_SAID).read_to_end(&mut said);
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
        String::from_utf8_lossy(&said).into_owned()
    })
}

impl Task {
    /// Waits for its end. Its streams are to be read and closed before.
    ///
    /// # Errors
    /// The VM has died.
    pub fn finish(self) -> Result<Finished, Failure> {
        drop((self.input, self.output));
        let said = self.said.map(|thread| thread.join().unwrap_or_default());
        loop {
            match self.connection.receive()? {
                (Reply::Started, _) => {}
                (Reply::Exited { code }, _) => {
                    return Ok(Finished {
                        code,
                        said: said.unwrap_or_default(),
                    });
                }
                _ => return Err(client::Error::Unexpected.into()),
            }
        }
    }
}
