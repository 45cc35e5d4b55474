"""Peak memory of one training step, from a model's config numbers alone: no torch, no weights, no GPU.

Where the numbers come from. H hidden, Q all query heads, I intermediate, V vocabulary, T tokens of the micro-batch.
- Weights: 2 bytes in 16 bit; NF4 with double quantisation 4.127 bit (QLoRA, arXiv 2305.14314: 4 bit, an 8-bit
  constant per 64 weights, a 32-bit constant per 256 of those). Embedding and head stay in 16 bit.
- Gradients and optimizer: in the trained weights' own format, two AdamW states; 8-bit AdamW 1 byte a state. Adapters
  are fp32.
- Kept by one decoder layer for its backward, bytes per token: counted from transformers' modelling code, sdpa attention
  without an S x S matrix. Norm inputs count in fp32, keys and values expanded to Q. 16-bit full 16H+8Q+8I; all-linear
  LoRA with fp32 adapters 28H+12Q+10I; q,k,v,o LoRA 20H+12Q+6I. For Llama-3-8B that is 52 H and 75 H, where running the
  layer saved 52.5 H and 75.6 H.
- With checkpointing 2H a layer, and one layer recomputed. That layer's gradients in flight: 14H+4I, fitted on steps run
  on fake tensors (five shapes, within 2H). 4-bit: the dequantised copy of the largest matrix, 2 bytes a weight.
- TRL's fused head (default since TRL 1.16): a [min(T, 4096), 32768] tile, in place under Triton; without Triton (CPU)
  seven fp32 copies of it beside it. The head's gradient is summed in fp32. Other trainers (loss="logits"): 14 bytes per
  logit (bf16, fp32 copy, log_softmax, gradient).
- Full training where bf16 is missing: fp32 weights and, while the forward runs, a 16-bit copy of them (autocast's).
- Outside the allocator: CUDA context and cuBLAS workspace, 0.3 to 1.0 GiB. On a CPU, Python and its libraries.

How good it is: within 5 % of nine runs measured on an RTX A6000, and of steps on fake tensors (in the tests); within 10 %
of ten of the twelve such runs that `python -m bench memory` asks it about (the others: adapters on fp32 weights under
autocast, which it does not know, -31 and -33 %). Of other loops it knows little: median error 12 % on 25 runs of LitGPT,
21 to 41 % on 12 of torchtune, 7 % on 33 of Qwen's own script, 25 % on 54 of ms-swift, whose reserved memory is fragmented.

Not covered: mixture of experts, eager attention, LoRA dropout (about +27H a layer without checkpointing), foreach AdamW
(+1x the trained weights), FSDP and ZeRO, the load-time spike, other trainers' habits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nbkit.display import Table
from nbkit.errors import NbkitError
from nbkit.hardware.parts import GIB
from nbkit.memory.shapes import Shape, Targets

Method = Literal["full", "lora", "qlora"]
NF4_BYTES = 4.127 / 8
TILE_ROWS, TILE_COLUMNS = 4096, 32768
UNCERTAINTY = 0.10  # of the allocated peak, for the program described above; tests hold every reference cell to it


@dataclass(frozen=True)
class Step:
    """The program whose memory is asked for: TRL's SFTTrainer as it comes, unless said otherwise.

    Attributes:
        dtype: Format of computation. float16 with method full keeps fp32 weights, as the gradient scaler demands.
        accumulation: Gradients of earlier micro-batches are held while the next one runs.
        loss: `fused` is TRL's head; `logits` is a plain cross entropy over all logits.
        device: `cuda`, or `cpu`, where there is no Triton and memory means RAM.
    """

    method: Method
    seq: int = 1024
    micro_batch: int = 1
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    rank: int = 16
    targets: Targets = "all-linear"
    checkpointing: bool = True
    accumulation: bool = True
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    loss: Literal["fused", "logits"] = "fused"
    device: Literal["cuda", "cpu"] = "cuda"

    def __post_init__(self) -> None:
        for name in ("seq", "micro_batch", "rank"):
            if getattr(self, name) < 1:
                raise NbkitError(f"{name}={getattr(self, name)}: it must be at least 1.", exit_code=2)
        if self.method not in {"full", "lora", "qlora"}:
            raise NbkitError(f"method={self.method!r} is unknown.", hint="full, lora or qlora", exit_code=2)

    @property
    def tokens(self) -> int:
        """Tokens that are in memory at once."""
        return self.seq * self.micro_batch


@dataclass(frozen=True)
class Part:
    """One share of the peak, in GiB."""

    name: str
    gib: float


@dataclass(frozen=True)
class Estimate:
    """The predicted peak. `moment` says where in the step it lies: at the `loss`, or in the backward of a `layer`."""

    shape: Shape
    step: Step
    moment: str
    parts: tuple[Part, ...]

    @property
    def allocated_gib(self) -> float:
        """Live tensors at the peak: what torch.cuda.max_memory_allocated() would say."""
        return sum(part.gib for part in self.parts)

    @property
    def low_gib(self) -> float:
        """The least the device has to give."""
        return self.allocated_gib * (1 - UNCERTAINTY) + outside(self.step)[0]

    @property
    def high_gib(self) -> float:
        """What the device should have to be safe."""
        return self.allocated_gib * (1 + UNCERTAINTY) + outside(self.step)[1]

    @property
    def largest(self) -> Part:
        """The share to work on first."""
        return max(self.parts, key=lambda part: part.gib)

    def table(self) -> Table:
        """The shares, and the sum with its range."""
        step = self.step
        low, high = outside(step)
        span = f"{self.low_gib:.1f} to {self.high_gib:.1f} GiB on the device"
        return Table(
            ("part", "GiB"),
            [
                *((part.name, round(part.gib, 2)) for part in self.parts if part.gib >= 0.005),
                ("allocated at the peak", round(self.allocated_gib, 2)),
            ],
            title=f"{self.shape.name}, {step.method}, {step.micro_batch} x {step.seq} tokens, {step.dtype}",
            notes=[
                f"Formula, ±{UNCERTAINTY:.0%}, plus {low:g} to {high:g} GiB outside the allocator: {span}.",
                f"The peak lies {'at the loss' if self.moment == 'loss' else 'in the backward of one layer'}.",
            ],
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def outside(step: Step) -> tuple[float, float]:
    """GiB that the process holds beside its tensors, least and most."""
    return (0.3, 1.0) if step.device == "cuda" else (0.5, 1.5)


def estimate(shape: Shape, step: Step) -> Estimate:
    """Predict the peak of `step` for a model of that shape.

    Returns: An Estimate: parts that add up, a range, and the moment of the peak.
    Source: see the head of this file. Not covered: stated there too.
    """
    found = moments(shape, step)
    moment = max(found, key=lambda name: sum(found[name].values()))
    parts = tuple(Part(name, size / GIB) for name, size in found[moment].items() if size)
    return Estimate(shape, step, moment, parts)


def moments(shape: Shape, step: Step) -> dict[str, dict[str, float]]:
    """Bytes of each part at the two moments where the peak can lie: the `loss`, and the backward of a `layer`.

    Each part is affine in the tokens, in min(tokens, TILE_ROWS) and in the rank: nbkit.memory.sweep rests on that.
    """
    amp = step.method == "full" and step.dtype == "float16"
    width = 4 if step.dtype == "float32" or amp else 2
    trained = shape.params if step.method == "full" else shape.lora_params(step.rank, step.targets)
    trained_bytes = trained * (width if step.method == "full" else 4)
    base: float = (shape.params - shape.linear_params) * width
    base += shape.linear_params * (NF4_BYTES if step.method == "qlora" else width)
    held = {
        "weights": base,
        "adapters": 0 if step.method == "full" else trained_bytes,
        "gradients": trained_bytes,
        "optimizer": 2 * trained if step.optimizer == "adamw_8bit" else 2 * trained_bytes,
    }
    tokens, hidden = step.tokens, shape.hidden
    layer = _kept_by_layer(shape, step) * tokens
    flying = (14 * hidden + (8 if step.dtype == "float32" else 4) * shape.intermediate) * tokens
    if step.method == "qlora":
        flying += width * max(rows * columns for rows, columns in shape.linears.values())
    residual = (4 if width == 4 else 2) * hidden * tokens
    kept = shape.layers * (residual if step.checkpointing else layer)
    copies = 2 * shape.params if amp else 0
    found: dict[str, dict[str, float]] = {
        "loss": {**held, "activations": kept, "loss": _loss(shape, step), "autocast copies": copies},
        "layer": {
            **held,
            "activations": kept + (layer if step.checkpointing else 0),
            "gradients in flight": flying,
            "autocast copies": copies if not step.checkpointing else copies / shape.layers,
        },
    }
    if not step.accumulation:
        found["loss"]["gradients"] = 0
    return found


def _kept_by_layer(shape: Shape, step: Step) -> float:
    """Bytes per token that one layer keeps for its backward."""
    h, q, i = shape.hidden, shape.query, shape.intermediate
    if step.dtype == "float32":  # nothing is copied between formats; frozen norms keep less
        if step.method == "full":
            return 24 * h + 16 * q + 16 * i
        return 16 * h + 16 * q + 16 * i if step.targets == "all-linear" else 12 * h + 16 * q + 12 * i
    if step.method == "full":  # under autocast the residual stream is fp32, and each linear keeps its own 16-bit input
        return (26 if step.dtype == "float16" else 16) * h + 8 * q + 8 * i
    return 28 * h + 12 * q + 10 * i if step.targets == "all-linear" else 20 * h + 12 * q + 6 * i


def _loss(shape: Shape, step: Step) -> float:
    """Bytes of the head and the loss at their worst."""
    tokens, hidden = step.tokens, shape.hidden
    norm = (4 + 2 + 2) * hidden * tokens
    if step.loss == "logits":
        return 14 * tokens * shape.vocab + norm
    rows, width = min(tokens, TILE_ROWS), 4 if step.dtype == "float32" else 2
    tile = rows * TILE_COLUMNS * width
    if step.device == "cpu":
        tile += rows * min(shape.vocab, TILE_COLUMNS) * (7 * 4 + 1)
    head = 0
    if step.method == "full":
        # fp32 sum, then its copy in the weights' format while the tile is still there
        head = shape.vocab * hidden * (4 + (0 if step.device == "cpu" or step.dtype != "bfloat16" else 2))
    return tile + 4 * hidden * tokens + norm + head
