"""Bytes that wait for their reader: in one block of memory, used again and again.

A block anew for each packet costs more than the copying: the kernel hands out large ones as pages that it clears first.
"""

from __future__ import annotations

_LEAST = 64 * 1024


class Ring:
    """A queue of bytes. It grows to what it has to hold at once and is given back by `clear`; not safe between threads."""

    def __init__(self) -> None:
        self._view = memoryview(bytearray(0))
        self._at = self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, data: memoryview) -> None:
        """Append a copy of `data`."""
        if self._size + len(data) > len(self._view):
            self._grow(self._size + len(data))
        end = (self._at + self._size) % len(self._view) if self._size else 0
        if not self._size:
            self._at = 0  # the same memory as before: it is in the processor's cache
        first = min(len(data), len(self._view) - end)
        self._view[end : end + first] = data[:first]
        self._view[: len(data) - first] = data[first:]
        self._size += len(data)

    def take(self, into: memoryview) -> int:
        """Move the oldest bytes to `into`, as many as it holds or there are; how many."""
        size = min(len(into), self._size)
        first = min(size, len(self._view) - self._at)
        into[:first] = self._view[self._at : self._at + first]
        into[first:size] = self._view[: size - first]
        self.drop(size)
        return size

    def peek(self, most: int) -> memoryview:
        """The oldest bytes where they lie, `most` at most and maybe fewer than there are; they hold until `drop`."""
        return self._view[self._at : min(self._at + min(most, self._size), len(self._view))]

    def drop(self, size: int) -> None:
        """Be done with the `size` oldest bytes."""
        size = min(size, self._size)
        if size:
            self._at = (self._at + size) % len(self._view)
            self._size -= size

    def clear(self) -> int:
        """Forget everything; how many bytes that were."""
        size = self._size
        self._view, self._at, self._size = memoryview(bytearray(0)), 0, 0
        return size

    def _grow(self, need: int) -> None:
        grown = memoryview(bytearray(max(_LEAST, 1 << (need - 1).bit_length())))
        size = self.take(grown)
        self._view, self._at, self._size = grown, 0, size
