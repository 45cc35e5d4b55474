"""What each device, and the host, holds when a step is spread over several: reckoned from the step on one device.

Formulas with their sources; T trainable parameters, N devices, 16-bit compute.
- DDP: everything on every device, and gradient buckets as large as the gradients unless `gradient_as_bucket_view`
  (torch.nn.parallel.DistributedDataParallel: "the saved memory size will be equal to the total gradients size").
- ZeRO 1 and 2 (DeepSpeed, docs/memory.rst and estimate_zero2_model_states_mem_needs): 16-bit weights 2 B; fp32 master
  weights and two Adam states 12 B; gradients 4 B (fp32 at the step). Stage 1 splits the 12, and each device holds all
  16-bit gradients; stage 2 splits the gradients too. Their functions count frozen parameters as trained
  (DeepSpeed#5304); here those cost their stored bytes and nothing else. Buffers: reduce_bucket_size elements (5e8), twice
  with overlap_comm. Offloaded parts lie in pinned host memory, times DeepSpeed's own factor of 1.5.
- ZeRO 3 by its code (0.12.6, runtime/zero/stage3.py): (2 + 12) x T / N, and gradients in 16 bit, which is how the engine
  accumulates them unless data_types says otherwise (engine.py, get_data_types): 2 x T / N. The step takes sub_group_size
  (1e9) weights at a time, flattens their gradients and makes fp32 ones (_prepare_fp32_grad_for_sub_group): 6 B each, when
  activations and gathered weights are gone. Their memory.rst has 18 x T / N, more than this where T / N > 3e9. It gathers at
  most stage3_max_live_parameters (1e9). DeepSpeed's own Adam has no workspace.
- FSDP (torch.distributed.fsdp.fully_shard): stored weights, gradients and states over N; one layer gathered and one
  prefetched in the compute format; the root group (embedding, head) stays gathered from forward to backward; a layer's
  full gradient and its reduce-scatter input live before they are split; under no_sync all of them stay whole
  (torch.distributed.fsdp, _post_backward_hook returns before the reduction). With mixed precision the trained weights are
  stored, and stepped, in fp32.
- The peak is the larger of the backward and the step; a foreach optimizer's workspace is as large as what a device steps.
- device_map: layers in a row, split by bytes, the embedding on the first device, head and loss on the last; one device
  works at a time (naive pipeline), so nothing is faster and only memory is gained.

How good: see `BARS`; docs/log.md has the rows it was checked on. Fujii et al. (arXiv 2411.06465) saw no run fail whose
estimate stayed below 80 % of the device's memory; `Spread.fits` holds to that.
Not covered: tensor, sequence and pipeline parallelism with schedules, NVMe offload, HSDP, expert parallelism.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nbkit.display import Table
from nbkit.errors import NbkitError
from nbkit.memory.formula import NF4_BYTES, Estimate

Strategy = Literal["ddp", "zero1", "zero2", "zero3", "fsdp", "device_map"]
GIB = 2**30
BUCKET, MAX_LIVE, SUB_GROUP, BUFFER_FACTOR = 500_000_000, 1_000_000_000, 1_000_000_000, 1.5
# Share by which a device's figure may be off, beside the single device's own bar.
BARS: Mapping[str, float] = {"ddp": 0.10, "zero1": 0.20, "zero2": 0.20, "zero3": 0.20, "fsdp": 0.20, "device_map": 0.20}
OFFLOAD_BAR = 0.10
SAFE_SHARE = 0.80
OUTSIDE_GIB = (0.5, 1.5)  # context, cuBLAS, NCCL's channels
_PROCESS_GIB = 3.0  # RAM of one rank: Python, torch, CUDA (PEFT README: 2.96 GB for a 3B LoRA run)


@dataclass(frozen=True)
class Alone:
    """The step on one device, in the pieces that distribution moves.

    Attributes:
        trainable, frozen: Parameters.
        frozen_gib: Frozen weights as they are stored (4-bit packed, say).
        trained_bytes, gradient_bytes, state_bytes: Of one trained weight: stored, its gradient, all its states.
        activations_gib: Kept for the backward by all layers together.
        passing_gib: Live for one layer at a time: its recomputation and gradients in flight.
        loss_gib: At the head and the loss.
        layers: Decoder layers.
        layer_gib: One layer's weights when they are gathered, in the compute format (or packed).
        ends_gib: Embedding, head and the last norm, gathered in the compute format.
        quantised: How the frozen weights are stored.
        workspace_gib: What the optimizer's kernel takes beside states at the step, when activations are gone.
    """

    trainable: int
    frozen: int
    frozen_gib: float
    activations_gib: float
    passing_gib: float
    loss_gib: float
    layers: int
    layer_gib: float
    ends_gib: float
    trained_bytes: float = 2
    gradient_bytes: float = 2
    state_bytes: float = 8
    quantised: Literal["", "4-bit", "8-bit"] = ""
    workspace_gib: float = 0

    def __post_init__(self) -> None:
        for name in (
            "trainable", "frozen", "frozen_gib", "activations_gib", "passing_gib", "loss_gib", "layer_gib", "workspace_gib",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise NbkitError(f"{name}={getattr(self, name)}: it cannot be negative.", exit_code=2)
        if self.layers < 1:
            raise NbkitError(f"layers={self.layers}: a model has at least one.", exit_code=2)

    @classmethod
    def of(cls, found: Estimate) -> Alone:
        """From the formula's estimate of one device."""
        shape, step = found.shape, found.step
        parts = {part.name: part.gib for part in found.parts}
        full = step.method == "full"
        trained = shape.params if full else shape.lora_params(step.rank, step.targets)
        wide = step.dtype == "float32" or (full and step.dtype == "float16")
        stored = 4 if wide else 2
        width = 4 if step.dtype == "float32" else 2
        packed = NF4_BYTES if step.method == "qlora" else width
        trained_bytes = stored if full else 4
        states = (2 if step.optimizer == "adamw_8bit" else 2 * trained_bytes) if trained else 0
        return cls(
            trainable=trained,
            frozen=0 if full else shape.params,
            frozen_gib=0 if full else parts["weights"],
            activations_gib=parts.get("activations", 0),
            passing_gib=parts.get("gradients in flight", 0) + parts.get("autocast copies", 0),
            loss_gib=parts.get("loss", 0),
            layers=shape.layers,
            layer_gib=shape.linear_params / shape.layers * packed / GIB,
            ends_gib=shape.embedding_params * width / GIB,
            trained_bytes=trained_bytes,
            gradient_bytes=trained_bytes,
            state_bytes=states,
            quantised="4-bit" if step.method == "qlora" else "",
        )

    @classmethod
    def from_parts(
        cls,
        parts: Mapping[str, float],
        *,
        trainable: int,
        frozen: int,
        layers: int,
        layer_gib: float,
        ends_gib: float,
        trained_bytes: float = 2,
        quantised: Literal["", "4-bit", "8-bit"] = "",
        workspace_gib: float = 0.0,
    ) -> Alone:
        """From the parts at the peak before the step (GiB by a Prediction's names), and what they do not carry."""
        trained = trainable / GIB

        def gib(*names: str) -> float:
            return sum(parts.get(name, 0.0) for name in names)

        return cls(
            trainable=trainable,
            frozen=frozen,
            frozen_gib=max(0.0, gib("weights", "adapters") - trained * trained_bytes),
            activations_gib=gib("activations", "inputs"),
            passing_gib=gib("recomputed and in flight", "cuBLAS workspace"),
            loss_gib=gib("logits and loss"),
            layers=layers,
            layer_gib=layer_gib,
            ends_gib=ends_gib,
            trained_bytes=trained_bytes,
            gradient_bytes=trained_bytes,
            state_bytes=gib("optimizer states") / trained if trained else 0.0,
            quantised=quantised,
            workspace_gib=workspace_gib,
        )


