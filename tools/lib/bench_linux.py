"""Linux guests with fio and iperf3 in them: `tools/bench linux`.

The same kernel and the same root on every monitor, a disk, and a tap device whose other end is this
host. The guest says on its console what its programs found.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import threading

CASES = ["read:1", "read:32", "write:32", "flush:1", "tcp-out:1", "tcp-in:1"]
MEMORY_MIB, DISK_MIB, CPUS = 384, 192, 1
SECONDS = 3
PATIENCE = 240
HOST, GUEST = "10.9.0.1", "10.9.0.2"
TAP = "onggi-bench"
PROGRAMS = ["fio", "iperf3"]
LINE = re.compile(rb"bench: case (\S+) (\d+)")

INIT = f"""#!/bin/busybox sh
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
cd /tmp
for disk in /sys/block/vd*; do
    [ "$(cat $disk/ro)" = 1 ] || data=/dev/${{disk##*/}}
done
ip link set lo up
ip address add {GUEST}/24 dev eth0 && ip link set eth0 up
for word in $(cat /proc/cmdline); do
    case $word in cases=*) cases=${{word#cases=}} ;; esac
done
disk() {{
    fio --name=b --filename=$data --direct=1 --ioengine=io_uring --bs=4k --time_based --runtime={SECONDS} \\
        --iodepth=$depth --minimal "$@" | awk -F';' '{{ printf "%d", $8 + $49 }}'
}}
# Kilobits per second that arrived.
tcp() {{
    iperf3 -c {HOST} -t {SECONDS} -f k "$@" | awk '/receiver/ {{ print int($7) }}'
}}
for case in $(echo $cases | tr , ' '); do
    depth=${{case#*:}}
    case $case in
    read:*) found=$(disk --rw=randread) ;;
    write:*) found=$(disk --rw=randwrite) ;;
    flush:*) found=$(disk --rw=randwrite --fdatasync=1) ;;
    tcp-out:*) found=$(tcp) ;;
    tcp-in:*) found=$(tcp -R) ;;
    esac
    echo "bench: case $case $found"
done
echo "bench: ok"
reboot -f
"""


def make_root(folder):
    """A root file system of the programs that measure, and what they are linked with."""
    missing = [name for name in [*PROGRAMS, "busybox", "mkfs.erofs"] if not shutil.which(name)]
    if missing:
        sys.exit(f"error: missing: {' '.join(missing)} (Debian: fio iperf3 busybox-static erofs-utils)")
    root = folder / "root"
    for name in ["bin", "dev", "proc", "sys", "tmp", "etc"]:
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox"), root / "bin/busybox")
    for name in "sh mount cat ip awk tr reboot".split():
        (root / "bin" / name).symlink_to("busybox")
    for name in PROGRAMS:
        program = shutil.which(name)
        shutil.copy(program, root / "bin" / name)
        listed = subprocess.run(["ldd", program], stdout=subprocess.PIPE, text=True, check=True).stdout
        for library in re.findall(r"(/\S+) \(0x", listed):
            place = root / library.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, place)
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    image = folder / "root.erofs"
    subprocess.run(["mkfs.erofs", "--quiet", image, root], stdout=subprocess.DEVNULL, check=True)
    return image


def contenders(onggi, qemu, kernel, root, disk):
    """Names and commands, without the cases."""
    line = "console=ttyS0 quiet panic=-1 reboot=k rootfstype=erofs ro init=/init root=/dev/vda cases="
    boot = [onggi, "boot", "--kernel", kernel, "--disk", f"{root},ro", "--disk", disk, "--memory", f"{MEMORY_MIB}m"]
    boot += ["--cpus", CPUS, "--net", f"tap={TAP}"]
    found = {
        "onggi": lambda cases: [*boot, "--cmdline", line + cases],
        "onggi, PCI": lambda cases: [*boot, "--enable-pci", "--cmdline", line + cases],
    }
    if qemu:
        machine = [qemu, "-M", "microvm,rtc=off", "-enable-kvm", "-cpu", "host", "-m", MEMORY_MIB, "-smp", CPUS]
        machine += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]
        machine += ["-global", "virtio-mmio.force-legacy=false", "-object", "iothread,id=io"]
        machine += ["-netdev", f"tap,id=net,ifname={TAP},script=no,downscript=no,vhost=off"]
        machine += ["-device", "virtio-net-device,netdev=net"]
        for name, path, more in [("root", root, ",read-only=on"), ("data", disk, "")]:
            machine += ["-drive", f"file={path},format=raw,if=none,id={name},aio=io_uring{more}"]
            machine += ["-device", f"virtio-blk-device,drive={name},iothread=io"]
        found["QEMU microvm"] = lambda cases: [*machine, "-kernel", kernel, "-append", line + cases]
    return found


def measure(found, runs, cases):
    """Samples by case and contender, as of the probe guest."""
    samples = {}
    server = subprocess.Popen(["iperf3", "-s"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for run in range(runs + 1):
            for name, command in found.items():
                for case, sample in one_run(name, command(",".join(cases))).items():
                    if run > 0:  # The first fills the page cache.
                        samples.setdefault((case, name), []).append(sample)
    finally:
        server.kill()
        server.wait()
    return samples


def make_tap():
    for words in (
        f"tuntap add {TAP} mode tap vnet_hdr",
        f"address add {HOST}/24 dev {TAP}",
        f"link set {TAP} up",
    ):
        subprocess.run(["ip", *words.split()], check=True)


def one_run(name, command):
    process = subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    hangs = threading.Timer(PATIENCE, process.kill)
    hangs.start()
    found, said = {}, b""
    for line in process.stdout:
        said += line
        if match := LINE.search(line):
            found[match[1].decode()] = {"rate": int(match[2])}
    process.wait()
    hangs.cancel()
    if b"bench: ok" not in said:
        sys.exit(f"error: {name} did not do its work: {said[-2000:].decode(errors='replace')}")
    return found
