"""The report on rows: what blocks, what warns, and at which lines."""

from __future__ import annotations

import datetime as dt

import pytest

from nbkit.data import Rows, check, read
from nbkit.errors import DataError


def user(text):
    """A user's turn."""
    return {"role": "user", "content": text}


def assistant(text):
    """An assistant's turn."""
    return {"role": "assistant", "content": text}


def pair(prompt="What is it?", completion="It is a test.", **more):
    """A good row, with what a test changes."""
    return {"prompt": prompt, "completion": completion, **more}


def found(*rows):
    """Kind, message and lines of each problem of these rows."""
    return [(problem.kind, problem.message, list(problem.lines)) for problem in check(read(list(rows))).problems]


class TestErrors:
    @pytest.mark.parametrize(
        ("row", "kind", "message"),
        [
            (
                {"messages": [{"role": "hacker", "content": "a"}, assistant("b")]},
                "wrong role",
                "the role 'hacker' is not one of system, user, assistant, tool.",
            ),
            (
                {"messages": [{"content": "a"}, assistant("b")]},
                "wrong role",
                "the role None is not one of system, user, assistant, tool.",
            ),
            ({"messages": "[]"}, "messages not a list", "messages is a string, not a list of messages."),
            ({"messages": {"role": "user"}}, "messages not a list", "messages is an object, not a list of messages."),
            (
                {"messages": [user([{"type": "text", "text": "a"}]), assistant("b")]},
                "content not a string",
                "content is a list (of parts, as for images); this trains on text.",
            ),
            ({"messages": [user(3), assistant("b")]}, "content not a string", "content is 3."),
            ({"messages": [user("a"), assistant(None)]}, "content not a string", "content is None."),
            ({"messages": [user("a")]}, "no assistant turn", "there is no assistant turn to learn from."),
            ({"messages": [user("a"), user("b"), assistant("c")]}, "role order", "user follows user."),
            (
                {
                    "messages": [
                        user("a"),
                        assistant("b"),
                        {"role": "system", "content": "c"},
                        user("d"),
                        assistant("e"),
                    ]
                },
                "role order",
                "a system turn stands after other turns.",
            ),
            (
                {"messages": [assistant("a"), user("b"), assistant("c")]},
                "role order",
                "the conversation opens with assistant, not with user.",
            ),
            ({"messages": [assistant("a")]}, "role order", "nothing stands before the answer."),
            (
                {"prompt": [user("a")], "completion": [user("b")]},
                "role order",
                "the completion is said by user, not by assistant.",
            ),
            (pair(completion=" \n"), "empty completion", "the answer is empty: it would teach to stop at once."),
            ({"text": "  "}, "empty text", "the text is empty."),
            ({"text": 3}, "content not a string", "text is int."),
            ({"question": "a"}, "unknown format", "the columns fit no known format: question."),
            (pair(score=float("nan")), "not JSON", "'score' cannot be written as JSON: Out of range float values"),
            (
                pair(date=dt.date(2024, 1, 1)),
                "not JSON",
                "'date' cannot be written as JSON: Object of type date is not JSON serializable.",
            ),
            (pair(prompt="a\ud83d"), "not JSON", "'prompt' cannot be written as JSON: 'utf-8' codec can't encode"),
        ],
    )
    def test_one_row(self, row, kind, message):
        """Each error of a single row blocks, under its kind, with a sentence and a fix."""
        problem = check(read([row])).problems[0]
        assert (kind, True, (1,)) == (problem.kind, problem.blocking, problem.lines)
        assert problem.message.startswith(message)
        assert problem.fix

    def test_rows_unlike_the_others(self):
        """The most common format is what the rows are; others are listed by what they lack or are."""
        rows = [pair(), {"prompt": "a", "answer": "b"}, pair("c"), {"messages": [user("a"), assistant("b")]}]
        assert [
            ("missing column", "'completion' is missing; the row has prompt, answer.", [2]),
            ("mixed formats", "the row is messages where most rows are prompt-completion.", [4]),
        ] == found(*rows)

    def test_an_id_used_twice(self):
        """Ids name rows, so each later use of one blocks."""
        expected = "the id of an earlier row is used again, such as 'a' of row 1."
        rows = [pair("p", id="a"), pair("q", id="b"), pair("r", id="a"), pair("s", id="b"), pair("t")]
        assert [("duplicate id", expected, [3, 4])] == found(*rows)

    def test_two_faulty_turns_are_one_faulty_row(self):
        """A row is listed once under a problem, however many of its turns have it."""
        row = {"messages": [{"role": "x", "content": "a"}, {"role": "x", "content": "b"}, assistant("c")]}
        assert [1] == check(read([row])).lines("wrong role")

    @pytest.mark.parametrize(
        "row",
        [
            pair(),
            {
                "messages": [
                    {"role": "system", "content": "s"},
                    user("a"),
                    assistant("bcd"),
                    user("e"),
                    assistant("fgh"),
                ]
            },
            {"messages": [user("a"), {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}]},
            {
                "messages": [
                    user("a"),
                    {"role": "assistant", "content": "", "tool_calls": [{"type": "function"}]},
                    {"role": "tool", "content": "1"},
                    assistant("one"),
                ]
            },
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            {"instruction": "Add", "input": "1 2", "output": "The sum is 3"},
            {"text": "Once upon a time"},
        ],
    )
    def test_a_good_row_has_no_problem(self, row):
        """Every format, tool calls included, passes without a word when it is right."""
        report = check(read([row]))
        assert () == report.problems
        assert report is report.raise_if_blocked()


