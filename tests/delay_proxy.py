"""A TCP proxy on loopback that adds a delay, and breaks as it is told to: cuts, resets, stalls, swallows, refuses.

python -m tests.delay_proxy PORT DELAY_S    prints its own port, and passes on until its stdin ends; each line there is
                                            a fault, such as "cut", "reset", "stall up 1.5", "swallow", "refuse 2"
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

_READ_BYTES = 256 * 1024
_MOST_WAITING = 64 << 20  # bytes on their way; a real link holds bandwidth x delay


class DelayProxy:
    """Passes every connection on to `target`, each byte `delay_s` later; there is no limit of bandwidth.

    Attributes:
        port: To connect to.
        cut_after: Bytes, both ways together, after which every connection is cut, once; None for never.
        free: Set while each way, "up" to the target and "down" from it, passes on.
    """

    def __init__(self, target: int, delay_s: float, cut_after: int | None = None) -> None:
        self._target, self._delay_s, self.cut_after = target, delay_s, cut_after
        self._passed, self._lock = 0, threading.Lock()
        self._open: list[socket.socket] = []
        self._ways: list[_Way] = []
        self.free = {"up": threading.Event(), "down": threading.Event()}
        for way in self.free.values():
            way.set()
        self.port = 0
        self._listen()

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    near.close()
                    continue
                for one in (near, far):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open += [near, far]
                for name, source, sink in (("up", near, far), ("down", far, near)):
                    self._ways.append(_Way(self, source, sink, self._delay_s, self.free[name]))

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
        gone, self._open, self._ways = self._open, [], []
        for one in gone:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """End every connection with RST, as a router does that has forgotten them."""
        gone, self._open, self._ways = self._open, [], []
        for one in gone:
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.shutdown(socket.SHUT_RD)  # wakes who reads it, or it would stay open; says nothing
        for one in gone:
            one.close()

    def swallow(self) -> None:
        """Of every connection that is open now, pass on nothing any more, and say nothing: half open, for ever."""
        for way in self._ways:
            way.swallows = True

    def stall(self, way: str, for_s: float) -> None:
        """Hold up one way ("up", "down") or "both" for a while, of old and new connections."""
        ways = [event for name, event in self.free.items() if way in {name, "both"}]
        for event in ways:
            event.clear()
        time.sleep(for_s)
        for event in ways:
            event.set()

    def refuse(self, for_s: float) -> None:
        """Cut, and listen to nobody for a while."""
        self._deafen()
        self.cut()
        time.sleep(for_s)
        self._listen()

    def _deafen(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def fault(self, words: str) -> None:
        """One of the above, as a line of text."""
        name, *values = words.split()
        getattr(self, name)(*(value if value.isalpha() else float(value) for value in values))

    def close(self) -> None:
        """End everything."""
        self._deafen()
        for event in self.free.values():
            event.set()
        self.cut()


class _Way:
    """One direction: a thread reads, another sends when the time has come."""

    def __init__(
        self, proxy: DelayProxy, source: socket.socket, sink: socket.socket, delay_s: float, free: threading.Event
    ) -> None:
        self._proxy, self._source, self._sink, self._delay_s, self._free = proxy, source, sink, delay_s, free
        self.swallows = False
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
            self._free.wait()
            if self.swallows:
                if not data:
                    return
                continue
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
    with faulty(target, delay_s) as (port, _):
        yield port


@contextlib.contextmanager
def faulty(target: int, delay_s: float = 0.0) -> Iterator[tuple[int, Callable[[str], None]]]:
    """As `apart`, with a function that has it make a fault and returns when that is over."""
    command = [sys.executable, "-m", "tests.delay_proxy", str(target), str(delay_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def fault(words: str) -> None:
            stdin.write(words + "\n")
            stdin.flush()
            if stdout.readline() != "done\n":
                raise RuntimeError(f"the proxy does not know {words!r}")

        yield int(stdout.readline()), fault
        process.communicate(timeout=10)


if __name__ == "__main__":
    with delayed(int(sys.argv[1]), float(sys.argv[2])) as running:
        print(running.port, flush=True)
        for words in sys.stdin:
            running.fault(words)
            print("done", flush=True)
