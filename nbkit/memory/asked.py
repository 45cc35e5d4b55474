"""Read the trainer's arguments: what batch, length, checkpointing and formats a run was asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from nbkit.data import TokenStats
from nbkit.errors import NbkitError
from nbkit.memory.program import Program, refuse_offloading
from nbkit.memory.source import Source

DEFAULT_LENGTH = 1024  # SFTConfig.max_length of TRL 1.16
MOST_ROWS, MOST_TOKENS = 1 << 16, 1 << 27  # of a micro-batch, and of anything else: beyond any run
_IGNORED = -100  # torch's ignore_index, the label of what the loss leaves out


@dataclass(frozen=True)
class Asked:
    """A run in plain values.

    Attributes:
        lengths: Tokens of each row of the data, cut to `seq`; empty without data.
        batch, seq: Shape of the tensor that the model sees; padding-free batches are one long row.
        scored: Share of its positions that the loss counts, in the micro-batch with the most of them; 1 where the data
            does not say.
    """

    batch: int
    seq: int
    lengths: tuple[int, ...]
    checkpointing: dict[str, Any] | None
    accumulates: bool
    packed: bool
    device: Literal["cuda", "cpu"]
    dtype: str
    notes: tuple[str, ...]
    scored: float = 1.0


def read(
    args: Any,
    source: Source,
    program: Program,
    *,
    full: bool,
    quantization: Any,
    dataset: Any,
    batch: int | None,
    seq: int | None,
    dtype: str | None,
    device: Literal["cuda", "cpu"] | None,
) -> Asked:
    """Put together what `args`, the data and explicit values say; explicit values win.

    Raises: NbkitError (exit code 2) for values that no run can have.
    """
    notes: list[str] = []
    rows = _positive("batch", batch if batch is not None else getattr(args, "per_device_train_batch_size", 1))
    longest_allowed = (
        seq if seq is not None else getattr(args, "max_length", None if args is not None else DEFAULT_LENGTH)
    )
    lengths = tuple(lengths_of(dataset)) if dataset is not None else ()
    trained = trained_of(dataset, longest_allowed)
    if longest_allowed is not None:
        lengths = tuple(min(one, int(longest_allowed)) for one in lengths)
    packing = bool(getattr(args, "packing", False))
    padding_free = bool(getattr(args, "padding_free", False)) or (
        packing and getattr(args, "packing_strategy", "bfd") in {"bfd", "bfd_split"}
    )
    length = _length(longest_allowed, lengths, notes, exact=seq is not None, packing=packing)
    scored = 1.0 if packing or not trained else min(1.0, sum(sorted(trained)[-rows:]) / (rows * length))
    if padding_free and rows > 1:
        notes.append(f"Padding-free: {rows} rows of {length} tokens are one row of {rows * length}.")
        rows, length = 1, rows * length
    where = device or ("cpu" if getattr(args, "use_cpu", False) else "cuda")
    _positions(source, length if not padding_free else length // max(1, rows), notes)
    return Asked(
        batch=rows,
        seq=length,
        lengths=lengths,
        checkpointing=_checkpointing(args, program),
        accumulates=_positive("gradient_accumulation_steps", getattr(args, "gradient_accumulation_steps", 1)) > 1,
        packed=padding_free,
        device=where,
        dtype=_dtype(
            dtype, args, source, program, full=full, quantization=quantization, on_cpu=where == "cpu", notes=notes
        ),
        notes=tuple(notes),
        scored=scored,
    )


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise NbkitError(f"{name}={value!r}: it must be a whole number of at least 1.", exit_code=2)
    most = MOST_ROWS if "batch" in name else MOST_TOKENS
    if value > most:
        raise NbkitError(
            f"{name}={value:,}: a step has {most:,} at most here.", hint="is there a typing error?", exit_code=2
        )
    return value


def _length(allowed: Any, lengths: tuple[int, ...], notes: list[str], *, exact: bool, packing: bool) -> int:
    if exact or (packing and allowed is not None):
        return _positive("seq", allowed)
    if lengths:
        longest = max(lengths)
        notes.append(f"The longest row has {longest:,} tokens; the others decide only what the allocator reserves.")
        return _positive("the longest row", longest)
    if allowed is not None:
        return _positive("max_length", allowed)
    notes.append(f"Nothing says how long the rows are: {DEFAULT_LENGTH} tokens are taken. Give seq=... or dataset=...")
    return DEFAULT_LENGTH


def lengths_of(dataset: Any) -> Iterable[int]:
    """Tokens of each row: of TokenStats, a column `input_ids`, rows with that key, lists of ids, or plain lengths.

    Raises: NbkitError when rows hold no tokens yet.
    """
    if isinstance(dataset, TokenStats):
        return dataset.total
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, dict):  # a DatasetDict
        return lengths_of(dataset["train"] if "train" in columns else dataset[next(iter(columns))])
    if columns is not None:
        if "length" in columns:
            return [int(one) for one in dataset["length"]]
        if "input_ids" in columns:
            return [len(ids) for (ids,) in _rows(dataset, "input_ids")]
        raise _no_tokens(f"columns {', '.join(map(str, columns))}")
    found = []
    for row in dataset:
        ids = row.get("input_ids") if isinstance(row, dict) else row
        if isinstance(ids, int):
            found.append(ids)
        elif ids is None or isinstance(ids, str):
            raise _no_tokens("rows without input_ids")
        else:
            found.append(len(ids))
    if not found:
        raise NbkitError("The dataset is empty.", exit_code=2)
    return found


def trained_of(dataset: Any, limit: int | None) -> tuple[int, ...]:
    """Tokens of each row that the loss counts once `limit` has cut it: of TokenStats, or of a tokenised dataset's labels
    or masks (TRL's names). Empty where the data does not say.
    """
    end = slice(limit)
    if isinstance(dataset, TokenStats):
        rows = zip(dataset.trained, dataset.first, strict=True)
        return tuple(trained if limit is None else min(trained, max(0, limit - first)) for trained, first in rows)
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, dict):
        return trained_of(dataset["train"] if "train" in columns else dataset[next(iter(columns))], limit)
    if not columns or "input_ids" not in columns:
        return ()
    if "labels" in columns:
        return tuple(int((labels[end] != _IGNORED).sum()) for (labels,) in _rows(dataset, "labels"))
    names = [name for name in ("completion_mask", "assistant_masks") if name in columns]
    return tuple(int(math.prod(mask[end] for mask in masks).sum()) for masks in _rows(dataset, *names)) if names else ()


def _rows(dataset: Any, *names: str) -> Iterator[tuple[Any, ...]]:
    """The columns of each row as arrays [tokens]; no Python number is made of a token."""
    for some in dataset.select_columns(list(names)).with_format("numpy").iter(1000):
        yield from zip(*(some[name] for name in names), strict=True)


def _no_tokens(seen: str) -> NbkitError:
    return NbkitError(
        f"The dataset is not tokenised: it has {seen}.",
        hint="give trainer.train_dataset, nbkit.data.token_stats(rows, tokenizer), or seq=2048 in place of the data",
        exit_code=2,
    )


def _positions(source: Source, seq: int, notes: list[str]) -> None:
    limit = getattr(source.config, "max_position_embeddings", None) or getattr(source.config, "n_positions", None)
    if not isinstance(limit, int) or seq <= limit:
        return
    rotary = hasattr(source.config, "rope_theta") or hasattr(source.config, "rope_parameters")
    if not rotary:
        raise NbkitError(
            f"{seq} tokens are more than the {limit} positions that {source.name} has an embedding for.",
            hint=f"max_length={limit}",
            exit_code=2,
        )
    notes.append(
        f"{seq} tokens are more than the {limit} positions {source.name} was trained with: memory is predicted, but "
        "the model will not make sense of them without RoPE scaling."
    )


def _checkpointing(args: Any, program: Program) -> dict[str, Any] | None:
    if args is None:
        return {} if program.loss == "trl fused" else None  # TRL checkpoints unless told otherwise
    on = getattr(args, "activation_checkpointing", None)
    if on is None:
        on = getattr(args, "gradient_checkpointing", False)
    if not on:
        return None
    options = getattr(args, "activation_checkpointing_kwargs", None) or getattr(
        args, "gradient_checkpointing_kwargs", None
    )
    refuse_offloading((options or {}).get("offload"))
    return {key: value for key, value in (options or {}).items() if key not in {"selective", "offload"}}


def _computes_in_fp32(quantization: Any) -> bool:
    computes = getattr(quantization, "bnb_4bit_compute_dtype", None)
    return bool(getattr(quantization, "load_in_4bit", False)) and str(computes) == "torch.float32"


def _dtype(
    chosen: str | None,
    args: Any,
    source: Source,
    program: Program,
    *,
    full: bool,
    quantization: Any,
    on_cpu: bool,
    notes: list[str],
) -> str:
    initial = (getattr(args, "model_init_kwargs", None) or {}).get("dtype")
    name = chosen or (str(initial).removeprefix("torch.") if initial is not None else None)
    if name in {None, "auto"} and on_cpu and _computes_in_fp32(quantization):
        notes.append("Weights in float32, in which the 4-bit maps compute; give dtype=... if you load them otherwise.")
        name = "float32"
    if name in {None, "auto"}:
        name = source.dtype
        if name is None:
            notes.append("The config does not say the format of the weights: float32 is taken.")
            name = "float32"
        elif source.trainer is None:
            notes.append(f"Weights in {name}, as the config says; give dtype=... if you load them otherwise.")
    if name not in {"bfloat16", "float16", "float32"}:
        raise NbkitError(f"dtype={name!r}: weights train in bfloat16, float16 or float32.", exit_code=2)
    if full and program.autocast == "float16" and name != "float32":
        notes.append("fp16 mixed precision cannot unscale 16-bit gradients: full training takes float32 weights.")
        name = "float32"
    return name