class TestWarnings:
    @pytest.mark.parametrize(
        ("row", "kind"),
        [
            (pair(completion="n"), "very short answer"),
            (pair("a <br> b"), "HTML"),
            (pair("Tom &amp; Jerry"), "HTML"),
            (pair("a\x00b"), "control characters"),
            (pair("a\u200bb"), "control characters"),
            (pair("caf\u00c3\u00a9"), "wrong decoding"),
            (pair("it\u00e2\u20ac\u2122s"), "wrong decoding"),
            (pair("caf\ufffd"), "wrong decoding"),
            (pair(completion="It is.\n"), "outer white space"),
            (pair(" a"), "outer white space"),
            (pair(""), "empty prompt"),
            ({"messages": [user("a"), assistant("bcd"), user("e")]}, "unanswered end"),
        ],
    )
    def test_one_row(self, row, kind):
        """Each warning of a single row is listed and does not block."""
        report = check(read([row]))
        assert [(kind, False, (1,))] == [(problem.kind, problem.blocking, problem.lines) for problem in report.problems]
        report.raise_if_blocked()

    @pytest.mark.parametrize(
        "text",
        [
            "def identity<T>(x): return x < 3 and x > 1",
            "'/items/<int:index>'",
            "a\tb\nc",
            "na\u00efve \u00c5ngstr\u00f6m \u00c9t\u00e9",
        ],
    )
    def test_code_and_accents_are_not_suspected(self, text):
        """Generics, comparisons, tabs and right accents are ordinary text."""
        assert [] == found(pair(text))

    def test_repeated_rows_and_several_answers(self):
        """Repeats count all but the first; a question with different answers is a problem of all its rows."""
        rows = [pair("a", "one"), pair("a", " one "), pair("a", "two"), pair("b", "three")]
        kinds = {kind: (message, lines) for kind, message, lines in found(*rows)}
        assert [2] == kinds["repeated row"][1]
        message, lines = kinds["several answers"]
        assert message.startswith("1 question with more than one answer")
        assert [1, 2, 3] == lines

    def test_a_row_far_longer_than_the_others(self):
        """20 times the median, and over 4,000 characters, is suspicious."""
        rows = [pair(f"question {number}", "x" * 90) for number in range(9)]
        assert ["very long row"] == [kind for kind, _, _ in found(*rows, pair("long", "x" * 4100))]
        assert [] == found(*rows, pair("long", "x" * 3000))


class TestReport:
    ROWS = Rows(
        [pair("a", ""), pair("b", id=1), pair("c", id=1), {"prompt": "d"}, pair("e", "  ")],
        [2, 3, 5, 8, 9],
        "folder/data.jsonl",
    )

    def test_raises_with_the_first_places_and_counts_the_rest(self):
        """The error names file and line of the first three, counts the rest, and says the first fix."""
        with pytest.raises(DataError) as caught:
            check(self.ROWS).raise_if_blocked()
        assert [
            "folder/data.jsonl:2: the answer is empty: it would teach to stop at once.",
            "folder/data.jsonl:5: the id of an earlier row is used again, such as 1 of line 3.",
            "folder/data.jsonl:8: 'completion' is missing; the row has prompt.",
            "and 1 more error",
        ] == caught.value.message.splitlines()
        assert caught.value.hint.startswith("leave the row out ")

    def test_prints_as_a_table(self):
        """Errors stand first; each problem has its rows, lines, message and fix."""
        text = str(check(self.ROWS))
        assert "data.jsonl: 5 rows, prompt-completion, 3 errors, 0 warnings" == text.splitlines()[0]
        assert "2, 9" in text
        assert "<table>" in check(self.ROWS)._repr_html_()

    def test_prints_one_line_when_all_is_well(self):
        """Without problems the report is one line, in text and in HTML."""
        report = check(read([pair()]))
        assert "list: 1 row, prompt-completion, 0 errors, 0 warnings" == repr(report)
        assert f"<div>{report!r}</div>" == report._repr_html_()

    def test_data_in_a_message_is_escaped(self):
        """A role that is HTML shows as text in a notebook."""
        row = {"messages": [{"role": "<img src=x onerror=alert(1)>", "content": "a"}, assistant("b")]}
        html = check(read([row]))._repr_html_()
        assert "<img" not in html
        assert "&lt;img" in html

    def test_a_file_of_another_kind_is_cut(self):
        """Hundreds of different problems are counted, not printed."""
        rows = read([{f"column {number}": 1} for number in range(300)])
        assert "and 280 more kinds of problem: report.problems" == str(check(rows)).splitlines()[-1]
