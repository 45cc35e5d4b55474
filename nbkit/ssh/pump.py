"""Moves the bytes of one forward: a single thread for all of its connections, however many.

Down: the transport's thread writes straight to the local socket; what the socket does not take is kept, at most a
channel window of it, and drained here. Up: read here, sent as far as the window goes; a connection without window is
not read, and holds up no other.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from nbkit.errors import NbkitError
from nbkit.ssh import peers
from nbkit.ssh.text import said

if TYPE_CHECKING:
    from nbkit.ssh.carrier import Carrier
    from nbkit.ssh.relayed import RelayStream
    from nbkit.ssh.sockets import SocketStream
    from nbkit.ssh.stream import Stream

_READ_BYTES = 256 * 1024
_MOST_ACCEPTS = 256  # in one go, so that open connections are served between
_MOST_WAITING = 4096  # connections that wait for the link


class Connection:
    """One local connection and its channel; the sink of the channel's data."""

    def __init__(self, sock: socket.socket, pump: Pump, until: float) -> None:
        self.sock, self.pump, self.until = sock, pump, until
        self.stream: Stream | SocketStream | RelayStream | None = None
        self.open = False  # the channel stands
        self.pending = memoryview(b"")  # read here, not sent yet
        self.local_end = False
        self.remote_end = False
        self.gone = False
        self.again = False  # the link was lost before the channel stood
        self.watched = 0  # what the pump's poll waits for
        self._kept: deque[memoryview] = deque()
        self._lock = threading.Lock()

    # -- the transport's thread

    def attach(self, stream: Any) -> None:
        """The channel is about to be asked for; on the pump's thread."""
        self.stream = stream

    def opened(self, error: Exception | None) -> None:
        """The channel stands, or not."""
        if error is None:
            self.open = True
        elif hasattr(error, "code"):  # the host's own no; anything else is the link, and nothing was sent on it yet
            self.pump.failed = said(error)
            self.gone = True
        else:
            self.again = True
        self.pump.touch(self)

    def data(self, view: memoryview) -> None:
        """Bytes from the host."""
        done = 0
        with self._lock:
            if self.gone:
                return
            idle = not self._kept
            if not idle:
                self._kept.append(memoryview(bytes(view)))
                done = self._flush()
            else:
                try:
                    done = self.sock.send(view)
                except BlockingIOError:
                    pass
                except OSError:
                    self._drop()
                    return
                if done < len(view):
                    self._kept.append(memoryview(bytes(view[done:])))
            if idle and self._kept:
                self.pump.touch(self)
        if done and self.stream is not None:
            self.stream.consumed(done)

    def error_data(self, view: memoryview) -> None:
        """A forward has no stderr: what a server sends as such is dropped."""
        if self.stream is not None:
            self.stream.consumed(len(view))

    def eof(self) -> None:
        """The host sends no more."""
        self.remote_end = True
        self.pump.touch(self)

    def closed(self) -> None:
        """The channel is gone."""
        self.remote_end = True
        self.open = False
        self.pump.touch(self)

    def window(self) -> None:
        """There is room again."""
        if self.pending:
            self.pump.touch(self)

    # -- the pump's thread

    def _drop(self) -> None:
        self._kept.clear()
        self.gone = True
        self.pump.touch(self)

    def drain(self) -> None:
        """Write what was kept, as far as the local socket takes it."""
        with self._lock:
            done = self._flush()
        if done and self.stream is not None:
            self.stream.consumed(done)

    def _flush(self) -> int:
        done = 0
        try:
            while self._kept:
                taken = self.sock.send(self._kept[0])
                done += taken
                if taken == len(self._kept[0]):
                    self._kept.popleft()
                else:
                    self._kept[0] = self._kept[0][taken:]
        except BlockingIOError:
            pass
        except OSError:
            self._drop()
        return done

    @property
    def kept(self) -> bool:
        """True while bytes wait for the local socket."""
        return bool(self._kept)


