"""How long a run takes: arithmetic where the device is busy, a fixed cost a layer where it waits for its next kernel.

One micro-batch takes ((L*c)^3 + (F/R)^3)^(1/3) + D seconds: L layers, c seconds a layer costs however few tokens it
sees (kernel launches and Python), F floating point operations, R what the device sustains, D the unpacking of 4-bit
weights. The cubes make the larger of the two rule, with a soft corner; the form was chosen on A100 runs (see SPEC).

F, a token of a micro-batch. A matrix of N weights: 2N forward, 2N for the gradient of its input, 2N for the gradient of
its weights, and 2N once more where checkpointing recomputes the layer. Frozen weights (LoRA, QLoRA) need no gradient of
their own: 4N instead of 6N, with checkpointing 6N instead of 8N. The output head is computed once and never recomputed;
the embedding is a look-up. Causal attention adds 2*S*Q a layer and forward pass, twice that backward.

Not covered: data loading that is slower than the device, the compilation of kernels, other people on the machine.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nbkit.display import Table
from nbkit.errors import NbkitError
from nbkit.memory.batches import Batch
from nbkit.memory.formula import NF4_BYTES, Method, Step
from nbkit.memory.shapes import Shape

WARM_STEPS = 20  # from here on a run's own steps say more than any prediction


@dataclass(frozen=True)
class Rates:
    """What a device sustains.

    Attributes:
        flops_per_s: Arithmetic of large matrix products within a training step.
        layer_s: Seconds a layer costs in a micro-batch however small: LoRA with checkpointing.
        bytes_per_s: Memory traffic.
        unpack_per_s: Traffic while 4-bit weights are unpacked; None: as fast as any other.
        spread: The time lies between /(1 + spread) and *(1 + spread) of the prediction.
        basis: Where the numbers come from, in words.
    """

    flops_per_s: float
    layer_s: float
    bytes_per_s: float
    spread: float
    basis: str
    unpack_per_s: float | None = None


# Sustained share of the peak in a training step, and the fixed cost of a layer (LoRA, checkpointing, one micro-batch).
# A100: fitted by others to Hugging Face LoRA runs (median error 5 %, 9 % on runs held out). GeForce: 59 to 71 % of the
# peak in four DDP runs on 3090 and 4090, whose label clock is below what they run at.
_DATACENTRE, _GEFORCE, LAYER_S = 0.52, 0.62, 4.7e-3
_TRAFFIC = 0.7  # of the bandwidth on the label, for long element-wise kernels
SPEC_SPREAD = 0.35
# Kernels a layer launches, against LoRA: without adapters fewer, with 4-bit weights more. Without checkpointing two
# passes of three.
_LAUNCHES: dict[Method, float] = {"full": 0.6, "lora": 1.0, "qlora": 1.4}
_DOUBT: dict[Method, float] = {"full": 1.3, "lora": 1.0, "qlora": 1.5}  # the form was fitted to LoRA runs


def spec_rates(name: str, tflops: float, bandwidth_gb_s: float, *, geforce: bool = False) -> Rates:
    """Rates from a card's data sheet: a guess with a range.

    Args:
        tflops: Dense 16-bit tensor peak with fp32 accumulation.
        geforce: A desktop or laptop card, which runs above the clock on its label.
    """
    share = _GEFORCE if geforce else _DATACENTRE
    return Rates(
        flops_per_s=share * tflops * 1e12,
        layer_s=LAYER_S,
        bytes_per_s=_TRAFFIC * bandwidth_gb_s * 1e9,
        spread=SPEC_SPREAD,
        basis=f"{name}'s data sheet: {share:.0%} of {tflops:.0f} TFLOPS and {LAYER_S * 1e3:.1f} ms a layer, "
        "as published runs of its kind had",
    )


@dataclass(frozen=True)
class Work:
    """What one micro-batch asks of the device: operations, bytes of weights unpacked, layers passed."""

    flops: float
    unpacked_bytes: float
    launches: float

    def seconds(self, rates: Rates) -> tuple[float, float]:
        """(arithmetic and launches, unpacking of 4-bit weights)."""
        fixed, busy = self.launches * rates.layer_s, self.flops / rates.flops_per_s
        return float((fixed**3 + busy**3) ** (1 / 3)), self.unpacked_bytes / (rates.unpack_per_s or rates.bytes_per_s)


def launches(step: Step) -> float:
    """What a layer's fixed cost is multiplied by: 1 for LoRA with checkpointing."""
    return _LAUNCHES[step.method] * (3 if step.checkpointing else 2) / 3


