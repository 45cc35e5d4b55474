"""Rows that repeat, and rows that stand on both sides of a split. Exact, after evening out Unicode and white space.

Not covered: near duplicates (reworded, reordered).
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

from nbkit.data import formats
from nbkit.data.rows import Progress, Row, Rows, Unit
from nbkit.display import Table
from nbkit.errors import DataError

On = Literal["row", "prompt"]


@dataclass(frozen=True)
class Removed:
    """What dedup took out.

    Attributes:
        pairs: (line removed, line of the first row that it repeats).
        kept: How many rows are left.
        on: What was compared.
    """

    pairs: tuple[tuple[int, int], ...]
    kept: int
    on: On
    unit: Unit = "line"

    def __len__(self) -> int:
        return len(self.pairs)

    def table(self, count: int = 5) -> Table:
        """The first `count` removals."""
        total = len(self) + self.kept
        return Table(
            [f"{self.unit} removed", f"repeats {self.unit}"],
            [(str(line), str(first)) for line, first in self.pairs[:count]],
            title=f"{len(self):,} of {total:,} rows removed: same {self.on} as an earlier one",
            notes=[f"and {len(self) - count:,} more"] if len(self) > count else [],
        )

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


@dataclass(frozen=True)
class Leaks:
    """Rows of held-out splits that stand in the training split too.

    Attributes:
        pairs: (place of the held-out row, place of the training row).
        compared: How many held-out rows were looked up.
        on: What was compared.
    """

    pairs: tuple[tuple[str, str], ...]
    compared: int
    on: On

    def __len__(self) -> int:
        return len(self.pairs)

    def table(self, count: int = 5) -> Table:
        """The first `count` leaks."""
        return Table(
            ["held out", "in training"],
            self.pairs[:count],
            title=f"{len(self):,} of {self.compared:,} held-out rows have their {self.on} in the training split",
            notes=[f"and {len(self) - count:,} more"] if len(self) > count else [],
        )

    def __repr__(self) -> str:
        return str(self.table()) if self.pairs else self.table().title

    def _repr_html_(self) -> str:
        return self.table()._repr_html_() if self.pairs else f"<div>{escape(self.table().title)}</div>"


def dedup(rows: Rows, *, on: On = "row", casefold: bool = False) -> tuple[Rows, Removed]:
    """Keep the first of rows that say the same.

    Args:
        rows: Rows of any format.
        on: `row` compares all that is trained on (question and answer, not `id` or other columns); `prompt` compares
            the question alone, so that one answer a question is left.
        casefold: Also treat `Hello` and `hello` as the same.
    Returns: The rows left, with their lines, and what was removed. Compared after Unicode NFC and with every run of
        white space as one blank, so code that differs only in indentation counts as the same.
    Raises: DataError for `on="prompt"` with rows that have no prompt.
    """
    first: dict[bytes, int] = {}
    kept: list[int] = []
    pairs: list[tuple[int, int]] = []
    progress = Progress("looking for repeated rows")
    for index in range(len(rows)):
        key = key_of(rows, index, on=on, casefold=casefold)
        if key in first:
            pairs.append((rows.lines[index], rows.lines[first[key]]))
        else:
            first[key] = index
            kept.append(index)
        progress(index + 1)
    return rows.select(kept), Removed(tuple(pairs), kept=len(kept), on=on, unit=rows.unit)


def leaks(train: Rows, *others: Rows, on: On = "prompt", casefold: bool = False) -> Leaks:
    """Find rows of `others` that stand in `train` too; a score on those says what was memorised.

    Args:
        train: The split that is trained on.
        others: Held-out splits.
        on: Compare the question (`prompt`) or question and answer (`row`); see dedup.
        casefold: See dedup.
    Returns: Leaks; its length is the number of held-out rows that leak.
    Raises: DataError for `on="prompt"` with rows that have no prompt.
    """
    known: dict[bytes, int] = {}
    for index in range(len(train)):
        known.setdefault(key_of(train, index, on=on, casefold=casefold), index)
    pairs = tuple(
        (other.where(index), train.where(known[key]))
        for other in others
        for index in range(len(other))
        if (key := key_of(other, index, on=on, casefold=casefold)) in known
    )
    return Leaks(pairs, compared=sum(map(len, others)), on=on)


def key_of(rows: Rows, index: int, *, on: On, casefold: bool = False) -> bytes:
    """128 bits that are equal for rows that say the same (two different texts sharing them: never in practice).

    Raises: DataError when `on` is `prompt` and the row has none.
    """
    if on not in {"row", "prompt"}:
        raise DataError(f'Rows are compared on "row" or "prompt", not on {on!r}.')
    key = row_key(rows[index], on=on, casefold=casefold)
    if key is None:
        raise DataError(
            f"{rows.where(index)}: no prompt to compare; the row has {', '.join(rows[index]) or 'no columns'}.",
            hint='compare whole rows: on="row"; or look at nbkit.data.check(rows)',
        )
    return key


def row_key(row: Row, *, on: On, casefold: bool = False) -> bytes | None:
    """See key_of; None when `on` is `prompt` and the row has none."""
    name = formats.name_of(row)
    said: Any = None
    if name == "text":
        said = row["text"] if on == "row" else None
    elif name is not None:
        try:
            talk = formats.conversation(row, name)
        except formats.BadRowError:
            said = None
        else:
            turns = talk.prompt if on == "prompt" else talk.turns
            said = [[turn.get("role"), turn.get("content")] for turn in turns]
    if said is None:
        if on == "prompt":
            return None
        said = {column: value for column, value in row.items() if column != "id"}
    even = _even(said, casefold=casefold)
    text = json.dumps(even, ensure_ascii=True, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _even(value: Any, *, casefold: bool) -> Any:
    if isinstance(value, str):
        text = " ".join(unicodedata.normalize("NFC", value).split())
        return text.casefold() if casefold else text
    if isinstance(value, list):
        return [_even(item, casefold=casefold) for item in value]
    if isinstance(value, dict):
        return {key: _even(item, casefold=casefold) for key, item in value.items()}
    return value
