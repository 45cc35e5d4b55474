"""What the benchmarks of a forward share: a server of bytes in a process of its own, and each forwarder in one."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bench import CannotRunError

BULK_BYTES = 128 * 1024 * 1024


def serve() -> None:
    """Answer connections: a command byte, then: d send BULK_BYTES, u take them and say ok, e echo."""
    block = os.urandom(1 << 18)

    def answer(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError, CannotRunError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            what = sock.recv(1)
            if what == b"d":
                for _ in range(BULK_BYTES >> 18):
                    sock.sendall(block)
            elif what == b"u":
                take(sock, BULK_BYTES)
                sock.sendall(b"k")
            elif what == b"e":
                while data := sock.recv(1 << 16):
                    sock.sendall(data)

    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()


def take(sock: socket.socket, n: int) -> None:
    """Read `n` bytes.

    Raises: CannotRunError when they do not come.
    """
    while n:
        got = len(sock.recv(min(n, 1 << 18)))
        if not got:
            raise CannotRunError("the connection ended early")
        n -= got


def line(port: int, what: bytes) -> socket.socket:
    """A connection to the server, through a forward at `port`; `what` it is to do."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=120)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(what)
    return sock


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _ready(port: int, process: subprocess.Popen[bytes] | None = None) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process is not None and process.poll() is not None:
            break
        time.sleep(0.05)
    raise CannotRunError(f"nothing came up on port {port}")


@contextlib.contextmanager
def _forwards(target: int, config: Path) -> Iterator[dict[str, tuple[int, int]]]:
    """Local port and process of each forwarder, each in a process of its own."""
    from tests.sshd import free_port

    found, processes = {}, []
    try:
        for name in ("nbkit", "ssh -L"):
            port = free_port()
            command = (
                [sys.executable, "-m", "nbkit.cli", "forward", "box", "-F", str(config), "-p", f"{target}:{port}"]
                if name == "nbkit"
                else ["ssh", "-F", str(config), "-N", "-L", f"127.0.0.1:{port}:127.0.0.1:{target}", "box"]
            )
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            processes.append(process)
            _ready(port, process)
            found[name] = (port, process.pid)
        yield found
    finally:
        for process in processes:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=10)


@contextlib.contextmanager
def rig() -> Iterator[dict[str, tuple[int, int]]]:
    """An sshd, the server behind it, and to that a forward of each kind: local port and process.

    Raises: CannotRunError without sshd and ssh.
    """
    from tests.sshd import SSHD, running

    if not SSHD or not shutil.which("ssh"):
        raise CannotRunError("sshd or ssh is absent: apt install openssh-server openssh-client")
    server = subprocess.Popen([sys.executable, "-m", "bench._forwards"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        target = int(server.stdout.readline())
        with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "box") as box, \
                _forwards(target, box.config) as forwards:  # fmt: skip
            yield forwards
    finally:
        server.kill()
        server.communicate()


if __name__ == "__main__":
    serve()
