#!/usr/local/bin/python3
"""The init of a client's guest. Takes its address from the kernel's command line, answers HTTP by
the network (port 80) and by vsock (port 8000), and ends when its console says "off".

GET /cmdline          the kernel's command line
GET /metadata/PATH    what the metadata service says of PATH, version 2
POST /echo            the body
"""

import ctypes
import os
import socket
import socketserver
import subprocess
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler

RESTART = 0x01234567
METADATA = "169.254.169.254"


def mount(kind, where):
    ctypes.CDLL(None).mount(kind.encode(), where.encode(), kind.encode(), 0, None)


def command_line():
    with open("/proc/cmdline") as file:
        return file.read()


def bring_network_up():
    said = [word[3:] for word in command_line().split() if word.startswith("ip=")]
    if not said:
        return
    address, _, _, _, _, device, *_ = said[0].split(":")
    for words in (
        f"link set {device} up",
        f"address add {address}/24 dev {device}",
        f"route add {METADATA} dev {device}",
    ):
        subprocess.run(["/bin/busybox", "ip", *words.split()], check=True)


def metadata(path):
    token = urllib.request.Request(
        f"http://{METADATA}/latest/api/token",
        method="PUT",
        headers={"X-metadata-token-ttl-seconds": "60"},
    )
    with urllib.request.urlopen(token, timeout=20) as answer:
        token = answer.read().decode()
    request = urllib.request.Request(
        f"http://{METADATA}{path}", headers={"X-metadata-token": token}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/cmdline":
            self.answer(command_line().encode())
        elif self.path.startswith("/metadata/"):
            self.answer(metadata(self.path.removeprefix("/metadata")))
        else:
            self.send_error(404)

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self):
        return "the host"


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


class VsockServer(Server):
    address_family = socket.AF_VSOCK
    allow_reuse_address = False


def serve(server):
    threading.Thread(target=server.serve_forever, daemon=True).start()


def main():
    for kind, where in (("proc", "/proc"), ("sysfs", "/sys")):
        mount(kind, where)
    os.environ["PATH"] = "/usr/local/bin:/usr/bin:/bin"
    bring_network_up()
    serve(Server(("", 80), Handler))
    serve(VsockServer((socket.VMADDR_CID_ANY, 8000), Handler))
    print("serving", flush=True)
    for line in sys.stdin:
        if line.strip() == "off":
            break
    else:
        # A console that is closed says nothing; the client ends the microVM.
        threading.Event().wait()
    ctypes.CDLL(None).sync()
    ctypes.CDLL(None).reboot(RESTART)


main()
