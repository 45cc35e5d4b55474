"""nbkit.evaluation.stats: paired intervals and McNemar's test."""

from __future__ import annotations

import math
import random
import tracemalloc

import pytest

from nbkit.evaluation.stats import Difference, difference, mcnemar

pytest.importorskip("numpy", reason="numpy comes with the train extra")


class TestDifference:
    def test_is_the_mean_change(self):
        """The value is the mean of tuned minus base, and the interval holds it."""
        found = difference([0, 0, 1, 0], [1, 0, 1, 1])
        assert 0.5 == found.value
        assert found.low <= 0.5 <= found.high
        assert 4 == found.rows

    def test_is_the_same_every_time(self):
        """The resampling is seeded: two calls give the same interval."""
        base, tuned = [0.0, 1.0, 0.5] * 9, [0.5, 1.0, 1.0] * 9
        assert difference(base, tuned) == difference(base, tuned)

    def test_agrees_with_the_textbook(self):
        """On many rows the interval is the mean plus and minus 1.96 standard errors, within a twentieth of its width."""
        rng = random.Random(3)
        base = [rng.gauss(0, 1) for _ in range(400)]
        tuned = [value + rng.gauss(0.3, 0.5) for value in base]
        changes = [t - b for b, t in zip(base, tuned, strict=True)]
        mean = sum(changes) / 400
        error = math.sqrt(sum((c - mean) ** 2 for c in changes) / 399 / 400)
        found = difference(base, tuned)
        assert mean - 1.96 * error == pytest.approx(found.low, abs=0.2 * error)
        assert mean + 1.96 * error == pytest.approx(found.high, abs=0.2 * error)

    def test_pairing_takes_the_hardness_of_rows_out(self):
        """Rows that differ a lot but change alike give a narrow interval; unpaired it would hold zero."""
        base = [float(row % 10) for row in range(100)]
        tuned = [value + 0.1 + 0.01 * (row % 2) for row, value in enumerate(base)]
        found = difference(base, tuned)
        assert 1 == found.sign
        assert 0.01 > found.high - found.low

    def test_weights_make_it_a_loss_per_token(self):
        """With weights the value is the ratio of sums, as a loss over rows of different lengths is."""
        found = difference([1.0, 2.0], [2.0, 2.0], weights=[30, 10])
        assert 0.75 == pytest.approx(found.value)

    def test_weights_are_drawn_with_their_rows(self):
        """A long row that changed moves the interval more than a short one."""
        rows = [0.0] * 20
        changed = [1.0] + [0.0] * 19
        long = difference(rows, changed, weights=[50] + [1] * 19)
        short = difference(rows, changed, weights=[1] * 20)
        assert long.high > 0.8
        assert short.high < 0.3

    @pytest.mark.parametrize(
        ("low", "high", "sign"), [(0.1, 0.2, 1), (-0.2, -0.1, -1), (-0.1, 0.1, 0), (0.0, 0.1, 0), (-0.1, 0.0, 0)]
    )
    def test_sign_needs_an_interval_beyond_zero(self, low, high, sign):
        """An interval that holds zero, at its end too, has shown nothing."""
        assert sign == Difference((low + high) / 2, low, high, 5).sign

    def test_no_width_where_all_rows_change_alike(self):
        """All wrong to all right: the interval has no width, as the docstring warns."""
        assert Difference(1.0, 1.0, 1.0, 16) == difference([0] * 16, [1] * 16)

    @pytest.mark.parametrize(("base", "tuned", "weights"), [([], [], None), ([1], [1, 2], None), ([1], [1], [1, 1])])
    def test_refuses_what_is_not_paired(self, base, tuned, weights):
        """No rows, or lists of different lengths, are a mistake of the caller."""
        with pytest.raises(ValueError, match="paired values are needed"):
            difference(base, tuned, weights)

    def test_many_rows_do_not_need_much_memory(self, monkeypatch):
        """Resampling goes in blocks: 200 resamples of 50,000 rows need far less than the 80 MB of all their indices."""
        monkeypatch.setattr("nbkit.evaluation.stats.RESAMPLES", 200)
        tracemalloc.start()
        try:
            difference([0.0] * 50_000, [1.0] * 50_000)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert 70 * 2**20 > peak

    def test_text(self):
        """A difference reads as value and interval, with signs."""
        assert "+0.50 [+0.25, +0.75]" == str(Difference(0.5, 0.25, 0.75, 9))
        assert "-0.0021 [-0.0030, -0.0011]" == str(Difference(-0.0021, -0.003, -0.0011, 9))


class TestMcNemar:
    @pytest.mark.parametrize(
        ("lost", "won", "p"),
        [(0, 0, 1.0), (0, 1, 1.0), (0, 5, 0.0625), (5, 0, 0.0625), (1, 9, 22 / 1024), (4, 4, 1.0), (2, 8, 112 / 1024)],
    )
    def test_is_the_exact_binomial(self, lost, won, p):
        """Two-sided, from the discordant rows alone; values worked out by hand."""
        base = [True] * lost + [False] * won + [True, False] * 7
        tuned = [False] * lost + [True] * won + [True, False] * 7
        assert p == pytest.approx(mcnemar(base, tuned))

    def test_survives_thousands_of_rows(self):
        """Two to the minus 3,000 underflows a float; the test still gives a number."""
        assert 0 <= mcnemar([False] * 3000, [True] * 3000) < 1e-300
        assert 1.0 == mcnemar([True, False] * 1500, [False, True] * 1500)

    def test_refuses_lists_of_different_lengths(self):
        """Unpaired answers are a mistake of the caller."""
        with pytest.raises(ValueError):
            mcnemar([True], [True, False])
