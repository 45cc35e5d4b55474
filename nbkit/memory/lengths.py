"""The length prophecy: which rows of the data will run out of memory, when, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nbkit.display import Table
from nbkit.errors import NbkitError
from nbkit.memory.batches import Batch, Feed, compose, lengths_of

Peak = Callable[[int, int], float]  # (rows of the micro-batch, tokens each) -> GiB the device has to give
_SHOWN = 8


@dataclass(frozen=True)
class Doom:
    """One row that will not go through.

    Attributes:
        row: Its index in the data, from 0.
        tokens: Its length as the trainer sees it (after max_length).
        gib: What its micro-batch takes.
        step: The optimizer step at which the trainer meets it; None when not within the epochs asked about.
    """

    row: int
    tokens: int
    gib: float
    step: int | None


@dataclass(frozen=True)
class Prophecy:
    """What the data's lengths do to the memory. Shows itself as a table.

    Attributes:
        doomed: Rows whose micro-batch exceeds the budget, the first to be met first.
        worst: The largest micro-batch and its GiB, whether it fits or not.
        longest_safe: Tokens that a row may have with this batch size; 0 when not even one token fits.
        advice: What to do, the cheapest first, each with what it costs.
        sure: False where the order of rows is only likely (see nbkit.memory.batches).
    """

    budget_gib: float
    rows: int
    feed: Feed
    doomed: tuple[Doom, ...]
    worst: tuple[Batch, float]
    longest_safe: int
    advice: tuple[str, ...]
    sure: bool

    @property
    def ok(self) -> bool:
        """True when every row goes through."""
        return not self.doomed

    @property
    def first_step(self) -> int | None:
        """The optimizer step that would fail."""
        steps = [doom.step for doom in self.doomed if doom.step is not None]
        return min(steps, default=None)

    def table(self) -> Table:
        """The rows that fail, and what to do."""
        batch, gib = self.worst
        each = f"{batch.count} x {batch.width:,} tokens"
        if self.ok:
            note = f"The largest micro-batch, {each}, takes {gib:.1f} of {self.budget_gib:.1f} GiB (step {batch.step})."
            safe = f"With this batch size a row may have {self.longest_safe:,} tokens."
            return Table(("rows", "run out of memory"), [(self.rows, 0)], "Length prophecy", (note, safe))
        rows = [(doom.row, doom.tokens, round(doom.gib, 1), doom.step) for doom in self.doomed[:_SHOWN]]
        more = len(self.doomed) - len(rows)
        notes = [f"and {more:,} more."] if more > 0 else []
        share = f"{len(self.doomed):,} of {self.rows:,} rows"
        notes.append(
            f"{share} take more than the {self.budget_gib:.1f} GiB there are; the worst is {each}, {gib:.1f} GiB."
        )
        if self.first_step is not None:
            about = "at" if self.sure else "at about"
            notes.append(f"The run would fail {about} step {self.first_step:,}.")
        notes += [f"{number}. {text}" for number, text in enumerate(self.advice, start=1)]
        return Table(("row", "tokens", "GiB", "step"), rows, "Length prophecy: these rows run out of memory", notes)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "ok": self.ok,
            "budget_gib": round(self.budget_gib, 2),
            "rows": self.rows,
            "doomed": [
                {"row": doom.row, "tokens": doom.tokens, "gib": round(doom.gib, 2), "step": doom.step}
                for doom in self.doomed
            ],
            "worst_gib": round(self.worst[1], 2),
            "longest_safe": self.longest_safe,
            "first_step": self.first_step,
            "advice": list(self.advice),
        }

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def prophecy(
    data: Any,
    budget_gib: float,
    peak: Peak,
    feed: Feed,
    *,
    epochs: int = 1,
    checkpointed: Peak | None = None,
) -> Prophecy:
    """Name the rows that would run out of memory.

    Args:
        data: TokenStats (nbkit.data.token_stats), token counts, or a tokenised dataset.
        budget_gib: Memory that the run may take on one device.
        peak: GiB that a micro-batch of (rows, tokens each) takes; grows with both.
        feed: How batches are made: Feed.from_args(args).
        checkpointed: The same with gradient checkpointing, where the run does not use it: whether it would be enough.
    Returns: A Prophecy.
    Raises: NbkitError for a budget that is not positive; DataError for data without lengths.
    """
    if budget_gib <= 0:
        raise NbkitError(f"budget_gib={budget_gib}: it must be positive.", exit_code=2)
    lengths, _ = lengths_of(data)
    worst: tuple[Batch, float] | None = None
    found: dict[int, Doom] = {}
    seen: dict[tuple[int, int], float] = {}
    for batch in compose(data, feed, epochs=epochs):
        size = (batch.count, batch.width)
        if size not in seen:
            seen[size] = peak(*size)
        gib = seen[size]
        if worst is None or gib > worst[1]:
            worst = (batch, gib)
        if gib > budget_gib:
            for row in _culprits(batch, lengths, feed, budget_gib, peak):
                tokens = min(lengths[row], feed.max_length or lengths[row])
                found.setdefault(row, Doom(row, tokens, gib, batch.step))
    if worst is None:
        raise NbkitError("max_length leaves nothing to learn from in any row.", hint="raise max_length")
    safe = _longest(budget_gib, lambda tokens: peak(*_size(feed, feed.batch, tokens)), max(lengths))
    doomed = tuple(sorted(found.values(), key=lambda doom: (doom.step or 0, doom.row)))
    advice = _advice(lengths, budget_gib, peak, checkpointed, feed, worst[0], safe) if doomed else ()
    return Prophecy(budget_gib, len(lengths), feed, doomed, worst, safe, advice, _exact_order(feed))


def _culprits(batch: Batch, lengths: list[int], feed: Feed, budget: float, peak: Peak) -> list[int]:
    """Rows that are too long by themselves: any mate would be padded to them. In a pack no row is to blame: all are."""
    if feed.packing:
        return list(batch.rows)
    limit = feed.max_length or max(lengths)
    guilty = [row for row in batch.rows if peak(batch.count, _padded(min(lengths[row], limit), feed)) > budget]
    return guilty or [max(batch.rows, key=lambda row: lengths[row])]


def _size(feed: Feed, rows: int, tokens: int) -> tuple[int, int]:
    """(sequences, tokens each) of a micro-batch; packs lie end to end as one sequence."""
    return (1, rows * tokens) if feed.flat else (rows, tokens)


def _padded(tokens: int, feed: Feed) -> int:
    return -(-tokens // feed.multiple) * feed.multiple


def _longest(budget: float, peak: Callable[[int], float], start: int) -> int:
    """The largest number of tokens within the budget; looks up to eight times beyond `start`."""
    if peak(1) > budget:
        return 0
    low, high = 1, 8 * start
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if peak(middle) <= budget else (low, middle - 1)
    return low


def _advice(
    lengths: list[int], budget: float, peak: Peak, checkpointed: Peak | None, feed: Feed, worst: Batch, safe: int
) -> tuple[str, ...]:
    said = []
    if checkpointed is not None:
        gib = checkpointed(worst.count, worst.width)
        if gib <= budget:
            said.append(
                f"Gradient checkpointing: the worst batch then takes {gib:.1f} GiB; costs a quarter of the speed."
            )
    smaller = _smaller_batch(budget, peak, feed, worst)
    if smaller:
        times = -(-feed.batch // smaller)
        said.append(
            f"per_device_train_batch_size={smaller} with gradient_accumulation_steps={feed.accumulation * times}: "
            "the same step, nothing is cut."
        )
    limit = safe // 64 * 64 or safe
    if feed.packing:
        if limit:
            said.append(f"max_length={limit}: packs become that long.")
    elif limit:
        cut = [length - limit for length in lengths if length > limit]
        said.append(
            f"max_length={limit}: cuts {len(cut):,} of {len(lengths):,} rows and "
            f"{sum(cut) / sum(lengths):.1%} of the tokens (the ends, where answers stand)."
        )
        said.append(
            f"Or leave those rows out: they are {len(cut) / len(lengths):.1%} of the rows "
            f"and {sum(length for length in lengths if length > limit) / sum(lengths):.1%} of the tokens."
        )
    if not limit:
        said.append("Not even the shortest row fits: a smaller method or a larger card (nbkit.plan names them).")
    elif feed.order == "random":
        said.append(
            'Whatever you choose: train_sampling_strategy="group_by_length" meets the longest row in step 1, '
            "so a failure costs a minute and not a night."
        )
    return tuple(said)


def _smaller_batch(budget: float, peak: Peak, feed: Feed, worst: Batch) -> int:
    """The largest batch below the present one that takes the longest row; 0 when there is none."""
    for size in range(feed.batch - 1, 0, -1):
        if feed.batch % size == 0:
            each = worst.width // feed.batch if feed.flat else worst.width
            if peak(*_size(feed, size, each)) <= budget:
                return size
    return 0


def _exact_order(feed: Feed) -> bool:
    """Whether the trainer's order is known to the row: seeded, unpacked, and torch is here to draw it."""
    import importlib.util

    return feed.packing is None and (
        feed.order == "sequential" or (feed.order == "random" and importlib.util.find_spec("torch") is not None)
    )
