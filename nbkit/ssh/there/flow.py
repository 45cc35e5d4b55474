"""One byte stream, both ways: what was sent and not acknowledged, what waits, how far each side may go."""

from __future__ import annotations

from collections import deque
from typing import Any, Deque, Optional

from nbkit.ssh.there.frames import CHUNK

WINDOW, MOST_WINDOW = 1 << 20, 16 << 20  # bytes on their way and unread, at first and at most
_SMALL = 1 << 15  # small pieces are gathered up to this
_BYTES = (bytes, bytearray, memoryview)


class Stream:
    """Made by its owner, who overrides the `on_` methods; none of them is called under a lock. A Mux calls the others.

    Attributes:
        number: Its name on the line.
        request: What the end that opens it says of it; None at the other end.
        keep: What its source gives is taken without regard to the other end, in memory and then on disk.
        memory: Bytes of it that wait in memory, sent or not.
        confirmed: The other end knows of it.
        stopped: The other end reads no more.
        stop: Why we read no more; None while we do.
    """

    def __init__(self, request: Any = None, *, keep: bool = False) -> None:
        self.number, self.request, self.keep = 0, request, keep
        self.confirmed = self.stopped = self.queued = False
        # What we send: they have it, it went out, we have it; FIN counts as one more.
        self.acked = self.sent = self.end = self.memory = 0
        self.limit = WINDOW
        self.fin = self.fin_sent = self.fin_acked = False
        self._flying: Deque[memoryview] = deque()
        self._waiting: Deque[Any] = deque()  # bytes, or Parked on disk
        # What we get: we have it, they know that, it has gone on; how far they may go.
        self.received = self.told = self.passed_on = 0
        self.granted = self._window = WINDOW
        self._passed = self._most_unread = 0  # since the window last grew
        self.fin_received = False
        self.stop: Optional[bytes] = None

    def on_open(self) -> None:
        """The other end has asked for it."""

    def on_data(self, view: memoryview) -> None:
        """Bytes, in a view that holds only during the call; say `Mux.consumed` when they have gone on."""

    def on_end(self) -> None:
        """No more will come."""

    def on_stop(self, reason: str) -> None:
        """The other end reads no more; a reason where it is not the usual end."""

    def on_room(self) -> None:
        """`Mux.room` may be more than nought again."""

    # -- sending

    @property
    def sendable(self) -> bool:
        """True when something can go out now."""
        if self._waiting:
            return self.limit > self.sent
        return self.fin and not self.fin_sent

    def add(self, data: Any) -> None:
        """Keep bytes for sending."""
        tail = self._waiting[-1] if self._waiting else None
        if isinstance(tail, bytearray) and len(tail) + len(data) <= _SMALL:
            tail += data
        else:
            self._waiting.append(bytearray(data) if len(data) < _SMALL // 2 else bytes(data))
        self.end += len(data)
        self.memory += len(data)

    def park(self, spool: Any) -> None:
        """Move what came last to disk, unless it is there, or too little, or there is no room."""
        tail = self._waiting[-1] if self._waiting else None
        if not isinstance(tail, _BYTES) or (isinstance(tail, bytearray) and len(tail) < _SMALL // 2):
            return
        parked = spool.park(tail)
        if parked is not None:
            self._waiting[-1] = parked
            self.memory -= len(tail)

    def next(self, spool: Any) -> memoryview:
        """What goes out next, at `sent`, which moves on. A chunk from disk stands in memory from now on."""
        chunk = self._waiting.popleft()
        if not isinstance(chunk, _BYTES):
            chunk = self._load(chunk, spool)
        view = memoryview(chunk)
        most = min(self.limit - self.sent, CHUNK)
        if len(view) > most:
            self._waiting.appendleft(view[most:])
            view = view[:most]
        self._flying.append(view)
        self.sent += len(view)
        return view

    def rewind(self) -> int:
        """What went out and was not acknowledged is to go out again; returns how much that is."""
        again = self.sent - self.acked
        self._waiting.extendleft(reversed(self._flying))
        self._flying.clear()
        self.sent, self.fin_sent, self.queued = self.acked, False, False
        return again

    def free(self, position: int, spool: Any) -> None:
        """Let go of what they have."""
        while self.acked < min(position, self.end):
            chunks: Deque[Any] = self._flying or self._waiting
            front = chunks.popleft()
            size = min(len(front), position - self.acked)
            if not isinstance(front, _BYTES):
                front = self._load(front, spool)
            if size < len(front):
                chunks.appendleft(memoryview(front)[size:])
            self.memory -= size
            self.acked += size
        self.sent = max(self.sent, self.acked)
        if self.fin and position > self.end:
            self.fin_acked = self.fin_sent = True

    def cut_short(self, spool: Any) -> None:
        """They read no more: what has not gone out never will."""
        self.stopped = self.fin = True
        for chunk in self._waiting:
            if isinstance(chunk, _BYTES):
                self.memory -= len(chunk)
            else:
                spool.drop(chunk)
        self._waiting.clear()
        self.end = self.sent

    def _load(self, parked: Any, spool: Any) -> Any:
        data = spool.load(parked)
        self.memory += len(data)
        return data

    # -- receiving

    def come(self, size: int) -> None:
        """So many new bytes came."""
        self._most_unread = max(self._most_unread, self.received - self.passed_on)
        self.received += size
        if self.stop is not None:
            self.passed_on = self.received

    def gone_on(self, size: int) -> None:
        """So many have gone on."""
        if self.stop is None:
            self.passed_on += size
            self._passed += size

    @property
    def ack_due(self) -> bool:
        """True when the other end is to be told how far we are before it has to wait for that."""
        quantum = self._window // 4
        return self.received - self.told >= quantum or self.passed_on + self._window - self.granted >= quantum

    def grant(self) -> int:
        """How far they may go; the window of a stream that is emptied as fast as it fills grows."""
        if self._passed >= self._window:
            if self._most_unread * 4 <= self._window:
                self._window = min(2 * self._window, MOST_WINDOW)
            self._passed = self._most_unread = 0
        self.granted = max(self.granted, self.passed_on + self._window)
        self.told = self.received
        return self.granted
