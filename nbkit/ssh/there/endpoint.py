"""A stream's connection to a program on the box: a port of its loopback, or a Unix socket."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import time
from collections import deque
from typing import Any, Deque, Dict

from nbkit.ssh.there.flow import Stream
from nbkit.ssh.there.mux import Mux

AGAIN_S = 0.05
_AHEAD = 1 << 20  # bytes read and not sent; more is written to fresh memory, which costs as much as all the rest
REST_S = 0.002  # then it is not read, unless the line catches up: whatever the client does, 100 MB/s are taken
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Endpoint(Stream):
    """A stream's connection to a program on the box."""

    def __init__(self, mux: Mux, relay: Any, request: Dict[str, Any]) -> None:
        super().__init__(keep=bool(request.get("keep")))
        self.mux, self.relay, self.to = mux, relay, request["to"]
        self.sock: Any = None
        self.open = self.silent = self.deaf = self.finished = False  # it sends no more; it reads no more; they are done
        self.kept: Deque[Any] = deque()
        self.rested = 0.0  # when it may be read however far it is ahead

    def on_open(self) -> None:
        try:
            self.sock = socket.socket(socket.AF_UNIX if isinstance(self.to, str) else socket.AF_INET)
        except OSError as error:  # no descriptors left
            self.fail(str(error.strerror))
            return
        self.sock.setblocking(False)
        self.connect()

    def connect(self) -> None:
        """Try; a full backlog of a Unix socket is tried again later."""
        address = self.to if isinstance(self.to, str) else ("127.0.0.1", self.to)
        try:
            code = self.sock.connect_ex(address)
        except (OSError, ValueError) as error:  # a path that is too long, or holds a NUL
            self.fail(str(error))
            return
        if code == errno.EAGAIN:
            self.relay.later.append((time.monotonic() + AGAIN_S, self))
        elif code == errno.EINPROGRESS:
            self.relay.watch(self.sock, _WRITE, self.event)
        else:
            self.connected(code)

    def connected(self, code: int) -> None:
        if code:
            self.fail(os.strerror(code))
            return
        self.open = True
        if self.sock.family != socket.AF_UNIX:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.settle()

    def fail(self, why: str) -> None:
        self.relay.forget(self.sock)
        self.silent = self.deaf = True
        self.kept.clear()
        self.mux.cancel(self, "connect failed: " + why)
        self.mux.finish(self)

    def event(self, mask: int) -> None:
        """The connection can be read or written."""
        if not self.open:
            self.connected(self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            return
        if mask & _READ:
            self.read()
        self.settle()

    def read(self) -> None:
        room = self.mux.room(self)
        if not room or self.silent:
            return
        try:
            size = self.sock.recv_into(self.relay.buffer, min(room, len(self.relay.buffer)))
        except BlockingIOError:
            return
        except OSError:
            size = 0
            self.broke()
        if size:
            self.rested = time.monotonic() + REST_S
            self.mux.write(self, self.relay.buffer[:size])  # copies it: a buffer that is new each time costs more
        else:
            self.silent = True
            self.mux.finish(self)

    def broke(self) -> None:
        """It takes no more."""
        if not self.deaf:
            self.deaf = True
            self.kept.clear()
            self.mux.cancel(self)

    def on_data(self, view: memoryview) -> None:
        done = 0
        if self.open and not self.kept and not self.deaf:
            done = self.send(view)
        if not self.deaf and done < len(view):
            self.kept.append(memoryview(bytes(view[done:])))
            self.settle()
        self.mux.consumed(self, done)

    def send(self, view: memoryview) -> int:
        try:
            return int(self.sock.send(view))
        except BlockingIOError:
            return 0
        except OSError:
            self.broke()
            return 0

    def on_end(self) -> None:
        self.finished = True
        self.settle()

    def on_stop(self, reason: str) -> None:
        del reason
        self.silent = True
        self.settle()

    def on_room(self) -> None:
        self.settle()

    def settle(self) -> None:
        """Write what waits, end what has ended, and wait for what is left."""
        if not self.open or self.sock is None or self.sock.fileno() < 0:
            return
        while self.kept:
            done = self.send(self.kept[0])
            if not self.kept or not done:
                break
            self.mux.consumed(self, done)
            if done == len(self.kept[0]):
                self.kept.popleft()
            else:
                self.kept[0] = self.kept[0][done:]
        if self.silent and (self.deaf or (self.finished and not self.kept)):
            self.relay.forget(self.sock)
            return
        if self.finished and not self.kept and not self.deaf:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)
        reads = not self.silent and self.mux.room(self) > 0
        if reads and self.mux.ready and self.end - self.sent > _AHEAD and time.monotonic() < self.rested:
            self.relay.resting.add(self)
            reads = False
        self.relay.watch(self.sock, (_READ if reads else 0) | (_WRITE if self.kept else 0), self.event)
