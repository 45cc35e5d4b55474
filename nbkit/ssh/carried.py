"""A connection to a Unix socket of the host that a command there carries: where sshd forbids forwards, and lets us run it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nbkit.ssh import program
from nbkit.ssh.text import plain
from nbkit.ssh.there import carry

if TYPE_CHECKING:
    from nbkit.ssh.session import Connection
    from nbkit.ssh.stream import Sink

_START_S = 20.0  # for the host to say that the command runs
_NOISE_BYTES = 64 * 1024  # a login shell may print before our program does
_KEPT_BYTES = 4096  # of stderr


def reach(
    engine: Connection, path: str, opened: Callable[[Exception | None], None], sink: Sink, *, python: str
) -> None:
    """As `engine.reach`, but by a command; a failure after `opened` is told by `opened`, too."""
    line = program.command(f"{python} -S")  # nothing of its site-packages is needed, and looking at them takes a while
    try:
        stream = engine.converse(line, _Beginning(opened, sink), timeout_s=_START_S)
        unsent = memoryview(program.opening(_source(), {"path": path}))
        unsent = unsent[stream.send_now(unsent) :]
        if unsent:
            raise OSError("the host takes no input")
    except Exception as error:
        opened(error)
        return
    opened(None)  # what is sent now waits there for our program to begin


def _source() -> str:
    return program.text_of("carry")


class _Beginning:
    """The command's sink until our program there has said its first words; from then on that is `sink`."""

    def __init__(self, opened: Callable[[Exception | None], None], sink: Sink) -> None:
        self._opened, self._sink = opened, sink
        self._stream: Any = None
        self._heard, self._errors = bytearray(), bytearray()

    def attach(self, stream: Any) -> None:
        self._stream = stream
        self._sink.attach(stream)

    def data(self, view: memoryview) -> None:
        self._heard += view
        noise, hello, rest = self._heard.partition(carry.HELLO)
        self._stream.consumed(len(view) - len(rest) if hello else len(view))
        if hello:
            self._stream.sink = self._sink
            if rest:
                self._sink.data(memoryview(rest))
        elif len(noise) > _NOISE_BYTES:
            self._opened(ConnectionError("the login shell there prints, and our program does not begin"))

    def error_data(self, view: memoryview) -> None:
        self._errors += view
        del self._errors[:-_KEPT_BYTES]
        self._stream.consumed(len(view))

    def eof(self) -> None:
        self._opened(ConnectionError(self._why()))

    closed = eof

    def window(self) -> None:
        self._sink.window()

    def _why(self) -> str:
        """Why our program did not begin."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return plain(str(json.loads(self._heard.rstrip().rpartition(b"\n")[2])["error"]), 300)
        words = (self._errors.strip() or self._heard.strip()).rpartition(b"\n")[2]
        return plain(bytes(words), 300) or "the command there ended without a word"
