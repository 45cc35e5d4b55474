"""What of a file the other end has already, in an older version of it: told block by block, found where it moved to.

The end that has the older version tells, of each of its blocks, sha256 and the first bytes. The end that has the newer
one compares block by block; where one differs, it looks for the first bytes of those that should follow, near by: what
was inserted or taken out moves all that comes after it. A block counts as there only when its sha256 is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import Any, Callable, Iterator, List, NamedTuple, Tuple, Union

from nbkit.remote.there.frames import BLOCK

_AT_ONCE = 256 << 10  # bytes to read
FINEST = 16 << 10  # bytes of the smallest block of an older version
_MOST_ROWS = 8192  # until blocks are of 1 MiB: 400 kB to tell
ANCHOR = 16  # first bytes of a block, by which it is looked for
ROW = 32 + ANCHOR
_NEAR = 1 << 20  # bytes that may have been taken out, or 8 blocks
_PATIENCE = 8  # misses in a row after which only some blocks are looked for: see `_found`
Kept = Tuple[int, int]  # from which offset of the older version, and how many bytes


class Basis(NamedTuple):
    """An older version, or a part.

    Attributes:
        block: Bytes of a block.
        size: Of the whole.
        moves: Whether its blocks may stand elsewhere: not those of a part, which is written where it lies.
    """

    block: int
    size: int
    moves: bool

    def span(self, number: int) -> int:
        """Bytes of the block; 0 behind the last."""
        return max(0, min(self.block, self.size - number * self.block))


NOTHING = Basis(BLOCK, 0, moves=False)


class Rows:
    """What is told of a basis, ROW bytes a block; more is asked for when it is looked at.

    Args:
        more: Waits for the next rows, some of them at least.
    """

    def __init__(self, basis: Basis, more: Callable[[], bytes]) -> None:
        self.block, self.size, self.moves = self.basis = basis
        self.span = basis.span
        self._rows, self._more = bytearray(), more

    def sha256(self, number: int) -> bytes:
        self._have(number + 1)
        return bytes(self._rows[ROW * number : ROW * number + 32])

    def anchor(self, number: int) -> bytes:
        self._have(number + 1)
        return bytes(self._rows[ROW * number + 32 : ROW * (number + 1)])

    def drain(self) -> None:
        """Wait for what nobody looked at."""
        self._have(-(-self.size // self.block))

    def _have(self, count: int) -> None:
        while len(self._rows) < count * ROW:
            self._rows += self._more()


def block_of(size: int) -> int:
    """Bytes of a block of an older version of `size` bytes: a power of two."""
    block = FINEST
    while block < BLOCK and size > block * _MOST_ROWS:
        block *= 2
    return block


def basis_of(path: bytes, moves: bool, most: int) -> Basis:
    """A file here: all of it where its blocks may have moved, else no more than `most` bytes."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
    except OSError:
        return NOTHING
    size = size if moves else min(size, most)
    return Basis(block_of(size) if moves else BLOCK, size, moves)


def tell(path: bytes, basis: Basis) -> Iterator[bytes]:
    """All its rows, those of a MiB at a time; what can no longer be read has rows that are like no block's."""
    with contextlib.ExitStack() as stack:
        file: Any = None
        with contextlib.suppress(OSError):
            file = stack.enter_context(open(path, "rb", buffering=0))
        view = memoryview(bytearray(BLOCK))
        for start in range(0, basis.size, BLOCK):
            wanted = min(BLOCK, basis.size - start)
            got = _read(file, view[:wanted])
            rows: List[bytes] = []
            for at in range(0, wanted, basis.block):
                content = view[at : min(at + basis.block, got)]
                there = len(content) == min(basis.block, wanted - at)
                rows += [hashlib.sha256(content).digest() if there else b"\0" * 32, _anchor(content)]
            yield b"".join(rows)


def _anchor(content: memoryview) -> bytes:
    return bytes(content[:ANCHOR]).ljust(ANCHOR, b"\0")


