"""The single change that makes a thing fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from nbkit.hardware import specs
from nbkit.memory.fits import NAMES, on_card
from nbkit.memory.formula import Method
from nbkit.memory.plan import Option, Plan
from nbkit.memory.sweep import surface

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
    ground, wish, room = plan.surface, plan.wish, plan.place.room_gib
    gpus = plan.place.count if option.how == "sharded" else 1
    found: list[Change] = []

    def high(method: Method = option.method, on: bool = option.checkpointing, batch: int = option.batch,
             seq: int = wish.seq, among: int = gpus) -> float:  # fmt: skip
        return ground.at(method, on, batch, seq, rank=wish.rank, gpus=among).high_gib

    def offer(knob: Knob, value: Any, gib: float, text: str) -> bool:
        if gib <= room:
            found.append(Change(knob, value, gib, text))
        return gib <= room

    if not option.checkpointing:
        offer("checkpointing", True, high(on=True), "gradient checkpointing")
    for batch in range(option.batch - 1, 0, -1):
        if option.batch % batch == 0 and offer(
            "batch", batch, high(batch=batch), f"batch {batch}, accumulation for the rest"
        ):
            break
    if option.longest_seq and option.longest_seq // option.batch >= _USEFUL_SEQ * wish.seq:
        seq = ground.longest_seq(room, option.method, option.checkpointing, option.batch, rank=wish.rank, gpus=gpus)
        seq = seq // 64 * 64 or seq
        if seq >= _USEFUL_SEQ * wish.seq:
            offer("seq", seq, high(seq=seq), f"rows of at most {seq:,} tokens")
    if wish.optimizer == "adamw":
        small = surface(plan.subject.shape, replace(ground.step, optimizer="adamw_8bit"))
        gib = small.at(option.method, option.checkpointing, option.batch, wish.seq, rank=wish.rank, gpus=gpus).high_gib
        offer("optimizer", "adamw_8bit", gib, "8-bit AdamW")
    for method in _CHEAPER[option.method]:
        if offer("method", method, high(method=method), f"{NAMES[method]} instead"):
            break
    if plan.place.device == "cuda":
        for among in range(plan.place.count + 1, _MOST_GPUS + 1):
            if offer("gpus", among, high(among=among), f"{among} x {plan.place.name}, weights sharded"):
                break
    _larger_card(plan, option, found)
    return tuple(found)


def _larger_card(plan: Plan, option: Option, found: list[Change]) -> None:
    """The smallest card in the catalogue on which one is enough; today's torch must have kernels for it."""
    wish = plan.wish
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
        gib = ground.at(option.method, option.checkpointing, option.batch, wish.seq, rank=wish.rank).high_gib
        if gib <= spec.usable_gib:
            found.append(Change("card", spec.name, gib, f"a larger card: {spec.name} ({spec.usable_gib:.0f} GiB)"))
            return
