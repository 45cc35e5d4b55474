"""Traces of one step at every length that the data has, from a few that are run."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace

from nbkit.memory.trace import Trace

SAME = 0.01  # interpolated and traced peaks may differ by this share
MOST = 12  # traces to run, where lengths cannot be interpolated


class Traces:
    """Traces by length: run at a few lengths, interpolated for each allocation in between.

    Args:
        run: Tokens a row to the Trace of such a step; called as seldom as possible.

    A tensor of a transformer has a constant size, or one that grows with the length, or (attention scores) with its
    square. Between the shortest and the longest row sizes lie on a line where nearly all of them prove to; else on a
    parabola through a third length, checked at a fourth. Where that fails, or traces differ in shape (the loss in one
    tile more, say), the length itself is run, or, after MOST of them, the next longer known one is taken.
    """

    def __init__(self, run: Callable[[int], Trace]) -> None:
        self._run = run
        self._known: dict[int, Trace] = {}
        self._curves: dict[tuple[int, int], _Curve | None] = {}

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
        if tokens in self._known:
            return self._known[tokens]
        for (low, high), curve in self._curves.items():
            if low < tokens < high and curve is not None:
                return curve.at(tokens)
        known = sorted(self._known)
        at = bisect_left(known, tokens)
        if 0 < at < len(known) and (known[at - 1], known[at]) not in self._curves:
            self._curves[known[at - 1], known[at]] = self._curve(known[at - 1], known[at])
            return self.at(tokens)
        return self._known[known[at]] if at < len(known) and len(known) >= MOST else self.run(tokens)

    def prepare(self, lengths: Sequence[int]) -> None:
        """Run the two ends, for `at` to lie between."""
        low, high = min(lengths), max(lengths)
        self.run(low), self.run(high)

    def _curve(self, low: int, high: int) -> _Curve | None:
        """What the sizes of lengths between `low` and `high` lie on; None where no length says it of another."""
        one, two = self._known[low], self._known[high]
        middle, quarter = (low + high) // 2, (3 * low + high) // 4
        if not _same_shape(one, two):
            return None
        line = _Curve((low, high), (one, two))
        if not low < middle < high or _proportional(one, two, high / low):
            return line
        three = self.run(middle)
        if not _same_shape(one, three):
            return None
        if _agree(line.at(middle), three):
            return line
        parabola = _Curve((low, middle, high), (one, three, two))
        if not low < quarter < middle:
            return parabola
        true = self.run(quarter)
        return parabola if _same_shape(one, true) and _agree(parabola.at(quarter), true) else None


def _agree(one: Trace, two: Trace) -> bool:
    """What a step makes and frees comes to the same, whatever lies there before it."""
    made, same = (trace.peak_bytes() - sum(trace.resident) for trace in (one, two))
    return _close(made, same)


def _close(one: float, two: float) -> bool:
    return abs(one - two) <= SAME * max(one, two, 1)


def _same_shape(one: Trace, two: Trace) -> bool:
    """The same allocations and frees in the same order, whatever the keys are called.

    What is freed between two allocations may be freed in any order: a graph that dies lets go of its tensors as its hash
    tables lie, and free neighbours merge to the same blocks.
    """
    return _alike(one.first, two.first) and _alike(one.steady, two.steady)


def _alike(one: Sequence[tuple[int, int]], two: Sequence[tuple[int, int]]) -> bool:
    if len(one) != len(two):
        return False
    names: dict[int, int] = {}
    gone: set[int] = set()
    also: set[int] = set()
    for a, b in zip(one, two, strict=True):
        if (a[1] > 0) != (b[1] > 0):
            return False
        if a[1] > 0:
            if gone != also:
                return False
            gone, also = set(), set()
            names[a[0]] = b[0]
        else:  # of the step before there are as many, under whatever keys
            gone.add(names.get(a[0], -1) if a[0] >= 0 else -1)
            also.add(b[0] if b[0] >= 0 else -1)
    return gone == also


def _proportional(low: Trace, high: Trace, ratio: float) -> bool:
    """Nearly all memory is in sizes that stay the same, or that grow by `ratio` as the length does."""
    total = odd = 0
    for one, two in zip((*low.first, *low.steady), (*high.first, *high.steady), strict=True):
        total += two[1]
        odd += two[1] if one[1] != two[1] and not _close(one[1] * ratio, two[1]) else 0
    return odd <= SAME * total


class _Curve:
    """Sizes on the line, or parabola, through those of two, or three, lengths (Lagrange's formula)."""

    def __init__(self, lengths: Sequence[int], traces: Sequence[Trace]) -> None:
        import numpy as np

        self._lengths, self._traces = lengths, traces
        self._keys = [key for key, _ in (*traces[0].first, *traces[0].steady)]
        self._sizes = np.array([[size for _, size in (*one.first, *one.steady)] for one in traces], dtype=float)

    def at(self, tokens: int) -> Trace:
        """The trace for a length in between."""
        import numpy as np

        lengths, pattern = self._lengths, self._traces[0]
        shares = [math.prod((tokens - other) / (own - other) for other in lengths if other != own) for own in lengths]
        sizes = np.rint(np.array(shares) @ self._sizes).astype(int)
        found = np.where(self._sizes[0] > 0, np.maximum(sizes, 1), 0).tolist()
        events = tuple(zip(self._keys, found, strict=True))
        seen = round(sum(share * one.tokens for share, one in zip(shares, self._traces, strict=True)))
        begun = len(pattern.first)
        return replace(pattern, first=events[:begun], steady=events[begun:], tokens=seen)
