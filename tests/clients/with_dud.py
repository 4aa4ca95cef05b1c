"""dud boots a machine, runs Python and a shell in it with files of the host's, takes the changes
back, and ends it.

Usage: with_dud.py HOME KERNEL
"""

import sys

import dud
from dud_image import IMAGE


def main(home, kernel):
    session = dud.session(
        "firecracker", image=IMAGE, home=home, kernel=kernel, medium="initramfs",
        cpus=1, memory_mib=256, boot_timeout=120,
    )
    try:
        result = session.python("x = n + 1\nprint(x)", inputs={"n": 41}, timeout=60)
        assert result.ok and result.outputs["x"] == 42 and "42" in result.transcript, result
        result = session.shell("echo $OSTYPE; printf hello >written; exit 3", timeout=60)
        assert result.exit_code == 3 and "linux" in result.transcript, result
        assert session.diff().writes == {"written": b"hello"}
        vmm = session._proc
    finally:
        session.close()
    assert vmm.returncode == 0, vmm.returncode


if __name__ == "__main__":
    main(*sys.argv[1:])
