"""The machine decides number format, attention, optimizer and batch; each choice carries its reason."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from dataclasses import dataclass
from typing import Any, Literal

from nbkit.display import Table
from nbkit.errors import ModelError, RunError, require
from nbkit.hardware import Choice, Gpu, Machine, probe
from nbkit.memory.formula import Step, estimate
from nbkit.memory.shapes import Shape
from nbkit.models.prepare import silence_optional_kernel

_FAST_BF16 = {"avx512_bf16", "amx_bf16", "amx_tile"}  # CPU flags under which bf16 has instructions of its own
_WORTH = 1.25  # a bf16 matmul must be this much faster than fp32 to be chosen on a CPU
_SMALL_GPU_GIB = 17.0
_CPU_BATCH = 8  # measured: a larger one gains nothing on two cores


@dataclass(frozen=True)
class Settings:
    """Choices for one model on one machine; the attributes carry the names of the arguments they are for.

    Attributes:
        dtype: "bfloat16", "float16" or "float32": for `from_pretrained(dtype=)` and `bnb_4bit_compute_dtype`.
        bf16: For `SFTConfig(bf16=)`; so `fp16`.
        device: Where it trains: for `from_pretrained(device_map=)`.
        use_cpu: For `SFTConfig(use_cpu=)`.
        effective_batch: Rows an optimizer step sees: batch times accumulation.
    """

    device: str
    dtype: str
    bf16: bool
    fp16: bool
    use_cpu: bool
    attn_implementation: str
    optim: str
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    activation_checkpointing: bool
    reasons: dict[str, str]

    @property
    def effective_batch(self) -> int:
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def table(self) -> Table:
        """Each choice with its reason."""
        rows = [(name, str(getattr(self, name)), reason) for name, reason in self.reasons.items()]
        return Table(["setting", "chosen", "because"], rows, title="Chosen for this machine")

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def settings(
    model: str,
    *,
    method: Literal["qlora", "lora", "full"] = "qlora",
    max_length: int = 1024,
    effective_batch: int = 8,
    machine: Machine | None = None,
) -> Settings:
    """Choose for `model` on this machine. Call it before loading the model: with several GPUs it pins one.

    Args:
        model: What `models.resolve` returned: a folder or a hub id; only its config is read.
        method: How it is trained; decides the memory.
        max_length: Tokens of the longest row.
        effective_batch: Rows a step should see; the micro-batch divides it.
        machine: Default: this one.
    Raises: ModelError when the config cannot be read; RunError when several GPUs are visible and CUDA was already used.
    """
    require("torch", "transformers", extra="train")
    silence_optional_kernel()
    machine = machine if machine is not None else probe()
    if machine.device != "cuda":
        return _on_cpu(machine, effective_batch)
    gpu = pin_one_gpu(machine)
    return _on_gpu(machine, gpu, model, method, max_length, effective_batch)


def _on_cpu(machine: Machine, effective_batch: int) -> Settings:
    dtype = cpu_dtype(machine)
    batch = _divisor(effective_batch, _CPU_BATCH)
    return Settings(
        device="cpu",
        dtype=dtype.value,
        bf16=dtype.value == "bfloat16",
        fp16=False,
        use_cpu=True,
        attn_implementation="sdpa",
        optim="adamw_torch",
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=effective_batch // batch,
        activation_checkpointing=False,
        reasons={
            "device": machine.gpu_reason or "no visible GPU",
            "dtype": dtype.reason,
            "attn_implementation": "flash attention needs a GPU",
            "optim": "a paged optimizer moves states between GPU and RAM; there is no GPU",
            "per_device_train_batch_size": f"{_CPU_BATCH} rows keep the cores busy; more gains nothing",
            "gradient_accumulation_steps": f"{batch} x {effective_batch // batch} = {effective_batch} rows a step",
            "activation_checkpointing": "RAM suffices, and recomputing costs a third of the speed",
        },
    )


def cpu_dtype(machine: Machine) -> Choice[str]:
    """float32 or bfloat16, by a quarter of a second of matrix products in both: which is faster differs from CPU to CPU.

    On an AMD EPYC with AVX512-BF16 a bf16 product took 0.45 of the time of fp32, on a Xeon with the same flag training
    in bf16 was slower; so it is measured and not read off the flags.
    """
    if not _FAST_BF16 & set(machine.cpu.flags):
        return Choice("float32", "this CPU has no bf16 instructions")
    gain = _bf16_gain()
    word = "faster than" if gain >= 1 else "the speed of"
    if gain >= _WORTH:
        return Choice("bfloat16", f"a bf16 matrix product is {gain:.1f} x {word} fp32 on this CPU (measured now)")
    return Choice("float32", f"a bf16 matrix product is only {gain:.1f} x {word} fp32 on this CPU (measured now)")


def _bf16_gain() -> float:
    """Time of fp32 over time of bf16, for products of the size of a small model's layers; best of several, in turn."""
    import torch

    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    pairs = {dtype: (torch.ones(512, 576, dtype=dtype), torch.ones(576, 1536, dtype=dtype)) for dtype in best}
    for _ in range(12):
        for dtype, (left, right) in pairs.items():
            began = time.perf_counter()
            left @ right
            best[dtype] = min(best[dtype], time.perf_counter() - began)
    return best[torch.float32] / best[torch.bfloat16]


