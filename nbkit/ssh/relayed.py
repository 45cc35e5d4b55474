"""What Streams is made of: the line to the relay, and the streams on it, each with what a Pump uses of a channel."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nbkit.errors import UnreachableError
from nbkit.ssh.text import plain, said
from nbkit.ssh.there import frames as f
from nbkit.ssh.there.flow import Stream

if TYPE_CHECKING:
    from nbkit.ssh.stream import Sink
    from nbkit.ssh.streams import Streams


class RefusedError(Exception):
    """The host's own no to a connection, as `opened` of a Pump wants it."""

    code = 2  # RFC 4254: connect failed


class RelayStream(Stream):
    """One connection over the relay."""

    def __init__(
        self, streams: Streams, remote: int | str, opened: Callable[[Exception | None], None], sink: Sink, *, keep: bool
    ) -> None:
        super().__init__({"to": remote, "keep": keep})
        self._streams, self._mux, self._opened, self._sink = streams, streams.mux, opened, sink
        self.closed = self.eof_sent = False
        sink.attach(self)

    # -- its owner

    def send_now(self, data: memoryview) -> int:
        """Take what there is room for; 0 when there is none, and the sink's `window` is called when there is again."""
        if self.closed or self.eof_sent:
            return len(data)
        taken = self._mux.write(self, data)
        if taken:
            self._streams.flush()
        return taken

    def send_eof(self) -> None:
        """Say that no more data comes."""
        if not self.eof_sent:
            self.eof_sent = True
            self._mux.finish(self)
            self._streams.flush()

    def consumed(self, n: int) -> None:
        """The sink has passed `n` bytes on."""
        if self._mux.consumed(self, n):
            self._streams.wake()

    def close(self) -> None:
        """Read no more, and end once what was taken has gone out; idempotent, does not wait."""
        if not self.closed:
            self.closed = True
            self._mux.cancel(self)
            self._mux.finish(self)
            self._streams.wake()

    def gone(self) -> None:
        """The relay has lost it."""
        if not self.closed:
            self.closed = True
            self._sink.closed()

    # -- the relay; on the transport's thread

    def on_data(self, view: memoryview) -> None:
        if not self.closed:
            self._sink.data(view)

    def on_end(self) -> None:
        if not self.closed:
            self._sink.eof()
            self._both()

    def on_stop(self, reason: str) -> None:
        if reason and not self.closed:
            self._opened(RefusedError(plain(reason, 300)))
        self._both()

    def _both(self) -> None:
        if self.stopped and self.fin_received:
            self.gone()

    def on_room(self) -> None:
        if not self.closed:
            self._sink.window()


class Line:
    """A connection to the relay: the sink of a channel's data.

    Attributes:
        over: It has ended; `why` says why.
        ready: Both ends know where each stream stands.
        forgotten: The relay does not know the session.
        refused: The host has closed it before the relay said a word.
        silent: Seconds without a byte from the relay.
    """

    def __init__(self, streams: Streams) -> None:
        self._streams, self._mux = streams, streams.mux
        self._reader = f.Reader(self)
        self._stream: Any = None
        self._state = threading.Condition()
        self._open = False
        self._heard = 0
        self.out = memoryview(b"")
        self.over = self.ready = self.forgotten = self.refused = False
        self.why = ""
        self.silent = 0

    # -- the transport's thread

    def attach(self, stream: Any) -> None:
        self._stream = stream

    def opened(self, error: Exception | None) -> None:
        if error is not None:
            self._closed_there(said(error))
            return
        with self._state:
            self._open = True
            self._state.notify_all()

    def data(self, view: memoryview) -> None:
        self._heard += 1
        try:
            if not self.over:
                self._reader.feed(view)
        except (f.BrokenError, ValueError) as error:
            self.end(f"what the relay said makes no sense: {plain(str(error), 200)}")
        self._stream.consumed(len(view))
        if self._mux.waits():
            self._streams.wake()

    def frame(self, kind: int, number: int, position: int, body: bytes) -> None:
        """From the Reader."""
        self._mux.frame(kind, number, position, body)
        if kind == f.READY:
            with self._state:
                self.ready = True
                self._state.notify_all()

    def piece(self, number: int, position: int, view: memoryview) -> None:
        """From the Reader."""
        self._mux.piece(number, position, view)

    def error_data(self, view: memoryview) -> None:
        self._stream.consumed(len(view))

    def eof(self) -> None:
        self._closed_there("the relay has hung up")

    closed = eof

    def window(self) -> None:
        if self.out:
            self._streams.wake()

    # -- any thread

    def _closed_there(self, why: str) -> None:
        self.refused = not self._heard
        self.end(why)

    def end(self, why: str) -> None:
        """Let go of it; idempotent."""
        with self._state:
            if self.over:
                return
            self.over, self.why = True, why
            self._state.notify_all()
        self._mux.lost()
        if self._stream is not None:
            self._stream.close()
        self._streams.wake()

    def wait_open(self, timeout_s: float) -> None:
        """Wait until the host has connected us.

        Raises: UnreachableError.
        """
        self._wait(lambda: self._open, timeout_s)

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until the relay has taken up the session.

        Raises: UnreachableError.
        """
        self._wait(lambda: self.ready, timeout_s)

    def _wait(self, done: Callable[[], bool], timeout_s: float) -> None:
        with self._state:
            self._state.wait_for(lambda: done() or self.over, timeout_s)
        if self.over or not done():
            raise UnreachableError(f"The relay is out of reach: {self.why or 'no answer'}.", hint="try again")

    def send(self) -> None:
        """Send what the Mux has, as far as there is room; call from one thread at a time."""
        while not self.over and self._open:
            if not self.out:
                parts = self._mux.take()
                if not parts:
                    return
                self.out = memoryview(b"".join(parts))
            try:
                sent = self._stream.send_now(self.out)
            except Exception as error:
                self._closed_there(said(error))
                return
            self.out = self.out[sent:]
            if not sent:
                return

    def silent_ticks(self) -> int:
        """Call once a second: how often nothing was heard since the call before."""
        heard, self._heard = self._heard, 0
        self.silent = 0 if heard else self.silent + 1
        return self.silent
