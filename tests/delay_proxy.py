"""A TCP proxy on loopback that adds a delay, and cuts where it is told to.

python -m tests.delay_proxy PORT DELAY_S    prints its own port, and passes on until its stdin ends
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator

_READ_BYTES = 256 * 1024
_MOST_WAITING = 64 << 20  # bytes on their way; a real link holds bandwidth x delay


class DelayProxy:
    """Passes every connection on to `target`, each byte `delay_s` later; there is no limit of bandwidth.

    Attributes:
        port: To connect to.
        cut_after: Bytes, both ways together, after which every connection is cut, once; None for never.
    """

    def __init__(self, target: int, delay_s: float, cut_after: int | None = None) -> None:
        self._target, self._delay_s, self.cut_after = target, delay_s, cut_after
        self._passed, self._lock = 0, threading.Lock()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                for one in (near, far):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    _Way(self, source, sink, self._delay_s)

    def passed(self, count: int) -> None:
        """Count bytes, and cut where the limit is."""
        with self._lock:
            self._passed += count
            cut = self.cut_after is not None and self._passed >= self.cut_after
            if cut:
                self.cut_after = None
        if cut:
            self.cut()

    def cut(self) -> None:
        """End every connection."""
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._open = []

    def close(self) -> None:
        """End everything."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()


class _Way:
    """One direction: a thread reads, another sends when the time has come."""

    def __init__(self, proxy: DelayProxy, source: socket.socket, sink: socket.socket, delay_s: float) -> None:
        self._proxy, self._source, self._sink, self._delay_s = proxy, source, sink, delay_s
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._state = threading.Condition()
        for work in (self._read, self._send):
            threading.Thread(target=work, daemon=True).start()

    def _read(self) -> None:
        data = b"-"
        while data:
            try:
                data = self._source.recv(_READ_BYTES)
            except OSError:
                data = b""
            with self._state:
                self._state.wait_for(lambda: self._bytes < _MOST_WAITING)
                self._waiting.append((time.monotonic() + self._delay_s, data))
                self._bytes += len(data)
                self._state.notify_all()

    def _send(self) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: self._waiting)
                due, data = self._waiting.popleft()
                self._bytes -= len(data)
                self._state.notify_all()
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                if not data:
                    self._sink.shutdown(socket.SHUT_WR)
                    return
                self._sink.sendall(data)
            except OSError:
                self._end()
                return
            self._proxy.passed(len(data))

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self._source.shutdown(socket.SHUT_RDWR)
        with self._state:
            self._bytes = -(1 << 60)  # what is still read is thrown away
            self._state.notify_all()


@contextlib.contextmanager
def delayed(target: int, delay_s: float, *, cut_after: int | None = None) -> Iterator[DelayProxy]:
    """A proxy in front of the port `target`: a round trip takes 2 x `delay_s` more."""
    proxy = DelayProxy(target, delay_s, cut_after)
    try:
        yield proxy
    finally:
        proxy.close()


@contextlib.contextmanager
def apart(target: int, delay_s: float) -> Iterator[int]:
    """The port of a proxy in a process of its own, which takes no time from the one that is measured."""
    command = [sys.executable, "-m", "tests.delay_proxy", str(target), str(delay_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.communicate(timeout=10)


if __name__ == "__main__":
    with delayed(int(sys.argv[1]), float(sys.argv[2])) as running:
        print(running.port, flush=True)
        sys.stdin.read()
