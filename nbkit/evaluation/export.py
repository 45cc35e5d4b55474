"""One model out of base and adapter, proven equal before it gets its name."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from nbkit import atomic
from nbkit.data.rows import Progress
from nbkit.display import Table
from nbkit.errors import ModelError, StorageError, require
from nbkit.evaluation.adapter import require_adapter
from nbkit.evaluation.encode import Example, encode
from nbkit.evaluation.generate import end_tokens, greedy
from nbkit.evaluation.loss import mean_loss, row_losses
from nbkit.evaluation.merge import save_merged
from nbkit.evaluation.score import capped
from nbkit.models.quiet import no_bars

Width = Literal["bfloat16", "float16", "float32"]
_WIDTHS: tuple[Width, ...] = ("bfloat16", "float16", "float32")
_SLACK = 0.01  # nats per token, 1 % in perplexity: below it a relative tolerance of a tiny loss would be rounding noise
_ANSWERS, _NEW_TOKENS = 4, 64
# What loaders leave in JSON files: where the model lay on this machine, how it was read, how it was stored in training.
_STALE = ("_name_or_path", "name_or_path", "is_local", "local_files_only", "_pre_quantization_dtype")


@dataclass(frozen=True)
class Evidence:
    """What a model does on held-out rows: its loss, and its greedy answers to the first few."""

    loss: float
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Export:
    """A folder that `from_pretrained` reads, and the proof that it is the model that was trained.

    Attributes:
        path: The folder.
        base: Name of the base model; empty when only a local path is known.
        dtype: How the weights are stored.
        size: Bytes of the weights.
        rows: Held-out rows that were used for the proof.
        loss_before: Their loss with the adapter on the base, as trained.
        loss_after: Their loss with the folder, loaded anew.
        agreeing: Rows with the same greedy answer before and after.
        answers: Rows whose answers were compared.
    """

    path: Path
    base: str
    dtype: str
    size: int
    rows: int
    loss_before: float
    loss_after: float
    agreeing: int
    answers: int

    def table(self) -> Table:
        """The proof, line by line."""
        lines = [
            ("held-out loss, adapter on its base", self.loss_before),
            ("held-out loss, exported folder read anew", self.loss_after),
            ("same greedy answers", f"{self.agreeing} of {self.answers}"),
            ("stored as", f"{self.dtype}, {self.size / 2**20:,.0f} MiB"),
        ]
        return Table(["export", "value"], lines, title=f"{self.path.name}: checked on {self.rows} held-out rows")

    def as_dict(self) -> dict[str, Any]:
        """The numbers, for JSON; the folder by its name only."""
        return {**asdict(self), "path": self.path.name}

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def export(
    model: Any,
    tokenizer: Any,
    path: str | Path,
    *,
    rows: Iterable[Mapping[str, Any]],
    base: str | None = None,
    tolerance: float = 0.02,
    dtype: Width | None = None,
) -> Export:
    """Merge the adapter into full-precision weights, write them, read them back, and keep them only if they are as good.

    The folder takes its final name after the proof; until then, and when it fails, what stood there before stays. The
    caller's model is only read. Needs memory for one merged copy (2 bytes a parameter at 16 bits), and after that for the
    copy that is read back: 4 bytes a parameter on a CPU, where 16-bit arithmetic is slow, as stored on a GPU.

    Args:
        model: A PeftModel with a LoRA-like adapter, on a 4-bit, 8-bit or plain base.
        tokenizer: Saved beside it, with its chat template.
        path: The folder to make; an existing one is replaced.
        rows: Held-out rows for the proof.
        base: Name of the base model for the record; else the adapter's, unless that is a path of this machine.
        tolerance: How much worse the loss may be, relative; at least 0.01 nats per token are allowed.
        dtype: Not given, the first of bfloat16, float16 and float32 that passes. bfloat16 has the range of float32, so
            neither weights nor activations of any model overflow; but its last bit is as large as what a light fine-tune
            changes in a weight (after 3 steps on the embedded model: loss 0.656, as bfloat16 0.700). float16 has three
            bits more, and is for GPUs before Ampere too; float32 rounds nothing.
    Raises: ModelError when the exported model is worse, cannot be merged, or does not fit in memory; DataError for rows
        that cannot be scored; StorageError when the disk is full.
    """
    require("torch", "transformers", "peft", "safetensors", extra="train")
    import torch

    require_adapter(model)
    kept = capped(rows)
    examples = encode(tokenizer, kept)
    path = Path(path)
    widths = _WIDTHS if dtype is None else (dtype,)
    _require_room(model, path, getattr(torch, widths[0]).itemsize)
    before = evidence(model, tokenizer, examples, "before export")
    allowed = _allowed(before, tolerance)
    ends = end_tokens(model, tokenizer, examples)
    with atomic.folder(path) as staged, no_bars():
        for width in widths:
            _empty(staged)
            size = save_merged(model, staged, dtype=getattr(torch, width), ends=ends, pad=tokenizer.pad_token_id)
            tokenizer.save_pretrained(staged)
            _scrub(staged)
            after = _read_back(staged, kept)
            if after.loss <= allowed:
                break
        _refuse_worse(after, before, tolerance, path.name)
    return Export(
        path=path,
        base=base if base is not None else _base_name(model),
        dtype=width,
        size=size,
        rows=len(examples),
        loss_before=before.loss,
        loss_after=after.loss,
        agreeing=sum(one == other for one, other in zip(before.answers, after.answers, strict=True)),
        answers=len(before.answers),
    )


def check_folder(
    folder: str | Path, rows: Iterable[Mapping[str, Any]], before: Evidence, *, tolerance: float = 0.02, name: str = ""
) -> Evidence:
    """Read a model folder as a stranger would, tokenizer and all, and refuse it when its loss is worse than `before`.

    Any folder will do: one made by `export`, by `merge_and_unload`, or by another tool.

    Args:
        folder: With a model and its tokenizer.
        rows: The rows that `before` was measured on.
        before: `evidence` of the model that was trained.
        tolerance: Relative; at least 0.01 nats per token are allowed.
        name: What to call the folder in an error.
    Returns: The folder's own evidence.
    Raises: ModelError naming both losses.
    """
    folder = Path(folder)
    after = _read_back(folder, rows)
    _refuse_worse(after, before, tolerance, name or folder.name)
    return after


def _read_back(folder: Path, rows: Iterable[Mapping[str, Any]]) -> Evidence:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"device_map": "auto", "dtype": "auto"} if torch.cuda.is_available() else {"dtype": torch.float32}
    with no_bars():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, **where)
    try:
        return evidence(model, tokenizer, encode(tokenizer, rows), "after export")
    finally:
        del model
        gc.collect()


def _allowed(before: Evidence, tolerance: float) -> float:
    return before.loss + max(tolerance * before.loss, _SLACK)


def _refuse_worse(after: Evidence, before: Evidence, tolerance: float, name: str) -> None:
    allowed = _allowed(before, tolerance)
    if not after.loss <= allowed:  # also refuses NaN
        raise ModelError(
            f"{name} was not kept: its held-out loss is {after.loss:.4f}, before the export it was {before.loss:.4f} "
            f"(allowed: {allowed:.4f}). Nothing new stands under that name.",
            hint="export the PeftModel that was trained with nbkit.evaluation.export, without dtype so that it finds one "
            "that is exact enough; merging into 4-bit weights (merge_and_unload) loses the fine-tune. Keep the adapter "
            "meanwhile: model.save_pretrained(folder)",
        )


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def evidence(model: Any, tokenizer: Any, examples: Sequence[Example], name: str = "") -> Evidence:
    """The loss of `examples` and the greedy answers to the first four."""
    losses = row_losses(model, examples, Progress(f"{name}: loss of {len(examples)} rows"))
    shown = [example for example in examples[:_ANSWERS] if example.prompt_ids]
    answers = greedy(model, tokenizer, shown, max_new_tokens=_NEW_TOKENS, batch_size=_ANSWERS)
    return Evidence(mean_loss(losses), tuple(answer.text for answer in answers))


def _require_room(model: Any, path: Path, width: int) -> None:
    """Fail before the work and not after it."""
    import psutil
    import torch

    base = model.get_base_model()
    parameters = base.num_parameters()
    need = parameters * (width if torch.cuda.is_available() else max(width, 4)) * 1.1
    free = psutil.virtual_memory().available
    if need > free:
        raise ModelError(
            f"Exporting {parameters / 1e9:.2f} billion parameters needs {need / 2**30:.1f} GiB of memory, and "
            f"{free / 2**30:.1f} GiB are free.",
            hint="keep the adapter (model.save_pretrained(folder)) and export it on a machine with more memory",
        )
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    disk = shutil.disk_usage(folder).free
    if parameters * width * 1.05 > disk:
        raise StorageError(
            f"The export needs {parameters * width / 2**30:.2f} GiB in {folder}, and {disk / 2**30:.2f} GiB are free.",
            hint="free some space, or choose a folder on another disk",
        )


def _scrub(folder: Path) -> None:
    """Take out of the JSON files what names this machine."""
    for file in folder.glob("*.json"):
        content = json.loads(file.read_text())
        if isinstance(content, dict) and any(key in content for key in _STALE):
            atomic.write_json(file, {key: value for key, value in content.items() if key not in _STALE})


def _base_name(model: Any) -> str:
    named = str(getattr(model.peft_config[model.active_adapter], "base_model_name_or_path", "") or "")
    local = Path(named).expanduser().exists() or named.startswith(("/", ".", "~")) or "\\" in named
    return "" if local else named
