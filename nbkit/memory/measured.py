"""The measured peak of a trainer's own step on this machine, to set beside the prediction."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nbkit.errors import NbkitError
from nbkit.hardware.parts import GIB

_COUNTS = ("_metrics", "_total_train_tokens")  # of TRL's trainers


@dataclass(frozen=True)
class Measured:
    """Peak of a real step.

    Attributes:
        allocated_gib: torch.cuda.max_memory_allocated() on a GPU; on a CPU the tensors alive at the worst moment, seen
            operator by operator.
        reserved_gib: torch.cuda.max_memory_reserved(); None on a CPU.
        how: By what it was measured.
    """

    allocated_gib: float
    reserved_gib: float | None
    how: str


def measured_step(trainer: Any, rows: Any = None, *, steps: int = 2) -> Measured:
    """Run the forward, backward and update of real micro-batches and measure the last of them.

    Weights, gradients, random states, the trainer's optimizer and its counts are put back, so training can begin, or
    have ended, as if nothing had happened. Before training the autocast and checkpointing that `train()` would switch
    on are there for the step. On a CPU what kernels take inside one operator is not seen; it is small beside tensors.

    Args:
        trainer: An SFTTrainer or Trainer, not training at the moment.
        rows: Items of the training data to run; the longest ones when None.
        steps: How often; the optimizer's states exist from the second on.
    Raises: NbkitError when the trainer has no data.
    """
    import torch

    from nbkit.memory.places import Places
    from nbkit.memory.tracker import Tally, Tracker

    rows = rows if rows is not None else _longest(trainer)
    model = trainer.model
    on_gpu = next(model.parameters()).device.type == "cuda"
    with _as_it_was(trainer), _as_in_training(trainer):
        optimizer = trainer.create_optimizer()
        places = Places(model)
        tracker = Tracker(places, block=64)
        try:
            for one in _there(model):
                tracker.adopt(one, "weights")
            for at in range(steps):
                if on_gpu and at == steps - 1:
                    torch.cuda.reset_peak_memory_stats()
                tracker.recording, tracker.tally = at == steps - 1, Tally()
                _step(trainer, model, optimizer, rows, tracker, seen=not on_gpu)
        finally:
            places.close()
    if on_gpu:
        peaks = torch.cuda.max_memory_allocated() / GIB, torch.cuda.max_memory_reserved() / GIB
        return Measured(*peaks, "torch.cuda's counters")
    return Measured(tracker.tally.peak[1].live / GIB, None, "every operator's tensors, seen as they come and go")


def _longest(trainer: Any) -> list[Any]:
    data = trainer.train_dataset
    if data is None or not len(data):
        raise NbkitError("The trainer has no rows to run a step on.", exit_code=2)
    order = sorted(range(len(data)), key=lambda index: -len(data[index].get("input_ids", ())))
    return [data[index] for index in order[: trainer.args.per_device_train_batch_size]]


def _there(model: Any) -> Iterator[Any]:
    """Tensors that are there before the step: weights, buffers, and the constants of quantised weights."""
    from nbkit.memory.fake import constants

    yield from model.parameters()
    yield from model.buffers()
    yield from (one for _, one in constants(model))


@contextlib.contextmanager
def _as_it_was(trainer: Any) -> Iterator[None]:
    """Put weights, gradients, mode, random states, optimizer and counts back."""
    import random

    import torch

    model = trainer.model
    trained = [(one, one.detach().clone(), one.grad) for one in model.parameters() if one.requires_grad]
    modes = [(module, module.training) for module in model.modules()]
    counts = {name: copy.deepcopy(vars(trainer)[name]) for name in _COUNTS if name in vars(trainer)}
    kept, state = trainer.optimizer, random.getstate()
    devices = [trained[0][0].device] if trained and trained[0][0].device.type == "cuda" else []
    trainer.optimizer = None
    model.train()
    for one, _, _ in trained:
        one.grad = None
    try:
        with torch.random.fork_rng(devices=devices), _numpy_state():
            yield
    finally:
        trainer.optimizer = kept
        random.setstate(state)
        vars(trainer).update(counts)
        with torch.no_grad():
            for one, weights, gradient in trained:
                one.copy_(weights)
                one.grad = gradient
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def _numpy_state() -> Iterator[None]:
    import numpy as np

    state = np.random.get_state()  # noqa: NPY002 - the global state, which samplers and collators draw from
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


@contextlib.contextmanager
def _as_in_training(trainer: Any) -> Iterator[None]:
    """What `train()` does to the model before its first step, undone afterwards."""
    from accelerate.utils.operations import convert_outputs_to_fp32

    model, args = trainer.model, trainer.args
    wanted = getattr(args, "activation_checkpointing", None)
    wanted = getattr(args, "gradient_checkpointing", False) if wanted is None else wanted
    # The newer names first: the older ones warn.
    new = hasattr(model, "activation_checkpointing_enable")
    on = model.is_activation_checkpointing if new else getattr(model, "is_gradient_checkpointing", False)
    checkpoints = bool(wanted) and not on
    if checkpoints:
        options = {**(getattr(args, "activation_checkpointing_kwargs", None) or {})}
        options.setdefault("use_reentrant", False)
        enable = model.activation_checkpointing_enable if new else model.gradient_checkpointing_enable
        enable({k: v for k, v in options.items() if k not in {"every_n_layers", "offload"}})
    before = vars(model).get("forward")
    mixes = trainer.accelerator.mixed_precision in {"bf16", "fp16"} and not hasattr(model, "_original_forward")
    if mixes:
        model.forward = convert_outputs_to_fp32(_mixed(trainer, model.forward))
    try:
        yield
    finally:
        if mixes:
            del model.forward
            if before is not None:
                model.forward = before
        if checkpoints:
            (model.activation_checkpointing_disable if new else model.gradient_checkpointing_disable)()


def _mixed(trainer: Any, forward: Any) -> Any:
    def mixed(*args: Any, **kwargs: Any) -> Any:
        with trainer.accelerator.autocast():
            return forward(*args, **kwargs)

    return mixed


def _step(trainer: Any, model: Any, optimizer: Any, rows: Any, tracker: Any, *, seen: bool) -> None:
    with tracker if seen else contextlib.nullcontext():
        inputs = trainer._prepare_inputs(trainer.data_collator(rows))  # noqa: SLF001 - what training_step does first
        tracker.phase, tracker.places.backward = "forward", False
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, inputs)
        del inputs
        tracker.phase, tracker.places.backward = "backward", True
        loss.backward()
        tracker.places.backward = False
        del loss
        tracker.phase = "optimizer"
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
