"""The API of monitors that have no VM yet: `tools/bench api`.

From the fork of the process to the first answer at its socket, what CPU time that took, what memory
the process then has, and how long a question takes on a connection that stays open. The question is
`GET /` to those that speak HTTP, and `query-status` to QEMU.
"""

import json
import pathlib
import socket
import subprocess
import sys
import time

CALLS = 1000
PATIENCE = 30


class Http:
    """onggi and Firecracker."""

    def __init__(self, name, *command):
        self.name, self.words = name, command

    def command(self, path):
        return [*self.words, "--api-sock", path]

    def greet(self, stream):
        pass

    def ask(self, stream):
        stream.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        said = b""
        while b"\r\n\r\n" not in said:
            said += receive(stream)
        head, _, body = said.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += receive(stream)
        assert json.loads(body)["state"] == "Not started", body


class Qmp:
    """QEMU with a machine that does not run."""

    def __init__(self, name, qemu):
        self.name, self.qemu = name, qemu

    def command(self, path):
        machine = ["-M", "microvm", "-enable-kvm", "-S", "-nodefaults", "-no-user-config", "-display", "none"]
        return [self.qemu, *machine, "-qmp", f"unix:{path},server=on,wait=off"]

    def greet(self, stream):
        line(stream)
        stream.sendall(b'{"execute":"qmp_capabilities"}\n')
        assert b"return" in line(stream)

    def ask(self, stream):
        stream.sendall(b'{"execute":"query-status"}\n')
        assert b"prelaunch" in line(stream)


def receive(stream):
    said = stream.recv(65536)
    if not said:
        raise EOFError
    return said


def line(stream):
    said = b""
    while not said.endswith(b"\n"):
        said += receive(stream)
    return said


def rows(contenders, folder, runs, spread):
    """Interleaved, so that a busy moment of the machine meets every contender."""
    samples = {contender.name: [] for contender in contenders}
    for run in range(runs + 1):
        for contender in contenders:
            sample = one_run(contender, folder / f"{run}.sock")
            if run > 0:  # The first fills the page cache.
                samples[contender.name].append(sample)
    table = []
    for name, of in samples.items():
        columns = {key: spread([sample[key] for sample in of]) for key in of[0]}
        table.append({"guest": "none yet", "monitor": name} | columns)
    return table


def one_run(contender, path):
    begin = time.monotonic()
    process = subprocess.Popen(
        [str(word) for word in contender.command(path)], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        stream = connect(process, path, begin + PATIENCE)
        contender.greet(stream)
        contender.ask(stream)
        start = (time.monotonic() - begin) * 1000
        cpu = cpu_time(process.pid)
        pss = pathlib.Path(f"/proc/{process.pid}/smaps_rollup").read_text().split("Pss:")[1].split()[0]
        calls = []
        for _ in range(CALLS):
            before = time.perf_counter()
            contender.ask(stream)
            calls.append((time.perf_counter() - before) * 1e6)
        calls.sort()
        return {
            "first_answer_ms": start, "cpu_ms": cpu, "pss_kib": int(pss),
            "p50_us": calls[CALLS // 2], "p99_us": calls[CALLS * 99 // 100],
        }
    finally:
        process.kill()
        process.wait()
        path.unlink(missing_ok=True)


def connect(process, path, deadline):
    while True:
        stream = socket.socket(socket.AF_UNIX)
        try:
            stream.connect(str(path))
            stream.settimeout(PATIENCE)
            return stream
        except OSError as error:
            stream.close()
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"error: {process.args[0]} has no socket: {error}")
        time.sleep(0.0001)


def cpu_time(pid):
    """Milliseconds that all threads together have run."""
    tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6
