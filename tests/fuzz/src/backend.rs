//! A hostile process behind a vhost-user disk.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use onggi_vhost::{Queues, VhostUserBlock, VhostUserBlockOptions};
use onggi_virtio::device::{Device, Memory, Notifier, QueueLayout, QueueStart, QueueState};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

const MEMORY: usize = 1 << 16;
/// For all that one call asks of the other side.
const PATIENCE: Duration = Duration::from_millis(5);
/// Longest payload of a request: a table of memory.
const LONGEST: usize = 4096;

/// Requests that have an answer of their own.
mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const GET_VRING_BASE: u32 = 11;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const GET_CONFIG: u32 = 24;
}
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// What the other side does with a request.
#[derive(Debug, Arbitrary)]
enum Act {
    /// What it should, but with a number of its own in the answer.
    Answer(u64),
    /// An answer, as long as it likes, and with files.
    Payload { bytes: Vec<u8>, files: u8 },
    /// A header with anything in it.
    Header { flags: u32, size: u32, request: u32 },
    /// These bytes.
    Say(Vec<u8>),
    /// Nothing.
    Ignore,
    /// It hangs up.
    HangUp,
    /// What it should.
    Serve,
}

/// What the monitor does with its device.
#[derive(Debug, Arbitrary)]
enum Call {
    Start { queue: u8, size: u8 },
    Stop { queue: u8 },
    Refresh,
}

#[derive(Debug, Arbitrary)]
struct Program {
    features: u64,
    queues: u8,
    exactly: bool,
    config: Vec<u8>,
    acts: Vec<Act>,
    calls: Vec<Call>,
}

struct Silent;

impl Notifier for Silent {
    fn queue_used(&self, _index: u16) {}
    fn config_changed(&self) {}
    fn needs_reset(&self) {}
}

/// Plays what `input` stands for to a device of another process.
///
/// # Panics
/// The device broke its contract.
pub fn vhost(input: &[u8]) {
    let Ok(program) = Program::arbitrary_take_rest(Unstructured::new(input)) else {
        return;
    };
    let Program {
        features,
        queues,
        exactly,
        config,
        acts,
        calls,
    } = program;
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).expect("a listener");
    let over = Arc::new(AtomicBool::new(false));
    let mut backend = Backend {
        acts: acts.into_iter(),
        features,
        queues,
        config,
    };
    let until = over.clone();
    let thread = thread::spawn(move || {
        for stream in listener.incoming() {
            match stream {
                Ok(stream) if !until.load(Ordering::SeqCst) => backend.serve(stream),
                _ => return,
            }
        }
    });
    let wanted = u16::from(queues) % 4 + 1;
    let options = VhostUserBlockOptions {
        queues: match exactly {
            true => Queues::Exactly(wanted),
            false => Queues::UpTo(wanted),
        },
        patience: PATIENCE,
        ..Default::default()
    };
    if let Ok(mut device) = VhostUserBlock::connect(&path, &options) {
        drive(&mut device, &calls);
    }
    over.store(true, Ordering::SeqCst);
    let _ = UnixStream::connect(&path); // wakes it
    thread.join().expect("the backend does not panic");
}

/// Makes the calls that a transport might make.
fn drive(device: &mut VhostUserBlock, calls: &[Call]) {
    let file = memfd_create("guest", MFdFlags::MFD_CLOEXEC).expect("memory");
    ftruncate(&file, MEMORY as i64).expect("memory");
    let range = (
        GuestAddress(0),
        MEMORY,
        Some(FileOffset::new(file.into(), 0)),
    );
    let memory = GuestMemoryMmap::from_ranges_with_files([range]).expect("memory");
    let memory = Memory::new(memory);
    let queues = device.description().queue_sizes.len() as u16;
    let features = device.description().features;
    assert!((1..=4).contains(&queues));
    for call in calls {
        match call {
            Call::Start { queue, size } => {
                let start = QueueStart {
                    memory: memory.clone(),
                    layout: QueueLayout {
                        size: 1 << (size % 10),
                        descriptor_table: GuestAddress(0x1000),
                        available_ring: GuestAddress(0x4000),
                        used_ring: GuestAddress(0x8000),
                    },
                    state: QueueState::default(),
                    kick: EventFd::new(EFD_NONBLOCK).expect("an eventfd"),
                    notifier: Arc::new(Silent),
                    features,
                };
                let _ = device.start_queue(u16::from(*queue) % (queues + 1), start);
            }
            Call::Stop { queue } => {
                let queue = u16::from(*queue) % (queues + 1);
                device.stop_queue(queue);
                assert!(device.stop_queue(queue).is_none());
            }
            Call::Refresh => {
                let _ = device.refresh();
            }
        }
        let description = device.description();
        assert_eq!(description.config.len(), 60);
        assert_eq!(description.config[34..36], queues.to_le_bytes());
        assert_eq!(description.features, features);
    }
}

