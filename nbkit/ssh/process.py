"""A command that runs on a host, with its stdin and stdout as byte streams that block under back-pressure."""

from __future__ import annotations

import signal
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from nbkit.closing import Closing
from nbkit.errors import NbkitError, RemoteCommandError, UnreachableError
from nbkit.ssh.ring import Ring
from nbkit.ssh.text import plain

if TYPE_CHECKING:
    from nbkit.ssh.stream import Stream

Bytes = bytes | bytearray | memoryview
STDERR_BYTES = 64 * 1024  # of what the command said last
_AT_ONCE = 512 * 1024  # bytes of a long output to wake its reader for, a sixth of the window
_SHOWN = 80  # characters of a command in an error


class Process(Protocol):
    """A running command: a context manager, `close()` is idempotent. One thread may write while another reads.

    Attributes:
        command: The line that the login shell there was given.
    """

    command: str

    def write(self, data: Bytes, timeout_s: float | None = None) -> None:
        """Send all of `data` to its stdin; waits while the host takes no more.

        Raises: RemoteCommandError when it reads no more, TooLateError when not in time; UnreachableError when the link is lost.
        """

    def close_stdin(self) -> None:
        """Say that no more input comes; idempotent."""

    def readinto(self, buffer: bytearray | memoryview, timeout_s: float | None = None) -> int:
        """Wait for output, put what there is into `buffer`; the number of bytes, 0 at its end.

        Raises: TooLateError when nothing comes in time; UnreachableError when the link was lost before the end.
        """

    def read(self, n: int, timeout_s: float | None = None) -> bytes:
        """As `readinto`, up to `n` bytes; b"" at the end."""

    @property
    def stderr(self) -> bytes:
        """What it wrote to stderr so far; of much, the last."""

    def wait(self, timeout_s: float | None = None) -> int:
        """Its exit status, 128 + signal where a signal ended it; output that nobody read is thrown away.

        Raises: TooLateError when it does not end in time; UnreachableError.
        """

    def close(self) -> None:
        """Let go of it: its stdin and stdout end, which ends most commands. Does not wait."""

    def __enter__(self) -> Self:
        """Itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""


class TooLateError(RemoteCommandError):
    """A command that did not do something in time."""


def ended(host: str, command: str, why: str = "") -> UnreachableError:
    """The link went away under a command."""
    return UnreachableError(
        f"The connection to {host} broke while {plain(command, _SHOWN)!r} ran{f': {why}' if why else ''}.",
        hint="connect again; the command may still be running there",
    )


def late(host: str, command: str, what: str, timeout_s: float) -> TooLateError:
    """A deadline passed."""
    return TooLateError(
        f"{plain(command, _SHOWN)!r} {what} within {timeout_s:g} s on {host}.",
        hint="give it more time, or look there; it may still be running",
    )


def reads_no_more(host: str, command: str) -> RemoteCommandError:
    """Input for a command that has closed its stdin, or ended."""
    return RemoteCommandError(
        f"{plain(command, _SHOWN)!r} on {host} reads no more input.", hint="see what it said on stderr, and its status"
    )


class ChannelProcess(Closing):
    """A Process on a channel of our own; the sink of its data."""

    def __init__(self, command: str, host: str, *, stderr_bytes: int = STDERR_BYTES) -> None:
        self.command, self._host = command, host
        self._stream: Stream | None = None
        self._kept = Ring()
        self._errors, self._errors_most = bytearray(), stderr_bytes
        self._state = threading.Condition()
        self._enough = 1  # bytes for which the reader is woken
        self._discard = self._over = False

    @property
    def stream(self) -> Stream:
        """The channel."""
        assert self._stream is not None
        return self._stream

    @property
    def reader(self) -> int:
        """The system's number of the thread that takes what it says from the network."""
        return self.stream.engine.native_id or 0

    # -- the transport's thread

    def attach(self, stream: Any) -> None:
        """The channel is about to be asked for."""
        self._stream = stream

    def data(self, view: memoryview) -> None:
        """Output."""
        with self._state:
            if not self._discard:
                self._kept.put(view)
                if len(self._kept) >= self._enough:
                    self._state.notify_all()
                return
        self.stream.consumed(len(view))

    def error_data(self, view: memoryview) -> None:
        """Output on stderr: kept at once, for it never stops the rest."""
        with self._state:
            self._errors += view
            if len(self._errors) > 2 * self._errors_most:
                del self._errors[: -self._errors_most]
        self.stream.consumed(len(view))

    def eof(self) -> None:
        """No more output."""
        with self._state:
            self._over = True
            self._state.notify_all()

    closed = eof

    def window(self) -> None:
        """There is room for input."""
        with self._state:
            self._state.notify_all()

    # -- any thread

    def write(self, data: Bytes, timeout_s: float | None = None) -> None:
        """See Process."""
        left = memoryview(data).cast("B")
        end = _end(timeout_s)
        while left:
            if self.stream.closed or self.stream.eof_sent:
                raise self._broken() or reads_no_more(self._host, self.command)
            try:
                sent = self.stream.send_now(left)
            except Exception as error:
                raise ended(self._host, self.command, plain(str(error))) from error
            left = left[sent:]
            if not sent:
                with self._state:
                    more = self._state.wait_for(self._may_send, _left(end))
                if not more:
                    raise late(self._host, self.command, "took no more input", timeout_s or 0)

    def _may_send(self) -> bool:
        return self.stream.out_window_size > 0 or self.stream.closed

    def close_stdin(self) -> None:
        """See Process."""
        try:
            self.stream.send_eof()
        except Exception as error:
            raise ended(self._host, self.command, plain(str(error))) from error

    def readinto(self, buffer: bytearray | memoryview, timeout_s: float | None = None) -> int:
        """See Process."""
        into = memoryview(buffer).cast("B")
        with self._state:
            if not self._state.wait_for(lambda: self._kept or self._over, timeout_s):
                raise late(self._host, self.command, "said nothing", timeout_s or 0)
            taken = self._kept.take(into)
        if taken:
            self.stream.consumed(taken)
        elif len(into) and (broken := self._broken()):
            raise broken
        return taken

    def lend(self, size: int) -> memoryview:
        """The next bytes of output, up to `size`, which is known to come: where they lie, until `give_back`. b"" at its end.

        Raises: UnreachableError when the link was lost before the end.
        """
        with self._state:
            self._enough = min(size, _AT_ONCE)
            self._state.wait_for(lambda: len(self._kept) >= self._enough or self._over)
            self._enough = 1
            lent = self._kept.peek(size)
        if not lent and (broken := self._broken()):
            raise broken
        return lent

    def give_back(self, size: int) -> None:
        """The `size` bytes that were lent are used."""
        with self._state:
            self._kept.drop(size)
        self.stream.consumed(size)

    def read(self, n: int, timeout_s: float | None = None) -> bytes:
        """See Process."""
        buffer = bytearray(n)
        taken = self.readinto(buffer, timeout_s)
        del buffer[taken:]
        return bytes(buffer)

    @property
    def stderr(self) -> bytes:
        """See Process."""
        with self._state:
            return bytes(self._errors[-self._errors_most :])

    def wait(self, timeout_s: float | None = None) -> int:
        """See Process."""
        end = _end(timeout_s)
        with self._state:
            self._discard = True
            thrown = self._kept.clear()
        self.stream.consumed(thrown)
        if not self.stream.status_event.wait(_left(end)):
            raise late(self._host, self.command, "did not end", timeout_s or 0)
        if self.stream.exit_signal:
            number = getattr(signal, f"SIG{self.stream.exit_signal}", None)
            return 128 + int(number) if number else 255
        if self.stream.exit_status < 0 and (broken := self._broken()):
            raise broken
        return int(self.stream.exit_status) if self.stream.exit_status >= 0 else 255

    def _broken(self) -> NbkitError | None:
        """Why the output ended, unless the command ended it."""
        stream = self.stream
        if stream.closed and not (stream.eof_received or stream.closed_there):
            return ended(self._host, self.command, stream.engine.lost)
        return None

    def close(self) -> None:
        """See Process."""
        self.stream.close()


def _end(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s


def _left(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic())
