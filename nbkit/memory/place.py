"""Where a run would take place: this machine, cards by name, or an offer; with its memory, speed and price."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from nbkit.errors import NbkitError
from nbkit.hardware import GpuSpec, Machine, Offer, card, probe, spec_of
from nbkit.hardware.machine import BF16_SINCE
from nbkit.memory.fits import CPU_CORES, CPU_PARAMS, CPU_TOKENS_PER_S, Target, here, on_card
from nbkit.memory.time import Link, Rates, spec_rates

_NVLINK_SHARE = 1 / 3  # of the two-way figure on the label: what four A100 sustained in published ZeRO-3 runs
_PCIE = {"desktop": 2.5e9, "laptop": 2.5e9}  # two RTX 3090, no peer access
_PCIE_SERVER = 5e9  # not measured
_TIMES = re.compile(r"\s*(\d+)\s*[x*]\s*(.+)", re.IGNORECASE)
MOST_GPUS = 64
_AS_FREE = 0.9  # a GPU that others use counts no more


@dataclass(frozen=True)
class Place:
    """One or several equal devices.

    Attributes:
        room_gib: Memory a run may take on each.
        count: How many there are.
        spec: The catalogue's entry, where there is one.
        usd_per_hour: Of all of them together; None where nothing is paid.
        rates: What each sustains.
        notes: Doubts, a sentence each.
    """

    name: str
    room_gib: float
    count: int
    device: Literal["cuda", "cpu"]
    dtype: Literal["bfloat16", "float16", "float32"]
    reason: str
    rates: Rates
    link: Link
    spec: GpuSpec | None = None
    usd_per_hour: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.count} x {self.name}" if self.count > 1 else self.name


def place(where: Any = None, *, rates: Rates | None = None) -> Place:
    """Read `where`.

    Args:
        where: A Machine (or None: this one), a card's name, "2x RTX 4090", a GpuSpec, an Offer, or a Place.
        rates: What the device sustains, where it was measured (nbkit.memory.benchmark); else from the data sheet.
    Raises: NbkitError (exit code 2) for an unknown card, a TPU, or a number of cards that makes no sense.
    """
    if isinstance(where, Place):
        found = where
    elif where is None or isinstance(where, Machine):
        found = _machine(where or probe())
    elif isinstance(where, Offer):
        found = replace(_cards(where.gpu, where.count), usd_per_hour=where.usd_per_hour)
    elif isinstance(where, GpuSpec):
        found = _cards(where.name, 1)
    else:
        several = _TIMES.fullmatch(str(where))
        found = _cards(several[2], int(several[1])) if several else _cards(str(where), 1)
    return found if rates is None else replace(found, rates=rates)


def _cards(name: str, count: int) -> Place:
    if not 1 <= count <= MOST_GPUS:
        raise NbkitError(f"{count} x {name}: from 1 to {MOST_GPUS} cards.", exit_code=2)
    spec = card(name)
    return _on(on_card(spec), spec, count)


def _on(target: Target, spec: GpuSpec | None, count: int, name: str = "") -> Place:
    notes: tuple[str, ...] = ()
    if spec is None:
        rates = replace(
            spec_rates("unknown card", 50, 500), spread=3.0, basis="nothing: the card is not in nbkit's table"
        )
        notes = ("The card is not in the catalogue: its speed is a blind guess.",)
        wire = _PCIE["desktop"]
    else:
        rates = spec_rates(spec.name, spec.train_tflops, spec.bandwidth_gbs, geforce=spec.form in {"desktop", "laptop"})
        wire = spec.nvlink_gbs * 1e9 * _NVLINK_SHARE or _PCIE.get(spec.form, _PCIE_SERVER)
        if spec.compute_capability < (7, 5):
            major, minor = spec.compute_capability
            notes = (
                f"Today's torch has no kernels for compute capability {major}.{minor}: {spec.name} needs an old build.",
            )
    return Place(
        name or target.name, target.room_gib, count, "cuda", target.dtype, target.reason, rates,
        Link(count, bytes_per_s=wire), spec, None, notes,
    )  # fmt: skip


def _machine(machine: Machine) -> Place:
    """The best GPU and those like it that are as free, or the processor."""
    target = here(machine)
    if target.device == "cuda":
        rooms = [(gpu.usable_gib if gpu.free_gib is None else gpu.free_gib, gpu) for gpu in machine.visible_gpus]
        room, best = max(rooms, key=lambda pair: pair[0])
        like = [free for free, gpu in rooms if gpu.name == best.name and free >= _AS_FREE * room]
        new = (best.compute_capability or (0, 0)) >= BF16_SINCE
        reason = f"{best.short_name}: compute capability {best.capability} has {'' if new else 'no '}bf16"
        alone = replace(target, room_gib=min(like), dtype="bfloat16" if new else "float16", reason=reason)
        name = target.name if len(like) == 1 else f"{best.short_name}{machine.of}"
        return _on(alone, spec_of(best), len(like), name)
    # One measured run: 4-bit LoRA without checkpointing computes 4 operations a weight and token.
    per_core = 4 * CPU_PARAMS * CPU_TOKENS_PER_S / CPU_CORES
    rates = Rates(
        per_core * target.cores, 0.01, 5e9, 1.0,
        f"one run on {CPU_CORES} cores, scaled to the {target.cores:g} usable here (an order of magnitude)",
    )  # fmt: skip
    return Place(target.name, target.room_gib, 1, "cpu", target.dtype, target.reason, rates, Link())
