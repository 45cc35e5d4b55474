"""The published measurements of bench/data/vram_measured.csv, and the configs of their models."""

from __future__ import annotations

import csv
import functools
import json
from dataclasses import dataclass
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


def rows(path: Path = DATA / "vram_measured.csv") -> list[Row]:
    """All rows of the file."""
    with path.open(newline="", encoding="utf-8") as file:
        return [_row(fields) for fields in csv.DictReader(file)]


def frameworks() -> list[str]:
    """Every framework of the file."""
    return sorted({row.framework for row in rows()})


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
