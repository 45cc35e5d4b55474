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
    import torch

    parameters = [one for one in model.parameters() if one.requires_grad]
    kind = program.optimizer
    if kind == "sgd":
        return torch.optim.SGD(parameters, lr=1e-5, foreach=True)
    if kind in {"adamw", "adamw foreach", "adamw fused"}:
        return torch.optim.AdamW(
            parameters, lr=1e-5, foreach=kind == "adamw foreach", fused=True if kind == "adamw fused" else None
        )
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
