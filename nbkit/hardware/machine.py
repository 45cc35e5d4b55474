"""One machine as frozen values: what it has, and what that decides (device, number format), each with its reason."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nbkit.display import Table
from nbkit.hardware.others import AmdGpu, Apple, Cuda, Tpu, read_amd, read_apple, read_cuda, read_tpu
from nbkit.hardware.parts import Choice, Cpu, Disk, Gpu, Memory, read_cpu, read_disk, read_gpu, read_memory
from nbkit.hardware.probe import facts

HERE = "This machine"
BF16_SINCE = (8, 0)  # Ampere is the first with bf16 arithmetic; torch emulates it below and says "supported"


@dataclass(frozen=True)
class Machine:
    """What `probe` found, here or on a box. Shows itself as a table.

    Attributes:
        gpu_reason: Why there are no GPUs (or not all); empty when all is well.
        flags: container, wsl, colab, kaggle, slurm, sagemaker: where this runs.
        environment: The variables that decide a training run (CUDA_VISIBLE_DEVICES, HF_HOME, ...), as they are set.
        python_kind: conda, venv or system.
        name: What a person calls it.
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
    tpu: Tpu | None = None
    amd: tuple[AmdGpu, ...] = ()
    apple: Apple | None = None
    cuda: Cuda = field(default_factory=Cuda)
    environment: Mapping[str, str] = field(default_factory=dict)
    python_kind: str = "system"
    name: str = HERE

    @classmethod
    def from_facts(cls, found: Mapping[str, Any], name: str = HERE) -> Machine:
        """Build from the JSON object that hardware/probe.py prints, from this machine or another."""
        problems = [
            f"{name}: {part['error']}" for name, part in found.items() if isinstance(part, dict) and "error" in part
        ]
        others: Mapping[str, Any] = found.get("accelerators", {})
        problems += [
            f"{name}: {part['error']}" for name, part in others.items() if isinstance(part, dict) and "error" in part
        ]
        problems += [f"disk {disk['place']}: {disk['error']}" for disk in found["disks"] if "error" in disk]

        def part(name: str) -> dict[str, Any]:
            return {} if "error" in found.get(name, {}) else found.get(name, {})

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
            tpu=read_tpu(others.get("tpu")),
            amd=read_amd(others.get("amd")),
            apple=read_apple(others.get("apple")),
            cuda=read_cuda(part("cuda")),
            environment=dict(found["environment"]),
            python_kind=python.get("kind", "system"),
            name=name,
        )

    @property
    def of(self) -> str:
        """Whose a part is, behind the part's name; empty for this machine."""
        return "" if self.name == HERE else f" of {self.name}"

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
        rows += _other_accelerators(self)
        if not rows:
            rows.append(("GPU", "none", self.gpu_reason))
        cores = f"{self.cpu.usable:g} of {self.cpu.logical} logical cores usable"
        limit = f"container limit {self.memory.limit_gib:.1f} GiB" if self.memory.limit_gib is not None else ""
        swap = f"swap {self.memory.swap_gib:.1f} GiB" if self.memory.swap_gib else "no swap"
        places = ", ".join(name for name, on in self.flags.items() if on)
        where, kind = f"in {places}" if places else "", "" if self.python_kind == "system" else self.python_kind
        ram = f"{self.memory.available_gib:.1f} GiB available of {self.memory.total_gib:.1f} GiB"
        rows += [
            ("CPU", f"{self.cpu.model}, {cores}", ", ".join(self.cpu.flags)),
            ("RAM", ram, ", ".join(filter(None, (limit, swap)))),
            ("Python", f"{self.python}, {self.python_path}", ", ".join(filter(None, (self.system, where, kind)))),
            ("train on", self.device, ""),
            ("train in", self.dtype.value, self.dtype.reason),
        ]
        notes = [f"GPUs: {self.gpu_reason}"] if self.gpus and self.gpu_reason else []
        notes += [f"Not read: {problem}" for problem in self.problems]
        return Table(("part", "found", "remark"), rows, title=self.name, notes=notes)

    def storage(self) -> Table:
        """The disks under the places where models, data and temporary files go."""
        rows: list[tuple[Any, ...]] = [
            (d.place, d.path, round(d.free_gib, 1), round(d.total_gib, 1), d.fs, d.kind, d.read_mb_s, _disk_remark(d))
            for d in self.disks
        ]
        columns = ["place", "path", "free GiB", "total GiB", "file system", "kind", "read MB/s", "remark"]
        notes = sorted({f"Read speed: {d.read_note}." for d in self.disks if d.read_note})
        if all(disk.read_mb_s is None for disk in self.disks):
            columns.remove("read MB/s")
            rows = [(*row[:6], row[7]) for row in rows]
        return Table(columns, rows, title="Disks and caches", notes=notes)

    def advice(self) -> Table:
        """What fine-tuning wants of a machine, against this one."""
        from nbkit.hardware.advice import advice

        return advice(self)

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
        """In a notebook: the facts, and below them, folded, disks and advice."""
        from html import escape

        folded = "".join(
            f"<details><summary>{escape(part.title)}</summary>{part._repr_html_()}</details>"
            for part in (self.storage(), self.advice())
        )
        return f"<div>{self.table()._repr_html_()}{folded}</div>"


