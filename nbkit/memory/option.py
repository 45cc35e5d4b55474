"""One row of a plan: what is wanted of a run, and what one way to train gives on a place."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from nbkit.errors import NbkitError
from nbkit.memory.batches import Feed, compose
from nbkit.memory.fits import NAMES
from nbkit.memory.formula import Method
from nbkit.memory.place import Place
from nbkit.memory.shapes import Targets
from nbkit.memory.subject import Subject
from nbkit.memory.sweep import How, Point, Surface
from nbkit.memory.time import Duration, Link, Load, duration

PER_TOKENS = 10_000_000  # a plan without data is for so many: ten thousand rows of a thousand
SETUP_H = 10 / 60  # paid for, too: installing, downloading, loading
# Beyond any run; and so that nonsense is said, not reckoned with.
_MOST = {"seq": 1 << 27, "effective_batch": 1 << 22, "batch": 1 << 16, "rank": 1 << 20, "epochs": 100_000}
HOWS: dict[How, str] = {"one": "one device", "each": "a copy on each (DDP)", "sharded": "sharded (FSDP)"}


@dataclass(frozen=True)
class Wish:
    """What is wanted of the run; the defaults are nbkit's and TRL's.

    Attributes:
        seq: Tokens of the longest row.
        effective_batch: Rows an optimizer step sees, over all GPUs and micro-batches.
        batch: Rows of a micro-batch; None takes the largest that fits.
    """

    seq: int = 1024
    effective_batch: int = 16
    batch: int | None = None
    rank: int = 16
    targets: Targets = "all-linear"
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    packing: bool = False
    epochs: int = 1
    seed: int = 42

    def __post_init__(self) -> None:
        for name, known in (("targets", get_args(Targets)), ("optimizer", ("adamw", "adamw_8bit"))):
            if getattr(self, name) not in known:
                raise NbkitError(f"{name}={getattr(self, name)!r} is unknown.", hint=" or ".join(known), exit_code=2)
        for name, most in _MOST.items():
            value = getattr(self, name)
            if name == "batch" and value is None:
                continue
            try:
                operator.index(value)
            except TypeError as error:
                raise NbkitError(f"{name}={value!r}: it must be a whole number.", exit_code=2) from error
            if value < 1:
                raise NbkitError(f"{name}={value}: it must be at least 1.", exit_code=2)
            if value > most:
                raise NbkitError(
                    f"{name}={value:,}: a plan goes to {most:,}.", hint="is there a typing error?", exit_code=2
                )


@dataclass(frozen=True)
class Option:
    """One way to train: a method, with or without checkpointing, on one or several GPUs.

    Attributes:
        how: `each` GPU holds everything and they share the rows, or the weights are `sharded`.
        batch: Rows of a micro-batch on each GPU; accumulation makes up the effective batch.
        memory: Of that micro-batch, on each GPU.
        largest_batch: Rows that fit at this length; longest_seq: tokens that fit in one row. Both for sure.
        usd: What it costs where the place has a price, ten minutes of setting up included.
    """

    method: Method
    checkpointing: bool
    how: How
    batch: int
    accumulation: int
    memory: Point
    verdict: Literal["yes", "tight", "no"]
    largest_batch: int
    longest_seq: int
    time: Duration
    usd: float | None

    @property
    def name(self) -> str:
        return f"{NAMES[self.method]}{', checkpointing' if self.checkpointing else ''}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "method": self.method,
            "checkpointing": self.checkpointing,
            "how": self.how,
            "batch": self.batch,
            "accumulation": self.accumulation,
            "fits": self.verdict,
            "low_gib": round(self.memory.low_gib, 2),
            "high_gib": round(self.memory.high_gib, 2),
            "parts": {name: round(gib, 3) for name, gib in self.memory.parts.items()},
            "basis": self.memory.basis,
            "largest_batch": self.largest_batch,
            "longest_seq": self.longest_seq,
            "time": self.time.as_dict(),
            "usd": None if self.usd is None else round(self.usd, 3),
        }


def option(
    known: Subject,
    there: Place,
    wish: Wish,
    ground: Surface,
    data: Any,
    method: Method,
    checkpointing: bool,
    counted: dict[tuple[int, int], Load] | None = None,
) -> Option:
    """One row of a plan. `counted` keeps what data was made into before."""
    count, room, rank = there.count, there.room_gib, wish.rank
    how = _how(ground, there, wish, method, checkpointing)
    where: dict[str, Any] = {"rank": rank, "gpus": count, "how": how}
    most = ground.largest_batch(room, method, checkpointing, wish.seq, **where)
    each = -(-wish.effective_batch // count)
    batch = wish.batch or max((size for size in range(1, min(each, most, 64) + 1) if each % size == 0), default=1)
    accumulation = max(-(-each // batch), 1)
    memory = ground.at(method, checkpointing, batch, wish.seq, **where)
    step = replace(ground.step, method=method, checkpointing=checkpointing)
    link = replace(there.link, gpus=count, sharded=how == "sharded") if count > 1 else Link()
    took = duration(known.shape, step, _load(wish, data, batch, accumulation, count, counted), there.rates, link=link)
    usd = None if there.usd_per_hour is None else there.usd_per_hour * (took.seconds / 3600 + SETUP_H)
    longest = ground.longest_seq(room, method, checkpointing, **where)
    return Option(method, checkpointing, how, batch, accumulation, memory, memory.fits(room), most, longest, took, usd)


def _how(ground: Surface, there: Place, wish: Wish, method: Method, checkpointing: bool) -> How:
    """Of several GPUs each holds everything where that fits, else they share the weights."""
    if there.count == 1:
        return "one"
    copy = ground.at(method, checkpointing, wish.batch or 1, wish.seq, rank=wish.rank, gpus=there.count, how="each")
    return "each" if copy.high_gib <= there.room_gib else "sharded"


def feed_of(wish: Wish, batch: int, accumulation: int, world: int) -> Feed:
    """How the wish's rows become batches."""
    return Feed(batch, accumulation, wish.seq, "bfd" if wish.packing else None, seed=wish.seed, world=world)


def _load(
    wish: Wish, data: Any, batch: int, accumulation: int, world: int, counted: dict[tuple[int, int], Load] | None
) -> Load:
    key = (batch, accumulation * world)
    if counted is not None and key in counted:
        return counted[key]
    if data is None:
        steps = max(PER_TOKENS * wish.epochs // (batch * wish.seq * accumulation * world), 1)
        found = Load.uniform(batch, wish.seq, accumulation * world, steps)
    else:
        found = Load.of(compose(data, feed_of(wish, batch, accumulation, world), epochs=wish.epochs, exact=False))
    if counted is not None:
        counted[key] = found
    return found
