"""In which order batches come, and which of them decide what the allocator reserves."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

from nbkit.errors import NbkitError

Order = Literal["longest first", "random", "shortest first", "longest only"]
OPENING = 8  # batches replayed in any case
SORTED = 32
ORDERS = 200
TYPICAL = 0.5


def schedule(
    lengths: Sequence[int], batch: int, order: Order, *, seed: int = 0, luck: float = TYPICAL
) -> tuple[int, ...]:
    """Tokens a row of the steps that decide what one epoch reserves, in the order in which they come.

    A batch is as long as its longest row. Of a random order the first OPENING batches are kept, and each later one that
    is longer than all before it: what a longer step asks for fits no cached block, a shorter one finds what it needs. All
    300 batches of six published runs reserved the same as those kept, to 0.01 GiB; of a made-up step without
    checkpointing up to 1 % more. The longest comes once more at the end, when the optimizer's states are there.

    Args:
        lengths: Tokens of each row of the data.
        batch: Rows a step.
        order: Sorted batches ("shortest first") have no end of longer ones: SORTED of them, evenly spread, stand for all.
        luck: Share of random orders, out of up to ORDERS that are drawn, with fewer tokens in such longer batches.
    Raises: NbkitError (exit code 2) for no rows or a length below 1.
    """
    if not lengths or min(lengths) < 1:
        raise NbkitError("No lengths to replay: each row of the data has at least one token.", exit_code=2)
    if order not in get_args(Order):
        raise NbkitError(f"order={order!r} is unknown.", hint=", ".join(get_args(Order)), exit_code=2)
    longest = max(lengths)
    if order == "longest only":
        return (longest,) * 3
    if order == "shortest first":
        padded = sorted(next(_batches(lengths, batch, seed)).tolist())
        spread = min(SORTED, len(padded))
        kept = [padded[round(i * (len(padded) - 1) / max(1, spread - 1))] for i in range(spread)]
        return (*kept[:-1], longest, longest)
    drawn = _drawn(tuple(lengths), batch, seed)
    opening, longer = drawn[round(luck * (len(drawn) - 1))]
    if order == "longest first":
        return (longest, longest, *opening)
    later = longer[sum(1 for one in longer if one in opening) :]
    return (*opening, *later, longest)


@functools.lru_cache(maxsize=4)
def _drawn(lengths: tuple[int, ...], batch: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """The deciding batches of random epochs, the luckiest first; fewer epochs of very long data, which cost time."""
    count = max(9, min(ORDERS, 2_000_000 // len(lengths)))
    found = (_deciding(one) for one in _batches(lengths, batch, seed, count))
    return sorted(found, key=lambda kept: sum(kept[1]))


def _batches(lengths: Sequence[int], batch: int, seed: int, count: int = 1) -> Iterator[Any]:
    """The batches of so many random epochs, by the tokens of their longest row, as arrays."""
    import numpy as np

    rng, rows = np.random.default_rng(seed), np.asarray(lengths)
    rows = np.concatenate([rows, np.zeros(-len(rows) % batch, dtype=rows.dtype)])  # the last batch may hold fewer
    for _ in range(count):
        shuffled = rng.permutation(rows).reshape(-1, batch).max(1)
        yield shuffled[shuffled > 0]


def _deciding(batches: Any) -> tuple[list[int], list[int]]:
    """The first batches of an epoch, and all that are longer than any before them."""
    import numpy as np

    longest = np.maximum.accumulate(batches)
    longer = np.concatenate([[True], longest[1:] > longest[:-1]])
    return batches[:OPENING].tolist(), batches[longer].tolist()