class Pump(threading.Thread):
    """The thread of one forward.

    Attributes:
        refused: Connections of other users, closed before a byte was passed on.
        failed: Why the newest failed connection failed.
    """

    def __init__(
        self,
        listener: socket.socket,
        carrier: Carrier,
        remote: int | str,
        *,
        wait_s: float,
        any_user: bool,
        keep: bool = False,
    ) -> None:
        super().__init__(name=f"nbkit-ssh-forward-{remote}", daemon=True)
        self.refused = 0
        self.failed = ""
        self._listener, self._carrier, self._remote = listener, carrier, remote
        self._tcp = listener.family == socket.AF_INET
        self._wait_s, self._keep, self._check = wait_s, keep, not any_user and self._tcp and peers.can_tell()
        self._touched: deque[Connection] = deque()
        self._all: set[Connection] = set()
        self._waiting: deque[Connection] = deque()
        self._stopping = False
        self._wake_in, self._wake_out = socket.socketpair()
        self._awake = False
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._poll = selectors.DefaultSelector()
        for sock in (listener, self._wake_in, self._wake_out):
            sock.setblocking(False)

    # -- any thread

    def touch(self, connection: Connection) -> None:
        """Have the pump look at a connection again."""
        self._touched.append(connection)
        self._wake()

    def link_changed(self) -> None:
        """The link came, went, or is over."""
        self._wake()

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            with contextlib.suppress(OSError):  # full: it is awake; closed: it has ended
                self._wake_out.send(b"x")

    def stop(self) -> None:
        """End the thread and every connection."""
        self._stopping = True
        self._awake = False
        self._wake()
        if self is not threading.current_thread():
            self.join(timeout=10)

    # -- the pump's thread

    def run(self) -> None:
        """Serve until `stop`."""
        self._poll.register(self._listener, selectors.EVENT_READ, None)
        self._poll.register(self._wake_in, selectors.EVENT_READ, None)
        try:
            while not self._stopping:
                for key, events in self._poll.select(self._pause()):
                    self._event(key.fileobj, key.data, events)
                while self._touched:
                    self._settle(self._touched.popleft())
                if self._waiting:
                    self._link()
        finally:
            self._listener.close()
            for connection in list(self._all):
                self._end(connection)
            self._poll.close()
            self._wake_in.close()
            self._wake_out.close()

    def _pause(self) -> float | None:
        return max(0.0, self._waiting[0].until - time.monotonic()) + 0.01 if self._waiting else None

    def _event(self, source: object, connection: Connection | None, events: int) -> None:
        if source is self._listener:
            self._accept()
        elif connection is None:
            # First empty it, then say so: the other way round, a byte sent in between is lost and nobody sends another.
            with contextlib.suppress(BlockingIOError):
                self._wake_in.recv(4096)
            self._awake = False
        else:
            if events & selectors.EVENT_WRITE:
                connection.drain()
            if events & selectors.EVENT_READ and not connection.pending and not connection.gone:
                self._read(connection)
            self._settle(connection)

    def _accept(self) -> None:
        taken: list[tuple[socket.socket, tuple[str, int]]] = []
        with contextlib.suppress(OSError):  # nothing more, or no descriptors left: those who wait are taken later
            while len(taken) < _MOST_ACCEPTS:
                taken.append(self._listener.accept())
        allowed = peers.ours((a for _, a in taken), self._listener.getsockname()) if self._check and taken else None
        for sock, address in taken:
            if (allowed is not None and address not in allowed) or len(self._waiting) >= _MOST_WAITING:
                self.refused += 1
                sock.close()
                continue
            sock.setblocking(False)
            if self._tcp:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(sock, self, time.monotonic() + self._wait_s)
            self._all.add(connection)
            self._waiting.append(connection)

    def _link(self) -> None:
        """Ask for the channels of those who wait, if the link stands; end those who waited too long."""
        while self._waiting:
            connection = self._waiting[0]
            self._waiting.popleft()
            try:
                self._carrier.reach(self._remote, connection.opened, connection, keep=self._keep)
            except NbkitError as error:
                over = self._carrier.error is not None or time.monotonic() >= connection.until
                if not over:
                    self._waiting.appendleft(connection)
                    return
                self.failed = error.message
                self._end(connection)

    def _read(self, connection: Connection) -> None:
        try:
            got = connection.sock.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            connection.gone = True
            return
        if got:
            connection.pending = memoryview(bytes(self._unsent(connection, self._buffer[:got])))
        else:
            connection.local_end = True

    def _settle(self, connection: Connection) -> None:
        """Do what can be done for a connection, and wait for what cannot."""
        if connection not in self._all:
            return
        if connection.again:
            connection.again = connection.remote_end = False
            connection.stream = None
            self._waiting.append(connection)
            return
        stream = connection.stream
        if connection.open and stream is not None and not connection.gone:
            if connection.pending:
                connection.pending = self._unsent(connection, connection.pending)
            if connection.local_end and not connection.pending and not stream.eof_sent:
                with contextlib.suppress(Exception):
                    stream.send_eof()
        lost = stream is not None and stream.closed
        if connection.remote_end and not connection.kept:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_WR)
            if connection.local_end or lost:
                connection.gone = True
        if connection.gone:
            self._end(connection)
            return
        reads = connection.open and not connection.pending and not connection.local_end
        self._watch(
            connection, (selectors.EVENT_READ if reads else 0) | (selectors.EVENT_WRITE if connection.kept else 0)
        )

    @staticmethod
    def _unsent(connection: Connection, data: memoryview) -> memoryview:
        """Send; returns what the host has no room for."""
        assert connection.stream is not None
        try:
            return data[connection.stream.send_now(data) :]
        except Exception:  # the link broke: its own end tells everyone
            connection.gone = True
            return memoryview(b"")

    def _watch(self, connection: Connection, events: int) -> None:
        if events == connection.watched:
            return
        if not connection.watched:
            self._poll.register(connection.sock, events, connection)
        elif not events:
            self._poll.unregister(connection.sock)
        else:
            self._poll.modify(connection.sock, events, connection)
        connection.watched = events

    def _end(self, connection: Connection) -> None:
        connection.gone = True
        self._all.discard(connection)
        self._watch(connection, 0)
        if connection.stream is not None:
            connection.stream.close()
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)
        connection.sock.close()
