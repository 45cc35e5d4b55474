"""The vendored set: all of it, unchanged, with its licence."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

import nbkit
from nbkit.data import chatterbot, check, leaks
from nbkit.data.chatterbot import FILE, JUNK, PROVENANCE, prepare

SETS = Path(nbkit.__file__).parent / "data" / "sets"


class TestVendored:
    def test_equals_the_package(self):
        """The file holds the opening line and first reply of every English conversation of the installed package."""
        pytest.importorskip("yaml")
        pytest.importorskip("chatterbot_corpus")
        from tools import vendor_chatterbot

        expected = vendor_chatterbot.as_jsonl(vendor_chatterbot.pairs(vendor_chatterbot.installed()))
        assert expected == (SETS / FILE).read_text(encoding="utf-8")

    def test_is_2026_pairs_of_strings(self):
        """The 2,026 rows have four columns, all strings, none empty, and ids of their own."""
        rows = chatterbot()
        assert "Rows(2,026 rows from chatterbot_english.jsonl: id, category, prompt, completion)" == repr(rows)
        assert all(isinstance(value, str) and value for row in rows for value in row.values())
        assert 2026 == len({row["id"] for row in rows})

    def test_its_papers_are_in_order(self):
        """The provenance names this very file, and the licence is the BSD text with its holder."""
        papers = (SETS / "PROVENANCE.md").read_text(encoding="utf-8")
        assert hashlib.sha256((SETS / FILE).read_bytes()).hexdigest() in papers
        licence = (SETS / "LICENSE").read_text(encoding="utf-8")
        assert licence.startswith("Copyright (c) 2017, Gunther Cox All rights reserved.")
        assert 'PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS"' in licence

    def test_the_numbers_in_its_papers_hold(self):
        """What PROVENANCE.md says of repeats and white space is what check finds."""
        papers = (SETS / "PROVENANCE.md").read_text(encoding="utf-8")
        report = check(chatterbot())
        repeats, spaces = re.search(r"([\d,]+) rows repeat an earlier one, (\d+) begin or end", papers).groups()
        assert int(repeats.replace(",", "")) == len(report.lines("repeated row"))
        assert int(spaces) == len(report.lines("outer white space"))
        assert [] == report.blocking


class TestPrepare:
    def test_junk_was_there_and_is_gone(self):
        """Each row on the junk list exists, is very short, and is not in the prepared splits."""
        raw = {row["id"]: row for row in chatterbot()}
        assert all(len(raw[identity]["completion"]) <= 2 for identity in JUNK)
        assert not JUNK & {row["id"] for part in prepare().values() for row in part}

    def test_nothing_repeats_and_nothing_leaks(self):
        """No prepared row repeats, no question stands on both sides, nothing blocks."""
        parts = prepare()
        assert {"train": 805, "test": 90} == {name: len(part) for name, part in parts.items()}
        assert 0 == len(leaks(parts["train"], parts["test"]))
        for part in parts.values():
            report = check(part)
            assert [] == report.blocking + report.lines("repeated row") + report.lines("outer white space")

    def test_names_holder_and_licence(self):
        """What is saved with the data names the copyright holder and the licence."""
        assert "Copyright (c) 2017, Gunther Cox, BSD-3-Clause" in PROVENANCE
