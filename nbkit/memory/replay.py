"""What the caching allocator reserves over a run: a step's trace, replayed over the data's lengths in some order.

A step of one length asks for the same sizes again and finds them cached. Steps of different lengths do not: a longer one
cannot use what shorter ones left, and a short one cuts a long one's blocks. How much that costs depends on the order.
"""

from __future__ import annotations

import functools
import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from nbkit.display import Table
from nbkit.errors import NbkitError
from nbkit.memory.allocator import Block, CachingAllocator, DoesNotFitError, Settings
from nbkit.memory.trace import Trace

Order = Literal["longest first", "random", "shortest first", "longest only"]
GIB = 2**30
STEPS = 8
SAME = 0.01  # interpolated and traced peaks may differ by this share
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


def schedule(
    lengths: Sequence[int], batch: int, order: Order, *, steps: int = STEPS, seed: int = 0, levels: int = 0
) -> list[int]:
    """Tokens a row of each step's padded batch.

    Batches are drawn as a sampler draws them (a batch is as long as its longest row), then thinned to `steps` that keep
    their distribution and both ends; "longest first" puts the longest of all, twice, before a random order.

    Args:
        lengths: Tokens of each row of the data.
        batch: Rows a step.
        levels: Round lengths up to so many different values; 0 leaves them.
    Raises: NbkitError (exit code 2) for no rows or a length below 1.
    """
    if not lengths or min(lengths) < 1:
        raise NbkitError("No lengths to replay: each row of the data has at least one token.", exit_code=2)
    if order not in get_args(Order):
        raise NbkitError(f"order={order!r} is unknown.", hint=", ".join(get_args(Order)), exit_code=2)
    rng = random.Random(seed)  # noqa: S311 - a reproducible shuffle, no secret
    rows = list(lengths)
    rng.shuffle(rows)
    padded = sorted(max(rows[i : i + batch]) for i in range(0, len(rows), batch))
    if len(padded) > steps:
        padded = (
            [padded[round(i * (len(padded) - 1) / (steps - 1))] for i in range(steps)] if steps > 1 else padded[-1:]
        )
    elif len(set(padded)) > 1:
        padded = sorted(padded * -(-steps // len(padded)))[-max(steps, len(padded)) :]
    if levels:
        padded = _rounded_up(padded, levels)
    if order == "longest only":
        return [padded[-1]] * min(3, steps)
    if order == "shortest first":
        return padded
    rng.shuffle(padded)
    longest = max(padded)
    if order == "longest first":  # and once more with the optimizer's states in place, as the next epoch will
        padded.remove(longest)
        return [longest, longest, *padded]
    if padded[0] == longest:  # the first step has no optimizer states yet: the peak lies in a later one
        padded.append(padded.pop(0))
    return padded


def _rounded_up(sizes: list[int], levels: int) -> list[int]:
    values = sorted(set(sizes))
    if len(values) <= levels:
        return sizes
    kept = [values[round((i + 1) * len(values) / levels) - 1] for i in range(levels)]
    return [kept[bisect_left(kept, size)] for size in sizes]


class Traces:
    """Traces by length: run at a few lengths, interpolated for each allocation in between.

    Args:
        run: Tokens a row to the Trace of such a step; called as seldom as possible.

    Sizes that are constant or grow with the length are so in between, too. Where there are others, a step in the middle
    is run as a check; where it fails, or two traces differ in shape (the loss in one tile more, say), the length itself.
    """

    def __init__(self, run: Callable[[int], Trace]) -> None:
        self._run = run
        self._known: dict[int, Trace] = {}
        self._affine: dict[tuple[int, int], bool] = {}

    def know(self, tokens: int, trace: Trace) -> None:
        """A trace that is there already."""
        self._known[tokens] = trace

    def run(self, tokens: int) -> Trace:
        """The trace of that very length, run when it is not known."""
        if tokens not in self._known:
            self._known[tokens] = self._run(tokens)
        return self._known[tokens]

    def at(self, tokens: int) -> Trace:
        """The trace for a length, interpolated between known ones where that is right."""
        known = sorted(self._known)
        at = bisect_left(known, tokens)
        if at < len(known) and known[at] == tokens:
            return self._known[tokens]
        if 0 < at < len(known) and self._is_affine(known[at - 1], known[at]):
            return _between(self._known[known[at - 1]], self._known[known[at]], known[at - 1], known[at], tokens)
        return self.run(tokens)

    def prepare(self, lengths: Sequence[int]) -> None:
        """Run the two ends, and the middle if the data has one, for `at` to lie between."""
        low, high = min(lengths), max(lengths)
        self.run(low), self.run(high)

    def _is_affine(self, low: int, high: int) -> bool:
        found = self._affine.get((low, high))
        if found is not None:
            return found
        one, two = self._known[low], self._known[high]
        right = _same_shape(one, two)
        middle = (low + high) // 2
        if right and low < middle < high and not _proportional(one, two, high / low):
            guessed = _between(one, two, low, high, middle)
            true = self.run(middle)
            right = _same_shape(one, true) and _close(guessed.peak_bytes(), true.peak_bytes())
            self._affine[low, middle] = self._affine[middle, high] = right
        self._affine[low, high] = right
        return right


def _close(one: float, two: float) -> bool:
    return abs(one - two) <= SAME * max(one, two, 1)


def _same_shape(one: Trace, two: Trace) -> bool:
    """The same allocations and frees in the same order, whatever the keys are called."""
    return _alike(one.first, two.first) and _alike(one.steady, two.steady)


def _alike(one: Sequence[tuple[int, int]], two: Sequence[tuple[int, int]]) -> bool:
    if len(one) != len(two):
        return False
    names: dict[int, int] = {}
    return all((a[1] > 0) == (b[1] > 0) and names.setdefault(a[0], b[0]) == b[0] for a, b in zip(one, two, strict=True))


def _proportional(low: Trace, high: Trace, ratio: float) -> bool:
    """Nearly all memory is in sizes that stay the same, or that grow by `ratio` as the length does."""
    total = odd = 0
    for one, two in zip((*low.first, *low.steady), (*high.first, *high.steady), strict=True):
        total += two[1]
        odd += two[1] if one[1] != two[1] and not _close(one[1] * ratio, two[1]) else 0
    return odd <= SAME * total


def _between(low: Trace, high: Trace, short: int, long: int, tokens: int) -> Trace:
    share = (tokens - short) / (long - short)

    def mix(one: Sequence[tuple[int, int]], two: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        return tuple(
            (a[0], a[1] if a[1] == b[1] else round(a[1] + share * (b[1] - a[1]))) for a, b in zip(one, two, strict=True)
        )

    first, steady = mix(low.first, high.first), mix(low.steady, high.steady)
    return replace(low, first=first, steady=steady, tokens=round(low.tokens + share * (high.tokens - low.tokens)))


class Reserved:
    """What the allocator reserves over the data, by the order in which batches come. Each order is replayed when asked for.

    Args:
        traces: Of a step of `batch` rows, by tokens a row.
        lengths: Tokens of each row of the data, as the trainer will see them (cut to its max_length).
        batch: Rows a step.
        steps: How many are replayed; twice as many changed the answer by 2 % (docs/log.md).
        levels: Different lengths at most; more cost time and change little.
        empty_every: Steps between two calls of torch.cuda.empty_cache(); 0 for none.
    """

    def __init__(
        self,
        traces: Traces,
        lengths: Sequence[int],
        batch: int = 1,
        *,
        steps: int = STEPS,
        seed: int = 0,
        levels: int = 8,
        empty_every: int = 0,
    ) -> None:
        self._traces, self._empty_every = traces, empty_every
        self._plan = functools.partial(schedule, lengths, batch, steps=steps, seed=seed, levels=levels)
        traces.prepare(self._plan("shortest first"))

    def _go(self, order: Order, settings: Settings | None = None) -> Replay:
        return replay(
            [self._traces.at(tokens) for tokens in self._plan(order)], settings, empty_every=self._empty_every
        )

    @functools.cached_property
    def fixed(self) -> Replay:
        """Every batch as long as the longest."""
        return self._go("longest only")

    @functools.cached_property
    def longest_first(self) -> Replay:
        """The longest batch, then a random order."""
        return self._go("longest first")

    @functools.cached_property
    def random(self) -> Replay:
        """What a Trainer's sampler does."""
        return self._go("random")

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
