"""paramiko's Transport, hardened and tuned: no weak algorithm, nothing accepted from the server, a peer that must answer.

Three threads a connection: paramiko's own reads, a writer sends what that thread must not wait for, a watch counts
silence. Uses private hooks of paramiko 5.1; pyproject holds it below the next major release.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from paramiko.common import cMSG_CHANNEL_OPEN, cMSG_CHANNEL_OPEN_FAILURE, cMSG_GLOBAL_REQUEST, cMSG_REQUEST_FAILURE
from paramiko.message import Message
from paramiko.ssh_exception import ChannelException, SSHException
from paramiko.transport import Transport

from nbkit.ssh.known_hosts import Key
from nbkit.ssh.pings import Pings
from nbkit.ssh.process import ChannelProcess
from nbkit.ssh.stream import PACKET, WINDOW, Sink, Stream, first_window
from nbkit.ssh.text import plain
from nbkit.ssh.wire import Wire

_PING_AFTER_S = 3  # silent seconds before the server is asked for a sign of life
_DEAD_AFTER_S = 10  # silent seconds after which it is given up: seen within 12 s, as a tick may run late
_FIRST_PINGS = 4  # one after the other: sshd answers the first late, while it sets up the user's process
_MOST_WAITING = 100_000  # replies waiting to go out; a server that asks for more and reads none of them is hostile
_ADMINISTRATIVELY_PROHIBITED = 1
_MOST_TOGETHER = 64  # small messages in one write
_NOTHING = object()
Opened = Callable[[Exception | None], None]
_NOBODY: tuple[None, None] = (None, None)


class Engine(Transport):  # type: ignore[misc]  # paramiko is not typed
    """One SSH connection over `sock`.

    Attributes:
        place: The host, as errors name it.
        lost: Why the connection ended; empty while it lives.
        farewell: What the server said when it hung up, harmless to print.
        pings: What we ask to see that it lives, and the round trips of that.
    """

    # Dropped of what paramiko offers: every cbc, 3des, hmac-sha1, hmac-md5, *-96. AES-GCM is twice as fast as CTR here.
    _preferred_ciphers = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes256-ctr", "aes192-ctr", "aes128-ctr")
    _preferred_macs = (
        "hmac-sha2-256-etm@openssh.com",
        "hmac-sha2-512-etm@openssh.com",
        "hmac-sha2-256",
        "hmac-sha2-512",
    )
    _CLIENT_ID = "nbkit"

    def __init__(self, sock: Any, place: str = "", *, key_types: list[str] | None = None) -> None:
        super().__init__(sock, default_window_size=WINDOW, default_max_packet_size=PACKET, packetizer_class=Wire)
        logger = logging.getLogger("paramiko")
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())  # or Python prints its errors, and ours say the same better
        self.place = place
        self.lost = ""
        self.farewell = ""
        self._known_types = key_types or []
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._opening: dict[int, tuple[Stream, Opened]] = {}
        self._streams: dict[int, Stream] = {}
        self.pings = Pings(self._send_ping)
        self._end_lock = threading.Lock()
        self._ended: list[Callable[[], None]] = []
        self.held: Stream | None = None
        self._over = threading.Event()
        self.packetizer.deliver = self._deliver
        self._channel_handler_table = {
            number: _method(handler.__name__)
            for number, handler in Transport._channel_handler_table.items()  # noqa: SLF001 - a table of functions, no hook
        }

    @property
    def preferred_keys(self) -> tuple[str, ...]:
        """Host key algorithms: those of the keys we know first, so that the server shows one; no certificates."""
        names = tuple(self._preferred_keys)
        known = ["rsa-sha2" if kind == "ssh-rsa" else kind for kind in self._known_types]
        rank = {name: next((i for i, kind in enumerate(known) if name.startswith(kind)), len(known)) for name in names}
        return tuple(sorted(names, key=rank.__getitem__))

    # -- life

    def run(self) -> None:
        """paramiko's loop; whatever ends it, everyone who waits is told."""
        try:
            super().run()
        finally:
            self._finish()

    def _finish(self) -> None:
        self.lost = self.lost or self.farewell or _cause(self.saved_exception)
        self._over.set()
        with contextlib.suppress(Exception):
            self.packetizer.close()
        self.packetizer.release()
        self._outbox.put(None)
        for stream, opened in list(self._opening.values()):
            self._opening.pop(stream.chanid, None)
            opened(SSHException(self.lost))
        for stream in list(self._streams.values()):
            stream._unlink()  # noqa: SLF001 - our own class; the name is paramiko's
        self._streams.clear()
        self.pings.end()
        with self._end_lock:
            callbacks, self._ended = self._ended, []
        for callback in callbacks:
            callback()

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when the connection has ended; at once if it has."""
        with self._end_lock:
            if not self._over.is_set():
                self._ended.append(callback)
                return
        callback()

    def serve(self) -> None:
        """Start the writer and the watch; call once, after authentication."""
        threading.Thread(target=self._write, name="nbkit-ssh-writer", daemon=True).start()
        threading.Thread(target=self._watch, name="nbkit-ssh-watch", daemon=True).start()
        self.pings.ask()

    def give_up(self, why: str) -> None:
        """End the connection without waiting for anything; idempotent."""
        self.lost = self.lost or why
        self.active = False
        with contextlib.suppress(Exception):
            self.packetizer.close()

    def _write(self) -> None:
        item = self._outbox.get()
        while item is not None:
            together: list[Message] = []
            while isinstance(item, Message) and len(together) < _MOST_TOGETHER:
                together.append(item)
                item = _NOTHING if self._outbox.empty() else self._outbox.get()
            try:
                if together:
                    self.send_data([(m.asbytes(),) for m in together])
                if isinstance(item, Stream):
                    item.send_close()
                    item = _NOTHING
            except (EOFError, OSError, SSHException) as error:
                self.give_up(f"the connection broke ({_cause(error)})")
                return
            if item is _NOTHING:
                item = self._outbox.get()

    def _watch(self) -> None:
        """Count silent seconds by ticks, not by the clock: a process that was stopped has not heard, nor asked."""
        wire, heard, silent = self.packetizer, -1, 0
        while not self._over.wait(1.0):
            silent = silent + 1 if wire.heard == heard else 0
            heard = wire.heard
            if silent >= _DEAD_AFTER_S:
                self.give_up(f"no answer for {silent} s")
                return
            if silent and silent % _PING_AFTER_S == 0:
                self.pings.ask()

    def later(self, item: Any) -> None:
        """Have the writer send a Message, or close a Stream; never waits."""
        if self._outbox.qsize() > _MOST_WAITING:
            raise SSHException("The server asks for more replies than it reads")
        self._outbox.put(item)

    def soon(self, m: Message) -> None:
        """Send a small message at once if that makes nobody wait, else have the writer do it."""
        sent = False
        if self.clear_to_send_lock.acquire(blocking=False):  # held while keys are exchanged
            try:
                sent = self.clear_to_send.is_set() and self.packetizer.try_payload(m.asbytes())
            except EOFError:
                sent = True  # the connection has ended: whoever reads it says so
            finally:
                self.clear_to_send_lock.release()
        if not sent:
            self.later(m)

    def send(self, m: Message) -> None:
        """Send now; waits while keys are exchanged."""
        self._send_user_message(m)

    def send_data(self, payloads: Sequence[Sequence[bytes | memoryview]]) -> None:
        """Send packets of channel data together, in one write where the cipher allows."""
        if not self.packetizer.fast:
            for payload in payloads:
                self.send(Message(b"".join(payload)))
            return
        end = time.monotonic() + self.clear_to_send_timeout
        while True:
            self.clear_to_send.wait(0.1)
            if not self.active:
                raise EOFError
            with self.clear_to_send_lock:
                if self.clear_to_send.is_set():
                    self.packetizer.send_payloads(payloads)
                    return
            if time.monotonic() > end:
                raise SSHException("Key exchange took too long")

    # -- channels

    def _deliver(self, number: int, data: memoryview) -> bool:
        """Channel data, past paramiko's loop; not where that waits for a packet of its own."""
        stream = self._streams.get(number)
        if stream is None or self._expected_packet:
            return False
        stream.arrived(data)
        return True

    def open_stream(self, kind: str, extra: bytes, opened: Opened, sink: Sink | None = None) -> Stream:
        """Ask for a channel and return at once; `opened` is told on the transport's thread, with an error or None."""
        window = first_window(self.rtt_s) if kind == "session" else WINDOW
        with self.lock:
            number = self._next_channel()
            stream = Stream(number, self, sink, window)
            stream._set_transport(self)  # noqa: SLF001 - paramiko's own way to join the two
            stream._set_window(window, PACKET)  # noqa: SLF001 - same
            self._channels.put(number, stream)
            self._streams[number] = stream
            self.channels_seen[number] = True
            self._opening[number] = (stream, opened)
        m = Message()
        m.add_byte(cMSG_CHANNEL_OPEN)
        m.add_string(kind)
        for value in (number, window, PACKET):
            m.add_int(value)
        m.add_bytes(extra)
        self.later(m)
        if self._over.is_set() and self._opening.pop(number, _NOBODY)[0]:
            opened(SSHException(self.lost))
        return stream

    def open_wait(self, kind: str, extra: bytes = b"", *, timeout_s: float, sink: Sink | None = None) -> Stream:
        """Open a channel and wait for it.

        Raises: ChannelException when the server refuses, SSHException when the link is lost, TimeoutError.
        """
        done: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        stream = self.open_stream(kind, extra, done.put, sink)
        try:
            error = done.get(timeout=timeout_s)
        except queue.Empty:
            self._opening.pop(stream.chanid, None)
            self.forget(stream)
            raise TimeoutError(f"no channel within {timeout_s:.0f} s") from None
        if error is not None:
            raise error
        return stream

    def forget(self, stream: Stream) -> None:
        """The server has closed its side too: the number is free."""
        self._streams.pop(stream.chanid, None)
        self._channels.delete(stream.chanid)

    def reach(self, remote: int | str, opened: Opened, sink: Sink) -> Stream:
        """A connection to a port of the host's loopback or to a socket there; `opened` as for open_stream."""
        if isinstance(remote, str):
            return self.open_stream("direct-streamlocal@openssh.com", direct_unix(remote), opened, sink)
        return self.open_stream("direct-tcpip", direct_tcp("127.0.0.1", remote), opened, sink)

    def execute(self, line: str, *, stderr_bytes: int, timeout_s: float) -> ChannelProcess:
        """Start a command.

        Raises: ChannelException where the host takes no more; SSHException, TimeoutError.
        """
        process = ChannelProcess(line, self.place, stderr_bytes=stderr_bytes)
        self.converse(line, process, timeout_s=timeout_s)
        return process

    def converse(self, line: str, sink: Sink, *, timeout_s: float) -> Stream:
        """Start a command whose stdin and stdout are the stream.

        Raises: as `execute`.
        """
        stream = self.open_wait("session", timeout_s=timeout_s, sink=sink)
        try:
            stream.execute(line, timeout_s)
        except BaseException:
            stream.close()
            raise
        return stream

    def facts(self) -> dict[str, Any]:
        """How the connection is secured."""
        key = self.shown_key
        return {"carrier": "paramiko", "cipher": self.local_cipher, "host_key": f"{key.type} {key.fingerprint}",
                "server": plain(self.remote_version, 100), "strict_kex": self.agreed_on_strict_kex}  # fmt: skip

    @property
    def shown_key(self) -> Key:
        """The key the server proved to hold."""
        key = self.get_remote_server_key()
        return Key(key.get_name(), key.asbytes())

    def _parse_channel_open_success(self, m: Message) -> None:
        number, theirs, window, packet = (m.get_int() for _ in range(4))
        stream, opened = self._opening.pop(number, _NOBODY)
        if stream is None or opened is None:
            late = self._streams.get(number)
            if late is None:  # given up meanwhile: close what nobody waits for
                late = Stream(number, self)
                late._set_transport(self)  # noqa: SLF001 - as above
            late._set_remote_channel(theirs, window, packet)  # noqa: SLF001 - as above
            late.close()
            return
        stream._set_remote_channel(theirs, window, packet)  # noqa: SLF001 - as above
        opened(None)

    def _parse_channel_open_failure(self, m: Message) -> None:
        number, code, said = m.get_int(), m.get_int(), plain(m.get_text())
        stream, opened = self._opening.pop(number, _NOBODY)
        if stream is not None and opened is not None:
            self.forget(stream)
            opened(ChannelException(code, said))

    def _parse_channel_open(self, m: Message) -> None:
        """The server opens a channel (agent, X11, reverse forward): refused, whatever it is."""
        m.get_text()
        reply = Message()
        reply.add_byte(cMSG_CHANNEL_OPEN_FAILURE)
        reply.add_int(m.get_int())
        reply.add_int(_ADMINISTRATIVELY_PROHIBITED)
        reply.add_string("")
        reply.add_string("")
        self.later(reply)

    # -- global requests

    def _parse_global_request(self, m: Message) -> None:
        m.get_text()
        if m.get_boolean():
            reply = Message()
            reply.add_byte(cMSG_REQUEST_FAILURE)
            self.later(reply)

    @property
    def rtt_s(self) -> float:
        """The shortest round trip seen; 0 before the first."""
        return self.pings.rtt_s

    def _send_ping(self) -> None:
        m = Message()
        m.add_byte(cMSG_GLOBAL_REQUEST)
        m.add_string("keepalive@openssh.com")
        m.add_boolean(True)
        self.later(m)

    def round_trip(self, timeout_s: float) -> float:
        """Seconds until the server answered a want-reply request.

        Raises: TimeoutError, SSHException when the connection ended.
        """
        took = self.pings.round_trip(timeout_s)
        if not self.active:
            raise SSHException(self.lost)
        return took

    def _answered(self, m: Message) -> None:
        del m
        if self.pings.answered() and self.pings.answers < _FIRST_PINGS:
            self.pings.ask()

    _parse_request_success = _answered
    _parse_request_failure = _answered

    def _parse_disconnect(self, m: Message) -> None:
        m.get_int()
        self.farewell = plain(m.get_text())


def _string(value: str) -> bytes:
    data = value.encode()
    return len(data).to_bytes(4) + data


def direct_tcp(host: str, port: int) -> bytes:
    """The open message of `direct-tcpip`: a TCP connection from the host onwards (RFC 4254, section 7.2)."""
    return _string(host) + port.to_bytes(4) + _string("127.0.0.1") + (0).to_bytes(4)


def direct_unix(path: str) -> bytes:
    """The open message of `direct-streamlocal@openssh.com`: a Unix socket on the host (OpenSSH PROTOCOL, section 2.4)."""
    return _string(path) + _string("") + (0).to_bytes(4)


def _method(name: str) -> Callable[[Stream, Message], None]:
    """What hands a message to the method of that name: paramiko's table holds functions of its own Channel."""
    return lambda stream, m: getattr(stream, name)(m)


def _cause(error: BaseException | None) -> str:
    if error is None or isinstance(error, EOFError):
        return "the server closed the connection"
    return plain(str(error)) or type(error).__name__