def work(shape: Shape, step: Step, tokens: int, pairs: int) -> Work:
    """The work of one micro-batch.

    Args:
        shape: The model.
        step: Its method, rank, targets and checkpointing; batch and length are not read from it.
        tokens: Tokens computed on, padding included.
        pairs: Sum of squared sequence lengths.
    """
    full = step.method == "full"
    again = 1 if step.checkpointing else 0
    passes = 2 + again + (1 if full else 0)  # forward, gradient of the input, recomputation, gradient of the weights
    head = shape.vocab * shape.hidden
    adapters = 0 if full else shape.lora_params(step.rank, step.targets)
    per_token = 2 * passes * shape.linear_params + 2 * (3 if full else 2) * head + 2 * (3 + again) * adapters
    attention = 2 * shape.layers * shape.query * pairs * (3 + again)
    # Unpacking reads 4 bits and writes 16 (or 32) a weight, in every pass through the layer.
    width = 4 if step.dtype == "float32" else 2
    unpacked = shape.linear_params * (NF4_BYTES + width) * (2 + again) if step.method == "qlora" else 0.0
    return Work(float(per_token * tokens + attention), unpacked, shape.layers * launches(step))


@dataclass(frozen=True)
class Duration:
    """A predicted run, or one step of it. Shows itself as a table.

    Attributes:
        seconds: The middle of the range.
        tokens: Tokens of the data, without padding.
        processed: Tokens computed on, with padding.
        parts: Seconds of each kind of work; they add up to `seconds`.
        basis: Where the rates come from.
    """

    seconds: float
    low_s: float
    high_s: float
    steps: int
    micro_batches: int
    tokens: int
    processed: int
    parts: Mapping[str, float]
    basis: str

    @property
    def tokens_per_s(self) -> float:
        """Tokens of the data a second, over all GPUs."""
        return self.tokens / self.seconds

    @property
    def padding(self) -> float:
        """Share of the work spent on padding."""
        return 1 - self.tokens / self.processed

    @property
    def step_s(self) -> float:
        """Seconds of one optimizer step."""
        return self.seconds / self.steps

    def table(self) -> Table:
        """The parts, the sum with its range, and what it rests on."""
        rows = [
            (name, human(seconds), f"{seconds / self.seconds:.0%}") for name, seconds in self.parts.items() if seconds
        ]
        rows.append(("together", human(self.seconds), f"{human(self.low_s)} to {human(self.high_s)}"))
        notes = [
            f"{self.steps:,} steps, {self.tokens:,} tokens, {self.tokens_per_s:,.0f} tokens/s"
            + (f"; {self.padding:.0%} of the work is padding." if self.padding >= 0.005 else "."),
            f"By {self.basis}.",
        ]
        return Table(("part", "time", "share"), rows, "Predicted time", notes)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "seconds": round(self.seconds, 3),
            "low_s": round(self.low_s, 3),
            "high_s": round(self.high_s, 3),
            "steps": self.steps,
            "tokens": self.tokens,
            "processed": self.processed,
            "tokens_per_s": round(self.tokens_per_s, 1),
            "parts": {name: round(seconds, 3) for name, seconds in self.parts.items()},
            "basis": self.basis,
        }

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