def _read(file: Any, view: memoryview) -> int:
    size = 0
    with contextlib.suppress(OSError):
        while file and size < len(view):
            more = file.readinto(view[size:])
            if not more:
                break
            size += more
    return size


class Window:
    """A file's next bytes; what has gone by is added to `whole`.

    Args:
        read: Bytes that follow, so many at most; none at the end.
        size: Of the file; what it has beyond is not read.
    """

    def __init__(self, read: Callable[[int], bytes], size: int) -> None:
        self._read, self.left, self.whole = read, size, hashlib.sha256()
        self.bytes = bytearray()

    def fill(self, size: int) -> None:
        """Have `size` bytes, or all that are left."""
        while len(self.bytes) < size and self.left:
            more = self._read(min(self.left, max(size - len(self.bytes), _AT_ONCE)))
            if not more:
                self.left = 0
            self.left -= len(more)
            self.bytes += more

    def take(self, size: int) -> bytes:
        """The next bytes, which are gone then."""
        with memoryview(self.bytes) as view:
            taken = bytes(view[:size])
        self.skip(size)
        return taken

    def skip(self, size: int) -> None:
        """Be done with the next bytes."""
        with memoryview(self.bytes) as view, view[:size] as gone:
            self.whole.update(gone)
        del self.bytes[:size]


def pieces(window: Window, old: Rows) -> Iterator[Union[Kept, bytes]]:
    """The file as what is kept of the older version, and what has to go over, a block at most."""
    number = missed = last = 0
    beyond = old.block  # at once, behind the last block of the older version
    kept: Kept = (0, 0)
    while True:
        span = old.span(number)
        window.fill(span or beyond)
        if not window.bytes:
            break
        if span and _is(window, 0, old, number):
            window.skip(span)
            start = number * old.block
            if sum(kept) != start and kept[1]:
                yield kept
                kept = (start, 0)
            kept = (kept[0] if kept[1] else start, kept[1] + span)
            number, missed, last = number + 1, 0, number + 1
            if kept[1] >= BLOCK:  # said early: the other end copies it meanwhile
                yield kept
                kept = (0, 0)
            continue
        if kept[1]:
            yield kept
            kept = (0, 0)
        gap, number = _found(window, old, number, last, missed)
        missed += gap < 0
        if gap < 0:
            gap = span or beyond
        while gap > 0 and window.bytes:
            piece = window.take(min(gap, BLOCK))
            gap -= len(piece)
            yield piece
    if kept[1]:
        yield kept


def _is(window: Window, at: int, old: Rows, number: int) -> bool:
    span = old.span(number)
    with memoryview(window.bytes) as view, view[at : at + span] as content:
        return len(content) == span > 0 and hashlib.sha256(content).digest() == old.sha256(number)


def _found(window: Window, old: Rows, number: int, last: int, missed: int) -> Tuple[int, int]:
    """How far off a block is that is there, and its number; -1 and the next number where none is near.

    Those that should be next are looked for near by. After some misses, only the one after the last that was there, for
    what was inserted may be long, and a few far behind it, for what was replaced may be long too.
    """
    if not old.moves or not old.size:
        return -1, number + 1
    ahead = max(8, _NEAR // old.block)
    if missed < _PATIENCE:
        window.fill((ahead + 2) * old.block)
        wanted = [*range(number, number + ahead + 1), last, last + 1]
    else:
        window.fill(2 * old.block)
        wanted = [last, last + 1, *(last + far * ahead for far in (1, 2, 4, 8))]
    best: Any = None
    end = len(window.bytes) if missed < _PATIENCE else old.block + ANCHOR  # what is behind comes with the next step
    for candidate in wanted:
        if old.span(candidate) < ANCHOR:
            continue
        at = window.bytes.find(old.anchor(candidate), 0, end)
        if at >= 0 and _is(window, at, old, candidate):
            best, end = (at, candidate), at + ANCHOR - 1
    return best or (-1, number + 1)
