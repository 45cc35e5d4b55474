"""A channel that never blocks the transport's thread: closes and replies go out by the writer, data goes to a sink."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from paramiko.channel import Channel
from paramiko.common import (
    cMSG_CHANNEL_CLOSE,
    cMSG_CHANNEL_DATA,
    cMSG_CHANNEL_EOF,
    cMSG_CHANNEL_FAILURE,
    cMSG_CHANNEL_REQUEST,
    cMSG_CHANNEL_WINDOW_ADJUST,
)
from paramiko.message import Message
from paramiko.ssh_exception import SSHException

if TYPE_CHECKING:
    from nbkit.ssh.engine import Engine

WINDOW = 2 * 1024 * 1024  # bytes in flight towards us, a channel; OpenSSH's own, and what a long link outgrows
_NEAR_WINDOW = 3 * 1024 * 1024  # of a command: sshd goes on while its reader waits for a processor
_FAR_WINDOW = 8 * 1024 * 1024  # of one on a long link: two round trips fewer until it is filled
_FAR_S = 0.01  # a round trip from which a link is long
_MOST_WINDOW = 64 * 1024 * 1024
PACKET = 32 * 1024
_ACKS = 4  # a window


class Sink(Protocol):
    """Where a stream's data goes. Every method but `attach` is called on the transport's thread and must not block."""

    def attach(self, stream: Any) -> None:
        """The stream is made, and about to be asked for."""

    def data(self, view: memoryview) -> None:
        """Bytes came, in a view that holds only during the call; say `stream.consumed(n)` when they have gone on."""

    def error_data(self, view: memoryview) -> None:
        """Bytes of stderr came; as `data`."""

    def eof(self) -> None:
        """No more will come."""

    def closed(self) -> None:
        """The channel, or the whole connection, is gone."""

    def window(self) -> None:
        """There is room to send again."""


def first_window(rtt_s: float) -> int:
    """The window that a command's channel starts with."""
    return _NEAR_WINDOW if rtt_s < _FAR_S else _FAR_WINDOW


