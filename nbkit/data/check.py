"""Look at rows before training on them: errors that block, warnings to read, each with its lines and what to do."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from dataclasses import dataclass
from html import escape
from pathlib import PurePath
from typing import Any

from nbkit.data import _rules, formats
from nbkit.data.dedup import row_key
from nbkit.data.rows import Progress, Rows, Unit, place, quote
from nbkit.display import Table
from nbkit.errors import DataError

MOST_SHOWN = 20  # a file of another kind altogether has a problem a row; the first ones tell


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with some rows.

    Attributes:
        kind: Short name, the same for all rows it concerns.
        message: What is wrong, as a sentence.
        fix: What to do about it.
        lines: The rows concerned, as Rows.lines counts them.
        blocking: True when training on these rows would fail or teach something else than meant.
    """

    kind: str
    message: str
    fix: str
    lines: tuple[int, ...]
    blocking: bool


@dataclass(frozen=True)
class Report:
    """What `check` found; prints as a table.

    Attributes:
        source: Where the rows came from.
        count: How many rows were looked at.
        format: Name of their format, or None when no row fits one.
        problems: Blocking ones first, then by number of rows.
    """

    source: str
    unit: Unit
    count: int
    format: formats.Name | None
    problems: tuple[Problem, ...]

    @property
    def blocking(self) -> list[Problem]:
        """Problems that must be dealt with."""
        return [problem for problem in self.problems if problem.blocking]

    @property
    def warnings(self) -> list[Problem]:
        """Problems to look at."""
        return [problem for problem in self.problems if not problem.blocking]

    def lines(self, kind: str) -> list[int]:
        """The lines of all problems of one kind."""
        return sorted({line for problem in self.problems if problem.kind == kind for line in problem.lines})

    def table(self) -> Table:
        """One row a problem."""
        shown = [
            [
                "error" if problem.blocking else "warning",
                problem.kind,
                len(problem.lines),
                _first(problem.lines),
                problem.message,
                problem.fix,
            ]
            for problem in self.problems[:MOST_SHOWN]
        ]
        name = PurePath(self.source).name
        more = len(self.problems) - len(shown)
        return Table(
            ["level", "kind", "rows", f"{self.unit}s", "what", "fix"],
            shown,
            title=f"{name}: {_many(self.count, 'row')}, {self.format or 'no known format'}, "
            f"{_many(len(self.blocking), 'error')}, {_many(len(self.warnings), 'warning')}",
            notes=[f"and {more:,} more kinds of problem: report.problems"] if more else [],
        )

    def raise_if_blocked(self) -> Report:
        """Return the report when nothing blocks.

        Raises: DataError that names the first three rows and counts the rest.
        """
        found = sorted((line, number) for number, problem in enumerate(self.blocking) for line in problem.lines)
        if not found:
            return self
        named = [
            f"{place(self.source, line, self.unit)}: {self.blocking[number].message}" for line, number in found[:3]
        ]
        if len(found) > 3:
            named.append(f"and {_many(len(found) - 3, 'more error')}")
        raise DataError(
            "\n".join(named), hint=f"{self.blocking[found[0][1]].fix}      all of them: nbkit.data.check(rows)"
        )

    def __repr__(self) -> str:
        return str(self.table()) if self.problems else self.table().title

    def _repr_html_(self) -> str:
        return self.table()._repr_html_() if self.problems else f"<div>{escape(self.table().title)}</div>"


class _Findings:
    """Collects rows under the problem that they share."""

    def __init__(self) -> None:
        self.rows: dict[tuple[bool, str, str, str], list[int]] = {}

    def block(self, index: int, kind: str, message: str, fix: str) -> None:
        self._add(index, (True, kind, message, fix))

    def warn(self, index: int, kind: str, message: str, fix: str) -> None:
        self._add(index, (False, kind, message, fix))

    def _add(self, index: int, problem: tuple[bool, str, str, str]) -> None:
        rows = self.rows.setdefault(problem, [])
        if index not in rows[-1:]:  # two turns of one row may have the same fault
            rows.append(index)


def check(rows: Rows) -> Report:
    """Check every row.

    Errors: a row of another format or with a missing column, wrong or misplaced roles, content that is not a string, an
    empty answer, no assistant turn, an id used twice, values that JSON cannot hold.
    Warnings: repeated rows, questions with several answers, answers of one or two characters, HTML, control characters,
    text decoded wrongly, white space at the ends, rows far longer than the others, turns after the last answer.

    Args:
        rows: Rows of any format, before or after convert.
    Returns: A Report; `.raise_if_blocked()` turns errors into a DataError.
    """
    found = _Findings()
    names = [formats.name_of(row) for row in rows]
    known = Counter(name for name in names if name is not None)
    common = known.most_common(1)[0][0] if known else None
    texts: dict[int, tuple[str, str]] = {}
    progress = Progress("checking")
    for index, name in enumerate(names):
        if name != common or name is None:
            _wrong_format(found, rows, index, name, common)
        elif name == "text":
            texts.update(_plain(found, index, rows[index]["text"]))
        else:
            texts.update(_talk(found, rows, index, name))
        _json_values(found, rows, index)
        progress(index + 1)
    _identities(found, rows)
    _repeats(found, rows)
    _texts(found, texts)
    problems = [
        Problem(kind, message, fix, tuple(rows.lines[i] for i in indices), blocking)
        for (blocking, kind, message, fix), indices in found.rows.items()
    ]
    problems.sort(key=lambda problem: (not problem.blocking, -len(problem.lines), problem.kind))
    return Report(rows.source, rows.unit, len(rows), common, tuple(problems))


