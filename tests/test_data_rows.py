"""Rows keep their lines through every change, and print the same everywhere."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nbkit.data import Rows
from nbkit.data.rows import Progress, quote
from nbkit.errors import DataError

ROWS = Rows([{"a": 1}, {"a": 2, "b": "x"}, {"b": None}], [3, 5, 9], "folder/data.jsonl")


class TestRows:
    def test_slices_and_selections_keep_lines(self):
        """A slice, a selection, a filter and a map all keep the line that each row came from."""
        assert [5, 9] == ROWS[1:].lines
        assert [9, 3] == ROWS.select([2, 0]).lines
        assert [3, 5] == ROWS.filter(lambda row: "a" in row).lines
        changed = ROWS.map(lambda row: {"n": len(row)})
        assert ([{"n": 1}, {"n": 2}, {"n": 1}], [3, 5, 9]) == (list(changed), changed.lines)

    def test_an_index_is_a_row_and_its_place(self):
        """Indexing gives the dictionary; `where` gives the place in the source, from the source's own count."""
        assert ({"b": None}, {"b": None}) == (ROWS[2], ROWS[-1])
        assert "folder/data.jsonl:9" == ROWS.where(2)
        assert "list, row 1" == Rows([{}], [1], "list", unit="row").where(0)

    def test_prints_on_one_line_without_the_folder(self):
        """The text of Rows is one stable line: count, file name, columns in order of appearance."""
        assert "Rows(3 rows from data.jsonl: a, b)" == repr(ROWS)
        assert "Rows(1 row from data.jsonl: a)" == repr(ROWS[:1])

    def test_a_table_of_the_first_rows(self):
        """The table shows the lines, cuts long cells and joins line ends."""
        text = str(Rows([{"a": "x\ny" + "z" * 99}], [7], "data.jsonl").table())
        assert ["line  a", "7     x y" + "z" * 54 + "..."] == [text.splitlines()[0], text.splitlines()[2]]

    def test_rows_and_lines_must_match(self):
        """Rows without a line each cannot be made."""
        with pytest.raises(ValueError, match="1 rows and 2 line numbers"):
            Rows([{}], [1, 2], "x")

    def test_a_column_of_two_types_cannot_become_a_dataset(self):
        """A column that Arrow cannot hold is named, instead of an error from deep inside."""
        pytest.importorskip("datasets")
        with pytest.raises(DataError, match="column 'a' cannot become a datasets column") as caught:
            Rows([{"a": 1}, {"a": "x"}], [1, 2], "data.jsonl").to_dataset()
        assert "give the column one type" in caught.value.hint
        with pytest.raises(DataError, match="column 'a' cannot become"):
            Rows([{"a": 10**20}], [1], "data.jsonl").to_dataset()


class TestQuote:
    def test_is_short_and_hides_secrets(self):
        """What an error quotes from the data is cut, on one line, and holds no token."""
        assert "'a\\nb'" == quote("a\nb")
        assert 40 == len(quote("x" * 100))
        assert "'***'" == quote("hf_abcdefghijklmnopqrstuvwx")


class TestProgress:
    def test_says_nothing_for_two_seconds_then_rarely(self, capsys):
        """Short work is silent; long work says a line at 2, 4, 8 seconds, on stderr."""
        progress = Progress("reading data.jsonl")
        progress(10)
        assert "" == capsys.readouterr().err
        for further_s in (2.3, 1.0, 3.0):  # as if 2.3, 3.3 and 6.3 s had passed
            progress.started -= further_s
            progress(1000)
        out, err = capsys.readouterr()
        assert "" == out
        assert ["reading data.jsonl: 1,000 rows, 2 s", "reading data.jsonl: 1,000 rows, 6 s"] == err.splitlines()


class TestVerbs:
    def test_verbs_are_not_shadowed_by_their_modules(self):
        """`read`, `check`, `dedup`, `split` and `chatterbot` stay functions whichever module is imported first."""
        code = (
            "import nbkit.data.split, nbkit.data.dedup, nbkit.data.formats, nbkit.data.chatterbot, nbkit.data as data\n"
            "from nbkit.data.prepared import load_prepared\n"
            "print(*[callable(getattr(data, name)) for name in ('read', 'check', 'dedup', 'split', 'chatterbot')])"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert "True True True True True" == done.stdout.strip()
