"""One machine as frozen values: what it has, and what that decides (device, number format), each with its reason."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nbkit.display import Table
from nbkit.hardware.parts import Choice, Cpu, Disk, Gpu, Memory, read_cpu, read_disk, read_gpu, read_memory
from nbkit.hardware.probe import facts

BF16_SINCE = (8, 0)  # Ampere is the first with bf16 arithmetic; torch emulates it below and says "supported"


@dataclass(frozen=True)
class Machine:
    """What `probe` found, here or on a box. Shows itself as a table.

    Attributes:
        gpu_reason: Why there are no GPUs (or not all); empty when all is well.
        flags: container, wsl, colab, kaggle, slurm: where this runs.
        problems: Parts that could not be read, each with what was met.
    """

    gpus: tuple[Gpu, ...]
    gpu_reason: str
    cpu: Cpu
    memory: Memory
    disks: tuple[Disk, ...]
    packages: dict[str, str | None]
    python: str
    python_path: str
    system: str
    flags: dict[str, bool]
    problems: tuple[str, ...]

    @classmethod
    def from_facts(cls, found: Mapping[str, Any]) -> Machine:
        """Build from the JSON object that hardware/probe.py prints, from this machine or another."""
        problems = [
            f"{name}: {part['error']}" for name, part in found.items() if isinstance(part, dict) and "error" in part
        ]
        problems += [f"disk {disk['place']}: {disk['error']}" for disk in found["disks"] if "error" in disk]

        def part(name: str) -> dict[str, Any]:
            return {} if "error" in found[name] else found[name]

        python, system = part("python"), part("system")
        chosen = found["environment"].get("CUDA_VISIBLE_DEVICES")
        return cls(
            gpus=tuple(read_gpu(gpu, found["driver"], chosen) for gpu in found["gpus"]),
            gpu_reason=found["gpu_reason"] or "",
            cpu=read_cpu(part("cpu")),
            memory=read_memory(part("memory")),
            disks=tuple(read_disk(disk) for disk in found["disks"] if "error" not in disk),
            packages=part("packages"),
            python=python.get("version", "unknown"),
            python_path=python.get("executable", "unknown"),
            system=f"{system.get('os', 'unknown system')}, kernel {system.get('kernel', 'unknown')}",
            flags=part("flags"),
            problems=tuple(problems),
        )

    @property
    def visible_gpus(self) -> tuple[Gpu, ...]:
        """The GPUs that a program started here would see."""
        return tuple(gpu for gpu in self.gpus if gpu.visible)

    @property
    def device(self) -> str:
        """Where training would run: `cuda` when a GPU is visible, else `cpu`. Whether torch can use it: see stack()."""
        return "cuda" if self.visible_gpus else "cpu"

    @property
    def bf16(self) -> Choice[bool]:
        """Whether to train in bfloat16. torch is not asked: its is_bf16_supported() is True on a T4, by emulation."""
        if not self.visible_gpus:
            return Choice(False, self.dtype.reason)
        gpu = self._oldest
        if gpu.compute_capability is None:
            return Choice(False, f"{gpu.short_name}: compute capability unknown")
        has = gpu.compute_capability >= BF16_SINCE
        return Choice(has, f"{gpu.short_name}: compute capability {gpu.capability} has {'' if has else 'no '}bf16")

    @property
    def dtype(self) -> Choice[str]:
        """The number format to train in: bfloat16, float16 or float32."""
        if self.visible_gpus:
            return Choice("bfloat16" if self.bf16 else "float16", self.bf16.reason)
        quick = next((flag for flag in ("amx_tile", "avx512_bf16") if flag in self.cpu.flags), None)
        doubt = f"; {quick} may make bfloat16 faster, which nbkit.settings measures before training" if quick else ""
        return Choice("float32", f"no GPU: float32 runs well on every CPU{doubt}")

    @property
    def _oldest(self) -> Gpu:
        return min(self.visible_gpus, key=lambda gpu: gpu.compute_capability or (0, 0))

    def table(self) -> Table:
        """The facts that decide a training run."""
        rows: list[tuple[str, str, str]] = []
        for gpu in self.gpus:
            free = "free memory unknown" if gpu.free_gib is None else f"{gpu.free_gib:.1f} GiB free"
            has = f"{gpu.name}, {free} of {gpu.usable_gib:.1f} GiB usable"
            rows.append((f"GPU {gpu.index}", has, _gpu_remark(gpu)))
        if not self.gpus:
            rows.append(("GPU", "none", self.gpu_reason))
        cores = f"{self.cpu.usable:g} of {self.cpu.logical} logical cores usable"
        limit = f"container limit {self.memory.limit_gib:.1f} GiB" if self.memory.limit_gib is not None else ""
        swap = f"swap {self.memory.swap_gib:.1f} GiB" if self.memory.swap_gib else "no swap"
        places = ", ".join(name for name, on in self.flags.items() if on)
        ram = f"{self.memory.available_gib:.1f} GiB available of {self.memory.total_gib:.1f} GiB"
        rows += [
            ("CPU", f"{self.cpu.model}, {cores}", ", ".join(self.cpu.flags)),
            ("RAM", ram, ", ".join(filter(None, (limit, swap)))),
            ("Python", f"{self.python}, {self.python_path}", f"{self.system}{f', in {places}' if places else ''}"),
            ("train on", self.device, ""),
            ("train in", self.dtype.value, self.dtype.reason),
        ]
        notes = [f"GPUs: {self.gpu_reason}"] if self.gpus and self.gpu_reason else []
        notes += [f"Not read: {problem}" for problem in self.problems]
        return Table(("part", "found", "remark"), rows, title="This machine", notes=notes)

    def storage(self) -> Table:
        """The disks under the places where models, data and temporary files go."""
        rows = [
            (d.place, d.path, round(d.free_gib, 1), round(d.total_gib, 1), d.fs, _disk_remark(d)) for d in self.disks
        ]
        return Table(
            ("place", "path", "free GiB", "total GiB", "file system", "remark"), rows, title="Disks and caches"
        )

    def versions(self, *names: str) -> Table:
        """Installed versions of `names`, or of every package nbkit looks at; read without importing them."""
        chosen = names or tuple(self.packages)
        rows = [(name, self.packages.get(name) or "not installed") for name in chosen]
        return Table(("package", "version"), rows, title=f"Python {self.python}")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: the attributes, and what they decide."""
        return {**asdict(self), "device": self.device, "bf16": asdict(self.bf16), "dtype": asdict(self.dtype)}

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def _gpu_remark(gpu: Gpu) -> str:
    others = [p for p in gpu.processes if p.pid != os.getpid()]
    holders = ", ".join(f"{p.pid} ({'?' if p.gib is None else f'{p.gib:.1f}'} GiB)" for p in others)
    parts = [
        f"compute capability {gpu.capability}",
        f"driver {gpu.driver or 'unknown'}" + (f" for CUDA {gpu.cuda}" if gpu.cuda else ""),
        gpu.pcie,
        "MIG on: the memory is divided into slices" if gpu.mig else "",
        f"slowed now: {', '.join(gpu.throttle)}" if gpu.throttle else "",
        f"held by process {holders}" if holders else "",
        "" if gpu.visible else "hidden by CUDA_VISIBLE_DEVICES",
    ]
    return ", ".join(filter(None, parts))


def _disk_remark(disk: Disk) -> str:
    remarks = {
        "network disk: loading is slow": disk.network,
        "files here eat main memory": disk.memory_backed,
        "not writable": not disk.writable,
    }
    return ", ".join(text for text, holds in remarks.items() if holds)


def probe() -> Machine:
    """Look at this machine. Takes a fraction of a second and imports no other package; never raises for a missing part.

    Returns: A Machine. Print it, or read `.gpus`, `.device`, `.dtype`, `.memory`, `.disks`, `.packages`.
    Source: NVML, or nvidia-smi where NVML is absent; /proc and cgroup files.
    Not covered: AMD and Intel GPUs, TPUs, Apple silicon.
    """
    return Machine.from_facts(facts())
