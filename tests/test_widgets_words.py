"""Differences between two answers, word by word."""

from __future__ import annotations

import pytest

from nbkit.widgets.words import changes


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("the cat sat", "the cat sat", [("=", "the cat sat")]),
        ("the cat sat", "the dog sat", [("=", "the "), ("-", "cat "), ("+", "dog "), ("=", "sat")]),
        ("the cat", "the cat sat", [("=", "the cat "), ("+", "sat")]),
        ("the cat sat", "the cat", [("=", "the cat"), ("-", "sat ")]),
        ("", "new", [("+", "new")]),
        ("old", "", [("-", "old ")]),
        ("", "", []),
    ],
)
def test_changes(before, after, expected):
    """Words are kept, new or gone; a gone word does not touch the next."""
    assert expected == changes(before, after)


@pytest.mark.parametrize("after", ["  two\n\nlines \t here ", "é <b> & 日本 語", "a\u00a0b", "word " * 3000])
def test_nothing_of_the_answer_is_lost(after):
    """Joining what is not gone gives the answer back, white space and all."""
    assert after == "".join(text for kind, text in changes("one two lines", after) if kind != "-")
