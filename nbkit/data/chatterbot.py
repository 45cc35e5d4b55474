"""A real set, as messy as real sets are: the English pairs of chatterbot-corpus 1.3.3 (BSD-3-Clause).

Where it is from and how it was counted stands in sets/PROVENANCE.md; the licence in sets/LICENSE.
"""

from __future__ import annotations

import dataclasses
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

from nbkit.data.dedup import dedup
from nbkit.data.formats import convert
from nbkit.data.read import read
from nbkit.data.split import split

if TYPE_CHECKING:
    from nbkit.data.rows import Row, Rows

FILE = "chatterbot_english.jsonl"
PROVENANCE = (
    "The English question and answer pairs of PyPI chatterbot-corpus 1.3.3, Copyright (c) 2017, Gunther Cox, "
    "BSD-3-Clause; junk and repeated rows removed, outer white space stripped."
)
# Read by a person: answers of one or two characters that are no answers. "7", "12" and "E" are.
JUNK = frozenset({"science-0019", "science-0021", "trivia-0014"})


def chatterbot() -> Rows:
    """The 2,026 pairs as they are: `id`, `category`, `prompt`, `completion`, all strings, nothing cleaned."""
    with as_file(files("nbkit.data") / "sets" / FILE) as path:
        # Its name and not its place: that differs from machine to machine, and the file is not the user's to edit.
        return dataclasses.replace(read(path), source=FILE)


def prepare() -> dict[str, Rows]:
    """The set as notebook 02 prepares it: no junk, no repeats, conversational, a tenth of the questions held out."""
    rows = chatterbot().filter(lambda row: row["id"] not in JUNK).map(_stripped)
    rows, _ = dedup(rows)
    return split(convert(rows), test_size=0.1, seed=0)


def _stripped(row: Row) -> Row:
    return {**row, "prompt": row["prompt"].strip(), "completion": row["completion"].strip()}
