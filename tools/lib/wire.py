#!/usr/bin/env python3
"""The host's side of the network benchmarks: raw Ethernet frames on an interface.

  wire.py serve INTERFACE          does what the frames of the other side ask for, until it is killed
  wire.py drive INTERFACE CASES    asks for it, and says how it went: a guest without a VM

A frame is a header (see FRAME) and zeros. DATA frames are acknowledged by their count so far, every
ACK_EVERY frames, and no sender is ahead of that by more than a window: what TCP does, without TCP.
tests/probe/src/net/bench.rs speaks the same.
"""

import ctypes
import os
import socket
import struct
import sys
import time

KIND = 0x88B5
# To, from, kind, what it is, nothing, a number.
FRAME = struct.Struct("!6s6sHBxI")
WHAT = 14
DATA, ACK, PING, FLOOD, STOP, STOPPED = range(6)
ACK_EVERY = 16
# Bytes that may be under way, by frames of at least this many a window.
WINDOW_BYTES, MIN_WINDOW = 1 << 20, 32
MOST_WINDOW = 256
BATCH = 32
LONGEST = 1 << 16
# A window that nothing comes back for in this time was lost.
LOST = 0.05
SO_RCVBUFFORCE, SO_SNDBUFFORCE = 33, 32
MSG_WAITFORONE = 0x10000

libc = ctypes.CDLL(None, use_errno=True)


class Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]


class Message(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_void_p), ("name_len", ctypes.c_uint), ("iov", ctypes.c_void_p), ("iov_len", ctypes.c_size_t),
        ("control", ctypes.c_void_p), ("control_len", ctypes.c_size_t), ("flags", ctypes.c_size_t), ("len", ctypes.c_size_t),
    ]  # fmt: skip


class Batch:
    """Frames that one system call sends or receives."""

    def __init__(self, shared):
        self.bytes = bytearray(LONGEST if shared else LONGEST * BATCH)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))
        self.iovecs = (Iovec * BATCH)(*((start + (0 if shared else n * LONGEST), LONGEST) for n in range(BATCH)))
        self.messages = (Message * BATCH)()
        for n, message in enumerate(self.messages):
            message.iov, message.iov_len = ctypes.addressof(self.iovecs[n]), 1


class Wire:
    def __init__(self, interface):
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(KIND))
        for option in (SO_RCVBUFFORCE, SO_SNDBUFFORCE):
            self.socket.setsockopt(socket.SOL_SOCKET, option, 64 << 20)
        self.socket.bind((interface, KIND))
        self.mac = self.socket.getsockname()[4]
        self.peer = b"\xff" * 6
        self.outgoing, self.incoming = Batch(True), Batch(False)
        self.timeout(None)

    def timeout(self, seconds):
        """Blocks in the kernel, not in Python, which would be another system call a batch."""
        whole = seconds or 0
        value = struct.pack("ll", int(whole), int(whole % 1 * 1e6))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)

    def say(self, what, number=0, size=60):
        self.socket.send(FRAME.pack(self.peer, self.mac, KIND, what, number).ljust(size, b"\0"))

    def data(self, count, size):
        """Sends some DATA frames; returns how many went."""
        FRAME.pack_into(self.outgoing.bytes, 0, self.peer, self.mac, KIND, DATA, 0)
        for iovec in self.outgoing.iovecs:
            iovec.len = size
        count = libc.sendmmsg(self.socket.fileno(), self.outgoing.messages, min(count, BATCH), 0)
        return max(count, 0)

    def receive(self, flags=MSG_WAITFORONE):
        """Waits for frames; gives how many DATA frames came, and what else did."""
        count = libc.recvmmsg(self.socket.fileno(), self.incoming.messages, BATCH, flags, None)
        if count <= 0:
            return 0, []
        # All kinds at once: a look at each frame would take Python longer than the frame took.
        kinds = self.incoming.bytes[WHAT : count * LONGEST : LONGEST]
        data = kinds.count(DATA)
        others = []
        for n in (n for n in range(count) if kinds[n] != DATA) if data < count else ():
            _, self.peer, _, what, number = FRAME.unpack_from(self.incoming.bytes, n * LONGEST)
            others.append((what, number))
        return data, others


def window(size):
    return min(max(WINDOW_BYTES // size, MIN_WINDOW), MOST_WINDOW)


def serve(wire):
    received, acknowledged = 0, 0
    while True:
        data, others = wire.receive()
        received += data
        for what, number in others:
            if what == PING:
                wire.say(PING, number)
            elif what == FLOOD:
                flood(wire, number)
            elif what == STOP:
                wire.say(STOPPED, received)
                received, acknowledged = 0, 0
        if received - acknowledged >= ACK_EVERY:
            wire.say(ACK, received)
            acknowledged = received


def flood(wire, size):
    """Sends until it is told to stop, as much as the other side takes."""
    sent, known, most = 0, 0, window(size)
    wire.timeout(LOST)
    while True:
        while (room := most - (sent - known)) >= min(BATCH, most // 2):
            sent += wire.data(room, size)
        _, others = wire.receive()
        if not others:
            known = sent
        for what, number in others:
            if what == ACK:
                known = max(known, number)
            elif what == STOP:
                wire.timeout(None)
                wire.say(STOPPED, sent)
                return


def drive(wire, cases, seconds):
    for case in cases:
        name, _, size = case.partition(":")
        begin, cpu = time.monotonic(), time.process_time()
        end = begin + seconds
        count = {"tx": transmit, "rx": take, "ping": ping}[name](wire, int(size), end)
        took, cpu = time.monotonic() - begin, time.process_time() - cpu
        print(f"{case} {count / took} {cpu * 1e6 / count}", flush=True)
        stop(wire)


def transmit(wire, size, end):
    sent, known, most = 0, 0, window(size)
    wire.timeout(LOST)
    while time.monotonic() < end:
        while (room := most - (sent - known)) >= min(BATCH, most // 2):
            sent += wire.data(room, size)
        _, others = wire.receive()
        known = max([number for what, number in others if what == ACK], default=known if others else sent)
    return known


def take(wire, size, end):
    received, acknowledged = 0, 0
    wire.say(FLOOD, size)
    wire.timeout(LOST)
    while time.monotonic() < end:
        received += wire.receive()[0]
        if received - acknowledged >= ACK_EVERY:
            wire.say(ACK, received)
            acknowledged = received
    return received


def ping(wire, size, end):
    count = 0
    wire.timeout(LOST)
    while time.monotonic() < end:
        wire.say(PING, count)
        wire.receive()
        count += 1
    return count


def stop(wire):
    while True:
        wire.say(STOP)
        for _ in range(2 * MOST_WINDOW):
            _, others = wire.receive()
            if any(what == STOPPED for what, _ in others):
                return


def main():
    what, interface = sys.argv[1:3]
    wire = Wire(interface)
    if what == "serve":
        print("ready", flush=True)
        serve(wire)
    drive(wire, sys.argv[3].split(","), float(os.environ.get("WIRE_SECONDS", "0.4")))


if __name__ == "__main__":
    main()
