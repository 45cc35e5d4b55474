"""The single change that makes a thing fit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from nbkit.hardware import specs
from nbkit.memory.fits import NAMES, on_card
from nbkit.memory.formula import Method
from nbkit.memory.option import Option
from nbkit.memory.plan import Plan
from nbkit.memory.sweep import Surface, surface

Knob = Literal["checkpointing", "batch", "seq", "optimizer", "method", "gpus", "card"]
_CHEAPER: dict[Method, tuple[Method, ...]] = {"full": ("lora", "qlora"), "lora": ("qlora",), "qlora": ()}
_MOST_GPUS = 8
_USEFUL_SEQ = 0.25  # a row cut to less than this share of what was asked is another task


@dataclass(frozen=True)
class Change:
    """One knob, its new value, and what the run then takes at most (GiB on each device)."""

    knob: Knob
    value: Any
    high_gib: float
    text: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"knob": self.knob, "value": self.value, "high_gib": round(self.high_gib, 2), "text": self.text}

    def __str__(self) -> str:
        return self.text


def changes(plan: Plan, option: Option) -> tuple[Change, ...]:
    """Every single change after which `option` fits for sure, the least intrusive first; empty when it fits already."""
    if option.verdict == "yes":
        return ()
    tried = (_checkpointing, _batch, _seq, _optimizer, _method, _gpus, _card)
    return tuple(change for change in (one(plan, option) for one in tried) if change is not None)


def _high(plan: Plan, option: Option, ground: Surface | None = None, **changed: Any) -> float:
    """GiB on each device, at most, with one thing changed."""
    asked: dict[str, Any] = {
        "method": option.method, "checkpointing": option.checkpointing, "batch": option.batch, "seq": plan.wish.seq,
        "rank": plan.wish.rank, "gpus": plan.place.count, "how": option.how, **changed,
    }  # fmt: skip
    return (ground or plan.surface).at(**asked).high_gib


def _if_fits(plan: Plan, knob: Knob, value: Any, gib: float, text: str) -> Change | None:
    return Change(knob, value, gib, text) if gib <= plan.place.room_gib else None


def _first(found: Iterable[Change | None]) -> Change | None:
    return next((change for change in found if change is not None), None)


def _checkpointing(plan: Plan, option: Option) -> Change | None:
    if option.checkpointing:
        return None
    return _if_fits(plan, "checkpointing", True, _high(plan, option, checkpointing=True), "gradient checkpointing")


def _batch(plan: Plan, option: Option) -> Change | None:
    sizes = [size for size in range(option.batch - 1, 0, -1) if option.batch % size == 0]
    return _first(
        _if_fits(plan, "batch", size, _high(plan, option, batch=size), f"batch {size}, accumulation for the rest")
        for size in sizes
    )


def _seq(plan: Plan, option: Option) -> Change | None:
    """Shorter rows, unless so short that it were another task."""
    most = plan.surface.longest_seq(
        plan.place.room_gib, option.method, option.checkpointing, option.batch, rank=plan.wish.rank,
        gpus=plan.place.count, how=option.how,
    )  # fmt: skip
    seq = most // 64 * 64 or most
    if seq < _USEFUL_SEQ * plan.wish.seq:
        return None
    return _if_fits(plan, "seq", seq, _high(plan, option, seq=seq), f"rows of at most {seq:,} tokens")


def _optimizer(plan: Plan, option: Option) -> Change | None:
    if plan.wish.optimizer != "adamw":
        return None
    small = surface(plan.subject.shape, replace(plan.surface.step, optimizer="adamw_8bit"))
    return _if_fits(plan, "optimizer", "adamw_8bit", _high(plan, option, small), "8-bit AdamW")


def _method(plan: Plan, option: Option) -> Change | None:
    return _first(
        _if_fits(plan, "method", method, _high(plan, option, method=method), f"{NAMES[method]} instead")
        for method in _CHEAPER[option.method]
    )


def _gpus(plan: Plan, option: Option) -> Change | None:
    if plan.place.device != "cuda":
        return None
    counts = range(plan.place.count + 1, _MOST_GPUS + 1)
    more = ((count, _high(plan, option, gpus=count, how="sharded")) for count in counts)
    name = plan.place.name
    return _first(_if_fits(plan, "gpus", count, gib, f"{count} x {name}, weights sharded") for count, gib in more)


def _card(plan: Plan, option: Option) -> Change | None:
    """The smallest card in the catalogue on which one is enough; today's torch must have kernels for it."""
    for spec in sorted(specs.catalogue(), key=lambda one: (one.usable_gib, one.name)):
        if (
            spec.is_tpu
            or spec.form == "laptop"
            or spec.compute_capability < (7, 5)
            or spec.usable_gib <= plan.place.room_gib
        ):
            continue
        step = replace(plan.surface.step, dtype=on_card(spec).dtype, device="cuda")
        same = plan.place.device == "cuda" and step.dtype == plan.surface.step.dtype
        ground = plan.surface if same else surface(plan.subject.shape, step)
        gib = _high(plan, option, ground, gpus=1, how="one")
        if gib <= spec.usable_gib:
            return Change("card", spec.name, gib, f"a larger card: {spec.name} ({spec.usable_gib:.0f} GiB)")
    return None
