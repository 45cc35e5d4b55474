"""A model of torch's CUDA caching allocator: what it reserves for a given order of allocations and frees.

Rules read in c10/cuda/CUDACachingAllocator.cpp, constants in the headers of torch 2.13 (c10/core/AllocatorConfig.h):
sizes are rounded to 512 B; up to 1 MiB is cut from 2 MiB segments, below 10 MiB from 20 MiB segments, anything else gets
a segment rounded to 2 MiB; the smallest free block that is large enough is taken, lowest address first; what is left is
cut off when it is at least 512 B (small pool) or more than 1 MiB (large pool); freed neighbours of one segment merge; a
segment goes back to the driver only when it is wholly free, when a request cannot be met or empty_cache() is called.
With expandable segments each pool is one address range that grows by pages of 2 MiB (small) or 20 MiB (large).

Not modelled: several streams, CUDA graphs' private pools, garbage_collection_threshold and roundup_power2_divisions
(both off unless asked for), and the driver's choice of addresses: new segments lie above all earlier ones here.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

from nbkit.errors import NbkitError

BLOCK = 512
SMALL = 1 << 20
SMALL_SEGMENT = 2 << 20
LARGE_SEGMENT = 20 << 20
MEDIUM = 10 << 20
ROUND = 2 << 20
_ADDRESS_SPACE = 1 << 50


class DoesNotFitError(Exception):
    """A request that the allocator cannot meet under its limit, even with all its cached segments given back.

    Attributes:
        asked, allocated, reserved: Bytes of the request, and of live and reserved memory at that moment.
    """

    def __init__(self, asked: int, allocated: int, reserved: int) -> None:
        super().__init__(f"{asked} bytes asked for, {allocated} allocated, {reserved} reserved")
        self.asked, self.allocated, self.reserved = asked, allocated, reserved


@dataclass(frozen=True)
class Settings:
    """What PYTORCH_ALLOC_CONF can say, and the memory there is.

    Attributes:
        expandable_segments: Grow one segment a pool instead of asking for new ones.
        max_split_bytes: Blocks of this size or larger are not cut; None for no bound. torch refuses less than 20 MiB.
        limit_bytes: What the allocator may reserve: the card's usable memory without the CUDA context; None for all.
    """

    expandable_segments: bool = False
    max_split_bytes: int | None = None
    limit_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.max_split_bytes is not None and self.max_split_bytes <= LARGE_SEGMENT:
            raise NbkitError(
                f"max_split_bytes={self.max_split_bytes}: torch wants more than {LARGE_SEGMENT} (20 MiB).", exit_code=2
            )
        if self.limit_bytes is not None and self.limit_bytes < 0:
            raise NbkitError(f"limit_bytes={self.limit_bytes}: it cannot be negative.", exit_code=2)


class Block:
    """A piece of a segment. A caller only keeps it, to give it back to `free`."""

    __slots__ = ("address", "after", "before", "free", "mapped", "pool", "size")

    def __init__(self, pool: _Pool, address: int, size: int, *, mapped: bool = True) -> None:
        self.pool, self.address, self.size, self.mapped = pool, address, size, mapped
        self.free = True
        self.before: Block | None = None
        self.after: Block | None = None

    @property
    def whole(self) -> bool:
        """True for an uncut segment."""
        return self.before is None and self.after is None


class _Pool:
    """Free blocks by size, then address; and, with expandable segments, address ranges without memory behind them."""

    __slots__ = ("blocks", "page", "small", "unmapped")

    def __init__(self, *, small: bool) -> None:
        self.small = small
        self.page = SMALL_SEGMENT if small else LARGE_SEGMENT
        self.blocks: list[tuple[int, int, Block]] = []
        self.unmapped: list[tuple[int, Block]] = []

    def add(self, block: Block) -> None:
        insort(self.blocks, (block.size, block.address, block))

    def remove(self, block: Block) -> None:
        del self.blocks[bisect_left(self.blocks, (block.size, block.address))]


class CachingAllocator:
    """One device, one stream. `malloc` and `free` as tensors come and go; the counters are torch's own statistics.

    Attributes:
        allocated, reserved: Bytes now: torch.cuda.memory_allocated() and memory_reserved().
        peak_allocated, peak_reserved: The most there was so far.
        segments: cudaMalloc calls that succeeded, or pages mapped.
        retries: Times that the cache was given back because a request could not be met.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = 0
        self.segments = self.retries = 0
        self._small, self._large = _Pool(small=True), _Pool(small=False)
        self._top = 0
        self._expandable = self.settings.expandable_segments
        self._max_split = self.settings.max_split_bytes or _ADDRESS_SPACE

    def malloc(self, asked: int) -> Block:
        """A block of at least `asked` bytes.

        Raises: DoesNotFitError under a limit.
        """
        size = BLOCK if asked <= BLOCK else (asked + BLOCK - 1) // BLOCK * BLOCK
        pool = self._small if size <= SMALL else self._large
        block = self._cached(pool, size) or self._fresh(pool, size)
        rest = block.size - size
        cut = rest >= BLOCK if pool.small or self._expandable else rest > SMALL and size < self._max_split
        if cut:
            self._cut(block, size)
        block.free = False
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return block

    def free(self, block: Block) -> None:
        """Give a block back to its pool; it merges with free neighbours of its segment.

        Raises: ValueError for a block that is free already.
        """
        if block.free:
            raise ValueError("freed twice")
        self.allocated -= block.size
        block.free = True
        self._merge(block)
        block.pool.add(block)

    def empty_cache(self) -> None:
        """torch.cuda.empty_cache(): wholly free segments (or pages) go back to the driver."""
        for pool in (self._large, self._small):
            for _, _, block in list(pool.blocks):
                if self._expandable:
                    self._unmap(block)
                elif block.whole:
                    self._release(block)

    def _cached(self, pool: _Pool, size: int) -> Block | None:
        at = bisect_left(pool.blocks, (size,))
        if at == len(pool.blocks):
            return None
        block = pool.blocks[at][2]
        if self._expandable:
            # A block that can grow counts as large as it can grow: any other that is large enough goes first.
            while at + 1 < len(pool.blocks) and _reach(pool.blocks[at + 1][2]) < _reach(block):
                at += 1
                block = pool.blocks[at][2]
        if size < self._max_split <= block.size:
            return None
        if size >= self._max_split and block.size >= size + LARGE_SEGMENT:
            return None
        del pool.blocks[at]
        return block

    def _fresh(self, pool: _Pool, size: int) -> Block:
        take = self._grow if self._expandable else self._segment
        block = take(pool, size)
        if block is None and not self._expandable and self._release_oversize(pool, size):
            block = take(pool, size)
        if block is None:
            self.retries += 1
            self.empty_cache()
            block = take(pool, size)
        if block is None:
            raise DoesNotFitError(size, self.allocated, self.reserved)
        return block

    def _reserve(self, size: int) -> bool:
        limit = self.settings.limit_bytes
        if limit is not None and self.reserved + size > limit:
            return False
        self.reserved += size
        self.segments += 1
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return True

    def _segment(self, pool: _Pool, size: int) -> Block | None:
        if pool.small or size < MEDIUM:
            whole = SMALL_SEGMENT if pool.small else LARGE_SEGMENT
        else:
            whole = (size + ROUND - 1) // ROUND * ROUND
        if not self._reserve(whole):
            return None
        self._top += whole + ROUND
        return Block(pool, self._top - whole, whole)

    def _cut(self, block: Block, size: int) -> None:
        rest = Block(block.pool, block.address + size, block.size - size)
        rest.before, rest.after = block, block.after
        if rest.after:
            rest.after.before = rest
        block.after, block.size = rest, size
        block.pool.add(rest)

    def _merge(self, block: Block) -> None:
        """Swallow free neighbours in the same state; `block` itself must not be in its pool's list."""
        pool = block.pool
        other = block.before
        if other is not None and other.free and other.mapped == block.mapped:
            self._forget(pool, other)
            block.address, block.before = other.address, other.before
            if other.before:
                other.before.after = block
            block.size += other.size
        other = block.after
        if other is not None and other.free and other.mapped == block.mapped:
            self._forget(pool, other)
            block.after = other.after
            if other.after:
                other.after.before = block
            block.size += other.size

    @staticmethod
    def _forget(pool: _Pool, block: Block) -> None:
        if block.mapped:
            pool.remove(block)
        else:
            del pool.unmapped[bisect_left(pool.unmapped, (block.address,))]

    def _release(self, block: Block) -> None:
        block.pool.remove(block)
        self.reserved -= block.size

    def _release_oversize(self, pool: _Pool, size: int) -> bool:
        """With a max_split_bytes: give back uncut blocks above it, as few as will do."""
        if self.settings.max_split_bytes is None:
            return False
        wanted = max(size, self._max_split)
        at = bisect_left(pool.blocks, (wanted,))
        if at < len(pool.blocks):
            self._release(pool.blocks[at][2])
            return True
        given = 0
        while given < wanted and pool.blocks and pool.blocks[-1][0] >= self._max_split:
            given += pool.blocks[-1][0]
            self._release(pool.blocks[-1][2])
        return given >= wanted

    def _grow(self, pool: _Pool, size: int) -> Block | None:
        """Map pages behind the lowest place with room for `size`, joining free memory that lies right before it."""
        block = self._place(pool, size)
        if not block.mapped:
            if not self._map(block, min(block.size, size)):
                return None
        else:
            pool.remove(block)
        while block.size < size:
            beyond = block.after
            if beyond is None or not self._map(beyond, min(beyond.size, size - block.size), into=block):
                pool.add(block)
                return None
        return block

    def _place(self, pool: _Pool, size: int) -> Block:
        for _, hole in pool.unmapped:
            start = hole.before if hole.before is not None and hole.before.free else hole
            room, block = 0, start
            while room < size and block is not None and block.free:
                room += block.size
                block = block.after  # type: ignore[assignment]  # None ends the loop
            if room >= size:
                return start
        self._top += _ADDRESS_SPACE
        block = Block(pool, self._top, _ADDRESS_SPACE, mapped=False)
        pool.unmapped.append((block.address, block))
        return block

    def _map(self, hole: Block, size: int, into: Block | None = None) -> bool:
        """Put memory behind the first `size` bytes of an unmapped block, in whole pages, and merge it (or fail)."""
        pool = hole.pool
        pages = min((size + pool.page - 1) // pool.page * pool.page, hole.size)
        if not self._reserve(pages):
            return False
        self._forget(pool, hole)
        if pages < hole.size:
            rest = Block(pool, hole.address + pages, hole.size - pages, mapped=False)
            rest.before, rest.after = hole, hole.after
            if rest.after:
                rest.after.before = rest
            hole.after, hole.size = rest, pages
            insort(pool.unmapped, (rest.address, rest))
        hole.mapped = True
        if into is None:
            self._merge(hole)
        else:  # `into` lies right before it and is out of the list; what lies right behind may be free as well
            into.size, into.after = into.size + hole.size, hole.after
            if hole.after:
                hole.after.before = into
            self._merge(into)
        return True

    def _unmap(self, block: Block) -> None:
        """Give back the whole pages inside a free block."""
        pool = block.pool
        base = self._base(block)
        start = base - (base - block.address) // pool.page * pool.page
        end = base + (block.address + block.size - base) // pool.page * pool.page
        if end <= start:
            return
        pool.remove(block)
        if start > block.address:
            self._pad(block, start - block.address)
        if block.address + block.size > end:
            self._cut(block, end - block.address)
        self.reserved -= block.size
        block.mapped = False
        self._merge(block)
        insort(pool.unmapped, (block.address, block))

    def _pad(self, block: Block, size: int) -> None:
        """Leave the first `size` bytes of a block as a free block of their own."""
        front = Block(block.pool, block.address, size)
        front.before, front.after = block.before, block
        if front.before:
            front.before.after = front
        block.before = front
        block.address, block.size = block.address + size, block.size - size
        block.pool.add(front)

    @staticmethod
    def _base(block: Block) -> int:
        """First address of the segment."""
        return block.address // _ADDRESS_SPACE * _ADDRESS_SPACE


def _reach(block: Block) -> int:
    beyond = block.after
    return block.size + (beyond.size if beyond is not None and not beyond.mapped else 0)
