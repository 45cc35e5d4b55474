"""One run of `bench rekeys`, in a process of its own, and the server of bytes behind it.

python -m bench._rekeys serve                     prints its port
python -m bench._rekeys nbkit|paramiko CONFIG PORT BYTES REKEY_BYTES    prints JSON: seconds, rekeys, channels; or error
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

CHURNERS = 4  # threads that open a channel, have a few bytes back, close it, and again
STALL_S = 20.0  # no byte either way for so long is a hang
BLOCK = random.Random(7).randbytes(1 << 18)  # known at both ends
TRIGGER = "_trigger_rekey"  # of paramiko's packets, which has no public name
Line = Any  # a socket, or a channel that has its methods


def digest(size: int) -> bytes:
    """sha256 of what goes over."""
    whole = hashlib.sha256()
    for _ in range(size // len(BLOCK)):
        whole.update(BLOCK)
    return whole.digest()


def serve() -> None:
    """Answer connections: a command and a size, then: d send that much, u take it and say its sha256, e echo it."""

    def answer(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError, EOFError):
            head = take(sock, 9)
            size = int.from_bytes(head[1:], "big")
            if head[:1] == b"d":
                for _ in range(size // len(BLOCK)):
                    sock.sendall(BLOCK)
            elif head[:1] == b"u":
                sock.sendall(summed(sock, size, id))
            else:
                sock.sendall(take(sock, size))

    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()


def take(line: Line, size: int) -> bytes:
    """So many bytes.

    Raises: EOFError.
    """
    got = b""
    while len(got) < size:
        data = line.recv(size - len(got))
        if not data:
            raise EOFError("a channel ended early")
        got += data
    return got


def summed(line: Line, size: int, moved: Callable[[int], object]) -> bytes:
    """sha256 of the next `size` bytes.

    Raises: EOFError.
    """
    whole = hashlib.sha256()
    while size:
        data = line.recv(min(size, 1 << 18))
        if not data:
            raise EOFError("a channel ended early")
        whole.update(data)
        size -= len(data)
        moved(len(data))
    return whole.digest()


def counted(rekey_bytes: int) -> list[float]:
    """Have keys exchanged again each `rekey_bytes`, by nbkit's packets as by paramiko's; when that was."""
    from paramiko.packet import Packetizer

    from nbkit.ssh.wire import Wire

    when: list[float] = []
    trigger = getattr(Packetizer, TRIGGER)

    def noted(packets: Any) -> None:
        when.append(time.monotonic())
        trigger(packets)

    Packetizer.REKEY_BYTES = Wire.REKEY_BYTES = rekey_bytes
    setattr(Packetizer, TRIGGER, noted)
    return when


@contextlib.contextmanager
def nbkit_lines(config: str, port: int) -> Iterator[Callable[[], Line]]:
    """What opens a line through a forward of nbkit."""
    from nbkit import ssh

    with ssh.connect("box", config=config) as session, ssh.forward(session, port) as forward:
        yield lambda: socket.create_connection(("127.0.0.1", forward.local_port), timeout=60)


@contextlib.contextmanager
def paramiko_lines(config: str, port: int) -> Iterator[Callable[[], Line]]:
    """The same on channels of stock paramiko itself, without the cost of a forward."""
    import paramiko

    from nbkit import ssh

    hop = ssh.resolve("box", config=config).target
    with paramiko.SSHClient() as client:
        client.load_host_keys(hop.known_hosts[0])
        client.connect(hop.hostname, hop.port, hop.user, key_filename=hop.identity_files[0], allow_agent=False,
                       look_for_keys=False)  # fmt: skip
        transport = client.get_transport()
        assert transport is not None

        def opened() -> Line:
            channel = transport.open_channel("direct-tcpip", ("127.0.0.1", port), ("127.0.0.1", 0), timeout=60)
            channel.settimeout(60)
            return channel

        yield opened


class Measure:
    """Moves `size` bytes each way at once while channels come and go."""

    def __init__(self, opened: Callable[[], Line], size: int) -> None:
        self.opened, self.size, self.digest = opened, size, digest(size)
        self.moved = time.monotonic()
        self.over = threading.Event()
        self.errors: list[str] = []
        self.churned = [0] * CHURNERS

    def note(self, _: int = 0) -> None:
        """Something moved."""
        self.moved = time.monotonic()

    def down(self) -> None:
        with contextlib.closing(self.opened()) as line:
            line.sendall(b"d" + self.size.to_bytes(8, "big"))
            if summed(line, self.size, self.note) != self.digest:
                raise EOFError("what came down is not what was sent")

    def up(self) -> None:
        with contextlib.closing(self.opened()) as line:
            line.sendall(b"u" + self.size.to_bytes(8, "big"))
            for _ in range(self.size // len(BLOCK)):
                line.sendall(BLOCK)
                self.note()
            if take(line, 32) != self.digest:
                raise EOFError("what came up is not what was sent")

    def churn(self, number: int) -> None:
        while not self.over.is_set():
            content = os.urandom(1000)
            with contextlib.closing(self.opened()) as line:
                line.sendall(b"e" + len(content).to_bytes(8, "big") + content)
                line.shutdown(socket.SHUT_WR)  # so that the host closes first, as a web server does
                if take(line, len(content)) != content or line.recv(1):
                    raise EOFError("a small channel got other bytes")
            self.churned[number] += 1

    def thread(self, work: Callable[..., None], *arguments: int) -> threading.Thread:
        """A thread whose failure is noted."""

        def guarded() -> None:
            try:
                work(*arguments)
            except Exception as error:
                self.errors.append(f"{type(error).__name__}: {error}")

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    def run(self) -> dict[str, Any]:
        """Move all of it; seconds, channels, and the first error."""
        start = time.monotonic()
        bulk = [self.thread(self.down), self.thread(self.up)]
        small = [self.thread(self.churn, number) for number in range(CHURNERS)]
        while any(thread.is_alive() for thread in bulk) and not self.errors:
            time.sleep(0.05)
            if time.monotonic() - self.moved > STALL_S:
                self.errors.append(f"hung: no byte for {STALL_S:.0f} s")
        seconds = time.monotonic() - start
        self.over.set()
        for thread in small:
            thread.join(timeout=STALL_S if not self.errors else 0)
        if not self.errors and any(thread.is_alive() for thread in small):
            self.errors.append("a small channel hung")
        return {"seconds": seconds, "channels": sum(self.churned), "error": self.errors[0] if self.errors else ""}


def main(kind: str, config: str = "", *numbers: str) -> None:
    """Serve, or make one run."""
    if kind == "serve":
        serve()
    port, size, rekey_bytes = map(int, numbers)
    when, lines = counted(rekey_bytes), nbkit_lines if kind == "nbkit" else paramiko_lines
    with lines(config, port) as opened:
        print(json.dumps({**Measure(opened, size).run(), "rekeys": len(when)}), flush=True)
        os._exit(0)  # a hung transport would not let go


if __name__ == "__main__":
    main(*sys.argv[1:])
