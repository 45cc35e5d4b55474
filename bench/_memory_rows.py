"""Each published measurement as a call of nbkit.predict: model, arguments, program, and how to read its number.

Nothing here is fitted to a row. What a framework's loop does was read in its code; the source stands beside it.
"""

from __future__ import annotations

import csv
import functools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Row:
    """One line of vram_measured.csv.

    Attributes:
        measured_gib: The published peak, decimal gigabytes turned into GiB where the note says so.
        kind: What was measured: allocated, reserved, nvidia-smi...
    """

    id: str
    framework: str
    fields: dict[str, str]
    measured_gib: float
    kind: str

    @property
    def suspect(self) -> bool:
        """The notes call it impossible or a capacity's edge."""
        return "SUSPECT" in self.fields["note"] and "tokens_per_s" not in self.fields["note"]


@dataclass(frozen=True)
class Call:
    """Arguments for nbkit.predict, and which of its numbers is comparable."""

    model: Any
    options: dict[str, Any] = field(default_factory=dict)
    compare: str = "allocated_gib"


def rows(path: Path = DATA / "vram_measured.csv") -> list[Row]:
    """All rows of the file."""
    with path.open(newline="", encoding="utf-8") as file:
        return [_row(fields) for fields in csv.DictReader(file)]


def _row(fields: dict[str, str]) -> Row:
    note = fields["note"]
    decimal = "unit=GB" in note or "unit=G;" in note
    measured = float(fields["peak_mem_gb"]) * (1e9 / 2**30 if decimal else 1.0)
    return Row(fields["id"], fields["framework"], fields, measured, fields["mem_kind"])


@functools.cache
def _names() -> dict[str, Any]:
    return json.loads((DATA / "configs.json").read_text(encoding="utf-8"))


def config(name: str) -> Any:
    """The transformers config for a model name of the csv; None when transformers cannot build it."""
    from transformers import AutoConfig

    from nbkit.models.known import config_of, known

    table = _names()
    if name in table["names"]:
        entry = known(table["names"][name])
        return config_of(entry) if entry else None
    for one in table["models"]:
        if name in one["ids"]:
            options = dict(one["config"])
            return AutoConfig.for_model(options.pop("model_type"), **options)
    return None


TARGETS = {
    "q": ("q_proj",), "k": ("k_proj",), "v": ("v_proj",), "o": ("o_proj", "dense"),
    "gate": ("gate_proj",), "up": ("up_proj",), "down": ("down_proj",),
    "mlp": ("gate_proj", "up_proj", "down_proj", "fc1", "fc2"),
}  # fmt: skip


def call(row: Row) -> Call | None:
    """How to ask nbkit for that row; None where the model or a setting is missing."""
    if row.framework == "transformers 4.57 + peft (plain loop)":
        return _vramcalc(row)
    return None


def _shape(row: Row) -> dict[str, Any] | None:
    batch, seq = row.fields["batch"], row.fields["seq_len"]
    if not batch or not seq:
        return None
    return {"batch": int(batch), "seq": int(seq), "checkpointing": row.fields["grad_ckpt"].startswith("yes")}


def _lora(row: Row, targets: list[str], **options: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=int(row.fields["lora_rank"]), target_modules=targets, task_type="CAUSAL_LM", **options)


def _vramcalc(row: Row) -> Call | None:
    """vramcalc 0.1.2, bench.py: `del out, loss` after the backward, AdamW(foreach=True), zero_grad(set_to_none=False)."""
    from nbkit.memory import Program

    shape, model = _shape(row), config(row.fields["model"])
    if shape is None or model is None:
        return None
    amp = "amp" in row.fields["dtype"]
    program = Program.plain_loop(
        holds_outputs="backward", set_to_none=False, autocast="bfloat16" if amp else None, attention=row.fields["attn"]
    )
    lora = None
    if row.fields["method"] == "lora":
        lora = _lora(row, ["q_proj", "k_proj", "v_proj", "o_proj"])
    return Call(model, {**shape, "program": program, "peft_config": lora, "dtype": "float32" if amp else "bfloat16"})


def unit(row: Row) -> str:
    """GB or GiB, as the note says."""
    found = re.search(r"unit=(\w+)", row.fields["note"])
    return found[1] if found else ""
