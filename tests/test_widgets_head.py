"""The line above every view, number by number."""

from __future__ import annotations

import pytest

from nbkit.widgets.head import Head, clock, gib, number

NUMBERS = [(2e-4, "2e-4"), (1.13e-4, "1.13e-4"), (0.0, "0"), (0.001, "1e-3"), (0.0015, "0.00150"),
           (0.0132, "0.0132"), (1.034, "1.03"), (9.0, "9.00"), (41.26, "41.3"), (412.4, "412"), (5020.3, "5,020"),
           (1234567.0, "1.23e6"), (-0.5, "-0.500"), (None, "–"), (float("nan"), "–")]  # noqa: RUF001 # fmt: skip


@pytest.mark.parametrize(("value", "expected"), NUMBERS)
def test_numbers_are_short_and_never_nought_for_what_is_not(value, expected):
    """A learning rate of 2e-4 must not read 0."""
    assert expected == number(value)


@pytest.mark.parametrize(("seconds", "expected"), [(432, "07:12"), (11_232, "3:07:12"), (0.4, "00:00"), (-3, "00:00")])
def test_the_time_left_is_a_clock(seconds, expected):
    """Minutes and seconds, with hours where there are any."""
    assert expected == clock(seconds)


def test_memory_has_a_decimal_where_it_says_something():
    """24, not 24.0."""
    assert ("11.4", "24") == (gib(11.41), gib(24.0))


class TestHead:
    head = Head("training", 412, 900, "1.03", "5,020 tok/s", "11.4/24", "07:12")

    def test_the_whole_line(self):
        """State, step, loss, speed, memory, time left."""
        assert "training · step 412/900 · loss 1.03 · 5,020 tok/s · 11.4/24 GiB · ETA 07:12" == self.head.line

    def test_what_is_not_known_is_left_out(self):
        """Before the first step there is a state and a question mark; what is being done is said."""
        assert "waiting: loading the model · step 0/?" == Head(doing="loading the model").line

    def test_a_failure_says_why(self):
        """The cause stands at the end."""
        assert "failed · step 3/9 · loss became nan" == Head("failed", 3, 9, cause="loss became nan").line

    def test_only_what_changed_is_sent(self):
        """A message carries the new step, not the memory that stayed."""
        later = Head("training", 413, 900, "1.03", "5,020 tok/s", "11.4/24", "07:11")
        assert {"step": 413, "eta": "07:11"} == later.since(self.head)
        assert {"state", "step", "cause"} < set(later.since(None))