@dataclass(frozen=True)
class How:
    """How the step is spread.

    Attributes:
        gpus: Devices altogether, over all nodes.
        nodes: Machines; host memory is reckoned for one of them.
        offload_optimizer, offload_params: To host RAM: ZeRO 1-3, and FSDP with both; the weights ZeRO-3 only.
        mixed_precision: Trained weights are stored in fp32 and computed in 16 bit (DeepSpeed always; FSDP by Accelerate).
        reshard_after_forward: FSDP frees a layer's weights after its forward and gathers them again.
        prefetch: FSDP layers gathered ahead of the one at work.
        bucket_elements, overlap_comm, max_live_elements: DeepSpeed's reduce_bucket_size, overlap_comm and
            stage3_max_live_parameters.
        sub_group_elements: DeepSpeed's sub_group_size: weights that ZeRO-3 steps at a time.
        gradient_as_bucket_view: DDP's switch; Trainer leaves it off.
        no_sync: FSDP sums the gradients of micro-batches up whole on every device and splits them with the last one (torch's
            no_sync; Fabric's no_backward_sync; transformers' Trainer and Accelerate where they accumulate).
        quant_storage_float: The 4-bit weights are packed in a float format (bnb_4bit_quant_storage), as sharding needs.
        optimizer_8bit: A bitsandbytes optimizer.
    """

    strategy: Strategy
    gpus: int
    nodes: int = 1
    offload_optimizer: bool = False
    offload_params: bool = False
    mixed_precision: bool = True
    reshard_after_forward: bool = True
    prefetch: int = 1
    bucket_elements: int = BUCKET
    overlap_comm: bool = True
    max_live_elements: int = MAX_LIVE
    sub_group_elements: int = SUB_GROUP
    gradient_as_bucket_view: bool = False
    no_sync: bool = False
    quant_storage_float: bool = False
    optimizer_8bit: bool = False

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Strategy):
            raise NbkitError(f"strategy={self.strategy!r} is unknown.", hint=", ".join(get_args(Strategy)), exit_code=2)
        if self.gpus < 1 or self.nodes < 1 or self.gpus % self.nodes:
            raise NbkitError(
                f"{self.gpus} GPUs on {self.nodes} nodes: every node needs as many, at least one.", exit_code=2
            )
        if self.prefetch < 0 or min(self.bucket_elements, self.max_live_elements, self.sub_group_elements) < 1:
            raise NbkitError(
                "prefetch cannot be negative; bucket_elements, max_live_elements and sub_group_elements not zero either.",
                exit_code=2,
            )

    @property
    def sharded(self) -> bool:
        """Weights are split over the devices."""
        return self.strategy in {"zero3", "fsdp"}


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
    Source: see the head of this file.
    """
    notes = _judged(alone, how)
    if how.strategy == "device_map":
        devices = _in_a_row(alone, how)
        notes.append("One device works at a time: device_map saves memory, never time. FSDP or ZeRO-3 use all of them.")
    else:
        devices = (_alike(alone, how),)
    host = _PROCESS_GIB * (1 if how.strategy == "device_map" else how.gpus / how.nodes) + _offloaded(alone, how)
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


def _alike(alone: Alone, how: How) -> dict[str, float]:
    """The larger of the two peaks."""
    return max((_by_strategy(alone, how, stepping=one) for one in (False, True)), key=lambda parts: sum(parts.values()))


def _by_strategy(alone: Alone, how: How, *, stepping: bool) -> dict[str, float]:
    """A device's parts in the backward, or at the optimizer's step."""
    trained, count = alone.trainable / GIB, how.gpus
    moving = _moving(alone, stepping=stepping)
    if how.strategy == "ddp":
        return {
            "weights": alone.frozen_gib + trained * alone.trained_bytes,
            "gradients": trained * alone.gradient_bytes,
            "optimizer": trained * alone.state_bytes,
            **moving,
            "buckets": 0 if how.gradient_as_bucket_view or count == 1 else trained * alone.gradient_bytes,
        }
    split = _fsdp if how.strategy == "fsdp" else _zero
    return split(alone, how, moving, stepping=stepping)


def _moving(alone: Alone, *, stepping: bool) -> dict[str, float]:
    if stepping:
        return {"optimizer workspace": alone.workspace_gib}
    return {
        "activations": alone.activations_gib,
        "gradients in flight": alone.passing_gib,
        "loss": alone.loss_gib,
    }


def _zero(alone: Alone, how: How, moving: Mapping[str, float], *, stepping: bool) -> dict[str, float]:
    trained, count = alone.trainable / GIB, how.gpus
    stage = int(how.strategy[-1])
    moments = alone.state_bytes if how.optimizer_8bit else 8
    bucket = min(how.bucket_elements / GIB, trained) * 2 * (2 if how.overlap_comm else 1)
    weights = (alone.frozen_gib + 2 * trained) / (count if stage == 3 else 1)
    gradients = 4 * trained / count + (2 * trained if stage == 1 else 0)
    gathered = 0.0
    if stage == 3:
        whole = alone.frozen_gib + 2 * trained
        largest = max(alone.layer_gib, alone.ends_gib / 2)  # embedding and head are gathered one by one
        gathered = min(whole, max(how.max_live_elements * 2 / GIB, largest)) * (1 if count > 1 else 0)
        in_fp32 = min(how.sub_group_elements / GIB, trained / count) if stepping else 0.0
        gradients = 2 * trained / count + (2 + 4) * in_fp32
    if how.offload_params:
        weights = 0.0
        gathered = max(gathered, alone.layer_gib)
    return {
        "weights": weights,
        "gathered weights": 0.0 if stepping else gathered,
        "gradients": 0.0 if how.offload_optimizer else gradients,
        "optimizer": 0.0 if how.offload_optimizer else (4 + moments) * trained / count,
        **({} if stepping else moving),
        "buckets": bucket,
    }


def _fsdp(alone: Alone, how: How, moving: Mapping[str, float], *, stepping: bool) -> dict[str, float]:
    trained, count = alone.trainable / GIB, how.gpus
    stored = 4 if how.mixed_precision else alone.trained_bytes
    states = alone.state_bytes if how.optimizer_8bit or not how.mixed_precision else 8
    layers = (1 + how.prefetch) * alone.layer_gib if how.reshard_after_forward else alone.layers * alone.layer_gib
    gathered = 0.0 if count == 1 or (stepping and how.reshard_after_forward) else layers + alone.ends_gib
    of_layer = trained * 2 / alone.layers  # a layer's full gradient, and its copy for the reduce-scatter
    home = 0.0 if how.offload_params else 1 / count
    gradients = trained * stored * home
    if how.no_sync and not stepping:
        gradients = trained * (2 if how.mixed_precision else alone.gradient_bytes)
    return {
        "weights": (alone.frozen_gib + trained * stored) * home,
        "gathered weights": gathered,
        "gradients": gradients,
        "optimizer": trained * states * home,
        **({name: gib * home for name, gib in moving.items()} if stepping else moving),
        "buckets": 0.0 if count == 1 or stepping else 2 * of_layer,
    }


def _in_a_row(alone: Alone, how: How) -> tuple[dict[str, float], ...]:
    """Layers go to devices in order, so that each holds about as many bytes of weights."""
    trained, count, layers = alone.trainable / GIB, how.gpus, alone.layers
    weights = alone.frozen_gib + trained * alone.trained_bytes
    ends = min(alone.ends_gib, weights)
    layer = (weights - ends) / layers
    sizes = [ends / 2, *[layer] * layers, ends / 2]
    found: list[dict[str, float]] = []
    start, filled, total = 0, 0.0, sum(sizes)
    for device in range(count):
        end = start
        while end < len(sizes) and (device == count - 1 or filled + sizes[end] / 2 <= total * (device + 1) / count):
            filled += sizes[end]
            end += 1
        held = end - start - (1 if start == 0 and end else 0) - (1 if end == len(sizes) and end > start else 0)
        share = held / layers
        fixed = {
            "weights": sum(sizes[start:end]),
            "gradients": trained * alone.gradient_bytes * share,
            "optimizer": trained * alone.state_bytes * share,
        }
        backward = {
            "activations": alone.activations_gib * share,
            "gradients in flight": alone.passing_gib if held else 0.0,
            "loss": alone.loss_gib if end == len(sizes) and end > start else 0.0,
        }
        step = {**dict.fromkeys(backward, 0.0), "optimizer workspace": alone.workspace_gib * share}
        larger = step if sum(step.values()) > sum(backward.values()) else backward
        found.append({**fixed, **larger})
        start = end
    return tuple(found)


def _offloaded(alone: Alone, how: How) -> float:
    """GiB of one node's RAM: its devices' share of what was moved out, with DeepSpeed's buffer factor."""
    trained = alone.trainable / GIB / how.nodes
    if how.strategy == "fsdp":
        return (alone.frozen_gib / how.nodes + trained * (4 + 4 + 8)) if how.offload_params else 0.0
    optimizer = 16 * trained if how.offload_optimizer else 0.0
    weights = alone.frozen_gib / how.nodes + 2 * trained if how.offload_params else 0.0
    return (optimizer + weights) * BUFFER_FACTOR