@dataclass(frozen=True)
class Load:
    """Micro-batches counted by size: what time depends on.

    Attributes:
        sizes: How many there are of each (tokens computed on, sum of squared lengths).
        tokens: Without padding.
    """

    sizes: Mapping[tuple[int, int], int]
    tokens: int
    steps: int

    @classmethod
    def of(cls, batches: Iterable[Batch], max_steps: int | None = None) -> Load:
        """Count `batches`, those after `max_steps` left out."""
        sizes: Counter[tuple[int, int]] = Counter()
        tokens = steps = 0
        for batch in batches:
            if max_steps is not None and batch.step > max_steps:
                break
            sizes[batch.processed, batch.pairs] += 1
            tokens, steps = tokens + batch.tokens, max(steps, batch.step)
        return cls(sizes, tokens, steps)

    @classmethod
    def uniform(cls, batch: int, seq: int, accumulation: int = 1, steps: int = 1) -> Load:
        """Batches of equal length: for a question without data."""
        count = steps * accumulation
        return cls({(batch * seq, batch * seq * seq): count}, count * batch * seq, steps)


@dataclass(frozen=True)
class Link:
    """Several GPUs on one job.

    Attributes:
        gpus: How many.
        sharded: Weights are gathered for forward and backward (FSDP, ZeRO-3), partly behind the arithmetic; otherwise
            each GPU holds them (DDP, ZeRO-1/2).
        bytes_per_s: What one GPU sustains between them: 2.5e9 over PCIe without peer access (inferred from runs on two
            RTX 3090), 2e11 over NVLink (a lower bound from four A100).
    """

    gpus: int = 1
    sharded: bool = False
    bytes_per_s: float = 2.5e9


def duration(shape: Shape, step: Step, load: Load, rates: Rates, *, link: Link | None = None) -> Duration:
    """The time of a run.

    Args:
        shape: The model.
        step: Method, rank, targets, checkpointing, optimizer, number format.
        load: Load.of(nbkit.memory.batches.compose(...)), or Load.uniform(...).
        rates: spec_rates, a benchmark, or rates a run gave.
        link: Several GPUs; the load is then that of all of them.
    Returns: A Duration. Evaluation, checkpoints and loading are not in it.
    Raises: NbkitError when there is no batch.
    """
    link = link or Link()
    if not load.sizes:
        raise NbkitError("There is no batch, so there is no time.", hint="give data with at least one row")
    compute = unpack = 0.0
    for (tokens, pairs), times in load.sizes.items():
        one = work(shape, step, tokens, pairs).seconds(rates)
        compute, unpack = compute + times * one[0], unpack + times * one[1]
    steps, count = load.steps, sum(load.sizes.values())
    processed = sum(tokens * times for (tokens, _), times in load.sizes.items())
    parts = {"arithmetic": compute / link.gpus, "unpacking 4-bit weights": unpack / link.gpus}
    parts["optimizer"] = steps * _optimizer_bytes(shape, step) / rates.bytes_per_s
    if link.gpus > 1:
        gathering, reducing = _between(shape, step, link, count / link.gpus, steps)
        busy = parts["arithmetic"]
        parts["between GPUs"] = (busy**3 + gathering**3) ** (1 / 3) - busy + reducing
    seconds = sum(parts.values())
    wide = rates.spread * _DOUBT[step.method] + (0.25 if link.gpus > 1 else 0)
    return Duration(
        seconds, seconds / (1 + wide), seconds * (1 + wide), steps, count, load.tokens, processed, parts, rates.basis
    )


def _trained(shape: Shape, step: Step) -> tuple[int, int]:
    """(trained parameters, bytes of each)."""
    wide = step.dtype in {"float32", "float16"}
    if step.method == "full":
        return shape.params, 4 if wide else 2
    return shape.lora_params(step.rank, step.targets), 4


def _optimizer_bytes(shape: Shape, step: Step) -> float:
    """Memory traffic of one optimizer step: weights and two states read and written, the gradient read and cleared."""
    count, width = _trained(shape, step)
    state = 1 if step.optimizer == "adamw_8bit" else width
    return count * (2 * width + 2 * width + 4 * state)


