"""Which model trains with which method: here, or on a card one might rent. A formula's answer, with its range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nbkit.display import Table
from nbkit.errors import NbkitError
from nbkit.hardware import GpuSpec, Machine, card, probe
from nbkit.memory.formula import UNCERTAINTY, Estimate, Method, Step, estimate
from nbkit.memory.shapes import SHAPES, Shape

Verdict = Literal["yes", "tight", "no"]
NAMES: dict[Method, str] = {"full": "full", "lora": "LoRA", "qlora": "QLoRA"}
# SmolLM2-135M, fp32 compute, gradient checkpointing, 2 cores of an AVX512 server, 2026-11: the measure for CPU times.
CPU_TOKENS_PER_S, CPU_PARAMS, CPU_CORES = 168, 134.5e6, 2
CPU_SAMPLE = 100_000


@dataclass(frozen=True)
class Target:
    """Where a model would train: the memory it may take there, and the number format with its reason."""

    name: str
    room_gib: float
    device: Literal["cuda", "cpu"]
    dtype: Literal["bfloat16", "float16", "float32"]
    reason: str
    cores: float = 0.0


@dataclass(frozen=True)
class Fit:
    """One model with one method on one target."""

    target: Target
    estimate: Estimate

    @property
    def verdict(self) -> Verdict:
        """yes: even the high end fits. tight: only the low end does. no: not even that."""
        if self.estimate.high_gib <= self.target.room_gib:
            return "yes"
        return "tight" if self.estimate.low_gib <= self.target.room_gib else "no"

    def __str__(self) -> str:
        low, high = self.estimate.low_gib, self.estimate.high_gib
        span = f"{low:.1f}-{high:.1f}" if high < 100 else f"{low:.0f}-{high:.0f}"
        return f"{self.verdict} {span}" + (f" ({self.estimate.largest.name})" if self.verdict == "no" else "")


@dataclass(frozen=True)
class Fits:
    """The answer for each model, method and target. Shows itself as a table; several targets are shown side by side."""

    targets: tuple[Target, ...]
    fits: tuple[Fit, ...]

    def table(self) -> Table:
        """One target: a column a method. Several: a column a target, with the richest method that fits."""
        return self._one() if len(self.targets) == 1 else self._many()

    def of(self, model: str, method: Method, target: str = "") -> Fit:
        """The answer for one model and method, on `target` or the only one.

        Raises: NbkitError when the table has no such row.
        """
        for fit in self.fits:
            asked = (fit.estimate.shape.name, fit.estimate.step.method, target or fit.target.name)
            if asked == (model, method, fit.target.name):
                return fit
        raise NbkitError(
            f"No row for {model} with {method}{f' on {target}' if target else ''}.",
            hint=f"models: {', '.join(shape.name for shape in self._shapes)}",
            exit_code=2,
        )

    @property
    def _shapes(self) -> list[Shape]:
        return list(dict.fromkeys(fit.estimate.shape for fit in self.fits))

    def _one(self) -> Table:
        target = self.targets[0]
        columns = ["model", "parameters", *NAMES.values()]
        rows: list[list[Any]] = [
            [shape.name, _short(shape.params), *(str(self.of(shape.name, method)) for method in NAMES)]
            for shape in self._shapes
        ]
        where = "RAM available now" if target.device == "cpu" else "memory a program can take there"
        notes = [*_method_notes(self.fits[0].estimate.step), f"Room: {target.room_gib:.1f} GiB, {where}.", _VERDICTS]
        if target.dtype == "float16":
            notes.append(f"{target.reason}: full training keeps float32 weights and computes in float16.")
        if target.device == "cpu":
            columns.append(f"{CPU_SAMPLE:,} tokens")
            for row, shape in zip(rows, self._shapes, strict=True):
                row.append(_cpu_time(shape, target.cores))
            measured = f"{CPU_TOKENS_PER_S} tokens/s for 135M with 4-bit weights on {CPU_CORES} cores"
            notes.append(
                f"No GPU here. Times are scaled from one measurement ({measured}) by parameters and by the "
                f"{target.cores:g} cores usable here: an order of magnitude, no more."
            )
        return Table(columns, rows, title=f"What fits: {target.name}", notes=notes)

    def _many(self) -> Table:
        rows = []
        for shape in self._shapes:
            cells = []
            for target in self.targets:
                found = {method: self.of(shape.name, method, target.name).verdict for method in NAMES}
                best = next((method for method in NAMES if found[method] == "yes"), None)
                near = next((method for method in NAMES if found[method] == "tight"), None)
                cells.append(NAMES[best] if best else f"{NAMES[near]}, tight" if near else "no")
            rows.append([shape.name, _short(shape.params), *cells])
        columns = [f"{target.name} ({target.room_gib:.1f} GiB)" for target in self.targets]
        notes = [
            *_method_notes(self.fits[0].estimate.step),
            "A cell names the richest method whose high end fits: full, LoRA, QLoRA. tight: only the low end does.",
        ]
        old = [target.name for target in self.targets if target.dtype == "float16"]
        if old:
            notes.append(f"No bf16 on {', '.join(old)}: full training there keeps float32 weights.")
        return Table(["model", "parameters", *columns], rows, title="What fits on which card", notes=notes)

    def as_dicts(self) -> list[dict[str, Any]]:
        """JSON-ready, one a model, method and target."""
        return [
            {
                "model": fit.estimate.shape.name,
                "method": fit.estimate.step.method,
                "target": fit.target.name,
                "verdict": fit.verdict,
                "low_gib": round(fit.estimate.low_gib, 2),
                "high_gib": round(fit.estimate.high_gib, 2),
                "room_gib": round(fit.target.room_gib, 2),
                "largest": fit.estimate.largest.name,
            }
            for fit in self.fits
        ]

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


_VERDICTS = (
    "From low to high. yes: the high end fits. tight: only the low end. no: neither; the largest share is named."
)


def fits(
    machine: Machine | None = None,
    *,
    gpu: str | Sequence[str] | None = None,
    seq: int = 1024,
    micro_batch: int = 1,
    models: Sequence[Shape] = SHAPES,
) -> Fits:
    """Say which models train with full fine-tuning, LoRA or QLoRA, on this machine or on named cards.

    Args:
        machine: From probe(); probed now when neither it nor `gpu` is given.
        gpu: A card's name, or several, from nbkit.hardware.CARDS: judged by its usable memory, as if it were empty.
        seq: Tokens a sequence.
        micro_batch: Sequences in memory at once.
        models: Shapes to judge; Shape.from_config(config) gives one for any dense decoder.
    Returns: Fits, a table; `.of(model, method)` gives one answer with its parts.
    Raises: NbkitError (exit code 2) for an unknown card.
    Source: nbkit.memory.formula. Not covered: more than one GPU together.
    """
    targets = (
        tuple(on_card(card(name)) for name in ([gpu] if isinstance(gpu, str) else gpu))
        if gpu
        else (here(machine or probe()),)
    )
    found = tuple(
        Fit(target, estimate(shape, Step(method, seq, micro_batch, dtype=target.dtype, device=target.device)))
        for target in targets
        for shape in models
        for method in get_args(Method)
    )
    return Fits(targets, found)


def on_card(one: GpuSpec) -> Target:
    """An empty card of that kind."""
    level = "{}.{}".format(*one.compute_capability)
    reason = f"{one.name}: compute capability {level} has {'' if one.bf16 else 'no '}bf16"
    return Target(one.name, one.usable_gib, "cuda", "bfloat16" if one.bf16 else "float16", reason)


def here(machine: Machine) -> Target:
    """The visible GPU with the most free memory, else the RAM."""
    if not machine.visible_gpus:
        reason = machine.dtype.reason
        name = f"RAM{machine.of}" if machine.of else "this machine's RAM"
        return Target(name, machine.memory.available_gib, "cpu", "float32", reason, machine.cpu.usable)

    def room(index: int) -> float:
        one = machine.visible_gpus[index]
        return one.usable_gib if one.free_gib is None else one.free_gib

    best = max(range(len(machine.visible_gpus)), key=room)
    gpu = machine.visible_gpus[best]
    dtype: Literal["bfloat16", "float16"] = "bfloat16" if machine.bf16 else "float16"
    held = gpu.usable_gib - room(best)
    busy = f", {held:.1f} GiB held by others" if held >= 0.5 else ""
    name = f"GPU {gpu.index}{machine.of}, {gpu.short_name}{busy}"
    return Target(name, room(best), "cuda", dtype, machine.dtype.reason)


def _method_notes(step: Step) -> list[str]:
    outside = "0.3 to 1.0 GiB for CUDA" if step.device == "cuda" else "0.5 to 1.5 GiB for Python"
    kind = "float32 throughout" if step.dtype == "float32" else "adapters in float32"
    program = f"{step.micro_batch} x {step.seq} tokens, gradient checkpointing, AdamW, TRL's fused loss"
    return [
        f"In GiB, by formula: ±{UNCERTAINTY:.0%} of the live tensors, plus {outside}.",
        f"For {program}, LoRA rank {step.rank} on all linear maps, {kind}.",
        "Batches of varying length fragment memory and can add a tenth or more: run the longest first.",
    ]


def _short(params: int) -> str:
    return f"{params / 1e9:.1f}B" if params >= 1e9 else f"{params / 1e6:.0f}M"


def _cpu_time(shape: Shape, cores: float) -> str:
    seconds = CPU_SAMPLE / (CPU_TOKENS_PER_S * CPU_PARAMS / shape.params * cores / CPU_CORES)
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
