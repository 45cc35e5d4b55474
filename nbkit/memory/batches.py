"""How rows become micro-batches: cut, packed or padded, in the order the trainer will see them.

Follows TRL 1.16's SFTTrainer and transformers 5.23's Trainer with accelerate's seeded sampler; the tests compare it with
a real trainer's data loader. What cannot be known beforehand is said where it is decided: `group_by_length` draws from a
random state that loading the model has moved, so only its first batch (which holds the longest row) is sure; and which
of several equally long rows share a pack is pyarrow's choice, so packs are exact in length, not in their rows.
"""

from __future__ import annotations

import importlib.util
import random
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nbkit.data import TokenStats
from nbkit.errors import DataError, NbkitError

Order = Literal["random", "sequential", "group_by_length"]
_PACKED_AT_ONCE = 1000  # datasets.map hands rows to TRL's packing in thousands


@dataclass(frozen=True)
class Feed:
    """What decides the composition of batches; the names are SFTConfig's, shortened.

    Attributes:
        batch: Rows a micro-batch holds on one GPU.
        accumulation: Micro-batches an optimizer step sums up.
        max_length: Rows are cut to this many tokens; None cuts nothing.
        packing: TRL's name of the strategy (`bfd`, `bfd_split`, `wrapped`), or None for padding.
        world: GPUs that share the batches of one step (DDP, FSDP, ZeRO).
    """

    batch: int = 1
    accumulation: int = 1
    max_length: int | None = 1024
    packing: Literal["bfd", "bfd_split", "wrapped"] | None = None
    order: Order = "random"
    seed: int = 42
    shuffle_first: bool = False
    drop_last: bool = False
    multiple: int = 1
    world: int = 1

    def __post_init__(self) -> None:
        for name in ("batch", "accumulation", "multiple", "world"):
            if getattr(self, name) < 1:
                raise NbkitError(f"{name}={getattr(self, name)}: it must be at least 1.", exit_code=2)
        if self.max_length is not None and self.max_length < 1:
            raise NbkitError(f"max_length={self.max_length}: it must be at least 1, or None.", exit_code=2)
        if self.packing and self.max_length is None:
            raise NbkitError("packing without max_length has no size to pack to.", hint="max_length=1024", exit_code=2)

    @property
    def flat(self) -> bool:
        """Packs are laid end to end as one sequence without padding, as TRL does for these strategies."""
        return self.packing in {"bfd", "bfd_split"}

    @classmethod
    def from_args(cls, args: Any, *, world: int = 1) -> Feed:
        """Read an SFTConfig; of another TrainingArguments what it has.

        Raises: NbkitError for a sampling strategy whose batches are not known here.
        """
        order = str(getattr(args, "train_sampling_strategy", "random"))
        if order not in {"random", "sequential", "group_by_length"}:
            raise NbkitError(
                f"train_sampling_strategy={order!r}: its batches cannot be foreseen.",
                hint='"random", "sequential" or "group_by_length"',
            )
        packed = bool(getattr(args, "packing", False))
        data_seed = getattr(args, "data_seed", None)
        return cls(
            batch=args.per_device_train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            max_length=getattr(args, "max_length", None),
            packing=args.packing_strategy if packed else None,
            order=order,  # type: ignore[arg-type]  # just checked
            seed=args.seed if data_seed is None else data_seed,
            shuffle_first=bool(getattr(args, "shuffle_dataset", False)),
            drop_last=bool(args.dataloader_drop_last),
            multiple=getattr(args, "pad_to_multiple_of", None) or 1,
            world=world,
        )


@dataclass(frozen=True)
class Batch:
    """One micro-batch on one GPU.

    Attributes:
        step: The optimizer step it belongs to, from 1, as the trainer counts.
        rows: Indices of the data's rows in it.
        count: Sequences it holds; 1 where packs are laid end to end without padding.
        width: Tokens of each sequence after padding.
        tokens: Tokens that are not padding.
        pairs: Sum of squared lengths: what attention computes over.
    """

    step: int
    rows: tuple[int, ...]
    count: int
    width: int
    tokens: int
    pairs: int

    @property
    def processed(self) -> int:
        """Tokens the model computes on, padding included."""
        return self.count * self.width


def lengths_of(data: Any, limit: int | None = None) -> tuple[list[int], list[bool]]:
    """Tokens of each row, and whether `limit` leaves anything of it to train on: TRL drops the rows where it does not.

    Args:
        data: TokenStats (nbkit.data.token_stats), a sequence of token counts, or a tokenised datasets.Dataset.
    Raises: DataError for anything else, for no rows, or for a row without a token.
    """
    if isinstance(data, TokenStats):
        kept = [
            trained > 0 and (limit is None or first < limit)
            for trained, first in zip(data.trained, data.first, strict=True)
        ]
        lengths = list(data.total)
    else:
        names = getattr(data, "column_names", None)
        if names is not None and "input_ids" in names:
            data = [len(ids) for ids in data["input_ids"]]
        if not isinstance(data, Sequence) or not all(isinstance(one, int) and one > 0 for one in data):
            found = type(data).__name__
            if isinstance(data, Sequence) and not isinstance(data, str):
                found = next(repr(one) for one in data if not isinstance(one, int) or one < 1)
            raise DataError(
                f"Lengths are wanted, whole numbers from 1 on, not {found:.60}.",
                hint="nbkit.data.token_stats(rows, tokenizer), a list of token counts, or a tokenised dataset",
            )
        lengths = list(data)
        kept = [True] * len(lengths)
    if not lengths:
        raise DataError("There are no rows, so there are no batches.", hint="give at least one length")
    return lengths, kept