def _between(shape: Shape, step: Step, link: Link, micro_batches: float, steps: int) -> tuple[float, float]:
    """Seconds on the wire: sharded weights gathered twice a micro-batch, and gradients reduced once a step."""
    share = (link.gpus - 1) / link.gpus
    count, width = _trained(shape, step)
    held = (shape.params - shape.linear_params) * 2.0
    held += shape.linear_params * (NF4_BYTES if step.method == "qlora" else 2)
    gathered = 2 * micro_batches * share * held if link.sharded else 0.0
    return gathered / link.bytes_per_s, steps * 2 * share * count * width / link.bytes_per_s


@dataclass(frozen=True)
class Remaining:
    """What is left of a run that is under way."""

    seconds: float
    low_s: float
    high_s: float
    steps_left: int
    step_s: float
    basis: str

    def __str__(self) -> str:
        return f"{human(self.seconds)} left ({human(self.low_s)} to {human(self.high_s)}), {self.basis}"


def remaining(rows: Sequence[Mapping[str, Any]], max_steps: int, predicted: Duration | None = None) -> Remaining:
    """Estimate again from the run's own steps.

    Args:
        rows: The run's metrics: `time` (seconds) and `step`, rows with a `loss` being training steps (run.metrics()).
        max_steps: Where the run ends.
        predicted: What was predicted before; it still counts, less and less, for the first 20 steps.
    Returns: Remaining. Pauses (a resumed run, a laptop that slept) are left out; evaluations and checkpoints are not.
    Raises: NbkitError when there are no two training rows and nothing was predicted.
    """
    trained = [row for row in rows if row.get("loss") is not None]
    done = trained[-1]["step"] if trained else 0
    left = max(max_steps - done, 0)
    each = [
        (after["time"] - before["time"]) / (after["step"] - before["step"])
        for before, after in itertools.pairwise(trained)
        if after["step"] > before["step"]
    ]
    if len(each) > 2:
        each = each[1:]  # the first step warms up: kernels are chosen, memory is reserved
    if not each:
        if predicted is None:
            raise NbkitError("The run has no two training steps yet.", hint="wait for its second step")
        scale = left / predicted.steps
        return Remaining(
            predicted.seconds * scale, predicted.low_s * scale, predicted.high_s * scale,
            left, predicted.step_s, f"predicted by {predicted.basis}",
        )  # fmt: skip
    usual = statistics.median(each)
    kept = [seconds for seconds in each if seconds <= 30 * usual] or each
    own = statistics.fmean(kept)
    error = 1.5 * statistics.stdev(kept) / len(kept) ** 0.5 / own if len(kept) > 1 else 0.3
    doubt = max(error, 0.05)
    trust = min(len(kept) / WARM_STEPS, 1.0)
    basis = f"from the run's own {len(kept)} steps"
    if predicted is not None and trust < 1:
        ahead = predicted.step_s
        own, basis = trust * own + (1 - trust) * ahead, f"{basis} and the prediction"
        doubt = max(doubt, (1 - trust) * (predicted.high_s / predicted.seconds - 1))
    seconds = left * own
    return Remaining(seconds, seconds / (1 + doubt), seconds * (1 + doubt), left, own, basis)


def with_run(rates: Rates, predicted: Duration, rows: Sequence[Mapping[str, Any]]) -> Rates:
    """Rates as a run on this machine showed them: for the next prediction here.

    Raises: NbkitError when the run has fewer than two training rows.
    """
    seen = remaining(rows, predicted.steps)
    ratio = predicted.step_s / seen.step_s
    return replace(
        rates,
        flops_per_s=rates.flops_per_s * ratio,
        layer_s=rates.layer_s / ratio,
        bytes_per_s=rates.bytes_per_s * ratio,
        unpack_per_s=rates.unpack_per_s and rates.unpack_per_s * ratio,
        spread=0.1,
        basis=f"{seen.basis.removeprefix('from ')} on this machine",
    )


def human(seconds: float) -> str:
    """`850 ms`, `42 s`, `12 min`, `3.4 h`, `2.1 days`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for unit, size, digits in (("days", 86400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
