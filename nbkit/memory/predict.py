"""What a training step will need, from the very objects that the trainer will get."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nbkit.display import Table
from nbkit.memory.disk import said
from nbkit.memory.distributed import Alone
from nbkit.memory.program import Program
from nbkit.memory.trace import Trace

Basis = Literal["fake step", "formula", "measured"]


@dataclass(frozen=True)
class Peak:
    """Where in the step the most memory is live.

    Attributes:
        phase: Of the step.
        operator: As torch names it: "aten._log_softmax".
        module: Dotted path in the model, with the class where the path is empty; "" where no module is at work.
    """

    phase: Literal["forward", "backward", "optimizer"]
    operator: str
    module: str

    def __str__(self) -> str:
        return f"{self.phase}, {self.operator}" + (f" in {self.module}" if self.module else "")


@dataclass(frozen=True)
class Prediction:
    """The memory of one training step, and what else the run takes.

    Attributes:
        subject: What was asked, in a line: model, method, batch x tokens.
        allocated_gib: Live tensors at the peak: torch.cuda.max_memory_allocated().
        reserved_gib: What the caching allocator holds at its worst: torch.cuda.max_memory_reserved().
        device_gib: What nvidia-smi shows: reserved and the CUDA context. To be set against a card's usable memory.
        low_gib, high_gib: Range of `device_gib`.
        bar: Where the range comes from, in words.
        parts: GiB at the peak by kind; they add up to `allocated_gib`.
        peak: Phase, operator and module; None for the formula.
        host_gib: RAM of the training process.
        disk: GiB by kind: download, cache (of the data, where it is known), checkpoints, merge (an exported copy of
            model and adapter together).
        notes: Doubts and choices, a sentence each. Never empty where something was assumed.
        basis: How it was found out.
        versions: Of the packages whose behaviour was run.
        batch, seq: Of the micro-batch.
        method: "full", or the adapter with the bits of what it stands on: "4-bit LORA".
        trace: For the allocator's replay; None for the formula.
        trace_at: The trace for another (batch, tokens), run when asked for.
        alone: The step's pieces, for nbkit.memory.distributed.spread; None for the formula.
        find_needed: Behind `needed_gib`.
    """

    subject: str
    allocated_gib: float
    reserved_gib: float
    device_gib: float
    low_gib: float
    high_gib: float
    bar: str
    parts: Mapping[str, float]
    peak: Peak | None
    host_gib: float
    disk: Mapping[str, float]
    notes: tuple[str, ...]
    basis: Basis
    versions: Mapping[str, str]
    batch: int
    seq: int
    program: Program
    method: str
    trace: Trace | None = field(default=None, repr=False, compare=False)
    trace_at: Callable[[int, int], Trace | None] | None = field(default=None, repr=False, compare=False)
    alone: Alone | None = field(default=None, repr=False, compare=False)
    find_needed: Callable[[], float | None] | None = field(default=None, repr=False, compare=False)

    @functools.cached_property
    def needed_gib(self) -> float | None:
        """The least that a card must offer for the step to run: `device_gib` with the allocator's cache given back whenever
        it must be, which costs time. Found when it is asked for, in a second or two.

        This is what a table of the longest rows that fit has measured. None without a trace: a CPU, the formula, layers
        that differ.
        """
        return self.find_needed() if self.find_needed is not None else None

    def fits(self, room_gib: float) -> Literal["yes", "tight", "no"]:
        """Into that much memory. yes: the high end fits; tight: only the low end; no: not even that."""
        if self.high_gib <= room_gib:
            return "yes"
        return "tight" if self.low_gib <= room_gib else "no"

    def table(self) -> Table:
        """The parts, the three sums with their range, the peak's place, and every doubt."""
        rows: list[tuple[str, float]] = [(name, round(gib, 2)) for name, gib in self.parts.items() if gib >= 0.005]
        rows += [
            ("allocated at the peak", round(self.allocated_gib, 2)),
            ("reserved by the allocator", round(self.reserved_gib, 2)),
            ("on the device", round(self.device_gib, 2)),
        ]
        where = [f"The peak lies in the {self.peak}."] if self.peak else []
        beside = f"RAM of the process {self.host_gib:.1f} GiB. {said(self.disk)}"
        span = f"{self.low_gib:.1f} to {self.high_gib:.1f} GiB on the device: {self.bar}"
        return Table(("part", "GiB"), rows, title=self.subject, notes=[span, *where, beside, *self.notes])

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, without the trace."""
        return {
            "subject": self.subject,
            "allocated_gib": round(self.allocated_gib, 3),
            "reserved_gib": round(self.reserved_gib, 3),
            "device_gib": round(self.device_gib, 3),
            "low_gib": round(self.low_gib, 3),
            "high_gib": round(self.high_gib, 3),
            "bar": self.bar,
            "parts": {name: round(gib, 3) for name, gib in self.parts.items()},
            "peak": None if self.peak is None else vars(self.peak),
            "host_gib": round(self.host_gib, 3),
            "disk": {name: round(gib, 3) for name, gib in self.disk.items()},
            "notes": list(self.notes),
            "basis": self.basis,
            "versions": dict(self.versions),
            "batch": self.batch,
            "seq": self.seq,
            "program": self.program.name,
            "method": self.method,
        }

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from nbkit.memory.view import Bar

        drawn = Bar(self.parts, self.reserved_gib, self.device_gib, self.low_gib, self.high_gib)
        return drawn._repr_html_() + self.table()._repr_html_()


def is_installed(package: str) -> bool:
    """Whether it can be imported; nothing is."""
    return importlib.util.find_spec(package) is not None


def predict(
    model: Any,
    args: Any = None,
    *,
    peft_config: Any = None,
    quantization_config: Any = None,
    dataset: Any = None,
    gpu: str | None = None,
    program: Program | None = None,
    batch: int | None = None,
    seq: int | None = None,
    dtype: Literal["bfloat16", "float16", "float32"] | None = None,
    checkpointing: bool | None = None,
    accumulates: bool | None = None,
    device: Literal["cuda", "cpu"] | None = None,
    trust_remote_code: bool = False,
) -> Prediction:
    """Predict the memory of a training step by running it on fake tensors: no weights, no GPU.

    Args:
        model: A transformers config, a folder, a hub id or a well-known model's name (only the config is read), a
            loaded model, or a trainer (its args, adapters and data are then taken from it).
        args: SFTConfig or TrainingArguments, the object that the trainer will get. None: SFTConfig as it comes.
        peft_config: LoraConfig or another PEFT config; None trains every weight.
        quantization_config: BitsAndBytesConfig, 4 or 8 bit.
        dataset: nbkit.data.token_stats of the rows, a tokenised dataset (TRL's columns), or token counts: the longest
            row decides the peak, all of them what the allocator reserves, and labels or masks how much is scored.
        gpu: A card's name from nbkit.hardware.CARDS: its workspace sizes are taken, and where the run fits it, what is
            reserved ends with it.
        program: The loop's habits; read off `args` or the trainer when None. Program.nbkit(args) is what nbkit.start runs,
            Program.named("torchtune") what another framework does.
        batch, seq: Rows and tokens of the micro-batch; from `args` when None.
        dtype: Of the weights as they are loaded; from the config when None. Full training under automatic mixed precision
            holds them in float32.
        checkpointing, accumulates: From `args` when None.
        device: Where it will run; a CPU only where `args.use_cpu` says so.
        trust_remote_code: Allow the model's own code to be run.
    Returns: A Prediction; it shows itself as a table. Against a published figure: `allocated_gib` where it is
        max_memory_allocated, `reserved_gib` where it is max_memory_reserved, `device_gib` where it is nvidia-smi's or nothing
        is said, `needed_gib` where it is a card's size and this the longest row that ran there. 1 GB may mean 1e9 bytes or
        2**30.
    Raises: ModelError for a model that cannot be found or built; NbkitError (exit code 2) for nonsense values and for
        target modules that match nothing.
    Without torch: the formula's answer for a dense decoder of known sizes, basis "formula"; what it does not cover is an
        error that says so.
    Not covered: attention masks with holes, images. Several devices: nbkit.memory.distributed.spread(found.alone, How(...)).

    Example: a full run of torchtune 0.5 in bf16 with activation checkpointing, 2 rows of 2,048 tokens::

        predict(config, program=Program.named("torchtune", chunk=2048 // 8), batch=2, seq=2048, dtype="bfloat16",
                checkpointing=True, accumulates=False).allocated_gib
    """
    if not is_installed("torch") or not is_installed("transformers"):
        from nbkit.memory.by_formula import by_formula

        return by_formula(
            model, args, peft_config=peft_config, quantization_config=quantization_config, dataset=dataset,
            program=program, batch=batch, seq=seq, dtype=dtype, checkpointing=checkpointing, accumulates=accumulates,
            device=device,
        )  # fmt: skip
    from nbkit.memory.predicted import predicted

    return predicted(
        model, args, peft_config=peft_config, quantization_config=quantization_config, dataset=dataset, gpu=gpu,
        program=program, batch=batch, seq=seq, dtype=dtype, checkpointing=checkpointing, accumulates=accumulates,
        device=device, trust_remote_code=trust_remote_code,
    )  # fmt: skip
