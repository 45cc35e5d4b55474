"""What a view draws stays small, keeps its spikes, and tells speed and time left as they are."""

from __future__ import annotations

import pytest

from nbkit.widgets.series import RING, Load, Row, Series, short, thinned, thinned_loads


def series(steps, every_s=0.5, tokens=100, **odd):
    """Steps at an even pace; `odd` maps a step, as s12, to its values."""
    made = Series()
    for step in range(1, steps + 1):
        raw = {"step": step, "time": 100 + step * every_s, "loss": 1.0, "num_tokens": step * tokens}
        made.add({**raw, **odd.get(f"s{step}", {})}, window=6)
    return made


class TestSeries:
    def test_smoothing_starts_at_the_first_value(self):
        """The average is not pulled to nought by what came before the first row."""
        assert [1.0, 1.0, 1.0] == [row.smooth for row in series(3).rows]

    def test_smoothing_follows(self):
        """After a jump the average lies between the old and the new value, and comes to the new one."""
        jump = {f"s{step}": {"loss": 2.0} for step in range(10, 60)}
        rows = series(60, **jump).rows
        assert 1.0 < rows[9].smooth < 1.5
        assert 2.0 == pytest.approx(rows[58].smooth, abs=0.01)

    def test_speed_is_that_of_the_steps(self):
        """Tokens of a step over its seconds."""
        assert 200.0 == series(30).recent_speed

    def test_a_pause_between_two_steps_is_no_slow_step(self):
        """An evaluation or a pause of a minute changes neither the speed nor the time left."""
        late = {f"s{step}": {"time": 160 + step * 0.5} for step in range(25, 31)}
        made = series(30, **late)
        assert (200.0, 0.5) == (made.recent_speed, made.step_seconds)

    def test_without_tokens_the_speed_is_in_steps(self):
        """A trainer that counts no tokens still has a speed."""
        made = Series()
        for step in range(1, 9):
            made.add({"step": step, "time": step * 0.5, "loss": 1.0}, window=6)
        assert (False, 2.0) == (made.counts_tokens, made.recent_speed)

    def test_a_resumed_run_writes_its_steps_again_and_the_later_ones_count(self):
        """Rows from the repeated step on are dropped, and the view is told from where."""
        made = series(10)
        made.add({"step": 10, "time": 120.0, "eval_loss": 0.7}, window=6)
        back = made.add({"step": 8, "time": 200.0, "loss": 0.5}, window=6)
        assert 8 == back
        assert [6, 7, 8] == [row.step for row in made.rows[-3:]]
        assert [] == made.evals

    def test_odd_values_become_gaps(self):
        """Null, text and truth values are no numbers; a row without a step is no row."""
        made = series(2, s2={"loss": None, "grad_norm": "nan", "learning_rate": True})
        assert (None, None, None) == (made.last.loss, made.last.gradient, made.last.rate)
        assert made.add({"loss": 1.0}, window=6) is None
        assert 2 == len(made.rows)

    def test_a_long_run_keeps_its_spike_and_its_end(self):
        """30,000 steps stay under twice the ring; the one high loss and the last row are there."""
        made = series(30_000, s12345={"loss": 50.0})
        assert len(made.rows) <= 2 * RING
        assert 50.0 == max(row.loss for row in made.rows)
        assert 30_000 == made.last.step

    def test_a_moment_stands_between_the_steps_around_it(self):
        """A reading of the machine is placed by its time; after the last step at most one step on."""
        made = series(10)
        assert 4.5 == made.place(102.25)
        assert 1.0 == made.place(0.0)
        assert 10.95 == made.place(999.0)


class TestThinned:
    def test_few_rows_are_left_alone(self):
        """What fits is not copied."""
        rows = series(5).rows
        assert rows is thinned(rows, 5)

    def test_a_gradient_spike_is_kept(self):
        """Not only the loss: an explosion of the gradient must be seen."""
        rows = [Row(i, i, 1.0, 1.0, 1e-4, 9.0 if i == 777 else 1.0, 1.0) for i in range(5000)]
        kept = thinned(rows, 500)
        assert len(kept) <= 626
        assert 9.0 == max(row.gradient for row in kept)
        assert kept == sorted(kept)

    def test_the_peak_of_memory_is_kept(self):
        """The highest reading decides whether a model fits."""
        loads = [Load(i, 50.0, 20.0 if i == 333 else 4.0) for i in range(3000)]
        kept = thinned_loads(loads, 100)
        assert len(kept) <= 100
        assert 20.0 == max(load.gib for load in kept)


@pytest.mark.parametrize(("value", "expected"), [(1.2345678, 1.2346), (2e-4, 2e-4), (float("nan"), None), (float("inf"), None),
                                                 ("1", None), (True, None), (None, None), (3, 3.0)])  # fmt: skip
def test_a_message_carries_five_digits_of_a_finite_number(value, expected):
    """Anything else is a gap."""
    assert expected == short(value)
