"""What the caching allocator reserves over a run: a step's trace, replayed over the data's lengths in some order.

A step of one length asks for the same sizes again and finds them cached. Steps of different lengths do not: a longer one
cannot use what shorter ones left, and a short one cuts a long one's blocks. How much that costs depends on the order.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nbkit.display import Table
from nbkit.hardware.parts import GIB
from nbkit.memory.allocator import Block, CachingAllocator, DoesNotFitError, Settings
from nbkit.memory.order import TYPICAL, Order, schedule
from nbkit.memory.trace import Trace
from nbkit.memory.traces import Traces

SPREAD = (0.1, 0.3, TYPICAL, 0.7, 0.9)  # shares of random orders that are luckier than those replayed
_ADVICE_AT = 0.03  # an order that saves less than this is not worth a sentence


@dataclass(frozen=True)
class Replay:
    """What one sequence of steps made of the allocator.

    Attributes:
        allocated_gib, reserved_gib: The most there was: torch.cuda.max_memory_allocated() and max_memory_reserved().
        steps: How many were run.
        retries: Times that the limit was met and the cache given back, which costs time.
        failed_at: Index of the step that did not fit under the limit; None when all did.
    """

    allocated_gib: float
    reserved_gib: float
    steps: int
    retries: int = 0
    failed_at: int | None = None

    @property
    def fragmentation(self) -> float:
        """Share of the reserved memory that no tensor used at the worst."""
        return 1 - self.allocated_gib / self.reserved_gib if self.reserved_gib else 0.0


def replay(steps: Sequence[Trace], settings: Settings | None = None, *, empty_every: int = 0) -> Replay:
    """Run steps one after the other through a model of the caching allocator.

    Args:
        steps: A trace each, of any length; the first one's `resident` and `first` are used, then every `steady`.
        settings: Of the allocator; its limit decides whether a step fails.
        empty_every: The loop calls torch.cuda.empty_cache() after every so many steps; 0 for never.
    """
    allocator = CachingAllocator(settings)
    failed_at = None
    done = -1
    try:
        for size in steps[0].resident if steps else ():
            allocator.malloc(size)
        carried: list[Block] = []
        for done, trace in enumerate(steps):
            events = trace.steady if done else trace.first
            carried = _run(allocator, events, carried, _handed_over(trace))
            if empty_every and (done + 1) % empty_every == 0:
                allocator.empty_cache()
    except DoesNotFitError:
        failed_at = max(done, 0)
    peaks = allocator.peak_allocated / GIB, allocator.peak_reserved / GIB
    return Replay(*peaks, steps=len(steps), retries=allocator.retries, failed_at=failed_at)


def _handed_over(trace: Trace) -> list[int]:
    """Keys that a step leaves for the next one to free, in order: gradients, held outputs."""
    return sorted(-1 - key for key, size in trace.steady if size <= 0 and key < 0)


def _run(
    allocator: CachingAllocator, events: Sequence[tuple[int, int]], carried: list[Block], handed: list[int]
) -> list[Block]:
    """One step; returns what it leaves for the next. Steps of two lengths may name what they leave differently, but they
    leave the same things in the same order: what was carried over is matched by rank."""
    here: dict[int, Block] = {}
    malloc, free = allocator.malloc, allocator.free
    rank = {key: index for index, key in enumerate(handed)}
    waiting: dict[int, Block] = dict(enumerate(carried))
    for key, size in events:
        if size > 0:
            here[key] = malloc(size)
        elif key >= 0:
            free(here.pop(key))
        elif (old := waiting.pop(rank[-1 - key], None)) is not None:
            free(old)
    for old in waiting.values():  # the other length left more than this one knows of
        free(old)
    return [here[key] for key in handed if key in here]


class Reserved:
    """What the allocator reserves over the data, by the order in which batches come. Each order is replayed when asked for.

    Args:
        traces: Of a step of `batch` rows, by tokens a row.
        lengths: Tokens of each row of the data, as the trainer will see them (cut to its max_length).
        batch: Rows a step.
        empty_every: Of the steps replayed, between two calls of torch.cuda.empty_cache(); 0 for none.
        limit_bytes: What the allocator may reserve: the card's usable memory without the CUDA context. It gives its cache
            back before it fails, so no run that fits reserves more; None for no limit.
    """

    def __init__(
        self,
        traces: Traces,
        lengths: Sequence[int],
        batch: int = 1,
        *,
        seed: int = 0,
        empty_every: int = 0,
        limit_bytes: int | None = None,
    ) -> None:
        self._traces, self._empty_every, self._limit = traces, empty_every, limit_bytes
        self._plan = functools.partial(schedule, lengths, batch, seed=seed)
        self._again = functools.partial(Reserved, traces, lengths, batch, seed=seed, empty_every=empty_every)
        traces.prepare(lengths)

    def without_limit(self) -> Reserved:
        """The same on a card without an end."""
        return self._again()

    def _go(self, order: Order, settings: Settings | None = None, *, luck: float = TYPICAL) -> Replay:
        settings = replace(settings or Settings(), limit_bytes=self._limit)
        steps = [self._traces.at(tokens) for tokens in self._plan(order, luck=luck)]
        return replay(steps, settings, empty_every=self._empty_every)

    @functools.cached_property
    def fixed(self) -> Replay:
        """Every batch as long as the longest."""
        return self._go("longest only")

    @functools.cached_property
    def longest_first(self) -> Replay:
        """The longest batch, then a random order."""
        return self._go("longest first")

    @functools.cached_property
    def randoms(self) -> tuple[Replay, ...]:
        """Random orders, spread from a lucky to an unlucky one, by what they reserve."""
        return tuple(sorted((self._go("random", luck=luck) for luck in SPREAD), key=lambda one: one.reserved_gib))

    @property
    def random(self) -> Replay:
        """What a Trainer's sampler does: the middle one of the random orders."""
        return self.randoms[len(SPREAD) // 2]

    @functools.cached_property
    def shortest_first(self) -> Replay:
        """Sorted: what a curriculum by length does, and the worst there is."""
        return self._go("shortest first")

    @functools.cached_property
    def expandable(self) -> Replay:
        """Random order with expandable_segments."""
        return self._go("random", Settings(expandable_segments=True))

    @property
    def reserved_gib(self) -> float:
        """For the prediction: the random order."""
        return self.random.reserved_gib

    @property
    def advice(self) -> tuple[str, ...]:
        """Sentences on what would save memory, with the numbers; empty where nothing would save 3 %."""
        worst, said = self.random.reserved_gib, []
        if self.longest_first.reserved_gib < worst * (1 - _ADVICE_AT):
            said.append(
                f"Run the longest batch first: {self.longest_first.reserved_gib:.1f} GiB reserved instead of {worst:.1f}. "
                "Later batches then find blocks that are large enough."
            )
        if self.expandable.reserved_gib < worst * (1 - _ADVICE_AT):
            said.append(
                f"PYTORCH_ALLOC_CONF=expandable_segments:True, set before torch is imported: "
                f"{self.expandable.reserved_gib:.1f} GiB reserved instead of {worst:.1f}."
            )
        if self.shortest_first.reserved_gib > worst * (1 + _ADVICE_AT):
            said.append(
                f"Do not sort the data from short to long: {self.shortest_first.reserved_gib:.1f} GiB reserved."
            )
        return tuple(said)

    def table(self) -> Table:
        """Orders beside each other, and the advice."""
        names = ("every batch the longest", "longest first", "random", "shortest first", "random, expandable segments")
        found = (self.fixed, self.longest_first, self.random, self.shortest_first, self.expandable)
        rows = [
            [name, round(one.allocated_gib, 2), round(one.reserved_gib, 2), f"{one.fragmentation:.0%}"]
            for name, one in zip(names, found, strict=True)
        ]
        return Table(
            ["order of batches", "allocated GiB", "reserved GiB", "unused"],
            rows,
            title=f"What the allocator reserves, {self.random.steps} steps replayed",
            notes=self.advice,
        )

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def longest_that_fits(
    traces: Traces, lengths: Sequence[int], limit_gib: float, settings: Settings | None = None
) -> int | None:
    """The longest of `lengths` whose steps run under the limit when it comes first; None when not even the shortest does.

    Args:
        limit_gib: What the allocator may take: the card's usable memory without the CUDA context.
    """
    limits = replace(settings or Settings(), limit_bytes=int(limit_gib * GIB))
    values = sorted(set(lengths))
    traces.prepare(values)

    def fails(tokens: int) -> bool:
        return replay([traces.at(tokens)] * 2, limits).failed_at is not None

    count = bisect_left(values, True, key=fails)
    return values[count - 1] if count else None
