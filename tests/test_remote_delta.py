"""What is kept of an older version: against every kind of change, put together again and counted."""

from __future__ import annotations

import hashlib
import io
import random
import time

import pytest

from nbkit.remote.there import delta
from nbkit.remote.there.delta import FINEST as FINE

MIB = 1 << 20
OLD = random.Random(3).randbytes(5 * MIB + 777)
NEW = random.Random(4).randbytes(3 * MIB)


def told(path: bytes, moves: bool, most: int) -> delta.Rows:
    """What the end with the older version tells, as the other end has it: a MiB's rows at a time."""
    basis = delta.basis_of(path, moves, most)
    return delta.Rows(basis, delta.tell(path, basis).__next__)


def between(tmp_path, old: bytes, new: bytes, *, moves: bool = True) -> int:
    """Bytes that go over for `new` where `old` is; what comes together is checked, and its sha256."""
    (tmp_path / "old").write_bytes(old)
    at = 0

    def read(size: int) -> bytes:
        nonlocal at
        piece = new[at : at + size // 2 + 1]  # a file may give less than it is asked for
        at += len(piece)
        return piece

    rows = told(bytes(tmp_path / "old"), moves, len(new))
    window, made, sent = delta.Window(read, len(new)), bytearray(), 0
    for piece in delta.pieces(window, rows):
        if isinstance(piece, tuple):
            start, count = piece
            assert moves or start == len(made)
            made += old[start : start + count]
            assert count == len(old[start : start + count])
        else:
            assert 0 < len(piece) <= MIB
            made += piece
            sent += len(piece)
    assert new == bytes(made)
    assert hashlib.sha256(new).digest() == window.whole.digest()
    return sent


class TestMoves:
    @pytest.mark.parametrize(
        ("new", "most"),
        [
            pytest.param(OLD, 0, id="the same"),
            pytest.param(OLD + b"more", 4, id="appended"),
            pytest.param(OLD[: 2 * MIB], 0, id="cut off at a block"),
            pytest.param(OLD[: 2 * MIB + 5], 5, id="cut off in a block"),
            pytest.param(b"x" + OLD, 1, id="a byte before it"),
            pytest.param(NEW + OLD, len(NEW), id="much before it"),
            pytest.param(OLD[:MIB] + b"inserted" + OLD[MIB:], 8, id="inserted at a block"),
            pytest.param(OLD[: MIB + 99] + b"inserted" + OLD[MIB + 99 :], FINE + 8, id="inserted in a block"),
            pytest.param(OLD[: MIB + 99] + NEW + OLD[MIB + 99 :], FINE + len(NEW), id="much inserted"),
            pytest.param(OLD[: MIB + 99] + 7 * NEW + OLD[MIB + 99 :], FINE + 7 * len(NEW), id="21 MiB inserted"),
            pytest.param(OLD[: MIB + 99] + OLD[MIB + 200 :], FINE, id="a little taken out"),
            pytest.param(OLD[: MIB + 99] + OLD[MIB + 99 + 7 * FINE :], FINE, id="seven blocks taken out"),
            pytest.param(OLD[: MIB + 99] + OLD[2 * MIB :], FINE, id="most of a MiB taken out"),
            pytest.param(OLD[: MIB + 99] + b"changed" + OLD[MIB + 106 :], FINE, id="changed in place"),
            pytest.param(
                OLD[:9] + b"one" + OLD[12 : 2 * MIB] + b"two" + OLD[2 * MIB :] + b"three",
                2 * FINE + 8,
                id="three changes",
            ),
            pytest.param(OLD[: 2 * MIB] + NEW + OLD[4 * MIB :], len(NEW) + FINE, id="2 MiB became 3"),
            pytest.param(OLD[: MIB + 5] + NEW + OLD[4 * MIB :], len(NEW) + 2 * MIB, id="nearly 3 MiB became 3"),
        ],
    )
    def test_what_moved_is_found(self, tmp_path, new, most):
        """Only what is new goes over, and the rest of the blocks in which it stands."""
        assert between(tmp_path, OLD, new) <= most

    def test_another_file(self, tmp_path):
        """Where nothing is as it was, all of it goes over."""
        assert len(NEW) == between(tmp_path, OLD, NEW)

    @pytest.mark.parametrize("old", [b"", b"\0" * 3 * MIB, b"ab" * MIB, OLD[:15], OLD[: FINE + 3]])
    @pytest.mark.parametrize("new", [b"", b"\0" * (2 * MIB + 5), b"ab" * MIB, b"a" + b"ba" * MIB, OLD[: 2 * MIB]])
    def test_what_repeats_and_what_is_short(self, tmp_path, old, new):
        """Blocks that all begin alike, and files of a few bytes, come together right."""
        assert between(tmp_path, old, new) <= len(new)

    def test_any_changes(self, tmp_path):
        """A hundred files with a few random changes each come together right."""
        chance = random.Random(5)
        for _ in range(100):
            old = chance.randbytes(chance.randrange(6 * FINE))
            new = bytearray(old)
            for _ in range(chance.randrange(4)):
                at, size = chance.randrange(len(new) + 1), chance.randrange(2 * FINE)
                new[at : at + chance.choice((0, size))] = chance.choice((b"", chance.randbytes(size), old[:size]))
            between(tmp_path, old, bytes(new))

    def test_blocks_grow_with_the_file(self):
        """What is told of an older version stays small, until blocks are of a MiB."""
        gib = 1 << 30
        sizes = [delta.block_of(size) for size in (0, 128 * MIB, 128 * MIB + 1, gib, 8 * gib, 100 * gib)]
        assert [FINE, FINE, 2 * FINE, 8 * FINE, MIB, MIB] == sizes

    def test_a_large_file_of_other_content_takes_no_longer_than_it_must(self, tmp_path):
        """After some misses it stops looking at every place: the work grows with the size, not with its square."""
        looked = []

        class Counted(bytearray):
            def find(self, *arguments):
                looked.append(arguments[2] - arguments[1])
                return super().find(*arguments)

        new = random.Random(6).randbytes(24 * MIB)
        (tmp_path / "old").write_bytes(random.Random(7).randbytes(24 * MIB))
        at = 0

        def read(size):
            nonlocal at
            at += size
            return new[at - size : at]

        window = delta.Window(read, len(new))
        window.bytes = Counted()
        start = time.monotonic()
        for _ in delta.pieces(window, told(bytes(tmp_path / "old"), True, len(new))):
            pass
        assert sum(looked) < 50 * len(new)
        assert time.monotonic() - start < 60


class TestPart:
    def test_stays_where_it_lies(self, tmp_path):
        """A part is written in place: blocks of it count only at their own offset."""
        new = OLD[: 2 * MIB + 50]
        assert 0 == between(tmp_path, new, new, moves=False)
        assert MIB == between(tmp_path, NEW[:MIB] + new[MIB:], new, moves=False)
        assert len(new) == between(tmp_path, b"x" + new, new, moves=False)

    def test_unreadable_is_nothing(self, tmp_path):
        """A basis that is gone is no basis."""
        assert delta.NOTHING == delta.basis_of(bytes(tmp_path / "absent"), True, 5)

    def test_what_shrinks_while_it_is_told_is_like_nothing(self, tmp_path):
        """Blocks that can no longer be read have their rows, and count for nothing."""
        path = tmp_path / "old"
        path.write_bytes(OLD)
        basis = delta.basis_of(bytes(path), True, len(OLD))
        for size in (0, FINE + 5, 2 * MIB + 5):
            path.write_bytes(OLD[:size])
            rows = delta.Rows(basis, delta.tell(bytes(path), basis).__next__)
            window = delta.Window(io.BytesIO(OLD).read, len(OLD))
            kept = sum(piece[1] for piece in delta.pieces(window, rows) if isinstance(piece, tuple))
            rows.drain()
            assert size // FINE * FINE == kept
        path.unlink()
        assert -(-len(OLD) // FINE) * delta.ROW == sum(map(len, delta.tell(bytes(path), basis)))
