//! A backend for tests: a thread that speaks the protocol, serves a disk by onggi's own block device,
//! and misbehaves where it is told to.

#![allow(unsafe_code)] // a descriptor that came over a socket becomes an eventfd

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

use onggi_storage::{Access, Disk};
use onggi_virtio::blk::{Block, BlockOptions};
use onggi_virtio::device::{Device, Memory, Notifier, QueueLayout, QueueStart, QueueState};
use tempfile::TempDir;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::message::{
    FEATURE_PROTOCOL, HEADER, Header, PROTOCOL_CONFIG, PROTOCOL_MQ, PROTOCOL_REPLY_ACK, Request,
    words,
};

/// The length of the disk.
pub const LEN: usize = 1 << 20;
/// Its queues.
pub const QUEUES: u16 = 4;

/// What is on the disk at first.
pub fn pattern() -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    let byte = |at: usize| (at / 512 * 7 + at % 512) as u8;
    PATTERN.get_or_init(|| (0..LEN).map(byte).collect())
}

/// What the backend does with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// What it should.
    Serve,
    /// Nothing.
    Ignore,
    /// It closes the connection.
    HangUp,
    /// It answers with that payload.
    Answer(Vec<u8>),
    /// It sends these bytes.
    Say(Vec<u8>),
    /// It says no, as an acknowledgement.
    Refuse,
}

type Rule = dyn FnMut(u32) -> Act + Send;

struct Behaviour {
    rule: Box<Rule>,
    protocol: u64,
    disk: PathBuf,
    /// The running connection.
    stream: Option<UnixStream>,
}

/// A backend, which ends with the test's process.
pub struct Backend {
    pub dir: TempDir,
    behaviour: Arc<Mutex<Behaviour>>,
}

impl Backend {
    /// A good one.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        fs::write(&disk, pattern()).unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let behaviour = Arc::new(Mutex::new(Behaviour {
            rule: Box::new(|_| Act::Serve),
            protocol: PROTOCOL_CONFIG | PROTOCOL_MQ | PROTOCOL_REPLY_ACK,
            disk,
            stream: None,
        }));
        let of_thread = behaviour.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                of_thread.lock().unwrap().stream = stream.try_clone().ok();
                Connection::new(stream, of_thread.clone()).serve();
            }
        });
        Self { dir, behaviour }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// How it treats requests from now on.
    pub fn rule(&self, rule: impl FnMut(u32) -> Act + Send + 'static) {
        self.behaviour.lock().unwrap().rule = Box::new(rule);
    }

    /// It does so with this request, and what it should with all others.
    pub fn misbehave(&self, at: Request, act: Act) {
        self.rule(move |request| match request == at as u32 {
            true => act.clone(),
            false => Act::Serve,
        });
    }

    /// What later connections find on offer.
    pub fn offer(&self, protocol: u64) {
        self.behaviour.lock().unwrap().protocol = protocol;
    }

    /// Ends the running connection, as a backend that is killed.
    pub fn die(&self) {
        let behaviour = self.behaviour.lock().unwrap();
        let stream = behaviour.stream.as_ref().unwrap();
        stream.shutdown(std::net::Shutdown::Both).unwrap();
    }
}

#[derive(Default)]
struct Ring {
    size: u16,
    next_avail: u16,
    layout: Option<QueueLayout>,
    call: Option<File>,
    error: Option<File>,
}

struct Connection {
    stream: UnixStream,
    behaviour: Arc<Mutex<Behaviour>>,
    protocol: u64,
    device: Block,
    features: u64,
    memory: Option<Memory>,
    rings: Vec<Ring>,
}

impl Connection {
    fn new(stream: UnixStream, behaviour: Arc<Mutex<Behaviour>>) -> Self {
        let lock = behaviour.lock().unwrap();
        let disk = Disk::open(&lock.disk, Access::ReadWrite).unwrap();
        let options = BlockOptions {
            queues: QUEUES,
            ..Default::default()
        };
        let protocol = lock.protocol;
        drop(lock);
        Self {
            stream,
            behaviour,
            protocol,
            device: Block::new(Arc::new(disk), options).unwrap(),
            features: 0,
            memory: None,
            rings: (0..QUEUES).map(|_| Ring::default()).collect(),
        }
    }

    fn serve(mut self) {
        while let Some((header, payload, file)) = self.receive() {
            let act = (self.behaviour.lock().unwrap().rule)(header.request);
            let sent = match act {
                Act::Serve => self.handle(header, &payload, file),
                Act::Ignore => Ok(()),
                Act::HangUp => break,
                Act::Answer(payload) => self.answer(header, &payload),
                Act::Say(bytes) => self.stream.write_all(&bytes),
                Act::Refuse => self.answer(header, &1_u64.to_ne_bytes()),
            };
            if sent.is_err() {
                break; // the monitor was faster
            }
        }
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        for queue in 0..QUEUES {
            self.device.stop_queue(queue);
        }
    }

