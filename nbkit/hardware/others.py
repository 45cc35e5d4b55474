"""Accelerators other than NVIDIA's, and where the loader finds CUDA: frozen values read from the probe's JSON object.

None of these was at hand: they were read from recorded trees, and training on them was not tried by nbkit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nbkit.hardware.parts import GIB


@dataclass(frozen=True)
class Tpu:
    """The TPU chips of this host; `version` is v2 to v6e, or None where only the environment names one."""

    version: str | None
    chips: int
    kind: str | None


@dataclass(frozen=True)
class AmdGpu:
    """One AMD GPU; `target` is its architecture (gfx90a), `rocm` the installed version or None."""

    index: int
    name: str
    total_gib: float
    free_gib: float
    target: str | None
    rocm: str | None


@dataclass(frozen=True)
class Apple:
    """Apple silicon. `usable_gib` is what its GPU may take of the shared memory: its limit, or three quarters."""

    chip: str
    gpu_cores: str | None
    total_gib: float
    usable_gib: float


@dataclass(frozen=True)
class Cuda:
    """Where the loader finds CUDA.

    Attributes:
        libcuda: Folders that hold the driver's library, in the loader's order.
        toolkits: Installed toolkits.
        runtime_wheels: CUDA runtimes that pip installed, as "name version".
        library_path: Folders of LD_LIBRARY_PATH that hold CUDA: they win over what torch brought.
        kernel_module: Version of the loaded kernel module.
    """

    libcuda: tuple[str, ...] = ()
    toolkits: tuple[str, ...] = ()
    runtime_wheels: tuple[str, ...] = ()
    library_path: tuple[str, ...] = ()
    kernel_module: str | None = None


def read_tpu(found: Mapping[str, Any] | None) -> Tpu | None:
    if not found or "error" in found:
        return None
    return Tpu(found["version"], found["chips"], found["type"])


def read_amd(found: Any) -> tuple[AmdGpu, ...]:
    if not isinstance(found, list):
        return ()
    return tuple(
        AmdGpu(
            one["index"],
            one["name"],
            one["total_bytes"] / GIB,
            (one["total_bytes"] - one["used_bytes"]) / GIB,
            one["target"],
            one["rocm"],
        )
        for one in found
    )


def read_apple(found: Mapping[str, Any] | None) -> Apple | None:
    if not found or "error" in found:
        return None
    total = found["total_bytes"] / GIB
    limit = found["gpu_limit_bytes"]
    return Apple(found["chip"], found["gpu_cores"], total, limit / GIB if limit else 0.75 * total)


def read_cuda(found: Mapping[str, Any]) -> Cuda:
    return Cuda(
        libcuda=tuple(found.get("libcuda", ())),
        toolkits=tuple(found.get("toolkits", ())),
        runtime_wheels=tuple(found.get("runtime_wheels", ())),
        library_path=tuple(found.get("library_path_with_cuda", ())),
        kernel_module=found.get("kernel_module"),
    )