def _wrong_format(
    found: _Findings, rows: Rows, index: int, name: formats.Name | None, common: formats.Name | None
) -> None:
    if common is None:
        columns = ", ".join(rows[index]) or "no columns"
        fix = 'name them prompt and completion: rows.map(lambda row: {"prompt": ..., "completion": ...})'
        found.block(index, "unknown format", f"the columns fit no known format: {columns}.", fix)
    elif name is not None:
        message = f"the row is {name} where most rows are {common}."
        found.block(index, "mixed formats", message, "read and convert each format by itself")
    else:
        missing = [column for column in formats.needs(common) if column not in rows[index]]
        message = f"{', '.join(map(repr, missing))} is missing; the row has {', '.join(rows[index]) or 'no columns'}."
        found.block(index, "missing column", message, "add it, or leave the row out with rows.filter(...)")


def _plain(found: _Findings, index: int, text: Any) -> dict[int, tuple[str, str]]:
    if not isinstance(text, str):
        found.block(index, "content not a string", f"text is {type(text).__name__}.", "write it as a string")
        return {}
    if not text.strip():
        found.block(index, "empty text", "the text is empty.", "leave the row out")
    return {index: ("", text)}


def _talk(found: _Findings, rows: Rows, index: int, name: formats.Name) -> dict[int, tuple[str, str]]:
    """Check one row as a conversation; return its question and answer when both are text."""
    try:
        talk = formats.conversation(rows[index], name)
    except formats.BadRowError as error:
        found.block(index, error.kind, error.message, error.fix)
        return {}
    wrong = list(_rules.wrong_turns(talk.turns))
    for kind, message, fix in wrong:
        found.block(index, kind, message, fix)
    if wrong:
        return {}
    if misplaced := _rules.misplaced(talk):
        found.block(
            index, "role order", misplaced, "order turns as: system (or none), user, assistant, user, assistant"
        )
    if talk.end < len(talk.turns):
        message = "turns after the last answer; convert leaves them out."
        found.warn(index, "unanswered end", message, "nothing to do, unless the answer was lost")
    question = "\n".join(turn["content"] or "" for turn in talk.prompt if turn["role"] == "user")
    answer = "\n".join(turn["content"] or "" for turn in talk.completion)
    if not answer.strip() and not any(turn.get("tool_calls") for turn in talk.completion):
        found.block(
            index, "empty completion", "the answer is empty: it would teach to stop at once.", "leave the row out"
        )
    if not question.strip():
        found.warn(index, "empty prompt", "the question is empty.", "leave the row out")
    return {index: (question, answer)}


def _json_values(found: _Findings, rows: Rows, index: int) -> None:
    if not _unwritable(rows[index]):
        return
    for column, value in rows[index].items():
        if reason := _unwritable(value):
            message = f"{column!r} cannot be written as JSON: {reason}."
            found.block(index, "not JSON", message, f"make {column!r} a string, a finite number or null: rows.map(...)")


def _unwritable(value: Any) -> str:
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError) as error:  # also half a surrogate pair, which is a ValueError
        return str(error)
    return ""


def _identities(found: _Findings, rows: Rows) -> None:
    first: dict[str, int] = {}
    again: list[int] = []
    for index, row in enumerate(rows):
        if row.get("id") is not None:
            identity = json.dumps(row["id"], sort_keys=True, default=str)
            if first.setdefault(identity, index) != index:
                again.append(index)
    if again:
        example = rows[again[0]]["id"]
        before = rows.lines[first[json.dumps(example, sort_keys=True, default=str)]]
        message = f"the id of an earlier row is used again, such as {quote(example)} of {rows.unit} {before}."
        for index in again:
            found.block(index, "duplicate id", message, "give each row its own id, or remove repeats: dedup(rows)")


def _repeats(found: _Findings, rows: Rows) -> None:
    whole: set[bytes] = set()
    answers: dict[bytes, set[bytes]] = {}
    asked: dict[bytes, list[int]] = {}
    for index, row in enumerate(rows):
        key = row_key(row, on="row")
        if key in whole:
            message = "repeats an earlier row; it would count more than once."
            found.warn(index, "repeated row", message, "rows, removed = nbkit.data.dedup(rows)")
        elif key is not None:
            whole.add(key)
        question = row_key(row, on="prompt")
        if question is not None and key is not None:
            answers.setdefault(question, set()).add(key)
            asked.setdefault(question, []).append(index)
    several = [question for question, replies in answers.items() if len(replies) > 1]
    message = f"{_many(len(several), 'question')} with more than one answer; the loss cannot go to zero on them."
    for question in several:
        for index in asked[question]:
            found.warn(
                index, "several answers", message, 'fine for chat; for one right answer: dedup(rows, on="prompt")'
            )


def _texts(found: _Findings, texts: dict[int, tuple[str, str]]) -> None:
    lengths = [len(question) + len(answer) for question, answer in texts.values()]
    long_characters = max(4000, 20 * statistics.median(lengths)) if lengths else 0
    for index, (question, answer) in texts.items():
        for problem in _rules.wrong_in_text(question, answer):
            found.warn(index, *problem)
        if len(question) + len(answer) > long_characters:
            message = f"longer than {long_characters:,.0f} characters, 20 times the median."
            found.warn(index, "very long row", message, "look at them; token_stats says what max_length cuts")


def _first(lines: tuple[int, ...], count: int = 4) -> str:
    return ", ".join(f"{line}" for line in lines[:count]) + (", ..." if len(lines) > count else "")


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