    fn receive(&mut self) -> Option<(Header, Vec<u8>, Option<File>)> {
        let mut header = [0; HEADER];
        let (count, file) = self.stream.recv_with_fd(&mut header).ok()?;
        if count != HEADER {
            return None;
        }
        let header = Header::from_bytes(header);
        let mut payload = vec![0; header.size as usize];
        self.stream.read_exact(&mut payload).ok()?;
        Some((header, payload, file))
    }

    fn answer(&mut self, header: Header, payload: &[u8]) -> std::io::Result<()> {
        let answer = Header {
            flags: 1 | 1 << 2,
            size: payload.len() as u32,
            ..header
        };
        self.stream
            .write_all(&[&answer.to_bytes(), payload].concat())
    }

    fn handle(
        &mut self,
        header: Header,
        payload: &[u8],
        file: Option<File>,
    ) -> std::io::Result<()> {
        let answer = self.result(header.request, payload, file);
        let number = |number: u64| number.to_ne_bytes().to_vec();
        match answer {
            Some(answer) => self.answer(header, &answer),
            None if header.flags & 1 << 3 != 0 => self.answer(header, &number(0)),
            None => Ok(()),
        }
    }

    /// Does what is asked for, and gives the answer of requests that have one.
    fn result(&mut self, request: u32, payload: &[u8], file: Option<File>) -> Option<Vec<u8>> {
        let is = |wanted: Request| request == wanted as u32;
        let word = |at: usize| u32::from_ne_bytes(payload[4 * at..][..4].try_into().unwrap());
        let double = |at: usize| u64::from_ne_bytes(payload[at..][..8].try_into().unwrap());
        let description = self.device.description();
        if is(Request::GetFeatures) {
            let features = description.features | FEATURE_PROTOCOL;
            return Some(features.to_ne_bytes().to_vec());
        } else if is(Request::GetProtocolFeatures) {
            return Some(self.protocol.to_ne_bytes().to_vec());
        } else if is(Request::GetQueueNum) {
            return Some(u64::from(QUEUES).to_ne_bytes().to_vec());
        } else if is(Request::GetConfig) {
            return Some([&payload[..12], &description.config].concat());
        } else if is(Request::SetFeatures) {
            assert_eq!(double(0) & !(description.features | FEATURE_PROTOCOL), 0);
            self.features = double(0);
        } else if is(Request::SetMemTable) {
            assert_eq!(word(0), 1, "a fake guest's memory is in one piece");
            let (guest, len, user, offset) = (double(8), double(16), double(24), double(32));
            assert_eq!(guest, user, "rings are named by the guest's addresses");
            let place = FileOffset::new(file.unwrap(), offset);
            let range = (GuestAddress(guest), len as usize, Some(place));
            let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
            self.memory = Some(Memory::new(memory));
        } else if is(Request::SetVringNum) {
            self.rings[word(0) as usize].size = word(1) as u16;
        } else if is(Request::SetVringBase) {
            self.rings[word(0) as usize].next_avail = word(1) as u16;
        } else if is(Request::SetVringAddr) {
            let ring = &mut self.rings[word(0) as usize];
            ring.layout = Some(QueueLayout {
                size: ring.size,
                descriptor_table: GuestAddress(double(8)),
                used_ring: GuestAddress(double(16)),
                available_ring: GuestAddress(double(24)),
            });
        } else if is(Request::SetVringCall) {
            self.rings[double(0) as usize].call = file;
        } else if is(Request::SetVringErr) {
            self.rings[double(0) as usize].error = file;
        } else if is(Request::SetVringKick) {
            self.start(double(0) as u16, file.unwrap());
        } else if is(Request::GetVringBase) {
            let state = self.device.stop_queue(word(0) as u16).unwrap_or_default();
            return Some(words(&[word(0), state.next_avail.into()]));
        }
        None
    }

    fn start(&mut self, index: u16, kick: File) {
        let ring = &mut self.rings[usize::from(index)];
        // SAFETY: the descriptor is an eventfd's, and nobody else's now.
        let kick = unsafe { EventFd::from_raw_fd(kick.into_raw_fd()) };
        let memory = self.memory.clone().expect("a table of memory comes first");
        let calls = Calls(
            ring.call.take().expect("an eventfd for calls"),
            ring.error.take().expect("an eventfd for errors"),
        );
        let start = QueueStart {
            memory,
            layout: ring.layout.expect("a ring has a place"),
            state: QueueState {
                next_avail: ring.next_avail,
                next_used: ring.next_avail, // no chain is out
            },
            kick,
            notifier: Arc::new(calls),
            features: self.features,
        };
        self.device.start_queue(index, start).unwrap();
    }
}

/// Eventfds for calls and errors.
struct Calls(File, File);

impl Notifier for Calls {
    fn queue_used(&self, _index: u16) {
        (&self.0).write_all(&1_u64.to_ne_bytes()).unwrap();
    }

    fn config_changed(&self) {}

    fn needs_reset(&self) {
        (&self.1).write_all(&1_u64.to_ne_bytes()).unwrap();
    }
}
