"""The optimizer that a program steps with, on fake parameters."""

from __future__ import annotations

from typing import Any

from nbkit.errors import NbkitError
from nbkit.memory.program import Program

PAGED_NUMEL = 100_000  # bitsandbytes pages states of at least so many elements (optim/optimizer.py, get_state_buffer)


def make(program: Program, model: Any, args: Any = None, mode: Any = None) -> Any:
    """An optimizer over the model's trainable parameters, as the program would make it; call it outside of `mode`.

    Args:
        mode: The fake mode of the parameters: tables that the optimizer makes are turned into fakes of it.

    Raises: NbkitError when transformers' Trainer would refuse the optimizer too.
    """
    parameters = [one for one in model.parameters() if one.requires_grad]
    if program.steps_in_backward:
        return _InBackward({one: _make(program, [one], model, args, mode) for one in parameters})
    return _make(program, parameters, model, args, mode)


def _make(program: Program, parameters: list[Any], model: Any, args: Any, mode: Any) -> Any:
    import torch

    kind = program.optimizer
    if kind == "sgd":
        return torch.optim.SGD(parameters, lr=1e-5, foreach=True)
    if kind in {"adamw", "adamw foreach", "adamw fused"}:
        return torch.optim.AdamW(
            parameters, lr=1e-5, foreach=kind == "adamw foreach", fused=True if kind == "adamw fused" else None
        )
    if kind == "adamw masters":
        return _Masters(parameters)
    if kind == "other":
        return _on_fakes(_transformers(parameters, model, args), mode)
    import bitsandbytes

    bits = 8 if kind.endswith("8-bit") else 32
    optimizer = bitsandbytes.optim.AdamW(parameters, lr=1e-5, optim_bits=bits)
    if bits == 8:  # transformers' Trainer keeps embeddings in 32 bit (trainer.py, create_optimizer)
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                optimizer.mng.register_module_override(module, "weight", {"optim_bits": 32})
    return _on_fakes(optimizer, mode)


class _InBackward:
    """An optimizer a weight, stepped from a hook of the backward (torchtune.training.OptimizerInBackward)."""

    def __init__(self, each: dict[Any, Any]) -> None:
        self._each = each
        self.state: dict[Any, Any] = {}

    def step_one(self, parameter: Any) -> None:
        """Step that weight and free its gradient."""
        optimizer = self._each[parameter]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.state.update(optimizer.state)

    def step(self) -> None:
        """Step every weight whose gradient is still there: none after a backward."""
        for parameter in self._each:
            if parameter.grad is not None:
                self.step_one(parameter)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Each gradient was freed with its step."""


class _Masters:
    """DeepSpeed's 16-bit optimizers on one GPU: float32 copies of the weights, and of the gradients while they step.

    Source: deepspeed/runtime/zero/stage_1_and_2.py, `step`; FusedAdam needs no workspace.
    """

    def __init__(self, parameters: list[Any]) -> None:
        self._parameters = parameters
        self._adam: Any = None
        self.state: dict[Any, Any] = {}

    def step(self) -> None:
        """Copy the gradients up, step, copy the weights down."""
        import torch

        if self._adam is None:
            masters = [one.detach().float().requires_grad_(True) for one in self._parameters]
            self._adam = torch.optim.AdamW(masters, lr=1e-5, fused=True)
        masters = self._adam.param_groups[0]["params"]
        for master, one in zip(masters, self._parameters, strict=True):
            master.grad, one.grad = one.grad.float(), None
        self._adam.step()
        self.state = {master: {"master": master, **self._adam.state[master]} for master in masters}
        with torch.no_grad():
            for master, one in zip(masters, self._parameters, strict=True):
                one.copy_(master)
                master.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Gradients were freed when they were copied."""


def _on_fakes(optimizer: Any, mode: Any) -> Any:
    tables = getattr(optimizer, "name2qmap", {})
    for name in list(tables) if mode is not None else ():
        tables[name] = mode.from_tensor(tables[name])
    return optimizer


def _transformers(parameters: list[Any], model: Any, args: Any) -> Any:
    from transformers import Trainer

    try:
        cls, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        return cls(parameters, **{name: value for name, value in options.items() if name not in {"model", "params"}})
    except (ImportError, ValueError, TypeError, AttributeError) as error:
        raise NbkitError(
            f"The optimizer {getattr(args, 'optim', None)!s} cannot be made here: {str(error).splitlines()[0]}",
            hint="install what it needs, or predict with optim='adamw_torch_fused' and compare",
            exit_code=2,
        ) from error


def states(optimizer: Any) -> list[Any]:
    """All tensors that it keeps from step to step."""
    import torch

    found: list[Any] = []
    for state in optimizer.state.values():
        found += [one for one in state.values() if isinstance(one, torch.Tensor)]
    return found


def paged_bytes(optimizer: Any, program: Program) -> int:
    """Bytes of states that a paged optimizer keeps in managed memory, outside of torch's allocator."""
    if "paged" not in program.optimizer:
        return 0
    return sum(
        one.numel() * one.element_size()
        for parameter, state in optimizer.state.items()
        for name, one in state.items()
        if name in {"state1", "state2"} and parameter.numel() >= PAGED_NUMEL
    )
