"""What each device, and the host, holds when a step is spread over several: reckoned from the step on one device.

`spread(alone, How("fsdp", 4))` gives a Spread. The formulas and their sources are in nbkit.memory.shares.

How good: see `BARS`; docs/log.md has the rows it was checked on. Fujii et al. (arXiv 2411.06465) saw no run fail whose
estimate stayed below 80 % of the device's memory; `Spread.fits` holds to that.
Not covered: tensor, sequence and pipeline parallelism with schedules, NVMe offload, HSDP, expert parallelism.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nbkit.display import Table
from nbkit.errors import NbkitError
from nbkit.memory.alone import Alone
from nbkit.memory.shares import How, Strategy, alike, in_a_row, offloaded

__all__ = ["Alone", "How", "Spread", "Strategy", "spread"]

# Share by which a device's figure may be off, beside the single device's own bar.
BARS: Mapping[str, float] = {"ddp": 0.10, "zero1": 0.20, "zero2": 0.20, "zero3": 0.20, "fsdp": 0.20, "device_map": 0.20}
OFFLOAD_BAR = 0.10
SAFE_SHARE = 0.80
OUTSIDE_GIB = (0.5, 1.5)  # context, cuBLAS, NCCL's channels
_PROCESS_GIB = 3.0  # RAM of one rank: Python, torch, CUDA (PEFT README: 2.96 GB for a 3B LoRA run)


@dataclass(frozen=True)
class Spread:
    """What each device and one host hold at the peak.

    Attributes:
        devices: GiB by part, one mapping where all devices are alike, else one a device in order.
        host_gib: RAM of one node.
        notes: Choices and doubts, a sentence each.
    """

    how: How
    devices: tuple[Mapping[str, float], ...]
    host_gib: float
    notes: tuple[str, ...]

    @property
    def worst(self) -> Mapping[str, float]:
        """The parts of the fullest device."""
        return max(self.devices, key=lambda parts: sum(parts.values()))

    @property
    def allocated_gib(self) -> float:
        """Live tensors on the fullest device."""
        return sum(self.worst.values())

    @property
    def bar(self) -> float:
        """Share by which `allocated_gib` may be off; offloading overlaps with work in ways that are not reckoned."""
        offload = self.how.offload_optimizer or self.how.offload_params
        return BARS[self.how.strategy] + (OFFLOAD_BAR if offload else 0)

    @property
    def low_gib(self) -> float:
        """The least that the fullest device has to give."""
        return self.allocated_gib * (1 - self.bar) + OUTSIDE_GIB[0]

    @property
    def high_gib(self) -> float:
        """What it should have to be safe: the bar, or the 80 % rule where that asks for more."""
        return max(self.allocated_gib * (1 + self.bar) + OUTSIDE_GIB[1], self.allocated_gib / SAFE_SHARE)

    def fits(self, room_gib: float) -> Literal["yes", "tight", "no"]:
        """Into devices of that usable memory each. yes: the high end fits; tight: only the low end; no: neither."""
        if self.high_gib <= room_gib:
            return "yes"
        return "tight" if self.low_gib <= room_gib else "no"

    def table(self) -> Table:
        """The fullest device's parts, or every device where they differ."""
        names = list(dict.fromkeys(name for parts in self.devices for name, gib in parts.items() if gib >= 0.005))
        columns = ["part", *(f"GPU {i}" for i in range(len(self.devices)))]
        if len(self.devices) == 1:
            columns = ["part", f"each of {self.how.gpus}"]
        rows: list[list[Any]] = [[name, *(round(parts.get(name, 0), 2) for parts in self.devices)] for name in names]
        rows.append(["allocated at the peak", *(round(sum(parts.values()), 2) for parts in self.devices)])
        span = f"{self.low_gib:.1f} to {self.high_gib:.1f} GiB on the fullest device (±{self.bar:.0%}, or 80 % of it filled)"
        notes = [f"{span}; {self.host_gib:.0f} GiB of RAM a node.", *self.notes]
        return Table(columns, rows, title=f"GiB with {self.how.strategy} on {self.how.gpus} GPUs", notes=notes)

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def spread(alone: Alone, how: How) -> Spread:
    """Reckon each device's share.

    Args:
        alone: The step on one device; the batch is one device's own.
    Raises: NbkitError (exit code 2) for what the frameworks refuse, with the way that works.
    Source: see nbkit.memory.shares.
    """
    notes = _judged(alone, how)
    if how.strategy == "device_map":
        devices = in_a_row(alone, how)
        notes.append("One device works at a time: device_map saves memory, never time. FSDP or ZeRO-3 use all of them.")
    else:
        devices = (alike(alone, how),)
    host = _PROCESS_GIB * (1 if how.strategy == "device_map" else how.gpus / how.nodes) + offloaded(alone, how)
    return Spread(how, devices, host, tuple(notes))


def _judged(alone: Alone, how: How) -> list[str]:
    """Doubts worth saying.

    Raises: NbkitError for the first combination that does not run.
    """
    offload = how.offload_optimizer or how.offload_params
    refusals = (
        (
            how.strategy in {"ddp", "device_map"} and offload,
            f"{how.strategy} does not offload while it trains.",
            "zero2 with offload_optimizer, or zero3 or fsdp with both",
        ),
        (
            how.offload_params and how.strategy in {"zero1", "zero2"},
            f"{how.strategy} keeps all weights on every device, so it cannot offload them.",
            "strategy='zero3'",
        ),
        (
            how.strategy == "fsdp" and how.offload_params != how.offload_optimizer,
            "FSDP offloads weights, gradients and optimizer states together.",
            "set offload_params and offload_optimizer both, or neither",
        ),
        (
            how.sharded and alone.quantised == "8-bit",
            f"{how.strategy} cannot split LLM.int8() weights.",
            "4-bit with bnb_4bit_quant_storage='bfloat16', or ddp, zero2 or device_map",
        ),
        (
            how.sharded and alone.quantised == "4-bit" and not how.quant_storage_float,
            f"{how.strategy} splits float tensors only, and bitsandbytes packs 4-bit weights in uint8.",
            "BitsAndBytesConfig(..., bnb_4bit_quant_storage='bfloat16') and quant_storage_float=True",
        ),
        (
            how.offload_optimizer and how.optimizer_8bit,
            "An 8-bit optimizer steps on the GPU; offloaded states need DeepSpeed's CPU Adam or torch's.",
            "optim='adamw_torch' with offload, or the 8-bit one without",
        ),
    )
    for wrong, message, hint in refusals:
        if wrong:
            raise NbkitError(message, hint=hint, exit_code=2)
    notes = []
    if how.gpus == 1 and how.strategy != "ddp" and not offload:
        notes.append(f"On one GPU {how.strategy} saves nothing.")
    if alone.quantised and how.offload_params:
        notes.append("PEFT's guide: ZeRO-3 with QLoRA and CPU offload can take more GPU memory than without offload.")
    if not alone.trainable:
        notes.append("Nothing is trained: only weights and activations are counted.")
    elif alone.frozen > 20 * alone.trainable and how.strategy in {"zero1", "zero2"}:
        notes.append(
            f"{alone.frozen / 1e9:.1f}B of the parameters are frozen and stay on every device: {how.strategy} splits "
            "only what belongs to the adapters."
        )
    return notes
