"""What a run puts on disk, and the RAM that loading takes: each item with its reason.

Where the numbers come from.
- Download: what the repository's safetensors hold, 2 B a parameter in 16 bit; `from_pretrained` fetches nothing else.
  4-bit loading downloads the 16-bit files all the same, unless the repository itself is quantised.
- Cache: Arrow files of the raw rows and of every pass over them. datasets stores input_ids as int32, labels and masks
  as int64; TRL 1.16 tokenises with a mask (12 B a token), adds labels (20) and cuts (12), and each pass is kept.
- Checkpoints: a Trainer writes the new one before it removes the oldest, so there are save_total_limit + 1 for a while.
  Each holds the trained weights and both AdamW states, in the format they have in memory, and about 20 MB beside
  (tokenizer, scheduler, random states).
- Merged copy: all parameters in 16 bit, staged beside the final name and then renamed.
- GGUF: llama.cpp's bits a weight (f16 16, q8_0 8.5, q4_k_m 4.85); a quantised file is made from an f16 one.
- RAM while loading: safetensors are mapped and copied tensor by tensor, so a file's pages count only while they are in
  use: one shard, beside Python, torch and CUDA (3 GiB) and each data worker (0.5 GiB).

Not covered: hf-xet's chunk cache, other revisions in the hub's cache, logs of trackers, swap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nbkit.display import Table
from nbkit.errors import NbkitError
from nbkit.hardware.parts import GIB

SHARD_BYTES = 5_000_000_000  # what most repositories on the hub were saved with
PROCESS_GIB, WORKER_GIB, CHECKPOINT_EXTRA = 3.0, 0.5, 20_000_000
TOKEN_BYTES = 12 + 20 + 12
GGUF_BITS: Mapping[str, float] = {"f16": 16, "q8_0": 8.5, "q6_k": 6.56, "q5_k_m": 5.69, "q4_k_m": 4.85}


@dataclass(frozen=True)
class Item:
    """One thing on disk: GiB and why so many."""

    name: Literal["download", "cache", "checkpoints", "merge", "gguf"]
    gib: float
    reason: str


@dataclass(frozen=True)
class Disk:
    """What a run needs on disk."""

    items: tuple[Item, ...]

    @property
    def gib(self) -> float:
        """Altogether, at the worst moment."""
        return sum(item.gib for item in self.items)

    def as_mapping(self) -> dict[str, float]:
        """GiB by name, as in Prediction.disk."""
        return {item.name: item.gib for item in self.items}

    def fits(self, free_gib: float) -> bool:
        """With a tenth to spare: a full disk ends a run and breaks other programs."""
        return self.gib * 1.1 <= free_gib

    def table(self) -> Table:
        """Items, sum and reasons."""
        rows: list[list[object]] = [[item.name, round(item.gib, 2), item.reason] for item in self.items]
        rows.append(["altogether", round(self.gib, 2), ""])
        return Table(["on disk", "GiB", "why"], rows, title="Disk that the run takes")

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def disk(
    params: int,
    *,
    trained: int,
    trained_bytes: float = 4,
    state_bytes: float = 8,
    download_bytes: int | None = None,
    download_dtype_bytes: float = 2,
    dataset_bytes: int = 0,
    tokens: int = 0,
    save_total_limit: int | None = 2,
    saves: int | None = None,
    embedding_params: int = 0,
    merge: bool = False,
    gguf: str | None = None,
) -> Disk:
    """Reckon the disk that a run takes.

    Args:
        params: All parameters of the model.
        trained: Those that are trained: LoRA's own, or all.
        trained_bytes, state_bytes: Of one trained parameter and of its optimizer states: 4 and 8 for fp32 adapters with
            AdamW, 2 for the states of an 8-bit one.
        download_bytes: Of the repository's safetensors where known; else params x `download_dtype_bytes`. 0 for a model
            that is there already.
        dataset_bytes, tokens: Of the raw rows, and after tokenising.
        save_total_limit: The trainer's; None keeps every checkpoint.
        saves: How many checkpoints the whole run writes; needed where the limit is None, and it bounds the number.
        embedding_params: Saved with each adapter when the vocabulary was resized.
        merge: A merged 16-bit copy is exported at the end.
        gguf: Type of a GGUF export, such as "q4_k_m".
    Raises: NbkitError (exit code 2) for nonsense values or an unknown GGUF type.
    """
    for name, value in (("params", params), ("trained", trained), ("dataset_bytes", dataset_bytes), ("tokens", tokens)):
        if value < 0:
            raise NbkitError(f"{name}={value}: it cannot be negative.", exit_code=2)
    if gguf is not None and gguf not in GGUF_BITS:
        raise NbkitError(f"gguf={gguf!r} is unknown.", hint=", ".join(GGUF_BITS), exit_code=2)
    items = [_download(params, download_bytes, download_dtype_bytes)]
    if dataset_bytes or tokens:
        gib = (dataset_bytes + TOKEN_BYTES * tokens) / GIB
        items.append(
            Item("cache", gib, f"Arrow copy of the rows, and {tokens:,} tokens at {TOKEN_BYTES} B in TRL's passes")
        )
    number = _checkpoints(save_total_limit, saves)
    one = trained * (trained_bytes + state_bytes) + embedding_params * 2 + (CHECKPOINT_EXTRA if number else 0)
    shown = f"{one / GIB:.2f} GiB" if one >= GIB / 10 else f"{one / 2**20:.0f} MiB"
    why = f"{number} x {shown}: weights {trained_bytes:g} B and states {state_bytes:g} B a trained parameter"
    if save_total_limit is not None and number == save_total_limit + 1:
        why += "; one more than save_total_limit while a new one is written"
    items.append(Item("checkpoints", number * one / GIB, why))
    if merge:
        items.append(Item("merge", 2 * params / GIB, "all parameters in 16 bit"))
    if gguf is not None:
        bits = GGUF_BITS[gguf] + (0 if gguf == "f16" else 16)
        why = f"{GGUF_BITS[gguf]:g} bit a weight" + ("" if gguf == "f16" else ", made from an f16 file")
        items.append(Item("gguf", params * bits / 8 / GIB, why))
    return Disk(tuple(items))


def said(kinds: Mapping[str, float]) -> str:
    """GiB by kind in a sentence."""
    each = ", ".join(f"{name} {gib:.2f}" for name, gib in kinds.items() if gib)
    return f"Disk {sum(kinds.values()):.1f} GiB{f': {each}' if each else ''}."


def of_run(
    params: int,
    trained: int,
    *,
    adapted: bool,
    trained_bytes: float,
    state_bytes: float,
    args: Any = None,
    lengths: Sequence[int] = (),
    local: bool = False,
) -> tuple[Disk, tuple[str, ...]]:
    """The disk of the run that a trainer's arguments ask for, and doubts, a sentence each.

    Args:
        adapted: Adapters are trained: a merged copy may be exported afterwards, and is counted.
        args: SFTConfig or TrainingArguments; None for two checkpoints kept.
        lengths: Tokens of each row, as far as they are known.
        local: The model's files are here already.
    """
    limit, saves = getattr(args, "save_total_limit", 2), None if args is None else _saves(args, len(lengths))
    notes: tuple[str, ...] = ()
    if limit is None and saves is None:
        saves = 1
        notes = (
            "save_total_limit is None: every checkpoint stays on the disk; one is counted. Set save_total_limit=2.",
        )
    found = disk(
        params, trained=trained, trained_bytes=trained_bytes, state_bytes=state_bytes, saves=saves, merge=adapted,
        save_total_limit=limit, tokens=sum(lengths), download_bytes=0 if local else None,
    )  # fmt: skip
    return found, notes


def _saves(args: Any, rows: int) -> int | None:
    """How many checkpoints a run writes; None where its length is not known."""
    strategy = getattr(args, "save_strategy", "steps")
    strategy, epochs = str(getattr(strategy, "value", strategy)), getattr(args, "num_train_epochs", None) or 3
    if strategy == "no":
        return 0
    if strategy == "epoch":
        return math.ceil(epochs)
    steps = getattr(args, "max_steps", -1)
    if steps <= 0:
        if not rows:
            return None
        steps = math.ceil(epochs * rows / (args.per_device_train_batch_size * args.gradient_accumulation_steps))
    every = getattr(args, "save_steps", 500)
    every = every if every >= 1 else max(every * steps, 1)  # a share of the run
    return math.ceil(steps / every)  # the last step is saved too


def _download(params: int, known: int | None, width: float) -> Item:
    if known == 0:
        return Item("download", 0.0, "there already")
    if known is not None:
        return Item("download", known / GIB, "the repository's safetensors")
    return Item("download", params * width / GIB, f"{params / 1e9:.2f}B parameters at {width:g} B")


def _checkpoints(limit: int | None, saves: int | None) -> int:
    if limit is None and saves is None:
        raise NbkitError(
            "save_total_limit is None, so every checkpoint stays: their number must be known.",
            hint="set save_total_limit=2 in the trainer's arguments, or give saves=",
            exit_code=2,
        )
    if limit is not None and limit < 1:
        raise NbkitError(f"save_total_limit={limit}: it must be at least 1, or None to keep all.", exit_code=2)
    if saves is not None and saves < 0:
        raise NbkitError(f"saves={saves}: it cannot be negative.", exit_code=2)
    kept = None if limit is None else limit + 1
    return min(number for number in (kept, saves) if number is not None)


def host_gib(
    download_bytes: int, *, shard_bytes: int | None = None, workers: int = 0, offloaded_gib: float = 0.0
) -> tuple[float, str]:
    """RAM of a process that trains on a GPU, with its reason.

    Args:
        download_bytes: Of the model's files.
        shard_bytes: Of the largest one; 5 GB, or the whole, where it is not known.
        workers: Data loader processes.
        offloaded_gib: Weights and states that stay in RAM.
    """
    shard = min(download_bytes, SHARD_BYTES) if shard_bytes is None else shard_bytes
    moving = max(shard / GIB, offloaded_gib)
    gib = PROCESS_GIB + moving + workers * WORKER_GIB
    what = "what is offloaded" if offloaded_gib > shard / GIB else "the largest file while it is loaded"
    extra = f", {workers} data workers" if workers else ""
    return gib, f"Python, torch and CUDA {PROCESS_GIB:g} GiB, {what} {moving:.1f} GiB{extra}"
