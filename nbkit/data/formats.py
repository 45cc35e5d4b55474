"""The shapes that fine-tuning data comes in, told apart by their columns, and turned into the one TRL trains on.

Field names are TRL's: `prompt` and `completion`, or `messages`, each a list of `{"role", "content"}`.
Source: TRL's "Dataset formats"; the alpaca and ShareGPT layouts as LLaMA-Factory and axolotl read them.
Not covered: preference pairs (chosen and rejected), images.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from nbkit.data.rows import Row, Rows, quote
from nbkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

Name = Literal["prompt-completion", "messages", "sharegpt", "alpaca", "text"]
Message = dict[str, Any]

# Looked for in this order, because some sets carry a rendered `text` beside the columns it was made from.
_NEEDS: dict[Name, tuple[str, ...]] = {
    "prompt-completion": ("prompt", "completion"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
_ALSO: dict[Name, tuple[str, ...]] = {"sharegpt": ("system",), "alpaca": ("input", "system", "history")}
# TRL looks at an arbitrary one of these to tell a chat from plain text, so no other of them may stay in a row.
_TRL_COLUMNS = frozenset({"prompt", "completion", "messages", "chosen", "rejected"})
ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant",
    "system": "system",
    "tool": "tool", "observation": "tool",
}  # fmt: skip


@dataclass(frozen=True)
class Format:
    """What the rows are, and how that was seen.

    Attributes:
        name: prompt-completion, messages, sharegpt, alpaca or text.
        conversational: True when turns are lists with roles, False when they are plain strings.
        reason: The sentence that says which columns decided.
    """

    name: Name
    conversational: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({'conversational' if self.conversational else 'strings'}): {self.reason}"


class BadRowError(Exception):
    """One row that does not have the shape its columns promise; `check` lists it and `convert` stops at it."""

    def __init__(self, kind: str, message: str, fix: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.fix = fix


@dataclass(frozen=True)
class Conversation:
    """A row as turns. `turns[start:end]` is what the model learns to say, `turns[:start]` what it is given."""

    turns: list[Message]
    start: int
    end: int

    @property
    def prompt(self) -> list[Message]:
        """The turns before the answer."""
        return self.turns[: self.start]

    @property
    def completion(self) -> list[Message]:
        """The answer: the last assistant turn, or all turns of a `completion` column."""
        return self.turns[self.start : self.end]


def name_of(row: Row) -> Name | None:
    """The format that the columns of one row fit, or None."""
    return next((name for name, needs in _NEEDS.items() if all(column in row for column in needs)), None)


def needs(name: Name) -> tuple[str, ...]:
    """The columns that rows of a format must have."""
    return _NEEDS[name]


def detect(rows: Rows) -> Format:
    """Tell which format all rows are in.

    Returns: A Format with its reason.
    Raises: DataError when no format fits (naming the columns found), or rows differ (naming the first row of each).
    """
    first: dict[Name | None, int] = {}
    for index, row in enumerate(rows):
        first.setdefault(name_of(row), index)
    if not first:
        raise DataError(f"{rows.source} holds no rows.", hint="nothing can be told from no rows")
    if set(first) == {None}:
        found = ", ".join(rows.columns) or "none"
        preference = {"chosen", "rejected"} <= set(rows.columns)
        raise DataError(
            f"{rows.source}: no known format has these columns: {found}.",
            hint="these are preference pairs (DPO); fine-tuning on examples wants prompt and completion"
            if preference
            else "name the columns prompt and completion, e.g. rows.map(lambda row: "
            '{"prompt": row["question"], "completion": row["answer"]})',
        )
    if len(first) > 1:
        each = "; ".join(f"{rows.where(index)} {_described(name, rows[index])}" for name, index in first.items())
        raise DataError(
            f"{rows.source} mixes {len(first)} formats: {each}.",
            hint="nbkit.data.check(rows) lists the rows that differ; convert each part by itself with rows.filter(...)",
        )
    name = next(name for name in first if name is not None)
    columns = ", ".join(repr(column) for column in _NEEDS[name])
    chat = any(isinstance(row[column], list) for row in rows for column in _NEEDS[name])
    reason = f"every row has {columns}" if len(rows) > 1 else f"the row has {columns}"
    return Format(name, conversational=chat, reason=reason)


def _described(name: Name | None, row: Row) -> str:
    return f"is {name}" if name else f"has {', '.join(row) or 'no columns'}"


def convert(rows: Rows, to: Literal["prompt-completion", "messages"] = "prompt-completion") -> Rows:
    """Turn rows of any format into conversational rows that TRL's SFTTrainer takes as they are.

    A conversation of several turns becomes: its last assistant turn is the completion, everything before it the prompt,
    anything after it is left out. Alpaca's `input` follows the instruction after an empty line. `id` and other columns
    stay; the columns that were converted go.

    Args:
        rows: Rows of one format.
        to: `prompt-completion` (the loss counts on the completion) or `messages`.
    Returns: New Rows with the same lines.
    Raises: DataError for rows of no, mixed or `text` format; for an unknown ShareGPT role or no assistant turn, with
        the line.
    """
    if to not in {"prompt-completion", "messages"}:
        raise DataError(f'Rows are converted to "prompt-completion" or "messages", not to {to!r}.')
    name = detect(rows).name
    if name == "text":
        raise DataError(
            f"{rows.source}: plain text has no question and answer to tell apart.",
            hint="train on it as it is (SFTTrainer reads the text column), or split it into prompt and completion",
        )
    gone = _TRL_COLUMNS.union(_NEEDS[name], _ALSO.get(name, ()))
    converted = []
    for index, row in enumerate(rows):
        try:
            talk = conversation(row, name)
        except BadRowError as error:
            raise DataError(f"{rows.where(index)}: {error.message}", hint=error.fix) from error
        kept = {column: value for column, value in row.items() if column not in gone}
        if to == "messages":
            converted.append({**kept, "messages": talk.prompt + talk.completion})
        else:
            converted.append({**kept, "prompt": talk.prompt, "completion": talk.completion})
    return dataclasses.replace(rows, rows=converted)


def conversation(row: Row, name: Name) -> Conversation:
    """One row of a format other than `text`, as turns with TRL's role names.

    Raises: BadRowError.
    """
    return _READERS[name](row)


def _prompt_completion(row: Row) -> Conversation:
    prompt = _turns(row["prompt"], "prompt", "user")
    completion = _turns(row["completion"], "completion", "assistant")
    return Conversation(prompt + completion, len(prompt), len(prompt) + len(completion))


def _turns(value: Any, column: str, role: str) -> list[Message]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return _messages(value, column)


def _messages(value: Any, column: str) -> list[Message]:
    if not isinstance(value, list):
        raise BadRowError(
            f"{column} not a list",
            f"{column} is {_kind(value)}, not a list of messages.",
            f'json.loads(row["{column}"])' if isinstance(value, str) else '[{"role": "user", "content": "..."}]',
        )
    if not value:
        raise BadRowError(f"empty {column}", f"{column} is an empty list.", "leave the row out")
    for turn in value:
        if not isinstance(turn, dict):
            raise BadRowError(
                f"{column} not a list",
                f"{column} holds {_kind(turn)} where a message belongs.",
                '[{"role": "user", "content": "..."}]',
            )
    return value


def _chat(row: Row) -> Conversation:
    return _last_answer(_messages(row["messages"], "messages"))


def _last_answer(turns: list[Message]) -> Conversation:
    answers = [index for index, turn in enumerate(turns) if turn.get("role") == "assistant"]
    if not answers:
        raise BadRowError("no assistant turn", "there is no assistant turn to learn from.", "leave the row out")
    return Conversation(turns, answers[-1], answers[-1] + 1)


def _sharegpt(row: Row) -> Conversation:
    turns = _system(row)
    for turn in _messages(row["conversations"], "conversations"):
        said_by = turn.get("from", turn.get("role"))
        content = turn.get("value", turn.get("content"))
        if said_by is None or content is None:
            raise BadRowError(
                "not ShareGPT",
                f"a turn has the keys {', '.join(turn) or 'none'}; it needs from and value.",
                '{"from": "human", "value": "..."}',
            )
        role = _SHAREGPT_ROLES.get(said_by) if isinstance(said_by, str) else None
        if role is None:
            raise BadRowError(
                "unknown role",
                f"the speaker {quote(said_by)} is not a known ShareGPT role ({', '.join(_SHAREGPT_ROLES)}).",
                "rename it to human, gpt, system or tool, or leave the row out",
            )
        turns.append({"role": role, "content": content})
    return _last_answer(turns)


def _alpaca(row: Row) -> Conversation:
    turns = _system(row)
    for pair in row.get("history") or []:
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2):
            raise BadRowError("not alpaca", "history must be a list of [question, answer] pairs.", "leave the row out")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    question, extra = row["instruction"], row.get("input")
    if isinstance(question, str) and isinstance(extra, str) and extra.strip():
        question = f"{question}\n\n{extra}"
    turns += [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]
    return Conversation(turns, len(turns) - 1, len(turns))


def _system(row: Row) -> list[Message]:
    system = row.get("system")
    return [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {str: "a string", dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")


_READERS: dict[Name, Callable[[Row], Conversation]] = {
    "prompt-completion": _prompt_completion,
    "messages": _chat,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
}
