"""Bytes that wait for their reader."""

from __future__ import annotations

import random

from nbkit.ssh.ring import Ring


class TestRing:
    def test_gives_back_what_was_put_in_order(self):
        """Pieces of any size, taken in pieces of any size: the same bytes in the same order, whatever wrapped or grew."""
        chance = random.Random(20261130)
        for _ in range(50):
            ring, put, taken = Ring(), bytearray(), bytearray()
            for _ in range(60):
                piece = chance.randbytes(chance.choice([1, 100, 9_000, 70_000, 200_000]))
                ring.put(memoryview(piece))
                put += piece
                into = bytearray(chance.choice([1, 500, 40_000, 150_000, 1_000_000]))
                size = ring.take(memoryview(into))
                taken += into[:size]
                assert len(put) - len(taken) == len(ring)
            rest = bytearray(len(ring))
            assert len(rest) == ring.take(memoryview(rest))
            assert put == taken + rest

    def test_lends_bytes_that_hold_until_they_are_dropped(self):
        """What is lent stays as it is while more is put behind it, also where the memory grows meanwhile."""
        chance = random.Random(20261130)
        for _ in range(50):
            ring, put, taken = Ring(), bytearray(), bytearray()
            for _ in range(60):
                lent = ring.peek(chance.choice([1, 40_000, 1_000_000]))
                piece = chance.randbytes(chance.choice([1, 9_000, 70_000, 200_000]))
                ring.put(memoryview(piece))
                put += piece
                taken += lent
                ring.drop(len(lent))
                assert len(put) - len(taken) == len(ring)
            while lent := ring.peek(1_000_000):
                taken += lent
                ring.drop(len(lent))
            assert put == taken

    def test_does_not_grow_where_it_is_emptied(self):
        """A reader that keeps up has everything pass through the same memory."""
        ring, into = Ring(), bytearray(65536)
        for _ in range(1000):
            ring.put(memoryview(bytes(60_000)))
            ring.take(memoryview(into))
        assert 65536 == len(ring._view)

    def test_nothing_is_taken_of_nothing(self):
        """An empty one gives no bytes, before the first and after the last."""
        ring = Ring()
        assert 0 == ring.take(memoryview(bytearray(10)))
        ring.put(memoryview(b""))
        assert 0 == ring.take(memoryview(bytearray(10)))
        ring.put(memoryview(b"abc"))
        assert 0 == ring.take(memoryview(bytearray(0)))
        assert 3 == ring.clear()
        assert (0, 0) == (len(ring), ring.clear())
