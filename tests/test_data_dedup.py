"""Repeated rows, and rows on both sides of a split."""

from __future__ import annotations

import pytest

from nbkit.data import Rows, convert, dedup, leaks, read
from nbkit.errors import DataError


def pair(prompt, completion="yes", **more):
    """A row of strings."""
    return {"prompt": prompt, "completion": completion, **more}


class TestDedup:
    def test_keeps_the_first_and_says_what_it_repeats(self):
        """Of equal rows the first stays; each removal names its line and the line it repeats."""
        rows = Rows([pair("a", id=1), pair("b"), pair("a", id=2), pair("a")], [2, 4, 6, 8], "data.jsonl")
        kept, removed = dedup(rows)
        assert [2, 4] == kept.lines
        assert ((6, 2), (8, 2)) == removed.pairs
        assert "2 of 4 rows removed: same row as an earlier one" == str(removed).splitlines()[0]

    @pytest.mark.parametrize(
        ("first", "second"),
        [("caf\u00e9", "cafe\u0301"), ("a  b\n", " a b"), ("a\u00a0b", "a b"), ("x\ty", "x y")],
        ids=["composed and decomposed", "runs and ends", "no-break space", "tab"],
    )
    def test_unicode_form_and_white_space_do_not_matter(self, first, second):
        """The same text in another Unicode form or with other white space is the same row."""
        assert 1 == len(dedup(read([pair(first), pair(second)]))[0])

    def test_case_matters_unless_told(self):
        """`Hello` and `hello` differ; with casefold they are one."""
        rows = read([pair("Hello"), pair("hello"), pair("Stra\u00dfe"), pair("STRASSE")])
        assert (4, 2) == (len(dedup(rows)[0]), len(dedup(rows, casefold=True)[0]))

    def test_the_answer_counts_only_on_row(self):
        """One question with two answers is two rows, and one prompt."""
        rows = read([pair("a", "one"), pair("a", "two")])
        assert (2, 1) == (len(dedup(rows)[0]), len(dedup(rows, on="prompt")[0]))

    def test_other_columns_do_not_count(self):
        """Rows that train the same are the same, whatever their id or category."""
        assert 1 == len(dedup(read([pair("a", id=1, category="x"), pair("a", id=2, category="y")]))[0])

    def test_every_format_is_compared_by_what_it_says(self):
        """A conversation, an alpaca row and a pair of strings that say the same are the same."""
        rows = [pair("a"), convert(read([pair("a")]))[0], {"instruction": "a", "input": "", "output": "yes"}]
        assert 1 == len(dedup(read(rows))[0])
        assert 2 == len(dedup(read([{"text": "a"}, {"text": "b"}, {"text": "a "}]))[0])

    def test_rows_of_no_format_are_compared_whole(self):
        """Unknown columns are all compared, except id; turns that cannot be read are compared as they stand."""
        assert 2 == len(dedup(read([{"x": 1, "id": 1}, {"x": 1, "id": 2}, {"x": 2}]))[0])
        assert 2 == len(dedup(read([{"messages": "a"}, {"messages": "b"}, {"messages": "a"}]))[0])

    def test_the_boundary_between_question_and_answer_counts(self):
        """The same words divided differently are different rows."""
        assert 2 == len(dedup(read([pair("a b", "c"), pair("a", "b c")]))[0])

    def test_a_row_without_a_prompt(self):
        """Comparing prompts needs a prompt; the row without one is named."""
        with pytest.raises(DataError, match=r"list, row 1: no prompt to compare; the row has text\."):
            dedup(read([{"text": "a"}]), on="prompt")
        with pytest.raises(DataError, match='Rows are compared on "row" or "prompt", not on \'answer\''):
            dedup(read([pair("a")]), on="answer")


class TestLeaks:
    TRAIN = Rows([pair("a"), pair("b")], [1, 2], "train.jsonl")

    def test_finds_held_out_questions_that_were_trained_on(self):
        """Each leak names both places, in every held-out split."""
        test = Rows([pair("c"), pair(" a ", "no")], [1, 2], "test.jsonl")
        other = Rows([pair("b")], [7], "other.jsonl")
        found = leaks(self.TRAIN, test, other)
        assert (("test.jsonl:2", "train.jsonl:1"), ("other.jsonl:7", "train.jsonl:2")) == found.pairs
        title = "2 of 3 held-out rows have their prompt in the training split"
        assert title == str(found).splitlines()[0]

    def test_whole_rows(self):
        """On rows, another answer to a known question is no leak."""
        test = read([pair("a", "no"), pair("b")])
        assert (2, 1) == (len(leaks(self.TRAIN, test)), len(leaks(self.TRAIN, test, on="row")))

    def test_none(self):
        """Without a leak the result is empty and one line."""
        found = leaks(self.TRAIN, read([pair("c")]))
        assert 0 == len(found)
        assert "0 of 1 held-out rows have their prompt in the training split" == repr(found)
        assert f"<div>{found!r}</div>" == found._repr_html_()
