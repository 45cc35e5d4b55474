"""Connections that the system's ssh carries: a Unix socket of a forward of its, as the stream that a forward of ours takes."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbkit.ssh.stream import Sink

_READ_BYTES = 256 * 1024
_MOST_UNTAKEN = 2 * 1024 * 1024  # read and not passed on yet; then the socket is not read


class SocketStream:
    """One connection, with what a Pump uses of a Stream."""

    def __init__(self, sock: socket.socket, relay: Relay, sink: Sink, silent: Callable[[], None]) -> None:
        self.sock, self.sink, self.silent = sock, sink, silent
        self.heard = False
        self.closed = self.eof_sent = False
        self.untaken = 0
        self.ended = False  # the other side sends no more
        self.full = False  # what we sent last did not fit
        self._relay, self._lock = relay, threading.Lock()
        sink.attach(self)

    def send_now(self, data: memoryview) -> int:
        """Send what fits; 0 when nothing does, and the sink's `window` is called when it does again."""
        sent = 0
        with contextlib.suppress(BlockingIOError):
            sent = self.sock.send(data)
        if sent < len(data):
            self.full = True
            self._relay.touch(self)
        return sent

    def send_eof(self) -> None:
        """Say that no more data comes."""
        if not self.eof_sent:
            self.eof_sent = True
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)

    def consumed(self, n: int) -> None:
        """The sink has passed `n` bytes on."""
        with self._lock:
            held = self.untaken >= _MOST_UNTAKEN
            self.untaken -= n
        if held and self.untaken < _MOST_UNTAKEN:
            self._relay.touch(self)

    def taken(self, n: int) -> None:
        """`n` bytes were read; the relay says so before it hands them on."""
        with self._lock:
            self.untaken += n

    def close(self) -> None:
        """End it; idempotent, does not wait."""
        if not self.closed:
            self.closed = True
            self._relay.touch(self)

    @property
    def events(self) -> int:
        """What to wait for."""
        reads = not self.ended and self.untaken < _MOST_UNTAKEN
        return (select.POLLIN if reads else 0) | (select.POLLOUT if self.full else 0)


class Relay(threading.Thread):
    """The thread that reads all of them and calls their sinks."""

    def __init__(self) -> None:
        super().__init__(name="nbkit-ssh-relay", daemon=True)
        self._streams: dict[int, SocketStream] = {}
        self._touched: deque[SocketStream] = deque()
        self._poll = select.poll()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._poll.register(self._wake_in, select.POLLIN)
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._stopping = self._over = False

    def open(self, path: str, sink: Sink, silent: Callable[[], None]) -> SocketStream:
        """Connect to the socket at `path`; `silent` is called where it ends without a byte.

        Raises: OSError.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(5.0)
            sock.connect(path)
        except OSError:
            sock.close()
            raise
        return self.adopt(sock, sink, silent)

    def adopt(self, sock: socket.socket, sink: Sink, silent: Callable[[], None]) -> SocketStream:
        """Serve a connected socket, as `open` does."""
        sock.setblocking(False)
        stream = SocketStream(sock, self, sink, silent)
        self.touch(stream)
        if self._over:  # nobody looks any more
            self._drop(stream)
        return stream

    def touch(self, stream: SocketStream) -> None:
        """Have the thread look at a stream again."""
        self._touched.append(stream)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake; closed: it has ended
            self._wake_out.send(b"x")

    def stop(self) -> None:
        """End the thread; every sink is told."""
        self._stopping = True
        self._wake()

    def run(self) -> None:
        """Serve until `stop`."""
        while not self._stopping:
            for number, event in self._poll.poll():
                if number == self._wake_in.fileno():
                    with contextlib.suppress(BlockingIOError):
                        self._wake_in.recv(4096)
                elif stream := self._streams.get(number):
                    self._serve(stream, event)
            while self._touched:
                self._settle(self._touched.popleft())
        self._over = True
        for stream in [*self._streams.values(), *self._touched]:
            self._drop(stream)
        self._wake_in.close()
        self._wake_out.close()

    def _serve(self, stream: SocketStream, event: int) -> None:
        if event & select.POLLOUT and stream.full:
            stream.full = False
            stream.sink.window()
        if event & (select.POLLIN | select.POLLHUP) and not stream.ended and stream.untaken < _MOST_UNTAKEN:
            self._read(stream)
        elif event & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
            stream.closed = True
        self._settle(stream)

    def _read(self, stream: SocketStream) -> None:
        try:
            got = stream.sock.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            stream.closed = True
            return
        if got:
            stream.heard = True
            stream.taken(got)
            stream.sink.data(self._buffer[:got])
        else:
            stream.ended = True
            self._if_silent(stream)
            stream.sink.eof()

    @staticmethod
    def _if_silent(stream: SocketStream) -> None:
        if not stream.heard:
            stream.heard = True
            stream.silent()

    def _settle(self, stream: SocketStream) -> None:
        number = stream.sock.fileno()
        if number < 0:
            return
        if stream.closed:
            self._drop(stream)
        elif number in self._streams:
            self._poll.modify(number, stream.events)
        else:
            self._streams[number] = stream
            self._poll.register(number, stream.events)

    def _drop(self, stream: SocketStream) -> None:
        number = stream.sock.fileno()
        if number < 0:
            return
        if self._streams.pop(number, None):
            self._poll.unregister(number)
        stream.closed = True
        self._if_silent(stream)
        stream.sock.close()
        stream.sink.closed()
