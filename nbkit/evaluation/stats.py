"""Did it change, and how sure is that: paired tests on the same rows, before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

RESAMPLES = 10_000
SEED = 0
METHOD = (
    f"paired percentile bootstrap over rows: {RESAMPLES:,} resamples, seed {SEED}, 95 %; exact match also by McNemar's "
    "exact two-sided test"
)


@dataclass(frozen=True)
class Difference:
    """Tuned minus base on the same rows.

    Attributes:
        value: The difference on the rows that were scored.
        low: Lower end of its 95 % interval.
        high: Upper end.
        rows: How many rows it rests on.
    """

    value: float
    low: float
    high: float
    rows: int

    @property
    def sign(self) -> int:
        """1 or -1 when the interval lies on one side of zero, 0 when it holds zero: then nothing was shown."""
        return (self.low > 0) - (self.high < 0)

    def __str__(self) -> str:
        """Two decimals, more where the numbers are small."""
        ends = (self.value, self.low, self.high)
        digits = 2 if max(map(abs, ends)) >= 0.1 else 4
        value, low, high = (f"{end:+.{digits}f}" for end in ends)
        return f"{value} [{low}, {high}]"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"value": finite(self.value), "low": finite(self.low), "high": finite(self.high), "rows": self.rows}


def finite(value: float | None) -> float | None:
    """The number, or None for NaN and infinity: they are not JSON."""
    return value if value is not None and math.isfinite(value) else None


def difference(base: Sequence[float], tuned: Sequence[float], weights: Sequence[float] | None = None) -> Difference:
    """Mean of `tuned - base` over rows, with a 95 % paired percentile bootstrap interval.

    Method: rows are drawn with replacement, each with both its values (so what makes a row hard cancels out), 10,000
    times with seed 0; the interval is the 2.5th to the 97.5th percentile of the resampled means. With `weights`, the
    mean is the ratio of the weighted sums, as a loss per token is over rows of different lengths.

    Not covered: below about 20 rows the interval is too narrow, and where all rows change alike it has no width at
    all; that is a property of the few rows and not certainty. It says nothing about other seeds or other data.

    Args:
        base: One value a row.
        tuned: The same rows, in the same order.
        weights: One weight a row; equal when not given.
    Raises: ValueError when there are no rows or the lengths differ.
    """
    import numpy as np

    if not base or len(base) != len(tuned) or (weights is not None and len(weights) != len(base)):
        raise ValueError(f"paired values are needed: {len(base)} base, {len(tuned)} tuned")
    rows = len(base)
    weight = np.ones(rows) if weights is None else np.asarray(weights, dtype=float)
    change = (np.asarray(tuned, dtype=float) - np.asarray(base, dtype=float)) * weight
    rng = np.random.default_rng(SEED)
    means = np.empty(RESAMPLES)
    block = max(1, 2_000_000 // rows)  # 16 MB of indices at a time, however many rows
    for begin in range(0, RESAMPLES, block):
        drawn = rng.integers(rows, size=(min(block, RESAMPLES - begin), rows))
        means[begin : begin + len(drawn)] = change[drawn].sum(axis=1) / weight[drawn].sum(axis=1)
    ends: list[float] = np.percentile(means, [2.5, 97.5]).tolist()
    return Difference(float(change.sum() / weight.sum()), ends[0], ends[1], rows)


def mcnemar(base: Sequence[bool], tuned: Sequence[bool]) -> float:
    """Two-sided exact p of McNemar's test: how likely a split as uneven as this one is, if neither model is better.

    Only the rows that one model has right and the other has not count; under the null each is a coin toss.

    Source: McNemar 1947; the exact form is the binomial test with p = 1/2.
    """
    lost = sum(b and not t for b, t in zip(base, tuned, strict=True))
    won = sum(t and not b for b, t in zip(base, tuned, strict=True))
    discordant = lost + won
    # Integers until the end: 2**-n underflows a float beyond 1,074 rows.
    tail = sum(math.comb(discordant, k) for k in range(min(lost, won) + 1))
    return min(1.0, float(2 * tail / 2**discordant))