def _on_gpu(
    machine: Machine,
    gpu: Gpu,
    model: str,
    method: Literal["qlora", "lora", "full"],
    max_length: int,
    effective_batch: int,
) -> Settings:
    new = (gpu.compute_capability or (0, 0)) >= (8, 0)
    dtype: Literal["bfloat16", "float16"] = "bfloat16" if new else "float16"
    why = f"{gpu.short_name}: compute capability {gpu.capability} has {'' if new else 'no '}bf16"
    flash = new and importlib.util.find_spec("flash_attn") is not None
    free = gpu.free_gib if gpu.free_gib is not None else gpu.usable_gib
    batch, checkpointing, memory = _micro_batch(model, method, max_length, effective_batch, dtype, free)
    small = gpu.usable_gib < _SMALL_GPU_GIB
    return Settings(
        device="cuda",
        dtype=dtype,
        bf16=new,
        fp16=not new,
        use_cpu=False,
        attn_implementation="flash_attention_2" if flash else "sdpa",
        optim="paged_adamw_8bit" if small else "adamw_torch_fused",
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=effective_batch // batch,
        activation_checkpointing=checkpointing,
        reasons={
            "device": f"{gpu.name}, {free:.1f} GiB free"
            + (f"; pinned, one of {len(machine.visible_gpus)}: SFTTrainer refuses several in one process"
               if len(machine.visible_gpus) > 1 else ""),
            "dtype": why,
            "attn_implementation": "flash_attn is installed" if flash else (
                "flash_attn is not installed; torch's own is close" if new else "flash attention needs Ampere or newer"),
            "optim": f"{gpu.usable_gib:.0f} GiB: states may leave the GPU in a spike" if small else
                     f"{gpu.usable_gib:.0f} GiB hold the adapter's states with ease; fused is the fastest",
            "per_device_train_batch_size": memory,
            "gradient_accumulation_steps": f"{batch} x {effective_batch // batch} = {effective_batch} rows a step",
            "activation_checkpointing": "saves memory, costs about a quarter of the speed" if checkpointing
                                        else "it fits without, and is faster so",
        },
    )  # fmt: skip


def _micro_batch(
    model: str, method: Literal["qlora", "lora", "full"], seq: int, effective: int, dtype: Any, free_gib: float
) -> tuple[int, bool, str]:
    """The largest micro-batch that the formula says fits, without checkpointing where that leaves at least 4 rows."""
    from transformers import AutoConfig

    try:
        shape = Shape.from_config(AutoConfig.from_pretrained(model), model.rpartition("/")[2])
    except ModelError as error:
        return 1, True, f"1, to be safe: {error.message}"
    except OSError as error:
        raise ModelError(
            f"The config of {model} cannot be read: {str(error).splitlines()[0]}", hint="check MODEL"
        ) from error
    sizes = [size for size in range(effective, 0, -1) if effective % size == 0 and size <= 16]
    tried = [(size, False) for size in sizes if size >= min(4, effective)] + [(size, True) for size in sizes]
    for size, checkpointing in tried:
        step = Step(method=method, seq=seq, micro_batch=size, dtype=dtype, checkpointing=checkpointing)
        high = estimate(shape, step).high_gib
        if high <= free_gib:
            return size, checkpointing, f"predicted at most {high:.1f} of {free_gib:.1f} GiB free (formula)"
    low = estimate(shape, Step(method=method, seq=seq, micro_batch=1, dtype=dtype)).low_gib
    return 1, True, f"it may not fit: predicted {low:.1f} GiB and more, {free_gib:.1f} GiB free (formula)"


def _divisor(total: int, most: int) -> int:
    return max(size for size in range(1, min(total, most) + 1) if total % size == 0)


def pin_one_gpu(machine: Machine) -> Gpu:
    """Of several visible GPUs, show this process the one with the most free memory (CUDA_VISIBLE_DEVICES).

    SFTTrainer refuses several in one notebook process; training on many is `accelerate launch`'s job.

    Raises: RunError when CUDA is already in use, for then the choice comes too late.
    """
    visible = machine.visible_gpus
    best = max(visible, key=lambda gpu: gpu.free_gib if gpu.free_gib is not None else gpu.usable_gib)
    if len(visible) == 1:
        return best
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise RunError(
            f"{len(visible)} GPUs are visible and CUDA is already in use; SFTTrainer takes one.",
            hint=f"restart the kernel and set CUDA_VISIBLE_DEVICES={best.index} before anything uses the GPU",
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = best.uuid or str(best.index)
    return best
