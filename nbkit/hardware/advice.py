"""What fine-tuning wants of a machine, judged against one: memory, disk, and which tier of GPU for which model.

The figures are the usual ones (16-32 GB of RAM for small models, 64 GB and more for large; NVMe, 500 GB to 1 TB), held
against docs/log.md's measurements: 12-16 GB is right for QLoRA up to 7B and tight for 16-bit LoRA.
For a prediction of one model's memory use nbkit.fits or nbkit.predict; this is orientation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbkit.display import Table

if TYPE_CHECKING:
    from nbkit.hardware.machine import Machine

# At least so many GiB of usable memory on one card: what that tier is for.
TIERS: tuple[tuple[float, str, str], ...] = (
    (130.0, "H200, B200, several cards", "LoRA of 70B in 16 bit; full fine-tuning up to 13B"),
    (75.0, "A100-80GB, H100", "QLoRA of 70B, LoRA of 30B in 16 bit, full fine-tuning up to 7B with 8-bit states"),
    (38.0, "A100-40GB, L40S, RTX A6000", "QLoRA of 30B (70B at short sequences from 48 GB), LoRA of 13B in 16 bit"),
    (21.0, "RTX 3090, RTX 4090, A10G, L4, RTX A5000", "QLoRA of 7-13B with room, LoRA of 7B in 16 bit"),
    (14.0, "T4, V100-16GB, RTX 4080, RTX A4000", "QLoRA of 7-8B, LoRA of 3B in 16 bit"),
    (11.0, "RTX 3060, RTX 4070", "QLoRA of 7B at sequences to about 1024, LoRA of 1-3B"),
    (7.0, "RTX 3070, RTX 4060, RTX 3080 (10 GB)", "QLoRA of 3B, of 7B only at short sequences"),
    (0.0, "smaller cards", "models below 1B"),
)


def advice(machine: Machine) -> Table:
    """One row a need: what is usual, what is here, and what that means."""
    rows = [_gpu(machine), *_memory(machine), *_disk(machine)]
    return Table(
        ("part", "usual", "here", "meaning"),
        rows,
        title="What fine-tuning wants, and what is here",
        notes=["Orientation only: nbkit.fits() and `nbkit fit MODEL` predict the memory of one model and method."],
    )


def tier(usable_gib: float) -> tuple[str, str]:
    """Cards of that class, and what they are for."""
    return next((cards, use) for least, cards, use in TIERS if usable_gib >= least)


def _gpu(machine: Machine) -> tuple[str, str, str, str]:
    usual = "24 GB for QLoRA of 7-13B, 12-16 GB up to 7B, 80 GB for 70B"
    visible = machine.visible_gpus
    if not visible:
        small = (
            "models of some hundred million parameters train on the CPU; rent a card for more: nbkit.hardware.offers()"
        )
        return ("GPU", usual, "none that CUDA programs would see", small)
    best = max(visible, key=lambda one: one.usable_gib)
    count = f"{len(visible)} x " if len(visible) > 1 else ""
    together = "; several together hold a larger model sharded (FSDP)" if len(visible) > 1 else ""
    return (
        "GPU",
        usual,
        f"{count}{best.short_name}, {best.usable_gib:.1f} GiB usable",
        tier(best.usable_gib)[1] + together,
    )


def _memory(machine: Machine) -> list[tuple[str, str, str, str]]:
    usual = "16-32 GB for small models, 64 GB and more for large ones or CPU offload"
    limit = machine.memory.limit_gib
    total = min(machine.memory.total_gib, limit) if limit is not None else machine.memory.total_gib
    here = f"{total:.0f} GiB" + (" (container limit)" if limit is not None and limit < machine.memory.total_gib else "")
    if total >= 60:
        meaning = "enough for large models and for offloading optimizer states"
    elif total >= 15:
        meaning = "enough for models to 13B that live on the GPU; too little for CPU offload of 7B and more"
    else:
        meaning = "small models only: loading a shard needs its size and 4 GB beside it"
    return [("RAM", usual, here, meaning)]


def _disk(machine: Machine) -> list[tuple[str, str, str, str]]:
    disk = next((one for one in machine.disks if one.place.startswith("models")), None)
    if disk is None:
        return []
    usual = "NVMe, 500 GB to 1 TB free"
    speed = f", {disk.read_mb_s:,.0f} MB/s read" if disk.read_mb_s else ""
    here = f"{disk.free_gib:.0f} GiB free, {disk.kind}{speed} ({disk.path})"
    if disk.free_gib >= 450:
        room = "room for several models, checkpoints and merged copies"
    elif disk.free_gib >= 60:
        room = "room for a 7B LoRA with merge and GGUF (about 45 GB); full fine-tuning of 7B with 3 checkpoints wants 250-300 GB"
    else:
        room = "room for small models; a 7B LoRA with merge and GGUF needs about 45 GB"
    slow = disk.kind in {"hdd", "network"} or (disk.read_mb_s is not None and disk.read_mb_s < 200)
    pace = disk.read_mb_s or (130.0 if slow else None)
    load = f"; a 15 GB model loads in about {15000 / pace:.0f} s" if pace else ""
    return [("disk", usual, here, room + load)]
