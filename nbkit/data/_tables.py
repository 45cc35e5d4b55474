"""CSV, TSV and Parquet. Strings stay strings: `NA`, `null` and `007` are text until the reader's owner says otherwise.

Source: RFC 4180. Not covered: comment lines, thousands separators, more than one header line.
"""

from __future__ import annotations

import csv
import sys
from typing import TYPE_CHECKING

from nbkit.data import _text
from nbkit.data.rows import Progress, Row
from nbkit.errors import DataError, require

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def read_csv(path: Path, limit: int | None = None, *, delimiter: str = ",") -> tuple[list[Row], list[int]]:
    """The rows of a CSV file, plain or .gz, and the line each begins on.

    Raises: DataError, naming file and line.
    """
    rows: list[Row] = []
    numbers: list[int] = []
    header: list[str] = []
    progress = Progress(f"reading {path.name}")
    for number, cells in _records(path, delimiter):
        if not header:
            _check_header(path, number, cells, delimiter)
            header = cells
            continue
        if limit is not None and len(rows) >= limit:
            break
        if len(cells) != len(header):
            raise DataError(
                f"{path}:{number}: {len(cells)} fields where the header has {len(header)} ({', '.join(header)}).",
                hint=f'put text that holds {delimiter!r} or a line end in double quotes, and write " inside it as ""',
            )
        rows.append(dict(zip(header, cells, strict=True)))
        numbers.append(number)
        progress(len(rows))
    if not header:
        raise _text.blank(path)
    if not rows and limit != 0:
        raise DataError(f"{path} has a header and no rows.", hint="the export wrote no rows: make it again")
    return rows, numbers


def _records(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Each record that is not a blank line, with the line it begins on."""
    if len(delimiter) != 1:
        raise DataError(f"The delimiter must be one character, not {delimiter!r}.", hint='delimiter=";" or "\\t"')
    limit_before = csv.field_size_limit(_text.MAX_LINE_BYTES)
    reader = csv.reader((line.text for line in _text.lines(path)), delimiter=delimiter, strict=True)
    begins = 1
    try:
        for cells in reader:
            if cells:
                yield begins, cells
            begins = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}:{begins}: not CSV: {error}.",
            hint='a quote was opened and not closed; write " inside a quoted field as ""',
        ) from error
    finally:
        csv.field_size_limit(limit_before)


def _check_header(path: Path, number: int, header: list[str], delimiter: str) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(
            f"{path}:{number}: the header names {', '.join(map(repr, twice))} twice; one column would be lost.",
            hint="rename one of the two columns",
        )
    if "" in header:
        raise DataError(
            f"{path}:{number}: column {header.index('') + 1} of {len(header)} has no name.",
            hint="give it a name in the first line (a data frame's index is written without one: index=False)",
        )
    others = [mark for mark in (";", "\t", ",", "|") if mark != delimiter and mark in header[0]]
    if len(header) == 1 and others:
        raise DataError(
            f"{path}:{number}: with delimiter {delimiter!r} the header is one column: {header[0]!r}.",
            hint=f'nbkit.data.read("{path}", delimiter={others[0]!r})',
        )


def read_parquet(path: Path, limit: int | None = None) -> tuple[list[Row], list[int]]:
    """The rows of a Parquet file and their numbers, read in batches.

    Raises: DataError; MissingPackageError when pyarrow is absent.
    """
    require("pyarrow", extra="train")
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[Row] = []
    progress = Progress(f"reading {path.name}")
    most = sys.maxsize if limit is None else limit
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                rows.extend(batch.to_pylist()[: most - len(rows)])
                progress(len(rows))
                if len(rows) >= most:
                    break
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}",
            hint="its last bytes hold the table of contents: a file that was cut off must be fetched again",
        ) from error
    if not rows and limit != 0:
        raise DataError(f"{path} holds no rows.", hint="the export wrote no rows: make it again")
    return rows, list(range(1, len(rows) + 1))
