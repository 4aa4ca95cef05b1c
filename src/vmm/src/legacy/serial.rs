//! The first serial port: a 16550 that writes to the VM's console output and is fed from its input
//! by the control loop.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::{EventOps, Events, MutEventSubscriber};
use vm_superio::Trigger;
use vm_superio::serial::{Serial, SerialEvents};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::interrupt::Line;

/// Raises the port's interrupt.
struct Interrupt(Line);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.raise();
        Ok(())
    }
}

/// Tells the control loop that the guest has read all there was.
struct RoomForInput(EventFd);

impl SerialEvents for RoomForInput {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        // Fails only where the counter is full, and then the loop is about to look anyway.
        let _ = self.0.write(1);
    }
}

type Uart = Serial<Interrupt, RoomForInput, Box<dyn Write + Send>>;

/// A 16550 at eight consecutive ports.
pub struct SerialPort {
    uart: Mutex<Uart>,
}

impl SerialPort {
    /// A port that raises `interrupt`, writes to `output` and signals `room` when its receive
    /// buffer has run empty.
    pub fn new(interrupt: Line, room: EventFd, output: Box<dyn Write + Send>) -> Self {
        let uart = Serial::with_events(Interrupt(interrupt), RoomForInput(room), output);
        Self {
            uart: Mutex::new(uart),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Uart> {
        // A console whose writer panicked still is a console.
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes the receive buffer takes now.
    fn room(&self) -> usize {
        self.lock().fifo_capacity()
    }

    /// Hands `bytes` to the guest.
    fn receive(&self, bytes: &[u8]) {
        // Bytes beyond the room, or in loopback mode, are lost as on a real port.
        let _ = self.lock().enqueue_raw_bytes(bytes);
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // Registers are a byte wide; wider accesses read the first and zeros.
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = self.lock().read(offset as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(&value) = data.first() {
            // A console that can't be written to must not stop the guest.
            if let Err(error) = self.lock().write(offset as u8, value) {
                tracing::debug!(?error, "serial output was lost");
            }
        }
    }
}

/// Moves what comes in on a file to the port, as fast as the guest reads it.
pub struct SerialInput {
    port: Arc<SerialPort>,
    input: File,
    room: EventFd,
    /// Regular files can't be waited for: they are always ready.
    pollable: bool,
    listening: bool,
    ended: bool,
}

impl SerialInput {
    /// Input for `port`, which signals `room`.
    pub fn new(port: Arc<SerialPort>, input: File, room: EventFd) -> Self {
        Self {
            port,
            input,
            room,
            pollable: true,
            listening: false,
            ended: false,
        }
    }

    /// Reads once, at most as much as there is room for.
    fn pump(&mut self, ops: &mut EventOps) {
        let mut buffer = [0u8; 64];
        let room = self.port.room().min(buffer.len());
        if room > 0 && !self.ended {
            match self.input.read(&mut buffer[..room]) {
                Ok(0) => self.end(ops),
                Ok(count) => self.port.receive(&buffer[..count]),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                    ) => {}
                Err(error) => {
                    tracing::warn!(%error, "the console's input failed");
                    self.end(ops);
                }
            }
        }
        self.listen(ops, self.port.room() > 0);
    }

    /// Waits for input only while there is room for it: a hang-up would be reported again and again.
    fn listen(&mut self, ops: &mut EventOps, wanted: bool) {
        if !self.pollable || self.ended || wanted == self.listening {
            return;
        }
        let events = Events::new(&self.input, EventSet::IN);
        let done = if wanted {
            ops.add(events)
        } else {
            ops.remove(events)
        };
        match done {
            Ok(()) => self.listening = wanted,
            Err(error) => tracing::warn!(%error, "the console's input can't be waited for"),
        }
    }

    fn end(&mut self, ops: &mut EventOps) {
        self.listen(ops, false);
        self.ended = true;
    }
}

impl MutEventSubscriber for SerialInput {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.room, EventSet::IN)) {
            tracing::warn!(%error, "the console's input is off");
            self.ended = true;
            return;
        }
        self.pollable = ops.add(Events::new(&self.input, EventSet::IN)).is_ok();
        self.listening = self.pollable;
        if !self.pollable {
            self.pump(ops);
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.room.as_raw_fd() {
            let _ = self.room.read();
            if self.pollable {
                self.listen(ops, true);
            } else {
                self.pump(ops);
            }
        } else if events.event_set().contains(EventSet::IN) {
            self.pump(ops);
        } else {
            self.end(ops); // hung up
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::Counter;
    use event_manager::{EventManager, SubscriberOps};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    fn eventfd() -> EventFd {
        EventFd::new(libc::EFD_NONBLOCK).expect("eventfd")
    }

    fn port() -> (Arc<SerialPort>, EventFd) {
        let room = eventfd();
        let port = SerialPort::new(
            Arc::new(Counter::default()),
            room.try_clone().expect("dup"),
            Box::new(io::sink()),
        );
        (Arc::new(port), room)
    }

    /// What a guest reads while the loop runs.
    fn drain(port: &SerialPort, manager: &mut EventManager<SerialInput>, want: usize) -> Vec<u8> {
        let mut got = Vec::new();
        for _ in 0..10_000 {
            manager.run_with_timeout(1).expect("loop");
            let mut byte = [0];
            port.read(5, &mut byte);
            while byte[0] & 1 != 0 {
                port.read(0, &mut byte);
                got.push(byte[0]);
                port.read(5, &mut byte);
            }
            if got.len() >= want {
                break;
            }
        }
        got
    }

    #[test]
    fn a_stream_longer_than_the_fifo_arrives_whole() {
        let (port, room) = port();
        let (mut far, near) = UnixStream::pair().expect("pair");
        let text: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
        far.write_all(&text).expect("write");
        drop(far);
        let mut manager = EventManager::new().expect("epoll");
        let input = File::from(OwnedFd::from(near));
        manager.add_subscriber(SerialInput::new(port.clone(), input, room));
        assert_eq!(drain(&port, &mut manager, text.len()), text);
    }

    #[test]
    fn a_regular_file_arrives_whole() {
        let (port, room) = port();
        let mut file = tempfile::tempfile().expect("file");
        let text = b"echo hello\n".repeat(50);
        file.write_all(&text).expect("write");
        io::Seek::rewind(&mut file).expect("rewind");
        let mut manager = EventManager::new().expect("epoll");
        manager.add_subscriber(SerialInput::new(port.clone(), file, room));
        assert_eq!(drain(&port, &mut manager, text.len()), text);
    }
}
