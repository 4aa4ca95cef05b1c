"""Frames between a guest and its host, by the same guest on every monitor: `tools/bench io`.

The probe guest drives the network device (tests/probe/src/net/bench.rs); wire.py is the other side,
on a tap device in a namespace of its own. A pair of veth devices with wire.py at both ends, without
a VM, is the ceiling. Frames longer than the usual are what TCP hands over with offloads.
"""

import os
import pathlib
import subprocess
import sys

import bench_io

CASES = ["tx:1514", "tx:60000", "rx:1514", "rx:60000", "ping:60"]
NAMES = {case.partition(":")[0] for case in CASES}
WIRE = pathlib.Path(__file__).with_name("wire.py")
NATIVE = "veth, no VM"
# Longer than any of the frames.
MTU = "65521"


class Network:
    """A namespace, with a tap device for the VMs and a pair of others to compare with."""

    def __init__(self):
        self.name = f"onggi-bench-{os.getpid()}"

    def __enter__(self):
        ip("netns", "add", self.name)
        inside = ["-n", self.name]
        ip(*inside, "tuntap", "add", "tap0", "mode", "tap", "vnet_hdr")
        ip(*inside, "link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
        for device in ("tap0", "veth0", "veth1"):
            ip(*inside, "link", "set", device, "mtu", MTU, "up")
        return self

    def __exit__(self, *_):
        ip("netns", "del", self.name)

    def command(self, *words):
        return ["ip", "netns", "exec", self.name, *words]

    def serve(self, device):
        """Starts the other side; it takes frames when this returns."""
        command = self.command(sys.executable, str(WIRE), "serve", device)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        if process.stdout.readline() != b"ready\n":
            sys.exit("error: the other side of the network did not start")
        return process


def ip(*words):
    if subprocess.run(["ip", *words], check=False).returncode != 0:
        sys.exit("error: the network benchmarks need root, and ip of iproute2")


def measure(contenders, runs, cases):
    """Samples by case and contender."""
    samples = {}
    with Network() as network:
        for _ in range(runs):
            for contender in contenders:
                probes = f"net-bench ticks={bench_io.TICKS} cases={','.join(cases)}"
                command = contender.command(probes, tap="tap0")
                found = against(network, "tap0", lambda: bench_io.one_run(contender.name, network.command(*command)))
                for case, sample in found.items():
                    samples.setdefault((case, contender.name), []).append(sample)
            for case, sample in against(network, "veth0", lambda: native(network, cases)).items():
                samples.setdefault((case, NATIVE), []).append(sample)
    return samples


def against(network, device, work):
    server = network.serve(device)
    try:
        return work()
    finally:
        server.kill()
        server.wait()


def native(network, cases):
    command = network.command(sys.executable, str(WIRE), "drive", "veth1", ",".join(cases))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=bench_io.PATIENCE, check=False)
    if done.returncode != 0:
        sys.exit("error: the network without a VM did not do its work")
    lines = [line.split() for line in done.stdout.splitlines()]
    return {case: {"rate": float(rate), "cpu": float(cpu), "exits": 0} for case, rate, cpu in lines}