def _other_accelerators(machine: Machine) -> list[tuple[str, str, str]]:
    rows = []
    if machine.tpu:
        kind = machine.tpu.version or machine.tpu.kind or "of unknown version"
        rows.append(("TPU", f"{machine.tpu.chips} chips, {kind}", "no QLoRA there: bitsandbytes has no TPU kernels"))
    for amd in machine.amd:
        what = f"{amd.name}, {amd.free_gib:.1f} GiB free of {amd.total_gib:.1f} GiB"
        rows.append(
            (f"AMD {amd.index}", what, f"{amd.target or 'unknown target'}, ROCm {amd.rocm or 'not found'}; not tried")
        )
    if machine.apple:
        what = f"{machine.apple.chip}, {machine.apple.usable_gib:.0f} GiB for its GPU"
        rows.append(("Apple", what, "LoRA in float32 through MPS; no bitsandbytes kernels; not tried"))
    return rows


def _gpu_remark(gpu: Gpu) -> str:
    others = [p for p in gpu.processes if p.pid != os.getpid()]
    holders = ", ".join(
        f"{p.pid} ({'?' if p.gib is None else f'{p.gib:.1f}'} GiB{', a notebook kernel' if p.notebook else ''})"
        for p in others
    )
    parts = [
        f"compute capability {gpu.capability}",
        f"driver {gpu.driver or 'unknown'}" + (f" for CUDA {gpu.cuda}" if gpu.cuda else ""),
        gpu.pcie,
        "MIG on: the memory is divided into slices" if gpu.mig else "",
        f"slowed now: {', '.join(gpu.throttle)}" if gpu.throttle else "",
        f"held by process {holders}" if holders else "",
        "" if gpu.visible else "hidden by CUDA_VISIBLE_DEVICES",
        "" if gpu.compute_mode == "default" else f"compute mode: {gpu.compute_mode}",
        f"{gpu.utilisation} % busy" if gpu.utilisation else "",
        f"limited to {gpu.power_limit_w:.0f} of {gpu.power_default_w:.0f} W" if _capped(gpu) else "",
    ]
    return ", ".join(filter(None, parts))


def _capped(gpu: Gpu) -> bool:
    return bool(gpu.power_limit_w and gpu.power_default_w and gpu.power_limit_w < 0.95 * gpu.power_default_w)


def _disk_remark(disk: Disk) -> str:
    remarks = {
        "network disk: loading is slow": disk.network,
        "files here eat main memory": disk.memory_backed,
        "not writable": not disk.writable,
        "few inodes left": bool(disk.inodes and disk.free_inodes is not None and disk.free_inodes < 0.02 * disk.inodes),
    }
    return ", ".join(text for text, holds in remarks.items() if holds)


def probe(*, read_speed: bool = False) -> Machine:
    """Look at this machine. Takes a fraction of a second and imports no other package; never raises for a missing part.

    Args:
        read_speed: Also measure how fast the disks are read (a second more; nothing is written).
    Returns: A Machine. Print it, or read `.gpus`, `.device`, `.dtype`, `.memory`, `.disks`, `.packages`, `.advice()`.
    Source: NVML, or nvidia-smi where NVML is absent; /proc, /sys and cgroup files; sysctl on macOS.
    Not covered: Intel GPUs; whether the network is reached. AMD, TPU and Apple silicon are found, not tried.
    """
    return Machine.from_facts(facts(speed=read_speed))