def compose(data: Any, feed: Feed, *, epochs: int = 1, exact: bool = True) -> Iterator[Batch]:
    """The micro-batches of `epochs` epochs, in order.

    Args:
        data: See lengths_of.
        exact: False draws any order of the kind, without importing torch: enough for a run's time.
    Raises: DataError.
    """
    lengths, kept = lengths_of(data, feed.max_length)
    rows = [index for index, keep in enumerate(kept) if keep or feed.max_length is None or feed.packing]
    if feed.shuffle_first:
        rows = [rows[at] for at in _shuffled(len(rows), feed.seed)]
    limit = feed.max_length or max(lengths)
    items: list[tuple[tuple[int, ...], tuple[int, ...]]]
    if feed.packing:
        items = list(_packed(rows, lengths, limit, feed.packing))
        if feed.shuffle_first:
            items = [items[at] for at in _shuffled(len(items), feed.seed)]
    else:
        items = [((row,), (min(lengths[row], limit),)) for row in rows]
    step = 0
    for epoch in range(epochs):
        order = _order([sum(sizes) for _, sizes in items], feed, epoch, exact=exact)
        groups = [order[at : at + feed.batch] for at in range(0, len(order), feed.batch)]
        if feed.drop_last and groups and len(groups[-1]) < feed.batch:
            groups.pop()
        per_step = feed.accumulation * feed.world
        for number, group in enumerate(groups):
            members = tuple(row for at in group for row in items[at][0])
            sizes = [size for at in group for size in items[at][1]]
            sums = [sum(items[at][1]) for at in group]
            width = sum(sums) if feed.flat else max(sums)
            width = -(-width // feed.multiple) * feed.multiple
            count = 1 if feed.flat else len(group)
            pairs = sum(size * size for size in sizes) if feed.flat else count * width * width
            yield Batch(step + number // per_step + 1, members, count, width, sum(sizes), pairs)
        step += -(-len(groups) // per_step)


def _packed(
    rows: list[int], lengths: list[int], limit: int, strategy: str
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(rows, their tokens) of each pack."""
    for at in range(0, len(rows), _PACKED_AT_ONCE):
        chunk = rows[at : at + _PACKED_AT_ONCE]
        if strategy == "wrapped":
            yield from _wrapped(chunk, lengths, limit)
            continue
        pieces: list[tuple[int, int]] = []
        for row in chunk:
            whole, rest = divmod(lengths[row], limit)
            if strategy == "bfd_split":
                pieces += [(row, limit)] * whole + ([(row, rest)] if rest else [])
            else:
                pieces.append((row, min(lengths[row], limit)))
        yield from _best_fit(pieces, limit)


def _best_fit(pieces: list[tuple[int, int]], limit: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Best fit decreasing: the longest first, each into the pack with the least room that still takes it."""
    packs: list[list[tuple[int, int]]] = []
    room: list[tuple[int, int]] = []  # (free tokens, pack), sorted
    for row, size in sorted(pieces, key=lambda piece: -piece[1]):
        at = bisect_left(room, (size, -1))
        if at < len(room):
            free, number = room.pop(at)
        else:
            free, number = limit, len(packs)
            packs.append([])
        packs[number].append((row, size))
        if free > size:
            insort(room, (free - size, number))
    for pack in packs:
        yield tuple(row for row, _ in pack), tuple(size for _, size in pack)


def _wrapped(rows: list[int], lengths: list[int], limit: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """One long line of tokens, cut every `limit`."""
    pack: list[tuple[int, int]] = []
    held = 0
    for row in rows:
        left = lengths[row]
        while left:
            piece = min(left, limit - held)
            pack.append((row, piece))
            held, left = held + piece, left - piece
            if held == limit:
                yield tuple(one for one, _ in pack), (limit,)
                pack, held = [], 0
    if pack:
        yield tuple(one for one, _ in pack), (held,)


def _order(sizes: list[int], feed: Feed, epoch: int, *, exact: bool) -> list[int]:
    """Positions in the order of one epoch."""
    if feed.order == "sequential":
        return list(range(len(sizes)))
    shuffled = _permutation(len(sizes), feed.seed + epoch, exact=exact)
    if feed.order == "random":
        return shuffled
    # transformers' LengthGroupedSampler: sorted within mega-batches, and the longest row of all put first.
    rows = feed.batch * feed.accumulation
    mega = rows * max(min(len(sizes) // (rows * 4), 50), 1)
    groups = [
        sorted(shuffled[at : at + mega], key=lambda i: sizes[i], reverse=True) for at in range(0, len(shuffled), mega)
    ]
    largest = max(range(len(groups)), key=lambda at: sizes[groups[at][0]])
    groups[0][0], groups[largest][0] = groups[largest][0], groups[0][0]
    return [position for group in groups for position in group]


def _permutation(count: int, seed: int, *, exact: bool) -> list[int]:
    """accelerate's SeedableRandomSampler: torch.randperm seeded with seed + epoch; some other order without torch."""
    if exact and importlib.util.find_spec("torch"):
        import torch

        permuted: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
        return permuted
    order = list(range(count))
    random.Random(seed).shuffle(order)  # noqa: S311 - an order of rows, not a secret
    return order


def _shuffled(count: int, seed: int) -> list[int]:
    """datasets' Dataset.shuffle(seed=seed)."""
    import numpy as np

    order: list[int] = np.random.default_rng(seed).permutation(count).tolist()
    return order
