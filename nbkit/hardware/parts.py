"""The parts of a machine as frozen values, and how each is read from the JSON object that probe.py prints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")
GIB = 2**30


@dataclass(frozen=True)
class Choice(Generic[T]):
    """A value chosen for the user, and why. True exactly when the value is, so `bf16=machine.bf16.value` is not needed
    where a condition is meant; pass `.value` to other libraries.
    """

    value: T
    reason: str

    def __bool__(self) -> bool:
        return bool(self.value)

    def __str__(self) -> str:
        text = {True: "yes", False: "no"}.get(self.value, self.value) if isinstance(self.value, bool) else self.value
        return f"{text} ({self.reason})"


@dataclass(frozen=True)
class Process:
    """A process that holds memory on a GPU; `gib` is None where the driver does not tell.

    `notebook` is True for a Jupyter kernel: the commonest holder is an older one of one's own.
    """

    pid: int
    gib: float | None
    name: str | None = None
    notebook: bool = False


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU.

    Attributes:
        index: NVML's number, which is PCI bus order.
        total_gib: What the driver shows. `reserved_gib` of it is the driver's own: torch can use the rest.
        free_gib: What no process holds now; None where the driver does not tell.
        visible: False when CUDA_VISIBLE_DEVICES hides it from programs started here.
        throttle: Why the clocks are held down at this moment; empty when they are not.
        pcie: Told when the link has fewer lanes than it could. `link` has generation and width, now and at most.
        compute_mode: default, or exclusive: then one process at a time gets the GPU.
        utilisation: Percent of the last moment in which a kernel ran; None where unknown, as are the other numbers.
    """

    index: int
    name: str
    total_gib: float
    free_gib: float | None
    compute_capability: tuple[int, int] | None
    driver: str | None
    cuda: str | None
    processes: tuple[Process, ...] = ()
    uuid: str | None = None
    reserved_gib: float = 0.0
    visible: bool = True
    mig: bool = False
    throttle: tuple[str, ...] = ()
    pcie: str = ""
    link: Mapping[str, int | None] = field(default_factory=dict, hash=False)
    compute_mode: str = "default"
    display: bool = False
    ecc: bool | None = None
    utilisation: int | None = None
    clock_mhz: int | None = None
    max_clock_mhz: int | None = None
    power_limit_w: float | None = None
    power_default_w: float | None = None
    celsius: int | None = None

    @property
    def usable_gib(self) -> float:
        """What a program can take on an otherwise empty GPU."""
        return self.total_gib - self.reserved_gib

    @property
    def short_name(self) -> str:
        """`T4` for `Tesla T4`, `RTX 4090` for `NVIDIA GeForce RTX 4090`."""
        return re.sub(r"^(?:NVIDIA |Tesla |GeForce |Quadro )+", "", self.name)

    @property
    def capability(self) -> str:
        """`8.6`, or `unknown`."""
        return "unknown" if self.compute_capability is None else "{}.{}".format(*self.compute_capability)


@dataclass(frozen=True)
class Cpu:
    """The processor; `usable` counts the cores this process may really use (affinity and container quota)."""

    model: str
    logical: int
    physical: int | None
    usable: float
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Memory:
    """Main memory in GiB; `available_gib` already respects the container's limit, `limit_gib` is that limit."""

    total_gib: float
    available_gib: float
    limit_gib: float | None
    swap_gib: float


@dataclass(frozen=True)
class Disk:
    """The disk under one place that matters. `memory_backed` (tmpfs) means that files there eat main memory.

    Attributes:
        kind: nvme, ssd, hdd, virtual (a virtual machine's), network, memory, overlay or unknown.
        read_mb_s: Sequential read, where it was measured; `read_note` says past which cache, or why not.
        free_inodes: None where the file system has no such limit.
    """

    place: str
    path: str
    mount: str | None
    fs: str | None
    free_gib: float
    total_gib: float
    network: bool
    memory_backed: bool
    writable: bool
    kind: str = "unknown"
    inodes: int | None = None
    free_inodes: int | None = None
    read_mb_s: float | None = None
    read_note: str = ""


