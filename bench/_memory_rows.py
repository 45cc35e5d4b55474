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
    if row.framework == "litgpt":
        return _litgpt(row)
    if row.framework == "peft/transformers":
        return _metamath(row)
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


def _targets(row: Row) -> list[str]:
    names: list[str] = []
    for one in row.fields["lora_targets"].replace(" ", "").split(","):
        names += TARGETS.get(one, (one,))
    return names


def _four_bit(row: Row) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant="double_quant=yes" in row.fields["note"],
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _litgpt(row: Row) -> Call | None:
    """finetune/lora.py: dropout 0.05, AdamW (paged where the table says so), bitsandbytes before 0.43.2.

    The tables of October 2023 (A100) run the longest sample first, so nothing of a step before is held; those of 2024
    (A10G) shuffle, and the loss of the step before holds its graph.
    """
    from nbkit.memory import Program

    shape, model = _shape(row), config(row.fields["model"])
    if shape is None or model is None:
        return None
    lora = None
    if row.fields["method"] != "full":
        lora = _lora(row, _targets(row), lora_dropout=0.05)
    quantised = row.fields["method"] == "qlora"
    mixed = "mixed" in row.fields["dtype"]
    program = Program.litgpt(
        optimizer="adamw paged" if "paged" in row.fields["optimizer"] else "adamw foreach",
        extra_4bit_copy=quantised,
        holds_outputs="backward" if row.fields["gpu"].startswith("A100") else "next",
        autocast="bfloat16" if mixed else None,
    )
    return Call(
        model,
        {
            **shape, "program": program, "peft_config": lora, "dtype": "float32" if mixed else "bfloat16",
            "quantization_config": _four_bit(row) if quantised else None, "accumulates": row.fields["batch"] != "128",
        },
    )  # fmt: skip


def _metamath(row: Row) -> Call | None:
    """PEFT's method_comparison/MetaMathQA/run.py: bf16 base, float32 adapters, outputs and loss bound until the next."""
    from nbkit.memory import Program

    shape, model = _shape(row), config(row.fields["model"])
    if shape is None or model is None or row.fields["method"] not in {"full", "lora"}:
        return None
    program = Program.plain_loop(empties_cache=True)
    lora = _lora(row, _targets(row)) if row.fields["method"] == "lora" else None
    options = {**shape, "program": program, "peft_config": lora, "dtype": "bfloat16"}
    return Call(model, options, compare="reserved_gib")


def unit(row: Row) -> str:
    """GB or GiB, as the note says."""
    found = re.search(r"unit=(\w+)", row.fields["note"])
    return found[1] if found else ""
