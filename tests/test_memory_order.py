"""Which batches of an epoch are replayed, and in which order."""

from __future__ import annotations

import pytest

from nbkit.errors import NbkitError
from nbkit.memory.order import OPENING, SORTED, schedule


class TestSchedule:
    LENGTHS = (*range(10, 200), 500)

    def test_orders(self):
        """Shortest first is sorted; longest first begins with the longest, twice; random ends with it; all have it."""
        short, long, mixed = (
            schedule(self.LENGTHS, 1, order) for order in ("shortest first", "longest first", "random")
        )
        assert sorted(short) == list(short)
        assert SORTED + 1 == len(short)
        assert 500 == long[0] == long[1] == short[-1] == short[-2] == mixed[-1]
        assert list(mixed) != sorted(mixed)
        assert long[2:] == mixed[:OPENING]
        assert (500,) * 3 == schedule(self.LENGTHS, 1, "longest only")

    def test_after_the_first_batches_only_longer_ones_are_kept(self):
        """Each is longer than all before it, but for the longest at the end, with the optimizer's states in place."""
        kept = schedule(tuple(range(10, 3000)), 1, "random")
        later = kept[OPENING:-1]
        assert len(later) >= 2
        assert max(kept[:OPENING]) < later[0]
        assert sorted(set(later)) == list(later)
        assert 2999 == later[-1] == kept[-1]

    def test_luck_decides_how_many_longer_ones_there_are(self):
        """From the luckiest order to the unluckiest the tokens in batches that are longer than all before grow."""

        def longer(luck):
            kept, most, found = schedule(self.LENGTHS, 1, "random", luck=luck)[:-1], 0, 0
            for one in kept:
                found, most = found + (one if one > most else 0), max(most, one)
            return found

        assert longer(0.0) < longer(0.5) < longer(1.0)
        assert 500 == longer(0.0)

    def test_a_batch_is_as_long_as_its_longest_row(self):
        """With every row in one batch, each step has the longest length."""
        assert {500} == set(schedule(self.LENGTHS, len(self.LENGTHS), "random"))

    def test_a_last_batch_of_fewer_rows_counts(self):
        """Three rows in batches of two are two batches."""
        assert 30 == max(schedule((10, 20, 30), 2, "random"))
        assert {2, 3} >= {len(schedule((10, 20, 30), 2, "random", seed=seed)) for seed in range(9)}

    def test_the_seed_decides(self):
        """The same seed gives the same order."""
        assert schedule(self.LENGTHS, 2, "random", seed=3) == schedule(self.LENGTHS, 2, "random", seed=3)

    @pytest.mark.parametrize("lengths", [(), (5, 0)])
    def test_no_length_is_refused(self, lengths):
        """An empty data set, and an empty row."""
        with pytest.raises(NbkitError, match="at least one token"):
            schedule(lengths, 1, "random")

    def test_an_unknown_order_is_refused(self):
        """With the orders there are."""
        with pytest.raises(NbkitError, match="longest first, random"):
            schedule((1,), 1, "sorted")
