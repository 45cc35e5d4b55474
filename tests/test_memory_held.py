"""What a prediction says of reserved memory: by replay, by a share, and on a known card."""

from __future__ import annotations

import pytest

from nbkit.memory import fake
from nbkit.memory.allocator import Settings
from nbkit.memory.held import FIXED_SHARE, VARYING_SHARE, held, least_gib
from nbkit.memory.program import Program
from nbkit.memory.replay import replay
from nbkit.memory.step import Job
from nbkit.memory.trace import Trace
from tests.steps import step

pytestmark = pytest.mark.train
GIB = 2**30
LENGTHS = tuple(range(20, 257))
JOB = Job(fake.Wanted(None, "bfloat16"), Program.plain_loop(), batch=1, seq=256)
LONGEST = replay([step(256)] * 2)


def asked(lengths=LENGTHS, *, room_gib=None, job=JOB, longest=None):
    """Of the made-up step at 256 tokens, whose peak the prediction knows."""
    return held(
        job, lengths, LONGEST.allocated_gib, longest or step(256), lambda _, tokens: step(tokens), room_gib=room_gib
    )


class TestHeld:
    def test_varying_lengths_are_replayed(self):
        """Between the longest batch alone and the least lucky order; the notes say the span."""
        found = asked()
        assert LONGEST.reserved_gib < found.gib < found.worst_gib
        assert not found.limited
        assert f"to {found.worst_gib:.1f} GiB, by luck" in found.notes[0]

    def test_a_known_card_bounds_both_figures(self):
        """The cache is given back before a run fails: room for the longest batch and a little more is enough, and said."""
        room = 1.1 * LONGEST.reserved_gib
        found = asked(room_gib=room)
        assert found.limited
        assert found.gib <= found.worst_gib <= room < asked().gib
        assert "gives its cache back" in found.notes[1]

    def test_what_does_not_fit_is_not_cut_down_to_the_card(self):
        """With less room than live tensors need, the figures are those without a card."""
        found = asked(room_gib=0.9 * LONGEST.allocated_gib)
        assert not found.limited
        assert asked().gib == found.gib

    def test_what_fits_but_for_fragments_is_not_cut_down_either(self):
        """Live tensors alone would fit; no order of the blocks does."""
        found = asked(room_gib=1.0001 * LONGEST.allocated_gib)
        assert not found.limited
        assert found.gib > LONGEST.reserved_gib

    @pytest.mark.parametrize("lengths", [(), [256] * 9])
    def test_batches_of_one_length_are_replayed_too(self, lengths):
        """The same step again and again; what it leaves of no use is said."""
        found = asked(lengths)
        assert LONGEST.reserved_gib == pytest.approx(found.gib)
        assert LONGEST.allocated_gib < found.gib == found.worst_gib
        assert f"{LONGEST.fragmentation:.0%} of what it reserves" in found.notes[0]

    def test_of_one_length_a_card_bounds_it(self):
        """Its end, where the step runs there with the cache given back; a card too small bounds nothing."""
        tight = (LONGEST.allocated_gib + LONGEST.reserved_gib) / 2
        found = asked([256], room_gib=tight)
        assert (found.gib <= tight) == found.limited
        assert LONGEST.reserved_gib == pytest.approx(asked([256], room_gib=0.9 * LONGEST.allocated_gib).gib)
        roomy = asked([256], room_gib=2 * LONGEST.reserved_gib)
        assert (True, pytest.approx(LONGEST.reserved_gib)) == (roomy.limited, roomy.gib)

    def test_without_a_trace_one_length_gets_a_share(self):
        """The layers of the model differ."""
        assert 2.0 * (1 + FIXED_SHARE) == held(JOB, [256], 2.0, None, lambda *_: None).gib

    def test_without_a_trace_varying_lengths_get_a_share(self):
        """The layers of the model differ."""
        found = held(JOB, LENGTHS, 2.0, None, lambda *_: None)
        assert 2.0 * (1 + VARYING_SHARE) == found.gib
        assert "no trace was replayed" in found.notes[0]

    def test_a_length_without_a_trace_is_the_share_too(self):
        """It was there for the longest, but not for another."""
        assert 2.0 * (1 + VARYING_SHARE) == held(JOB, LENGTHS, 2.0, step(256), lambda *_: None).gib


class TestLeast:
    def test_the_step_runs_with_it_and_not_with_less(self):
        """More than lives, where holes stay that no block fits in."""
        least = least_gib(step(256))
        assert LONGEST.allocated_gib < least <= LONGEST.reserved_gib
        for share, runs in ((1.0, True), (0.995, False)):
            limit = Settings(limit_bytes=int(share * least * GIB))
            assert runs == (replay([step(256)] * 3, limit).failed_at is None)

    def test_what_is_cached_and_of_no_use_is_not_needed(self):
        """A block of 30 MiB is given back for one of 32 that it is too small for."""
        mib = 2**20
        events = ((0, 30 * mib), (0, 0), (1, 32 * mib), (1, 0))
        made_up = Trace((20 * mib,), events, events, 8)
        assert 82 / 1024 == replay([made_up] * 3).reserved_gib
        assert 52 / 1024 == pytest.approx(least_gib(made_up), rel=2e-3)
