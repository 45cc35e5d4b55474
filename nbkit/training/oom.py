"""Out of memory: once, the run goes on with half the batch and twice the accumulation, and says so."""

from __future__ import annotations

import gc
from typing import Any

HINT = (
    "shorten max_length, halve per_device_train_batch_size and double gradient_accumulation_steps, or turn on "
    "activation_checkpointing"
)
_TEXTS = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad allocation", "std::bad_alloc")


def is_oom(error: BaseException) -> bool:
    """True for CUDA's error, for torch's on a CPU under a memory limit, and for Python's MemoryError."""
    if isinstance(error, MemoryError) or type(error).__name__ in {"OutOfMemoryError", "AcceleratorOutOfMemoryError"}:
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(text in str(error).lower() for text in _TEXTS)


def smaller(batch: int, accumulation: int) -> tuple[int, int] | None:
    """Batch and accumulation with the same product and a batch of half at most; None when the batch is 1."""
    if batch < 2:
        return None
    fits = max(size for size in range(1, batch // 2 + 1) if batch % size == 0)
    return fits, accumulation * batch // fits


def apply(trainer: Any, batch: int, accumulation: int) -> None:
    """Set both; the product, which decides the result, must be the same as before."""
    args = trainer.args
    if batch * accumulation != args.per_device_train_batch_size * args.gradient_accumulation_steps:
        raise ValueError(f"{batch} x {accumulation} is another effective batch")
    factor = max(1, args.per_device_train_batch_size // batch)
    args.per_device_train_batch_size, args.gradient_accumulation_steps = batch, accumulation
    args.per_device_eval_batch_size = max(1, args.per_device_eval_batch_size // factor)
    trainer._train_batch_size = args.train_batch_size  # noqa: SLF001 - Trainer reads the argument only when it is built
    trainer.current_gradient_accumulation_steps = accumulation


def release(trainer: Any) -> None:
    """Give back the optimizer of the failed attempt; `train` makes it anew from the checkpoint."""
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.model_wrapped = trainer.model
    free()


def free() -> None:
    """Give back what nothing refers to any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
