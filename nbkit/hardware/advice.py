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
    """One row a need: what is usual, what is here, whether that suffices, and for what."""
    rows = [row for row in (_gpu(machine), _memory(machine), _disk(machine)) if row]
    return Table(
        ("part", "usual", "here", "verdict", "enough for"),
        rows,
        title="What fine-tuning wants, and what is here",
        notes=["Orientation only: nbkit.fits() and `nbkit fit MODEL` predict the memory of one model and method."],
    )


def tiers() -> Table:
    """Which class of GPU is for which model."""
    rows = [(f"{least:g}" if least else "less", cards, use) for least, cards, use in TIERS]
    return Table(("usable GiB", "such as", "for"), rows, title="Which GPU for which model")


def tier(usable_gib: float) -> tuple[str, str]:
    """Cards of that class, and what they are for."""
    return next((cards, use) for least, cards, use in TIERS if usable_gib >= least)


def _gpu(machine: Machine) -> tuple[str, ...]:
    usual = "12-16 GB to 7B, 24 GB to 13B, 80 GB to 70B (QLoRA)"
    visible = machine.visible_gpus
    if not visible:
        return (
            "GPU",
            usual,
            "none for CUDA",
            "short",
            "models to some 100M on the CPU; to rent: nbkit.hardware.offers()",
        )
    best = max(visible, key=lambda one: one.usable_gib)
    count = f"{len(visible)} x " if len(visible) > 1 else ""
    together = "; several together hold a larger model sharded (FSDP)" if len(visible) > 1 else ""
    verdict = "ok" if best.usable_gib >= 21 else "tight" if best.usable_gib >= 11 else "short"
    return (
        "GPU",
        usual,
        f"{count}{best.short_name}, {best.usable_gib:.1f} GiB",
        verdict,
        tier(best.usable_gib)[1] + together,
    )


def _memory(machine: Machine) -> tuple[str, ...]:
    limit, shown = machine.memory.limit_gib, machine.memory.total_gib
    capped = limit is not None and limit < shown
    total = limit if limit is not None and capped else shown
    here = f"{total:.0f} GiB{' (container limit)' if capped else ''}"
    verdict, use = next(
        (verdict, use)
        for least, verdict, use in (
            (60, "ok", "large models, and optimizer states offloaded to the CPU"),
            (15, "ok for small", "models to 13B that live on the GPU, no CPU offload of 7B and more"),
            (0, "short", "models to about 3B: loading needs the largest shard and 4 GB beside it"),
        )
        if total >= least
    )
    return ("RAM", "16-32 GB small models, 64 GB and more large ones", here, verdict, use)


def _disk(machine: Machine) -> tuple[str, ...]:
    disk = next((one for one in machine.disks if one.place.startswith("models")), None)
    if disk is None:
        return ()
    slow = disk.kind in {"hdd", "network"} or (disk.read_mb_s is not None and disk.read_mb_s < 200)
    speed = f", {disk.read_mb_s:,.0f} MB/s" if disk.read_mb_s else ""
    here = f"{disk.free_gib:.0f} GiB free, {disk.kind}{speed}"
    verdict, use = next(
        (verdict, use)
        for least, verdict, use in (
            (450, "ok", "several models, checkpoints and merged copies"),
            (60, "ok for small", "a 7B LoRA with merge and GGUF (45 GB); not full 7B (250 GB)"),
            (0, "short", "models to some 3B; a 7B LoRA with merge and GGUF needs 45 GB"),
        )
        if disk.free_gib >= least
    )
    pace = disk.read_mb_s or (130.0 if slow else None)
    load = f"; 15 GB load in {15000 / pace:.0f} s" if pace else ""
    return ("disk", "NVMe, 500 GB to 1 TB free", here, "slow" if slow else verdict, use + load)
