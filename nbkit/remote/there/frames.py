"""What the two ends of a transfer say to each other: frames over two byte streams, one of them striped over several.

A frame is a kind (one letter), a length and a body. Names of files are bytes, and travel as text with surrogates.
"""

from __future__ import annotations

import json
import struct
import threading
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple, Union

Bytes = Union[bytes, bytearray, memoryview]
HELLO = b"\nnbkit-transfer-1\n"  # the box's first words; whatever a login shell prints stands before them
BLOCK = 1 << 20  # bytes that have a sha256 of their own: what a resumed transfer keeps or sends again
_HEAD = struct.Struct(">cI")
_LARGEST = 4 << 20
_BUFFER = 1 << 18
_LONGEST_NAME = 400  # characters of a name in a sentence
_SHORT = 1 << 12
_STRIPE = 1 << 17

TREE, TREE_END = b"T", b"G"  # the sender: what there is
PLAN, HASHES, PLAN_END = b"P", b"H", b"N"  # the receiver: what it wants, and which blocks it has
WIDEN = b"J"  # more streams
DATA, KEPT, FILE_END, FILE_FAILED = b"D", b"K", b"E", b"X"  # the sender: one wanted file
ALL_SENT, DONE = b"A", b"Z"
FAILED = b"F"  # either: it is over
VERSIONS = "is nbkit of one version at both ends?"


class StoppedError(Exception):
    """A transfer that cannot go on: what happened, what to do, and whether it was the other side that said so."""

    def __init__(self, message: str, hint: str = "", *, theirs: bool = False) -> None:
        super().__init__(message)
        self.message, self.hint, self.theirs = message, hint, theirs


def text(name: bytes) -> str:
    """A file's name as JSON can carry it."""
    return name.decode("utf-8", "surrogateescape")


def raw(name: str) -> bytes:
    """The reverse of `text`."""
    return name.encode("utf-8", "surrogateescape")


def shown(name: bytes) -> str:
    """A file's name in a sentence: quoted where it holds what a line cannot, of a very long one the end."""
    plain = name.decode("utf-8", "backslashreplace")
    plain = plain if len(plain) <= _LONGEST_NAME else "…" + plain[-_LONGEST_NAME:]
    return plain if plain.isprintable() and plain == plain.strip() else repr(plain)


def amount(count: int) -> str:
    """Bytes for a sentence: `2.5 kB`, `13.50 GB`."""
    for power, unit, places in ((3, "GB", 2), (2, "MB", 1), (1, "kB", 1)):
        if count >= 1000**power:
            return f"{count / 1000**power:.{places}f} {unit}"
    return f"{count} B"


