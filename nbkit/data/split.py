"""Hold rows out, so that no question, and no group, stands on both sides."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from nbkit.data.dedup import row_key
from nbkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbkit.data.rows import Row, Rows


def split(
    rows: Rows, *, test_size: float = 0.1, seed: int = 0, by: str | Callable[[Row], Any] | None = None
) -> dict[str, Rows]:
    """Divide rows into `train` and `test`; rows with the same prompt, or of one group, go to the same side.

    Which side a group goes to depends on its value and the seed, not on where its rows stand: a set that was shuffled
    is divided in the same way.

    Args:
        rows: Rows of any format.
        test_size: Below 1 a share of the rows, from 1 a number of rows. Groups are not cut, so `test` may hold fewer.
        seed: Another seed, another division.
        by: A column, or a function of a row, whose value names the row's group (a customer, a document, a template).
    Returns: `{"train": Rows, "test": Rows}`, each in the order of `rows`.
    Raises: DataError when the size cannot be met, or a row lacks the column.
    """
    wanted = _wanted(len(rows), test_size)
    groups = _groups(rows, by)
    if len(groups) < 2:
        raise DataError(
            f"{rows.source}: all {len(rows):,} rows are one group; nothing can be held out.",
            hint="choose another column for by=..." if by is not None else "rows with one and the same prompt",
        )
    ranked = sorted(groups.items(), key=lambda group: hashlib.sha256(f"{seed}/{group[0]}".encode()).digest())
    held_out: set[int] = set()
    for _, members in ranked:
        if len(held_out) + len(members) <= wanted:
            held_out.update(members)
    if not held_out:
        smallest = min(len(members) for members in groups.values())
        raise DataError(
            f"{rows.source}: no group is small enough for test_size={test_size:g} ({wanted:,} of {len(rows):,} rows); "
            f"the smallest holds {smallest:,}.",
            hint=f"test_size={smallest} or more, or a finer by=...",
        )
    return {
        "train": rows.select(index for index in range(len(rows)) if index not in held_out),
        "test": rows.select(sorted(held_out)),
    }


def _wanted(count: int, test_size: float) -> int:
    wanted = round(count * test_size) if 0 < test_size < 1 else int(test_size)
    if not 0 < wanted < count:
        raise DataError(
            f"test_size={test_size:g} of {count:,} rows leaves {max(count - wanted, 0):,} to train on "
            f"and {max(wanted, 0):,} to test on.",
            hint="a share such as 0.1, or a number of rows below the total",
        )
    return wanted


def _groups(rows: Rows, by: str | Callable[[Row], Any] | None) -> dict[str, list[int]]:
    """Indices of the rows that must stay together, by a name that does not depend on their order."""
    names: list[list[str]] = []
    for index, row in enumerate(rows):
        prompt = row_key(row, on="prompt") or row_key(row, on="row") or b""
        names.append([f"prompt {prompt.hex()}"])
        if by is not None:
            names[-1].append(f"group {_value(rows, index, by)}")
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for labels in names:  # a prompt that two groups share ties them together
        roots = sorted(root(label) for label in labels)
        for other in roots[1:]:
            parent[other] = roots[0]
    members: dict[str, list[int]] = defaultdict(list)
    for index, labels in enumerate(names):
        members[root(labels[0])].append(index)
    return {min(names[index][-1] for index in inside): inside for inside in members.values()}


def _value(rows: Rows, index: int, by: str | Callable[[Row], Any]) -> str:
    row = rows[index]
    if callable(by):
        value = by(row)
    elif by in row:
        value = row[by]
    else:
        raise DataError(
            f"{rows.where(index)}: no column {by!r} to group by; the row has {', '.join(row) or 'no columns'}.",
            hint="by= takes a column that every row has, or a function of a row",
        )
    return json.dumps(value, sort_keys=True, default=str)
