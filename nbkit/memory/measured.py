"""The measured peak of a trainer's own step on this machine, to set beside the prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nbkit.errors import NbkitError

GIB = 2**30


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

    The weights are put back afterwards and the optimizer used here is thrown away, so training can begin as if nothing
    had happened. On a CPU what kernels take inside one operator is not seen; it is small beside tensors.

    Args:
        trainer: An SFTTrainer or Trainer, not yet training.
        rows: Items of the training data to run; the longest ones when None.
        steps: How often; the optimizer's states exist from the second on.
    Raises: NbkitError when the trainer has no data.
    """
    import torch

    from nbkit.memory.places import Places
    from nbkit.memory.tracker import Tally, Tracker

    if rows is None:
        data = trainer.train_dataset
        if data is None or not len(data):
            raise NbkitError("The trainer has no rows to run a step on.", exit_code=2)
        order = sorted(range(len(data)), key=lambda index: -len(data[index].get("input_ids", ())))
        rows = [data[index] for index in order[: trainer.args.per_device_train_batch_size]]
    model = trainer.model
    trained = [one for one in model.parameters() if one.requires_grad]
    before = [one.detach().clone() for one in trained]
    on_gpu = trained[0].device.type == "cuda"
    model.train()
    optimizer = trainer.create_optimizer()
    places = Places(model)
    tracker = Tracker(places, block=64)
    try:
        for name, tensors in (("weights", model.parameters()), ("weights", model.buffers())):
            for one in tensors:
                tracker.adopt(one, name)
        for module in model.modules():
            state = getattr(getattr(module, "weight", None), "quant_state", None)
            for one in (getattr(state, "absmax", None), getattr(getattr(state, "state2", None), "absmax", None)):
                if one is not None:
                    tracker.adopt(one, "weights")
        for at in range(steps):
            if on_gpu and at == steps - 1:
                torch.cuda.reset_peak_memory_stats()
            tracker.recording, tracker.tally = at == steps - 1, Tally()
            _step(trainer, model, optimizer, rows, tracker, seen=not on_gpu)
        if on_gpu:
            peaks = torch.cuda.max_memory_allocated() / GIB, torch.cuda.max_memory_reserved() / GIB
            return Measured(*peaks, "torch.cuda's counters")
        return Measured(tracker.tally.peak[1].live / GIB, None, "every operator's tensors, seen as they come and go")
    finally:
        places.close()
        with torch.no_grad():
            for one, old in zip(trained, before, strict=True):
                one.copy_(old)
        model.zero_grad(set_to_none=True)
        trainer.optimizer = None


def _step(trainer: Any, model: Any, optimizer: Any, rows: Any, tracker: Any, *, seen: bool) -> None:
    import contextlib

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
