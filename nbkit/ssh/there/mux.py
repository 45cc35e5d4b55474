"""One end of a session: many byte streams over a line that may break. No input or output of its own; any thread may call.

What was sent is kept until the other end says that it has it; after a break both say how far they have got, and the rest is
sent again: each byte once, in order.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from typing import Any, Deque, Dict, List, Set

from nbkit.ssh.there import frames as f
from nbkit.ssh.there.flow import MOST_WINDOW, Stream

MEMORY = 64 << 20  # bytes kept for sending, of all streams of a session, before they go to disk or are not read
_LEAST = 1 << 16  # what each stream may keep, however full the memory is: none starves


class Mux:
    """All streams of one session, at one end. The target of a frames.Reader.

    Args:
        opened: Called with the request of a stream that the other end opens; returns a Stream.
        spool: Where the data of `keep` streams goes when memory is full; None for nowhere.

    Attributes:
        held: Bytes kept in memory.
        ready: The line stands, and both ends know how far they are.
        pongs: Answers to `PING` so far.
        replayed: Bytes that went out again after a break.
    """

    def __init__(self, opened: Any = None, *, spool: Any = None, memory: int = MEMORY) -> None:
        self.streams: Dict[int, Stream] = {}
        self.held = self.pongs = self.replayed = 0
        self.ready = False
        self.greeted: Any = None  # called with the body of WELCOME
        self.noted: Any = None  # called with the text of a NOTE
        self._opened, self._spool, self._memory = opened, spool, memory
        self._lock = threading.Lock()
        self._highest = self._notes_seen = 0
        self._control: Deque[bytes] = deque()
        self._acks: Set[Stream] = set()
        self._queue: Deque[Stream] = deque()
        self._dry: Set[Stream] = set()  # found no room because memory or disk is full
        self._notes: List[bytes] = []
        self._takes = {
            f.ACK: self._acked, f.FIN: self._ended, f.STOP: self._stopped, f.OPEN: self._open_asked, f.READY: self._readied,
            f.PING: lambda *_: self.say(f.PONG), f.PONG: self._ponged, f.NOTE: self._note_came, f.WELCOME: self._welcomed,
        }  # fmt: skip

    # -- the line

    def begin(self, first: bytes) -> None:
        """A new line. Its first frame, where each stream stands, and then what the other end does not have."""
        with self._lock:
            self.ready = False
            self._queue.clear()
            self._acks.clear()
            self._control = deque([first])
            for number, stream in sorted(self.streams.items()):
                self.replayed += stream.rewind()
                if stream.request is not None and not stream.confirmed:
                    self._control.append(_open(stream))
                self._control.append(f.ack(number, stream.received, stream.grant()))
                if stream.stop is not None:
                    self._control.append(f.frame(f.STOP, number, 0, stream.stop))
            self._control.extend(f.frame(f.NOTE, 0, i + 1, text) for i, text in enumerate(self._notes))
            self._control.append(f.frame(f.READY))

    def lost(self) -> None:
        """The line is gone."""
        with self._lock:
            self.ready = False

    def waits(self) -> bool:
        """True when `take` has something."""
        return bool(self._control or self._acks or (self.ready and self._queue))

    def take(self) -> List[Any]:
        """What to send next, as buffers, half a MB at most; empty when there is nothing."""
        with self._lock:
            out: List[Any] = list(self._control)
            self._control.clear()
            out += [f.ack(stream.number, stream.received, stream.grant()) for stream in self._acks]
            self._acks.clear()
            size = 0
            while self.ready and self._queue and size < f.CHUNK:
                stream = self._queue.popleft()
                stream.queued = False
                if not stream.sendable:
                    continue
                if stream.sent < stream.end:
                    size += self._take(stream, out)
                else:
                    stream.fin_sent = True
                    out.append(f.frame(f.FIN, stream.number, stream.end))
                self._enqueue(stream)
            return out

    def _take(self, stream: Stream, out: List[Any]) -> int:
        """Put the next chunk of a stream into `out`; returns its size."""
        before, at = stream.memory, stream.sent
        try:
            view = stream.next(self._spool)
        except OSError as error:  # the disk has lost what it held: the stream cannot go on, and that is said
            stream.stop = ("what was kept cannot be read again: %s" % error).encode()
            out.append(f.frame(f.STOP, stream.number, 0, stream.stop))
            stream.cut_short(self._spool)
            view = memoryview(b"")
        else:
            out += (f.HEAD.pack(f.DATA, stream.number, at, len(view)), view)
        self.held += stream.memory - before
        return len(view)

    def _enqueue(self, stream: Stream) -> None:
        if self.ready and not stream.queued and stream.sendable and stream.number in self.streams:
            stream.queued = True
            self._queue.append(stream)

    def tick(self) -> None:
        """Now and then: acknowledge what little has come; look for room on disk again."""
        with self._lock:
            if self.ready:
                self._acks.update(s for s in self.streams.values() if s.received != s.told)
            looks = self._spool is not None and self._spool.takes()
            dry = list(self._dry) if looks else []
        for stream in dry:
            stream.on_room()

    def say(self, kind: int, body: bytes = b"") -> None:
        """Send a frame of the session."""
        with self._lock:
            self._control.append(f.frame(kind, 0, 0, body))

    def note(self, text: str) -> None:
        """Tell the user at the other end something, once, whatever breaks."""
        with self._lock:
            self._notes.append(text.encode())
            self._control.append(f.frame(f.NOTE, 0, len(self._notes), self._notes[-1]))

    # -- what we send

    def open(self, stream: Stream) -> None:
        """Open a stream that has a request; data may follow at once."""
        with self._lock:
            self._highest += 1
            stream.number = self._highest
            self.streams[stream.number] = stream
            self._control.append(_open(stream))

    def room(self, stream: Stream) -> int:
        """How many bytes `write` takes now."""
        with self._lock:
            return self._room(stream)

    def _room(self, stream: Stream) -> int:
        if stream.fin or stream.stopped:
            return 0
        full = self.held >= self._memory
        if stream.keep and self._spool is not None:
            room = f.CHUNK if not full or self._spool.takes() else 0
        else:
            room = max(0, min(f.CHUNK, stream.limit + f.CHUNK - stream.end))
            if full and stream.end - stream.acked >= _LEAST:
                room = 0
        if full and not room:
            self._dry.add(stream)
        return room

    def write(self, stream: Stream, data: Any) -> int:
        """Take as much of `data` as there is room for; returns how much."""
        with self._lock:
            size = min(len(data), self._room(stream))
            if size:
                before = stream.memory
                if stream.keep and self._spool is not None and self.held >= self._memory:
                    stream.park(self._spool)
                stream.add(data if size == len(data) else data[:size])
                self.held += stream.memory - before
                self._enqueue(stream)
            return size

    def finish(self, stream: Stream) -> None:
        """No more is written; what was goes out first."""
        with self._lock:
            stream.fin = True
            self._enqueue(stream)

    def cancel(self, stream: Stream, reason: str = "") -> None:
        """We read no more; what still comes is thrown away."""
        with self._lock:
            if stream.stop is None and stream.number in self.streams:
                stream.stop = reason.encode()
                stream.passed_on = stream.received
                self._control.append(f.frame(f.STOP, stream.number, 0, stream.stop))
                self._acks.add(stream)

    def consumed(self, stream: Stream, size: int) -> bool:
        """`size` bytes have gone on; True when the other end is to be told soon."""
        with self._lock:
            stream.gone_on(size)
            if stream.ack_due:
                self._acks.add(stream)
            return bool(self._acks)

    # -- what comes

    def piece(self, number: int, position: int, view: memoryview) -> None:
        """Bytes of a stream."""
        with self._lock:
            stream = self.streams.get(number)
            if stream is None:  # ended here: they missed our last word
                self._control.append(f.ack(number, position + len(view), position + MOST_WINDOW))
                return
            if position > stream.received:
                raise f.BrokenError("bytes are missing")
            view = view[stream.received - position :]
            if stream.received + len(view) > stream.granted or (view and stream.fin_received):
                raise f.BrokenError("more came than was allowed")
            stream.come(len(view))
            if stream.ack_due:
                self._acks.add(stream)
        if view and stream.stop is None:
            stream.on_data(view)

    def frame(self, kind: int, number: int, position: int, body: bytes) -> None:
        """Any other frame."""
        take = self._takes.get(kind)
        if take is not None:
            take(number, position, body)

    def _readied(self, *_: Any) -> None:
        with self._lock:
            self.ready = True
            for stream in self.streams.values():
                self._enqueue(stream)

    def _welcomed(self, _: int, __: int, body: bytes) -> None:
        if self.greeted is not None:
            self.greeted(json.loads(body.decode()))

    def _ponged(self, *_: Any) -> None:
        self.pongs += 1

    def _note_came(self, _: int, position: int, body: bytes) -> None:
        if position > self._notes_seen:
            self._notes_seen = position
            if self.noted is not None:
                self.noted(body.decode("utf-8", "replace"))

    def _open_asked(self, number: int, _: int, body: bytes) -> None:
        with self._lock:
            if number <= self._highest or self._opened is None:
                return  # a repetition
            self._highest = number
        stream = self._opened(json.loads(body.decode()))
        with self._lock:
            stream.number, stream.confirmed = number, True
            self.streams[number] = stream
            self._acks.add(stream)
        stream.on_open()

    def _acked(self, number: int, position: int, body: bytes) -> None:
        limit = f.limit_of(body)
        with self._lock:
            stream = self.streams.get(number)
            if stream is None:
                return
            if position > stream.end + int(stream.fin):
                raise f.BrokenError("more was acknowledged than was sent")
            stream.confirmed = True
            before = stream.memory
            stream.limit = max(stream.limit, limit)
            stream.free(position, self._spool)
            self.held += stream.memory - before
            self._enqueue(stream)
            wake = {stream}
            if self._dry and self.held < self._memory * 3 // 4:
                wake |= self._dry
                self._dry.clear()
            self._settle(stream)
        for one in wake:
            one.on_room()

    def _ended(self, number: int, position: int, _: bytes) -> None:
        with self._lock:
            stream = self.streams.get(number)
            if stream is None:
                self._control.append(f.ack(number, position + 1, position + MOST_WINDOW))
                return
            self._acks.add(stream)
            if stream.fin_received:
                return
            if position != stream.received:
                raise f.BrokenError("bytes are missing before an end")
            stream.fin_received = True
            stream.received += 1
            self._settle(stream)
        stream.on_end()

    def _stopped(self, number: int, _: int, body: bytes) -> None:
        with self._lock:
            stream = self.streams.get(number)
            if stream is None or stream.stopped:
                return
            before = stream.memory
            stream.cut_short(self._spool)
            self.held += stream.memory - before
            self._enqueue(stream)
        stream.on_stop(body.decode("utf-8", "replace"))

    def _settle(self, stream: Stream) -> None:
        """Forget a stream that has ended both ways."""
        if stream.fin_acked and stream.fin_received:
            self.streams.pop(stream.number, None)
            self._dry.discard(stream)

    def drop_all(self) -> List[Stream]:
        """Forget every stream, for the session is over; returns them."""
        with self._lock:
            gone = list(self.streams.values())
            for stream in gone:
                stream.cut_short(self._spool)
            self.streams.clear()
            self._queue.clear()
            self._dry.clear()
            self.held = 0
            return gone


def _open(stream: Stream) -> bytes:
    return f.frame(f.OPEN, stream.number, 0, json.dumps(stream.request).encode())
