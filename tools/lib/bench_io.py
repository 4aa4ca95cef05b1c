"""Requests to a disk, by the same guest on every monitor: `tools/bench io`.

The probe guest drives the disk itself (tests/probe/src/blk/bench.rs) and counts requests, ticks and
notifications. Monitors take turns, run by run. `fio` with io_uring on the same file, without a VM,
is the ceiling.
"""

import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time

CASES = ["read:1", "read:8", "read:32", "read:128", "seqread:4", "flush:1", "flush:8", "write:1", "write:32", "seqwrite:4"]
DISK_MIB = 512
# A third of a second or so for each case and run.
TICKS = 1_000_000_000
PATIENCE = 300
LINE = re.compile(rb"(?:blk|net)-bench: (begin|case) (\S+)(.*)")
FIO = {
    "read": ["--rw=randread", "--bs=4k"],
    "write": ["--rw=randwrite", "--bs=4k"],
    "seqread": ["--rw=read", "--bs=128k"],
    "seqwrite": ["--rw=write", "--bs=128k"],
    "flush": ["--rw=randwrite", "--bs=4k", "--fdatasync=1"],
}


def make_disk(folder):
    disk = folder / "io-disk"
    with disk.open("wb") as file:
        for _ in range(DISK_MIB):
            file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())
    return disk


def measure(contenders, folder, runs, cases):
    """Samples by case and contender."""
    disk = make_disk(folder)
    samples = {}
    for run in range(runs + 1):
        for contender in contenders:
            command = contender.command(f"blk-bench ticks={TICKS} cases={','.join(cases)}", disk)
            settle(disk)
            found = one_run(contender.name, command)
            if run > 0:  # The first fills the page cache.
                for case, sample in found.items():
                    samples.setdefault((case, contender.name), []).append(sample)
        if run > 0 and shutil.which("fio"):
            settle(disk)
            for case in cases:
                samples.setdefault((case, "fio, no VM"), []).append(fio(case, disk))
    return samples


def settle(disk):
    """What was written before must not be in the way of who comes next."""
    with disk.open("rb+") as file:
        os.fsync(file.fileno())


def one_run(name, command):
    """A VM through all cases; gives for each requests per second, exits and CPU time per request."""
    process = subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    hangs = threading.Timer(PATIENCE, process.kill)
    hangs.start()
    begun, ended, said = {}, {}, b""
    for line in process.stdout:
        now = time.monotonic()
        said += line
        if match := LINE.search(line):
            what, case = match[1], match[2].decode()
            numbers = {key.decode(): int(value) for key, value in re.findall(rb"(\w+)=(\d+)", match[3])}
            place = begun if what == b"begin" else ended
            place[case] = {"at": now, "cpu": serving_seconds(process.pid), "exits": exits(process.pid)} | numbers
    process.wait()
    hangs.cancel()
    if b"-bench: ok" not in said:
        sys.exit(f"error: {name} did not do its work: {said.decode(errors='replace')}")
    # How fast the guest's clock ticks, over the whole run.
    cases = list(ended)
    first, last = begun[cases[0]], ended[cases[-1]]
    rate = (last["now"] - first["now"]) / (last["at"] - first["at"])
    return {case: figures(begun[case], ended[case], rate) for case in cases}


def figures(begin, end, rate):
    requests = end["requests"]
    known = begin["exits"] is not None and end["exits"] is not None
    return {
        "rate": requests / (end["ticks"] / rate),
        "cpu": (end["cpu"] - begin["cpu"]) * 1e6 / requests,
        "exits": (end["exits"] - begin["exits"] if known else end["kicks"]) / requests,
    }


def serving_seconds(pid):
    """CPU time of the process without its vCPUs', which never rest with this guest."""
    ticks = cpu_ticks(pathlib.Path(f"/proc/{pid}/stat"))[1]
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            name, of_task = cpu_ticks(task / "stat")
        except OSError:
            continue  # It has just ended.
        if re.search(r"vcpu|KVM", name):
            ticks -= of_task
    return ticks / os.sysconf("SC_CLK_TCK")


def cpu_ticks(stat):
    """The name, and user and system time together (proc(5))."""
    name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
    fields = rest.split()
    return name, int(fields[11]) + int(fields[12])


def exits(pid):
    """Exits of the VM so far, where debugfs tells; else its notifications stand for them."""
    try:
        for folder in pathlib.Path("/sys/kernel/debug/kvm").glob(f"{pid}-*"):
            return int((folder / "exits").read_text())
    except OSError:
        pass
    return None


def fio(case, disk):
    kind, _, depth = case.partition(":")
    command = ["fio", "--name=ceiling", f"--filename={disk}", "--ioengine=io_uring", f"--iodepth={depth}"]
    command += ["--time_based", "--runtime=1", "--output-format=json", "--invalidate=0", *FIO[kind]]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        sys.exit("error: fio failed")
    job = json.loads(done.stdout)["jobs"][0]
    side = job["read" if "read" in kind else "write"]
    seconds = side["runtime"] / 1000
    cpu = (job["usr_cpu"] + job["sys_cpu"]) / 100 * seconds * 1e6
    return {"rate": side["total_ios"] / seconds, "cpu": cpu / side["total_ios"], "exits": 0}


def rows(samples, spread):
    """A row for each case and contender; ratios are those of the medians to onggi's."""
    table = []
    order = list(dict.fromkeys(case for case, _ in samples))
    for (case, name), found in sorted(samples.items(), key=lambda item: order.index(item[0][0])):
        ours = statistics.median(sample["rate"] for sample in samples[case, "onggi"])
        rate = [sample["rate"] for sample in found]
        row = {"case": case, "monitor": name, "per_second": spread(rate)}
        if all("exits" in sample for sample in found):
            row["exits"] = round(statistics.median(sample["exits"] for sample in found), 3)
            row["cpu_us"] = round(statistics.median(sample["cpu"] for sample in found), 2)
        row["onggi_times"] = round(ours / statistics.median(rate), 2)
        table.append(row)
    return table


def chart(table, path):
    """Bars of requests per second relative to the best of each case, as SVG."""
    names = list(dict.fromkeys(row["monitor"] for row in table))
    cases = list(dict.fromkeys(row["case"] for row in table))
    colors = ["#b5483a", "#5b7db1", "#8fa876", "#c9a14a", "#777777"]
    bar, gap, left, width = 14, 12, 90, 480
    group = bar * len(names) + gap
    height = group * len(cases) + 40
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 170}" height="{height}" font-family="sans-serif" font-size="11">']
    for n, name in enumerate(names):
        parts.append(f'<rect x="{left + n * 130}" y="8" width="10" height="10" fill="{colors[n % 5]}"/>')
        parts.append(f'<text x="{left + 14 + n * 130}" y="17">{name}</text>')
    for g, case in enumerate(cases):
        of_case = {row["monitor"]: row["per_second"]["median"] for row in table if row["case"] == case}
        top = 34 + g * group
        parts.append(f'<text x="{left - 6}" y="{top + bar}" text-anchor="end">{case}</text>')
        for n, name in enumerate(names):
            if name in of_case:
                length = max(1, of_case[name] / max(of_case.values()) * width)
                y = top + n * bar
                parts.append(f'<rect x="{left}" y="{y}" width="{length:.0f}" height="{bar - 2}" fill="{colors[n % 5]}"/>')
                parts.append(f'<text x="{left + length + 4:.0f}" y="{y + bar - 4}">{of_case[name]:,.0f}/s</text>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")