struct Backend {
    acts: std::vec::IntoIter<Act>,
    features: u64,
    queues: u8,
    config: Vec<u8>,
}

impl Backend {
    fn serve(&mut self, mut stream: UnixStream) {
        while let Some((request, flags, payload)) = receive(&mut stream) {
            let said = match self.acts.next().unwrap_or(Act::Serve) {
                Act::Serve => self.proper(&mut stream, request, flags, &payload, None),
                Act::Answer(number) => {
                    self.proper(&mut stream, request, flags, &payload, Some(number))
                }
                Act::Payload { bytes, files } => {
                    answer_with(&mut stream, request, &bytes, files % 4)
                }
                Act::Header {
                    flags,
                    size,
                    request,
                } => stream.write_all(&header(request, flags, size)),
                Act::Say(bytes) => stream.write_all(&bytes),
                Act::Ignore => Ok(()),
                Act::HangUp => return,
            };
            if said.is_err() {
                return;
            }
        }
    }

    fn proper(
        &self,
        stream: &mut UnixStream,
        request: u32,
        flags: u32,
        payload: &[u8],
        number: Option<u64>,
    ) -> std::io::Result<()> {
        let bytes = match request {
            // VIRTIO 1 and protocol features, without which nothing goes on.
            request::GET_FEATURES => number.unwrap_or(self.features | 1 << 32 | 1 << 30),
            request::GET_PROTOCOL_FEATURES => number.unwrap_or(1 << 9 | self.features & 9),
            request::GET_QUEUE_NUM => number.unwrap_or(u64::from(self.queues)),
            request::GET_CONFIG => {
                let mut space = payload.to_vec();
                for (place, byte) in space.iter_mut().skip(12).zip(&self.config) {
                    *place = *byte;
                }
                return answer_with(stream, request, &space, 0);
            }
            request::GET_VRING_BASE => {
                let queue = payload.get(..4).unwrap_or_default();
                let next = (number.unwrap_or(0) as u32).to_ne_bytes();
                return answer_with(stream, request, &[queue, &next].concat(), 0);
            }
            _ if flags & NEED_REPLY != 0 => number.unwrap_or(0),
            _ => return Ok(()),
        };
        answer_with(stream, request, &bytes.to_ne_bytes(), 0)
    }
}

fn header(request: u32, flags: u32, size: u32) -> Vec<u8> {
    let words = [request, flags, size].map(u32::to_ne_bytes);
    words.concat()
}

/// Answers, with so many files.
fn answer_with(
    stream: &mut UnixStream,
    request: u32,
    payload: &[u8],
    files: u8,
) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let message = [
        header(request, VERSION | REPLY, payload.len() as u32),
        payload.to_vec(),
    ]
    .concat();
    if files == 0 {
        return stream.write_all(&message);
    }
    let fds = vec![stream.as_raw_fd(); files.into()];
    let sent = stream
        .send_with_fds(&[&message[..]], &fds)
        .map_err(std::io::Error::from)?;
    stream.write_all(&message[sent..])
}

fn receive(stream: &mut UnixStream) -> Option<(u32, u32, Vec<u8>)> {
    let mut header = [0; 12];
    stream.read_exact(&mut header).ok()?;
    let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
    let mut payload = vec![0; (word(8) as usize).min(LONGEST)];
    stream.read_exact(&mut payload).ok()?;
    Some((word(0), word(4), payload))
}