class Stream(Channel):  # type: ignore[misc]  # paramiko is not typed
    """One channel. With a `sink` set before it opens, data bypasses paramiko's buffer (an array, slow when long)."""

    def __init__(self, number: int, engine: Engine, sink: Sink | None = None, window: int = WINDOW) -> None:
        super().__init__(number)
        self.engine = engine
        self.sink = sink
        self.exit_signal = ""
        self.closed_there = False
        self.eof_sent: bool = False
        self.out_window_size: int = 0
        self._granted = self._window = window
        self._owed = self._passed = 0
        self._since = time.monotonic()
        self._send_lock = threading.Lock()  # data is never sent after CLOSE: sshd ends the connection at that
        self._close_sent = False
        self._owed_lock = threading.Lock()
        if sink is not None:
            sink.attach(self)

    # -- what the server sends; the transport's thread

    def _feed(self, m: Any) -> None:
        self.arrived(memoryview(m.get_binary()))

    def arrived(self, data: memoryview) -> None:
        """Channel data, valid during the call."""
        self._count(len(data))
        if self.closed:
            return
        if self.sink is not None:
            self.sink.data(data)
        else:
            self.in_buffer.feed(bytes(data))

    def _count(self, n: int) -> None:
        with self._owed_lock:
            self._granted -= n
        if self._granted < 0:
            raise SSHException("The server sent more than it was allowed to (channel window)")

    def _feed_extended(self, m: Message) -> None:
        code, data = m.get_int(), m.get_binary()
        if code != 1:
            return
        self._count(len(data))
        if self.closed:
            return
        if self.sink is not None:
            self.sink.error_data(memoryview(data))
        else:
            self.in_stderr_buffer.feed(data)

    def _window_adjust(self, m: Message) -> None:
        super()._window_adjust(m)
        if self.sink is not None:
            self.sink.window()

    def _handle_request(self, m: Message) -> None:
        kind, want_reply = m.get_text(), m.get_boolean()
        if kind == "exit-status":
            self.exit_status = m.get_int()
            self.status_event.set()
        elif kind == "exit-signal":
            self.exit_signal = m.get_text()[:20]
            self.status_event.set()
        if want_reply:
            self.engine.later(_message(cMSG_CHANNEL_FAILURE, self.remote_chanid))

    def _request_failed(self, m: Message) -> None:
        del m
        self.close()
        self.event.set()

    def _handle_eof(self, m: Message) -> None:
        super()._handle_eof(m)
        if self.sink is not None:
            self.sink.eof()

    def _handle_close(self, m: Message) -> None:
        del m
        self.closed_there = True
        self.close()
        self.engine.forget(self)
        if self.sink is not None:
            self.sink.closed()

    def _unlink(self) -> None:
        already = self.closed or not self.active  # one that never opened is told so by `opened`
        super()._unlink()
        self._close_sent = True
        if self.sink is not None and not already:
            self.sink.closed()

    # -- what we send; any thread

    def close(self) -> None:
        """End the channel; idempotent, does not wait."""
        with self.lock:
            if not self.active or self.closed:
                return
            self._set_closed()
        self.engine.later(self)

    def send_close(self) -> None:
        """Called by the writer: EOF and CLOSE, after the data that is being sent and before any other."""
        with self._send_lock:
            if self._close_sent:
                return
            self._close_sent = True
            kinds = [cMSG_CHANNEL_CLOSE] if self.eof_sent else [cMSG_CHANNEL_EOF, cMSG_CHANNEL_CLOSE]
            self.eof_sent = True
            self.engine.send_data([(_message(kind, self.remote_chanid).asbytes(),) for kind in kinds])

    def send_eof(self) -> None:
        """Say that no more data comes."""
        with self._send_lock:
            if not (self.eof_sent or self.closed or self._close_sent):
                self.eof_sent = True
                self.engine.send(_message(cMSG_CHANNEL_EOF, self.remote_chanid))

    def execute(self, line: str, timeout_s: float) -> None:
        """Have the host run `line` on this channel, and wait until it says that it does.

        Raises: SSHException when it does not, or the connection ended; TimeoutError.
        """
        self.event_ready = False
        m = _message(cMSG_CHANNEL_REQUEST, self.remote_chanid)
        m.add_string("exec")
        m.add_boolean(True)
        m.add_string(line)
        self.engine.send(m)
        if not self.event.wait(timeout_s):
            raise TimeoutError(f"no answer within {timeout_s:.0f} s")
        if not self.event_ready:
            raise SSHException(self.engine.lost or "the server runs no commands")

    def send_now(self, data: memoryview) -> int:
        """Send what the window has room for; 0 when it has none. May wait for the socket, never for the window."""
        with self.lock:
            if self.closed or self.eof_sent:
                return len(data)
            size: int = min(len(data), self.out_window_size)
            self.out_window_size -= size
        if size:
            most = min(self.out_max_packet_size, PACKET) - 64
            head = cMSG_CHANNEL_DATA + self.remote_chanid.to_bytes(4)
            payloads: list[tuple[bytes, bytes, memoryview]] = []
            for at in range(0, size, most):
                part = data[at : min(at + most, size)]
                payloads.append((head, len(part).to_bytes(4), part))
            with self._send_lock:
                if not self._close_sent:
                    self.engine.send_data(payloads)
        return size

    def _send(self, s: Any, m: Message) -> int:
        with self.lock:
            if self.closed:
                raise OSError("Socket is closed")
            size: int = self._wait_for_send_window(len(s))
            if size == 0:
                return 0
        m.add_string(bytes(s[:size]))
        with self._send_lock:
            if self._close_sent:
                raise OSError("Socket is closed")
            self.engine.send(m)
        return size

    def consumed(self, n: int) -> None:
        """A sink has passed `n` bytes on: the server may send as many again."""
        with self._owed_lock:
            self._owed += n
            if self._owed * _ACKS < self._window or self.closed:
                return
            owed, self._owed = self._owed + self._growth(self._owed), 0
            self._granted += owed
        self.engine.soon(_message(cMSG_CHANNEL_WINDOW_ADJUST, self.remote_chanid, owed))

    def _growth(self, passed: int) -> int:
        """What the window grows by, once for each window that passed: to twice what the link holds at this speed.

        Not to more: what a link does not take waits in sshd, which copies all of it for each packet that it adds.
        """
        self._passed += passed
        if self._passed < self._window:
            return 0
        now = time.monotonic()
        took, self._since = max(now - self._since, 1e-6), now
        more = min(int(2 * self._passed / took * self.engine.rtt_s), _MOST_WINDOW) - self._window
        self._passed = 0
        self._window += max(0, more)
        return max(0, more)

    def recv_into(self, view: memoryview) -> int:
        """As a socket's: a connection to the next hop reads itself through this."""
        data: bytes = self.recv(len(view))
        view[: len(data)] = data
        return len(data)

    def _check_add_window(self, n: int) -> int:
        owed = int(super()._check_add_window(n))
        with self._owed_lock:
            self._granted += owed
        return owed


def _message(number: bytes, *values: int) -> Message:
    m = Message()
    m.add_byte(number)
    for value in values:
        m.add_int(value)
    return m
