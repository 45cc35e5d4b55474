"""The replay of steps over the data's lengths through the model of torch's allocator."""

from __future__ import annotations

import random

import pytest

from nbkit.memory.allocator import Settings
from nbkit.memory.order import _deciding
from nbkit.memory.replay import Reserved, longest_that_fits, replay
from nbkit.memory.traces import Traces
from tests.steps import MIB, step

GIB = 2**30


class TestReplay:
    def test_steps_of_one_length_settle(self):
        """Ten steps reserve what three do; live memory is the trace's own peak, with remainders too small to cut off."""
        three, ten = replay([step(64)] * 3), replay([step(64)] * 10)
        assert three.reserved_gib == ten.reserved_gib
        assert 1 <= ten.allocated_gib / (step(64).peak_bytes() / GIB) < 1.03

    def test_what_one_step_leaves_the_next_one_frees(self):
        """Gradients do not pile up, not even between lengths whose traces have other keys."""
        mixed = [step(64), step(48, tiles=3), step(64), step(32, tiles=2)] * 3
        assert replay([step(64)] * 3).allocated_gib == pytest.approx(replay(mixed).allocated_gib, rel=1e-6)

    def test_a_limit_says_which_step_fails(self):
        """The third of three steps is the one that is too long."""
        steps = [step(32), step(48), step(256)]
        limit = Settings(limit_bytes=int(1.05 * step(48).peak_bytes()) + 200 * MIB)
        assert 2 == replay(steps, limit).failed_at
        assert replay(steps).failed_at is None

    def test_emptying_the_cache_between_steps_reserves_less(self):
        """What shorter steps left is given back before the longer one needs room."""
        steps = [step(tokens) for tokens in range(64, 257, 32)]
        assert replay(steps, empty_every=1).reserved_gib < 0.9 * replay(steps).reserved_gib

    def test_no_steps_are_nothing(self):
        """An empty run reserves nothing."""
        assert 0 == replay([]).reserved_gib == replay([]).fragmentation


class TestReserved:
    LENGTHS = tuple(random.Random(1).choices(range(20, 260), k=300))

    def test_the_steps_kept_reserve_what_all_of_them_do(self):
        """The first batches and those that are longer than any before: 300 steps, in ten orders, reserve at most 1 % more."""
        import numpy as np

        for seed in range(10):
            batches = np.random.default_rng(seed).permutation(self.LENGTHS)
            opening, longer = _deciding(batches)
            kept = [*opening, *(one for one in longer if one > max(opening))]
            every, some = (replay([step(int(one)) for one in steps]).reserved_gib for steps in (batches, kept))
            assert some <= every <= 1.01 * some

    def test_random_orders_differ_by_luck(self):
        """The prediction is the middle one; the lucky and the unlucky end are a tenth or more apart."""
        found = Reserved(Traces(step), self.LENGTHS)
        reserved = [one.reserved_gib for one in found.randoms]
        assert sorted(reserved) == reserved
        assert found.random.reserved_gib == found.reserved_gib == reserved[2]
        assert reserved[-1] > 1.1 * reserved[0]

    def test_the_card_is_never_exceeded(self):
        """Under a limit between the longest step and the typical order the cache is given back, and the run goes on."""
        free = Reserved(Traces(step), self.LENGTHS)
        limit = (free.fixed.reserved_gib + free.random.reserved_gib) / 2
        found = Reserved(Traces(step), self.LENGTHS, limit_bytes=int(limit * GIB))
        assert found.random.reserved_gib <= limit < found.without_limit().random.reserved_gib
        assert found.random.retries > 0
        assert found.random.failed_at is None

    def test_orders_rank_as_they_do_in_life(self):
        """The longest first costs about what a fixed length does; sorted from short to long costs the most."""
        found = Reserved(Traces(step), self.LENGTHS)
        assert found.longest_first.reserved_gib <= 1.1 * found.fixed.reserved_gib
        assert found.shortest_first.reserved_gib > 1.15 * found.fixed.reserved_gib
        assert found.shortest_first.reserved_gib >= found.random.reserved_gib >= found.longest_first.reserved_gib
        assert found.expandable.reserved_gib <= found.random.reserved_gib

    def test_allocated_is_the_same_in_every_order(self):
        """Only what is reserved depends on the order."""
        found = Reserved(Traces(step), self.LENGTHS)
        peaks = [one.allocated_gib for one in (found.longest_first, found.random, found.shortest_first)]
        assert max(peaks) == pytest.approx(min(peaks), rel=0.02)

    def test_the_advice_has_the_numbers(self):
        """Only what saves 3 % is said; the table ends with it."""
        found = Reserved(Traces(step), self.LENGTHS)
        assert any("short to long" in line for line in found.advice)
        assert str(found).endswith(found.advice[-1])
        same = Reserved(Traces(step), [128] * 20).advice
        assert [] == [line for line in same if "expandable" not in line]

    def test_the_longest_that_fits(self):
        """Under the memory of a 150-token step nothing much longer runs; under almost none, nothing does."""
        limit = replay([step(150)] * 2).reserved_gib
        found = longest_that_fits(Traces(step), range(20, 260), limit)
        assert 150 <= found < 160
        assert longest_that_fits(Traces(step), range(20, 260), 0.01) is None
        assert 259 == longest_that_fits(Traces(step), range(20, 260), 1000)
