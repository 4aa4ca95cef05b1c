"""What firecracker-python demands of its surroundings, for a place that has neither: a Docker
daemon, which it asks for its version, and a service that tells the public address.

Usage: surroundings.py DOCKER_SOCKET CERTIFICATE KEY
"""

import json
import socketserver
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer


class Docker(BaseHTTPRequestHandler):
    def do_GET(self):
        answer(self, json.dumps({"ApiVersion": "1.43", "Version": "24.0.0"}), "application/json")

    def address_string(self):
        return "a client"


class Address(BaseHTTPRequestHandler):
    def do_GET(self):
        answer(self, "192.0.2.1\n", "text/plain")


def answer(handler, body, kind):
    handler.send_response(200)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body.encode())


def main(docker, certificate, key):
    docker = socketserver.ThreadingUnixStreamServer(docker, Docker)
    threading.Thread(target=docker.serve_forever).start()
    address = HTTPServer(("127.0.0.1", 443), Address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    address.socket = context.wrap_socket(address.socket, server_side=True)
    open("served", "w").close()
    address.serve_forever()


main(*sys.argv[1:])
