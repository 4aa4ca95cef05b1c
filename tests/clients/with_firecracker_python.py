"""firecracker-python creates a microVM with a disk, a network, metadata and vsock, pauses and
resumes it, and deletes it.

Usage: with_firecracker_python.py KERNEL DISK
"""

import os
import socket
import sys
import time
import urllib.request

from firecracker import MicroVM

GUEST = "10.9.0.2"


def get(path, seconds):
    with urllib.request.urlopen(f"http://{GUEST}{path}", timeout=seconds) as answer:
        return answer.read().decode()


def eventually(ask):
    for _ in range(300):
        try:
            return ask()
        except OSError:
            time.sleep(0.2)
    return ask()


def by_vsock(path):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(path)
        connection.sendall(b"CONNECT 8000\n")
        stream = connection.makefile("rwb")
        assert stream.readline().startswith(b"OK ")
        stream.write(b"POST /echo HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello")
        stream.flush()
        return stream.read()


def main(kernel, disk):
    vm = MicroVM(
        name="guest", kernel_file=kernel, base_rootfs=disk, vcpu=1, memory=192, ip_addr=GUEST,
        mmds_enabled=True, user_data="to the guest", vsock_enabled=True, labels={"of": "test"},
        verbose=True, level="DEBUG",
    )
    assert vm.create().endswith(" created")
    [listed] = vm.list()
    assert listed["name"] == "guest" and listed["state"] == "Running", listed
    assert vm.config()["machine-config"]["mem_size_mib"] == 192
    assert vm.find("Running", {"of": "test"})

    assert "root=/dev/vda" in eventually(lambda: get("/cmdline", 5))
    assert get("/metadata/latest/user-data", 60) == "to the guest"
    assert by_vsock(vm._vsock_uds_path).endswith(b"\r\n\r\nhello")

    assert vm.pause().endswith("paused successfully")
    try:
        get("/cmdline", 1)
        raise AssertionError("a paused guest is silent")
    except OSError:
        pass
    assert vm.resume().endswith("resumed successfully")
    assert eventually(lambda: get("/cmdline", 5))

    tap, pid = vm._host_dev_name, listed["pid"]
    assert vm.delete().endswith(" is deleted")
    assert not os.path.exists(f"/sys/class/net/{tap}") and not vm.list()
    with open(f"/proc/{pid}/stat") as status:
        # The client does not wait for its child.
        assert ") Z " in status.read()


main(*sys.argv[1:])
