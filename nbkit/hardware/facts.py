"""What the doctor judges: a machine, its training stack, what a run wants, and the error it met. Values only.

Rules never look for themselves: the same facts may come from another machine, or from a file in a test.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from nbkit.hardware.machine import Machine
from nbkit.hardware.parts import Choice, Disk, Gpu
from nbkit.hardware.stack import Package, Stack


@dataclass(frozen=True)
class Wanted:
    """What a run asks for, as far as it is known; None and empty mean unknown, and then nothing is concluded.

    Attributes:
        dtype: bfloat16, float16 or float32: the one the trainer computes in.
        attention: attn_implementation, such as flash_attention_2.
        trainable_dtypes: Of the parameters that are trained.
        devices: Where the parts of the model lie: cuda:0, cpu, disk, ...
        inputs_require_grad: Whether the embedding's output does (enable_input_require_grads was called).
        peft: Whether adapters are trained.
        family: model_type of the config, such as gemma3.
        disk_gib: What download, cache and checkpoints will take.
    """

    dtype: str | None = None
    attention: str | None = None
    train_batch: int | None = None
    eval_batch: int | None = None
    checkpointing: bool | None = None
    inputs_require_grad: bool | None = None
    peft: bool | None = None
    trainable_dtypes: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    family: str | None = None
    disk_gib: float | None = None

    @classmethod
    def of(cls, args: Any = None, model: Any = None) -> Wanted:
        """Read from a TrainingArguments and a loaded model, or anything with their attributes."""
        found: dict[str, Any] = {}
        if args is not None:
            for flag, dtype in (("bf16", "bfloat16"), ("fp16", "float16")):
                if getattr(args, flag, False):
                    found["dtype"] = dtype
            found["train_batch"] = getattr(args, "per_device_train_batch_size", None)
            if str(getattr(args, "eval_strategy", "no")).rpartition(".")[2].lower() != "no":
                found["eval_batch"] = getattr(args, "per_device_eval_batch_size", None)
            found["checkpointing"] = _first(args, "activation_checkpointing", "gradient_checkpointing")
        if model is not None:
            found |= _of_model(model)
        return cls(**found)


def _first(owner: Any, *names: str) -> Any:
    """The first attribute that is there: newer names first, so that the older ones do not warn."""
    return next((getattr(owner, name) for name in names if hasattr(owner, name)), None)


def _of_model(model: Any) -> dict[str, Any]:
    config = getattr(model, "config", None)
    trained = {str(one.dtype).removeprefix("torch.") for one in model.parameters() if one.requires_grad}
    places = getattr(model, "hf_device_map", None) or {}
    hooked = getattr(model, "_require_grads_hook", None) is not None or bool(
        getattr(model, "_require_grads_hooks", None)
    )
    return {
        "attention": getattr(config, "_attn_implementation", None),
        "family": getattr(config, "model_type", None),
        "trainable_dtypes": tuple(sorted(trained)),
        "devices": tuple(
            sorted({f"cuda:{place}" if isinstance(place, int) else str(place) for place in places.values()})
        ),
        "peft": hasattr(model, "peft_config"),
        "inputs_require_grad": hooked,
        **(
            {"checkpointing": True} if _first(model, "is_activation_checkpointing", "is_gradient_checkpointing") else {}
        ),
    }


@dataclass(frozen=True)
class Facts:
    """Everything a rule may read. `stack` is None where torch is not installed or was not asked.

    `own_pid` is the process that asks, where these are its own machine's facts: what it holds itself is no finding.
    """

    machine: Machine
    stack: Stack | None = None
    wanted: Wanted = Wanted()
    error: str = ""
    own_pid: int | None = None

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Facts:
        """From JSON: `machine` as hardware/probe.py prints it, `stack` as Stack.as_dict() gives it, `wanted`, `error`."""
        told: Mapping[str, Any] = found.get("wanted") or {}
        asked: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in told.items()
        }
        stack = found.get("stack")
        machine = Machine.from_facts(found["machine"])
        return cls(
            machine, _stack(stack) if stack else None, Wanted(**asked), found.get("error", ""), found.get("own_pid")
        )

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        return self.machine.visible_gpus

    @property
    def oldest(self) -> Gpu | None:
        """The visible GPU with the lowest known compute capability: it decides number formats and kernels."""
        known = [gpu for gpu in self.gpus if gpu.compute_capability]
        return min(known, key=lambda gpu: gpu.compute_capability or (0, 0)) if known else None

    def torch_works(self) -> bool:
        return self.stack is not None and self.stack.torch.state == "ok"

    def disk(self, word: str) -> Disk | None:
        """The disk whose place begins with that word: models, data, temporary, working, runs, shared."""
        return next((disk for disk in self.machine.disks if disk.place.startswith(word)), None)


def _stack(told: Mapping[str, Any]) -> Stack:
    known = {one.name for one in fields(Stack)}
    values = {name: value for name, value in told.items() if name in known}
    for name, value in values.items():
        if isinstance(value, Mapping) and "state" in value:
            values[name] = Package(**value)
    values["bf16"] = Choice(**told["bf16"])
    values["architectures"] = tuple(told.get("architectures", ()))
    return Stack(**values)


def version(text: str | None) -> tuple[int, ...]:
    """`12.8` or `2.13.0+cu128` as numbers; empty when unknown."""
    return tuple(int(part) for part in re.findall(r"\d+", (text or "").partition("+")[0]))


def has_kernels(gpu: Gpu, architectures: Iterable[str]) -> bool:
    """Whether binaries for one of `architectures` run on `gpu`: same major and no newer minor, or PTX no newer."""
    level = gpu.compute_capability
    for name in architectures:
        kind, _, digits = name.rstrip("af").partition("_")
        if not digits.isdigit() or level is None:
            continue
        built = (int(digits[:-1]), int(digits[-1]))
        if (kind == "sm" and built[0] == level[0] and built <= level) or (kind == "compute" and built <= level):
            return True
    return level is None
