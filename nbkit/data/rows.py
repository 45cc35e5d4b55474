"""Rows, with the line each of them came from: what every verb of nbkit.data takes and gives."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, overload

from nbkit.display import Table
from nbkit.errors import DataError, require
from nbkit.redact import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Row = dict[str, Any]
Unit = Literal["line", "row"]


@dataclass(frozen=True)
class Rows:
    """A list of rows that remembers its source. Treat the rows as read-only; `map` makes changed copies.

    Attributes:
        rows: One dictionary a row.
        lines: Where each row stands in the source, from 1: the line of a text file, else the row's number.
        source: The file's path as it was given, or what else the rows came from.
        unit: What `lines` counts.
    """

    rows: list[Row]
    lines: list[int]
    source: str
    unit: Unit = "line"

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.lines):
            raise ValueError(f"{len(self.rows)} rows and {len(self.lines)} line numbers")

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Row | Rows:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        return self.rows[index]

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in the order they first appear."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def where(self, index: int) -> str:
        """The place of a row as a person looks it up: `data.jsonl:7`, or `data.parquet, row 7`."""
        return place(self.source, self.lines[index], self.unit)

    def select(self, indices: Iterable[int]) -> Rows:
        """The rows at `indices`, in that order, with their lines."""
        chosen = list(indices)
        return dataclasses.replace(self, rows=[self.rows[i] for i in chosen], lines=[self.lines[i] for i in chosen])

    def filter(self, keep: Callable[[Row], bool]) -> Rows:
        """The rows for which `keep(row)` is true."""
        return self.select(i for i, row in enumerate(self.rows) if keep(row))

    def map(self, change: Callable[[Row], Row]) -> Rows:
        """Each row replaced by `change(row)`; lines stay."""
        return dataclasses.replace(self, rows=[change(row) for row in self.rows])

    def to_dataset(self) -> Any:
        """A `datasets.Dataset` with every column (`Dataset.from_list` keeps only those of the first row).

        Raises: DataError when a column mixes types that Arrow cannot hold; MissingPackageError.
        """
        require("datasets", extra="train")
        import datasets
        import pyarrow as pa

        columns = {name: [row.get(name) for row in self.rows] for name in self.columns}
        for name, values in columns.items():
            try:
                pa.array(values)
            except (pa.ArrowException, OverflowError) as error:
                raise DataError(
                    f"{self.source}: column {name!r} cannot become a datasets column: {_first_line(error)}",
                    hint="give the column one type in all rows; nbkit.data.check(rows) lists the rows that differ",
                ) from error
        return datasets.Dataset.from_dict(columns)

    def table(self, count: int = 5) -> Table:
        """The first `count` rows, long cells cut."""
        names = self.columns
        # A line number is a name, not a quantity: as text it gets no thousands separator.
        shown = [[str(line), *(_cell(row.get(name)) for name in names)] for line, row in self._first(count)]
        return Table([self.unit, *names], shown)

    def _first(self, count: int) -> Iterable[tuple[int, Row]]:
        return zip(self.lines[:count], self.rows[:count], strict=True)

    def __repr__(self) -> str:
        # The file's name and not its folder: what a notebook prints should be the same on every machine.
        count = f"{len(self):,} row{'' if len(self) == 1 else 's'}"
        return f"Rows({count} from {PurePath(self.source).name}: {', '.join(self.columns)})"


def place(source: str, line: int, unit: Unit) -> str:
    """`data.jsonl:7` for a line of a text file, `data.parquet, row 7` for a row of anything else."""
    return f"{source}:{line}" if unit == "line" else f"{source}, row {line}"


def quote(value: Any, length: int = 40) -> str:
    """`value` as it may stand in an error: short, on one line, without secrets."""
    text = redact(repr(value))
    return text if len(text) <= length else f"{text[: length - 4]}...{text[-1]}"


def _cell(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class Progress:
    """Shows on stderr that long work is alive: nothing for 2 s, then a line at 2, 4, 8, ... seconds."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.started = time.monotonic()
        self.next_s = 2.0

    def __call__(self, done: int) -> None:
        """Report that `done` rows are behind us."""
        elapsed = time.monotonic() - self.started
        if elapsed >= self.next_s:
            self.next_s *= 2
            print(f"{self.what}: {done:,} rows, {elapsed:.0f} s", file=sys.stderr, flush=True)