class Frames:
    """Frames over two functions: `read` puts some bytes into a view (0 at the end), `write` takes all it is given.

    `lender`, where there is one, has what `read` reads, too: it lends bytes where they lie (`ssh/process.py`).
    """

    def __init__(self, read: Callable[[memoryview], int], write: Callable[[Bytes], Any], lender: Any = None) -> None:
        self.read, self.write, self.lender = read, write, lender
        self.refer: Optional[Callable[[int, int, memoryview], Any]] = None  # sends bytes of a file, see `put`
        self._in, self._at, self._end = memoryview(bytearray(_BUFFER)), 0, 0
        self._ahead = _BUFFER  # to read, where a head is wanted: little behind a long body, for another may follow
        self._piece = memoryview(bytearray(BLOCK))
        self._out = bytearray()
        self._lock = threading.RLock()  # frames are put by two threads

    def put(self, kind: bytes, body: Bytes = b"", source: Optional[Tuple[int, int]] = None) -> None:
        """Send a frame; a small one waits in a buffer until `flush`.

        Args:
            source: An open file and the offset where `body` was read from it: what is sent may be taken from there again.
        """
        with self._lock:
            self._out += _HEAD.pack(kind, len(body))
            if len(body) < _BUFFER // 4:
                self._out += body
                if len(self._out) >= _BUFFER:
                    self.flush()
                return
            self.flush()
            if source and self.refer:
                self.refer(source[0], source[1], memoryview(body))
            else:
                self.write(body)

    def put_json(self, kind: bytes, value: Any) -> None:
        """Send a frame whose body is JSON."""
        self.put(kind, json.dumps(value, separators=(",", ":")).encode())

    def put_long_json(self, kind: bytes, value: Any) -> None:
        """Send JSON of any length: frames of that kind, an empty one last."""
        body = json.dumps(value, separators=(",", ":")).encode()
        for at in range(0, len(body), BLOCK):
            self.put(kind, body[at : at + BLOCK])
        self.put(kind)

    def flush(self) -> None:
        """Send what waits."""
        with self._lock:
            if self._out:
                out, self._out = self._out, bytearray()
                self.write(out)

    def head(self) -> Tuple[bytes, int]:
        """Kind and length of the next frame; its body is read next, with `fill`.

        Raises: StoppedError with what the other side said, EOFError when it is gone.
        """
        head = bytearray(_HEAD.size)
        self.fill(memoryview(head))
        kind, size = _HEAD.unpack(head)
        if size > _LARGEST:
            raise StoppedError("the other side sent what is no transfer", VERSIONS)
        if kind == FAILED:
            said = json.loads(self.body(size).decode())
            raise StoppedError(str(said["error"]), str(said["hint"]), theirs=True)
        return kind, size

    def take(self, *wanted: bytes) -> Tuple[bytes, bytes]:
        """The next frame, which must be one of `wanted`."""
        kind, size = self.head()
        if kind not in wanted:
            raise StoppedError(f"the other side said {kind!r} out of turn", VERSIONS)
        return kind, self.body(size)

    def number(self, size: int) -> int:
        """The body of the frame whose head was read, a number."""
        return int(json.loads(self.body(size).decode()))

    def body(self, size: int) -> bytes:
        """The body of the frame whose head was read."""
        body = bytearray(size)
        self.fill(memoryview(body))
        return bytes(body)

    def fill(self, view: memoryview) -> None:
        """Read exactly as much as `view` holds."""
        while view:
            if self._at == self._end and len(view) < _BUFFER:
                self._at, self._end = 0, self.read(self._in[: max(self._ahead, len(view))])
                self._ahead = _BUFFER
                if not self._end:
                    raise EOFError
            if self._at < self._end:
                size = min(len(view), self._end - self._at)
                view[:size] = self._in[self._at : self._at + size]
                self._at += size
            else:
                size = self.read(view)
                if not size:
                    raise EOFError
            view = view[size:]

    def pieces(self, size: int) -> Iterator[memoryview]:
        """The body of the frame whose head was read, in pieces, each of which holds until the next."""
        while size:
            if self._at == self._end and self.lender:
                piece = self.lender.lend(size)
                if not piece:
                    raise EOFError
                try:
                    yield piece
                finally:
                    self.lender.give_back(len(piece))
            else:
                piece = self._piece[: min(size, self._end - self._at) if self.lender else size]
                self.fill(piece)
                yield piece
            size -= len(piece)
            if len(piece) > _SHORT:
                self._ahead = _SHORT

    def fail(self, error: StoppedError) -> None:
        """Tell the other side that it is over."""
        self.put_json(FAILED, {"error": error.message, "hint": error.hint})
        self.flush()


class StripedWriter:
    """One byte stream laid over several, 128 KiB to each in turn: each has a window of its own on a long link."""

    def __init__(self, writes: Sequence[Callable[[Bytes], Any]]) -> None:
        self._writes = writes
        self._position = 0

    def write(self, data: Bytes) -> None:
        """Send all of `data`."""
        view = memoryview(data)
        while view:
            turn, into = divmod(self._position, _STRIPE)
            part = view[: _STRIPE - into]
            self._writes[turn % len(self._writes)](part)
            self._position += len(part)
            view = view[len(part) :]


class StripedReader:
    """The other end of a StripedWriter."""

    def __init__(self, reads: List[Callable[[memoryview], int]]) -> None:
        self._reads = reads
        self._position = 0

    def read(self, view: memoryview) -> int:
        """Some bytes."""
        turn, into = divmod(self._position, _STRIPE)
        size = self._reads[turn % len(self._reads)](view[: _STRIPE - into])
        self._position += size
        return size
