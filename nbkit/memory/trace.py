"""The order of allocations and frees in a training step: what a model of the caching allocator replays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Trace:
    """One step at full depth, in order.

    An event is (key, size): size > 0 allocates that many bytes, as asked for and not yet rounded, under a key that is
    new in this step; size == 0 frees the key. A key that is never freed stays: optimizer states, kept gradients.

    Attributes:
        resident: Bytes of each tensor that is there before the first step, in the order it was made: weights, adapters.
        first: The first step, in which optimizer states are made.
        steady: Any later step. What the step before left behind (held outputs, gradients) is freed in it under the key
            -1 - key of the step before.
    """

    resident: tuple[int, ...]
    first: tuple[tuple[int, int], ...]
    steady: tuple[tuple[int, int], ...]
    tokens: int

    def peak_bytes(self, block: int = 512) -> int:
        """The most that is live in `steady` after `first`, each tensor rounded up to `block`."""
        live = sum(_round(size, block) for size in self.resident)
        before, live, _ = _run(self.first, {}, live, block)
        _, _, peak = _run(self.steady, before, live, block)
        return peak


def _round(size: int, block: int) -> int:
    return -(-size // block) * block


def _run(
    events: Iterable[tuple[int, int]], before: dict[int, int], live: int, block: int
) -> tuple[dict[int, int], int, int]:
    here: dict[int, int] = {}
    peak = live
    for key, size in events:
        if size > 0:
            here[key] = _round(size, block)
            live += here[key]
            peak = max(peak, live)
        else:
            live -= before.pop(-1 - key) if key < 0 else here.pop(key)
    return {**before, **here}, live, peak