def read_gpu(gpu: Mapping[str, Any], driver: Mapping[str, Any], chosen: str | None) -> Gpu:
    level = gpu["compute_capability"]
    free = gpu["free_bytes"]
    return Gpu(
        index=gpu["index"],
        name=gpu["name"],
        total_gib=(gpu["total_bytes"] or 0) / GIB,
        free_gib=None if free is None else free / GIB,
        compute_capability=(level[0], level[1]) if level else None,
        driver=driver["driver"],
        cuda=driver["cuda"],
        processes=tuple(_process(one) for one in gpu["processes"]),
        uuid=gpu["uuid"],
        reserved_gib=(gpu["reserved_bytes"] or 0) / GIB,
        visible=_visible(gpu, chosen),
        mig=gpu["mig"],
        throttle=tuple(gpu["throttle"]),
        pcie=_pcie(gpu["pcie"]),
        link=gpu["pcie"],
        compute_mode=gpu.get("compute_mode") or "default",
        display=gpu.get("display", False),
        ecc=gpu.get("ecc"),
        utilisation=gpu.get("utilisation"),
        clock_mhz=gpu.get("clocks", {}).get("sm_mhz"),
        max_clock_mhz=gpu.get("clocks", {}).get("max_sm_mhz"),
        power_limit_w=gpu.get("power", {}).get("limit_w"),
        power_default_w=gpu.get("power", {}).get("default_w"),
        celsius=gpu.get("celsius"),
    )


def _process(told: Mapping[str, Any]) -> Process:
    held = None if told["bytes"] is None else told["bytes"] / GIB
    return Process(told["pid"], held, told.get("name"), told.get("notebook", False))


def _visible(gpu: Mapping[str, Any], chosen: str | None) -> bool:
    """CUDA reads the list from the left and stops at the first entry that it does not know."""
    if chosen is None:
        return True
    for entry in (entry.strip() for entry in chosen.split(",")):
        if not entry or entry.startswith("-"):
            return False
        if entry.isdigit():
            if int(entry) == gpu["index"]:
                return True
        elif entry.startswith("MIG"):
            return True  # which GPU the slice belongs to is not told here
        elif (gpu["uuid"] or "").startswith(entry):
            return True
    return False


def _pcie(link: Mapping[str, Any]) -> str:
    """Told only when the link has fewer lanes than it could: an idle link lowers its generation by itself."""
    width, most = link.get("width"), link.get("max_width")
    return f"PCIe x{width} of x{most} lanes" if width and most and width < most else ""


def read_cpu(cpu: Mapping[str, Any]) -> Cpu:
    logical = cpu.get("logical") or 1
    usable = min(filter(None, (logical, cpu.get("affinity"), cpu.get("quota"))))
    return Cpu(cpu.get("model", "unknown"), logical, cpu.get("physical"), float(usable), tuple(cpu.get("flags", ())))


def read_memory(memory: Mapping[str, Any]) -> Memory:
    total, available = memory.get("total_bytes", 0), memory.get("available_bytes") or 0
    group = memory.get("cgroup")
    if group:
        available = min(available, group["free_bytes"])
    limit = group["limit_bytes"] / GIB if group else None
    return Memory(total / GIB, available / GIB, limit, (memory.get("swap_total_bytes") or 0) / GIB)


def read_disk(disk: Mapping[str, Any]) -> Disk:
    return Disk(
        place=disk["place"],
        path=disk["path"],
        mount=disk["mount"],
        fs=disk["fs"],
        free_gib=disk["free_bytes"] / GIB,
        total_gib=disk["total_bytes"] / GIB,
        network=disk["network"],
        memory_backed=disk["memory_backed"],
        writable=disk["writable"],
        kind=disk.get("kind", "unknown"),
        inodes=disk.get("inodes"),
        free_inodes=disk.get("free_inodes"),
        read_mb_s=disk.get("read", {}).get("mb_s"),
        read_note=_read_note(disk.get("read", {})),
    )


def _read_note(read: Mapping[str, Any]) -> str:
    if read.get("mb_s") is None:
        return str(read.get("reason") or read.get("error") or "")
    past = "page cache bypassed" if read["cache"] == "bypassed" else "page cache dropped if the kernel agreed: at most"
    return f"{read['read_mb']} MB read, {past}"
