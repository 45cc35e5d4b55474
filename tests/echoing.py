"""Servers that send back what comes, and a client for them: what the tests of forwards and streams talk to."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading

WAIT_S = 60


class Echo(socketserver.BaseRequestHandler):
    """Sends back what comes."""

    def handle(self):
        with contextlib.suppress(OSError):
            while data := self.request.recv(1 << 16):
                self.request.sendall(data)


class Listener(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024


class UnixListener(Listener):
    address_family = socket.AF_UNIX


@contextlib.contextmanager
def echoing(server):
    """Serve in a thread."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def talk(port: int, content: bytes) -> bytes:
    """Send all, say that it was all, and read until the end."""
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as line:
        sender = threading.Thread(target=_send, args=(line, content), daemon=True)
        sender.start()
        parts = []
        while data := line.recv(1 << 16):
            parts.append(data)
        sender.join(timeout=WAIT_S)
        return b"".join(parts)


def _send(line: socket.socket, content: bytes) -> None:
    with contextlib.suppress(OSError):
        line.sendall(content)
        line.shutdown(socket.SHUT_WR)


def ours() -> list[str]:
    """Names of the threads that are not the echo server's."""
    return sorted(t.name for t in threading.enumerate() if "process_request" not in t.name and "_send" not in t.name)
