"""What each device, and the host, holds of a step that is spread over several: the formulas of each strategy.

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
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from nbkit.errors import NbkitError
from nbkit.hardware.parts import GIB
from nbkit.memory.alone import Alone

Strategy = Literal["ddp", "zero1", "zero2", "zero3", "fsdp", "device_map"]
BUCKET, MAX_LIVE, SUB_GROUP, BUFFER_FACTOR = 500_000_000, 1_000_000_000, 1_000_000_000, 1.5


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


def alike(alone: Alone, how: How) -> dict[str, float]:
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


def in_a_row(alone: Alone, how: How) -> tuple[dict[str, float], ...]:
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


def offloaded(alone: Alone, how: How) -> float:
    """GiB of one node's RAM: its devices' share of what was moved out, with DeepSpeed's buffer factor."""
    trained = alone.trainable / GIB / how.nodes
    if how.strategy == "fsdp":
        return (alone.frozen_gib / how.nodes + trained * (4 + 4 + 8)) if how.offload_params else 0.0
    optimizer = 16 * trained if how.offload_optimizer else 0.0
    weights = alone.frozen_gib / how.nodes + 2 * trained if how.offload_params else 0.0
    return (optimizer + weights) * BUFFER_FACTOR
