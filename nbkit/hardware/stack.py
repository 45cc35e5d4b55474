"""Whether torch and bitsandbytes really load here, asked in a child process: a broken stack cannot hang the kernel."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from nbkit.display import Table
from nbkit.hardware import imports
from nbkit.hardware.machine import Machine, probe
from nbkit.hardware.parts import Choice

Ask = Callable[[float], dict[str, Any]]


@dataclass(frozen=True)
class Package:
    """One package as the child met it: `ok`, `absent`, `broken` (error says how) or `not tried`."""

    name: str
    state: str
    version: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Stack:
    """What stands between the GPU and a training step. Shows itself as a table.

    Attributes:
        torch_cuda: CUDA version torch was built for; None for a CPU build.
        cuda_available: Whether torch found a usable GPU; None when torch did not load.
        architectures: GPU architectures that this torch has kernels for, such as sm_90.
        four_bit: A 64 x 64 layer of bitsandbytes, forward and backward; `ok`, or broken with the error.
        torchvision, flash_attn: As they load; absent is no fault.
        hip: ROCm version torch was built for; None for a CUDA or CPU build.
        seconds: How long the child took.
    """

    driver: str | None
    driver_cuda: str | None
    gpu_reason: str
    torch: Package
    torch_cuda: str | None
    cuda_available: bool | None
    architectures: tuple[str, ...]
    bitsandbytes: Package
    bf16: Choice[bool]
    seconds: float
    four_bit: Package = Package("four_bit", "not tried")
    torchvision: Package = Package("torchvision", "not tried")
    flash_attn: Package = Package("flash_attn", "not tried")
    hip: str | None = None

    @property
    def ok(self) -> bool:
        """True when torch and bitsandbytes load, and torch sees a GPU if the driver shows one."""
        loaded = self.torch.state == self.bitsandbytes.state == "ok"
        return loaded and (self.cuda_available is True or self.driver is None)

    def table(self) -> Table:
        """One row a layer, from the driver up."""
        cuda = f"for CUDA up to {self.driver_cuda}" if self.driver_cuda else ""
        rows = [
            ("NVIDIA driver", "ok" if self.driver else "absent", self.driver, cuda if self.driver else self.gpu_reason),
            ("torch", self.torch.state, self.torch.version, self.torch.error or self._torch_remark()),
            ("bitsandbytes", self.bitsandbytes.state, self.bitsandbytes.version, self._bitsandbytes_remark()),
            *(
                (one.name.replace("four_bit", "a 4-bit layer"), one.state, one.version, one.error or "")
                for one in (self.four_bit, self.torchvision, self.flash_attn)
                if one.state == "broken"
            ),
            ("bf16", "yes" if self.bf16 else "no", None, self.bf16.reason),
        ]
        return Table(
            ("layer", "state", "version", "remark"), rows, title=f"Training stack (asked in {self.seconds:.1f} s)"
        )

    def _torch_remark(self) -> str:
        if self.torch.state == "absent":
            return 'training needs it: pip install "nbkit-llm[train]"'
        if self.cuda_available:
            return f"built for CUDA {self.torch_cuda}, sees a GPU; kernels: {' '.join(self.architectures)}"
        if self.torch_cuda is None:
            return "CPU build" + (": the GPU stays unused, install a CUDA build" if self.driver else "")
        return f"built for CUDA {self.torch_cuda}, sees no GPU"

    def _bitsandbytes_remark(self) -> str:
        if self.bitsandbytes.state == "absent":
            return 'QLoRA needs it: pip install "nbkit-llm[train]"'
        if self.bitsandbytes.state == "not tried":
            return "it imports torch"
        return self.bitsandbytes.error or ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def stack(machine: Machine | None = None, *, timeout_s: float = 120.0, ask: Ask = imports.ask) -> Stack:
    """Import torch, then bitsandbytes, in a child of this Python, and say how far it came.

    Args:
        machine: From probe(); probed now when not given.
        timeout_s: The child is ended after this time, and what it was loading is reported as broken.
        ask: What runs the child: here, or on the box that `machine` describes.
    Returns: A Stack. A missing torch is a finding, not an error.
    """
    machine = machine or probe()
    began = time.monotonic()
    told_by = ask(timeout_s)
    steps, ending = told_by["steps"], told_by["ending"]
    names = ("torch", "bitsandbytes", "four_bit", "torchvision", "flash_attn")
    torch, bitsandbytes, four_bit, torchvision, flash_attn = (_package(name, steps, ending) for name in names)
    if torch.state != "ok" and bitsandbytes.state == "broken":
        bitsandbytes = Package("bitsandbytes", "not tried")
    told = steps.get("torch", {})
    gpu = machine.gpus[0] if machine.gpus else None
    return Stack(
        driver=gpu.driver if gpu else None,
        driver_cuda=gpu.cuda if gpu else None,
        gpu_reason=machine.gpu_reason,
        torch=torch,
        torch_cuda=told.get("cuda"),
        cuda_available=told.get("cuda_available"),
        architectures=tuple(told.get("architectures", ())),
        bitsandbytes=bitsandbytes,
        bf16=machine.bf16,
        seconds=time.monotonic() - began,
        four_bit=four_bit,
        torchvision=torchvision,
        flash_attn=flash_attn,
        hip=told.get("hip"),
    )


def _package(name: str, steps: dict[str, dict[str, Any]], ending: str) -> Package:
    unknown = (
        {"state": "not tried"} if steps or name != "torch" else {"state": "loading"}
    )  # it did not come even so far
    step = steps.get(name, unknown)
    if step["state"] == "loading":
        return Package(name, "broken", error=f"{ending} while importing it")
    error = step.get("error")
    if error:  # bitsandbytes answers with a page; its first lines say it
        error = " ".join(" ".join(line.split()) for line in error.splitlines() if line.strip())[:300]
    return Package(name, step["state"], step.get("version"), error)
