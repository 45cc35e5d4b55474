"""Holding rows out: deterministic, grouped, and without a question on both sides."""

from __future__ import annotations

import random

import pytest

from nbkit.data import leaks, read, split
from nbkit.errors import DataError


def rows(count=200, answers=1):
    """Rows with `answers` different answers to each of `count` questions, from ten customers."""
    return read(
        [
            {"prompt": f"question {number}", "completion": f"answer {answer}", "customer": number % 10}
            for number in range(count)
            for answer in range(answers)
        ]
    )


def prompts(part):
    """The questions of one side."""
    return {row["prompt"] for row in part}


class TestSplit:
    def test_sizes_and_order(self):
        """A tenth is held out unless told, nothing is lost, and each side keeps the order of the rows."""
        parts = split(rows())
        assert {"train": 180, "test": 20} == {name: len(part) for name, part in parts.items()}
        assert list(range(1, 201)) == sorted(parts["train"].lines + parts["test"].lines)
        assert sorted(parts["test"].lines) == parts["test"].lines

    def test_a_number_of_rows(self):
        """A size from 1 on counts rows."""
        assert 7 == len(split(rows(), test_size=7)["test"])

    def test_the_seed_decides(self):
        """The same seed gives the same division, another seed another."""
        first, again, other = (prompts(split(rows(), seed=seed)["test"]) for seed in (0, 0, 1))
        assert first == again
        assert first != other

    @pytest.mark.parametrize("by", [None, "customer", lambda row: row["customer"]], ids=["none", "column", "function"])
    def test_the_order_of_rows_does_not_matter(self, by):
        """A shuffled set is divided in the same way."""
        whole = rows()
        shuffled = whole.select(random.Random(1).sample(range(200), 200))
        assert prompts(split(whole, by=by)["test"]) == prompts(split(shuffled, by=by)["test"])

    def test_a_question_is_never_on_both_sides(self):
        """All answers to a question stay together, also when only white space tells the questions apart."""
        many = rows(50, answers=4)
        noisy = many.map(lambda row: {**row, "prompt": row["prompt"] + " " * (row["completion"] == "answer 2")})
        for seed in range(5):
            parts = split(noisy, seed=seed, test_size=0.3)
            assert 60 == len(parts["test"])
            assert 0 == len(leaks(parts["train"], parts["test"]))

    def test_a_group_is_never_on_both_sides(self):
        """Grouped by a column, no value of it is in both."""
        parts = split(rows(), test_size=0.2, by="customer")
        customers = [{row["customer"] for row in part} for part in parts.values()]
        assert set() == customers[0] & customers[1]
        assert [8, 2] == [len(side) for side in customers]

    def test_groups_that_share_a_question_stay_together(self):
        """A question asked in two groups ties them: neither the group nor the question is cut."""
        tied = read(
            [{"prompt": "same", "completion": "x", "g": group} for group in "ab"]
            + [{"prompt": f"own {group} {n}", "completion": "x", "g": group} for group in "abcdef" for n in range(2)]
        )
        for seed in range(20):
            parts = split(tied, test_size=8, by="g", seed=seed)
            sides = [{row["g"] for row in part} for part in parts.values()]
            assert any({"a", "b"} <= side for side in sides)
            assert set() == sides[0] & sides[1]
            assert 0 == len(leaks(parts["train"], parts["test"]))

    def test_plain_text(self):
        """Rows without a prompt are grouped by their text."""
        parts = split(read([{"text": f"t{number % 5}"} for number in range(50)]), test_size=0.2)
        assert set() == {row["text"] for row in parts["train"]} & {row["text"] for row in parts["test"]}


class TestRefused:
    @pytest.mark.parametrize("size", [0, 1.0, 200, -3, 0.001])
    def test_a_size_that_leaves_nothing(self, size):
        """A size that empties one side is refused with the counts."""
        with pytest.raises(DataError, match=f"test_size={size:g} of {'200' if size != 1.0 else '1'} rows leaves "):
            split(rows(200 if size != 1.0 else 1), test_size=size)

    def test_one_group(self):
        """A single group cannot be divided."""
        with pytest.raises(DataError, match=r"all 200 rows are one group; nothing can be held out\."):
            split(rows(), by=lambda row: 1)

    def test_groups_larger_than_the_size(self):
        """When every group is too large, the smallest that would do is said."""
        with pytest.raises(DataError, match="the smallest holds 20") as caught:
            split(rows(), test_size=5, by="customer")
        assert "test_size=20 or more" in caught.value.hint

    def test_a_missing_column(self):
        """A row without the column to group by is named."""
        with pytest.raises(DataError, match="list, row 1: no column 'author' to group by; the row has prompt, comp"):
            split(rows(), by="author")
