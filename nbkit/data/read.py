"""Read rows from a file, a `datasets.Dataset` or a list, and remember where each came from."""

from __future__ import annotations

import difflib
import shlex
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbkit.data import _json, _tables
from nbkit.data.rows import Row, Rows
from nbkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable

KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def read(source: str | Path | Iterable[Row], *, limit: int | None = None, delimiter: str | None = None) -> Rows:
    """Read rows, strictly: what cannot be read whole is an error with its line, never a guess.

    Args:
        source: A .jsonl, .json, .csv, .tsv or .parquet file (text kinds also as .gz), a `datasets.Dataset`, a list of
            dictionaries, or Rows.
        limit: Stop after so many rows; nothing behind them is looked at.
        delimiter: Of a .csv or .tsv file; a comma or a tab otherwise.
    Returns: Rows. Values of CSV are strings, also `NA` and empty ones; a byte-order mark, CRLF and blank lines vanish.
    Raises: DataError, naming `file:line:column` and the fix; MissingPackageError for Parquet without pyarrow.
    Source: RFC 8259, RFC 4180. Not covered: hub names (load_dataset gives a Dataset), pandas, folders.
    """
    if limit is not None and limit < 0:
        raise DataError(f"limit must be 0 or more, not {limit}.", hint="leave it out to read all rows")
    if isinstance(source, Rows):
        return source if limit is None else source[:limit]
    if isinstance(source, (str, Path)):
        return _read_file(Path(source), limit, delimiter)
    return _read_objects(source, limit)


def _read_file(path: Path, limit: int | None, delimiter: str | None) -> Rows:
    try:
        kind = _kind(path)
        if kind == ".parquet":
            return Rows(*_tables.read_parquet(path, limit), source=str(path), unit="row")
        if kind in {".csv", ".tsv"}:
            mark = delimiter or ("\t" if kind == ".tsv" else ",")
            return Rows(*_tables.read_csv(path, limit, delimiter=mark), source=str(path))
        reader = _json.read_json if kind == ".json" else _json.read_jsonl
        return Rows(*reader(path, limit), source=str(path))
    except PermissionError as error:
        raise DataError(f"No permission to read {path}.", hint=f"ls -l {shlex.quote(str(path))}") from error


def _kind(path: Path) -> str:
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if _suffix(file) in KINDS)
        found = f"; it holds {', '.join(inside[:5])}" if inside else ""
        prepared = (path / "dataset.json").is_file()
        raise DataError(
            f"{path} is a folder{found}.",
            hint=f'nbkit.data.load_prepared("{path}")' if prepared else "read one file of it at a time",
        )
    if not path.exists():
        raise DataError(f"There is no file {path}{_near(path) or '.'}", hint=f"ls {shlex.quote(str(path.parent))}")
    kind = _suffix(path)
    if kind not in KINDS:
        raise DataError(
            f"{path}: {kind or 'a name without an ending'} is not one of {', '.join(KINDS)} (text kinds also .gz).",
            hint="name the file after what it holds; JSON Lines is .jsonl",
        )
    if kind == ".parquet" and path.suffix.lower() == ".gz":
        raise DataError(f"{path}: Parquet compresses inside; a .gz of it is not read.", hint=f"gunzip {path}")
    return kind


def _suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    kind = Path(name).suffix
    return ".jsonl" if kind == ".ndjson" else kind


def _near(path: Path) -> str:
    names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""


def _read_objects(source: Iterable[Row], limit: int | None) -> Rows:
    datasets = sys.modules.get("datasets")  # an instance exists only where it was imported
    if datasets is not None and isinstance(source, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        raise DataError(
            f"A DatasetDict holds several splits: {', '.join(source)}.",
            hint=f'nbkit.data.read(dataset["{next(iter(source), "train")}"])',
        )
    is_dataset = datasets is not None and isinstance(source, (datasets.Dataset, datasets.IterableDataset))
    if not is_dataset and not isinstance(source, (list, tuple)):
        raise DataError(
            f"Rows are read from a path, a datasets.Dataset or a list of dictionaries, not from {_name(source)}.",
            hint='a pandas data frame: nbkit.data.read(frame.to_dict("records"))',
        )
    where = "dataset" if is_dataset else "list"
    rows: list[Any] = list(islice(source, limit))
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(
                f"{where}, row {number}: a row must be a dictionary, this is {_name(row)}.",
                hint='[{"prompt": "...", "completion": "..."}, ...]',
            )
    if not rows and limit != 0:
        raise DataError(f"The {where} is empty.", hint="an empty split cannot be used; look at what made it")
    return Rows(rows, list(range(1, len(rows) + 1)), source=where, unit="row")


def _name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
