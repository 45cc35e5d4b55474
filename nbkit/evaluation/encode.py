"""Rows into tokens, as TRL's SFTTrainer makes them: the loss counts what follows the prompt, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nbkit.data.tokens import tokenize_row
from nbkit.errors import DataError
from nbkit.models.prepare import require_chat_template

_SHAPE = 'write it as {"prompt": [messages], "completion": [one message]}, or make both strings; see nbkit.data.convert'


@dataclass(frozen=True)
class Example:
    """One row, ready to be scored.

    Attributes:
        id: The row's `id`, else its number from 0.
        prompt_text: What a person reads as the question: the last message of the prompt, or the prompt string.
        expected: The text that should be generated.
        prompt_ids: What generation starts from; empty for a row of plain text.
        ids: Prompt and completion, as they are trained.
        start: Where the completion begins in `ids`; the loss counts `ids[start:]`, end of turn included.
    """

    id: str
    prompt_text: str
    expected: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    start: int

    @property
    def counted(self) -> int:
        """Number of tokens that count in the loss."""
        return len(self.ids) - self.start


def encode(tokenizer: Any, rows: Iterable[Mapping[str, Any]]) -> list[Example]:
    """Tokenise prompt-completion rows, conversational or plain strings; rows of `text` have a loss and no answer.

    Args:
        tokenizer: With a chat template, where rows are conversational.
        rows: `{"prompt": ..., "completion": ...}`, both lists of messages or both strings, or `{"text": ...}`; `id` is
            optional.
    Raises: DataError for rows of another form or without a completion, naming the row; ModelError for conversational
        rows and a tokenizer without a chat template.
    Source: the mask is `nbkit.data.tokens.tokenize_row`'s, which follows TRL 1.16.
    """
    examples = [_example(tokenizer, dict(row), number) for number, row in enumerate(rows)]
    if not examples:
        raise DataError("There are no rows to score.", hint="give at least one row of a held-out split")
    return examples


def _example(tokenizer: Any, row: dict[str, Any], number: int) -> Example:
    name = str(row.get("id", number))
    text_only = "text" in row and "prompt" not in row
    prompt_text, expected, prompt_ids = ("", "", []) if text_only else _question(tokenizer, row, name)
    ids, counts = tokenize_row(row, tokenizer)
    # The first token of a sequence has nothing before it that could predict it.
    start = max(1, counts.index(True)) if True in counts else len(ids)
    if start >= len(ids):
        raise DataError(
            f"Row {name} has no completion tokens to score: its completion is {expected[:40]!r}.",
            hint="leave rows with an empty completion out",
        )
    return Example(name, prompt_text, expected, tuple(prompt_ids), tuple(ids), start)


def _question(tokenizer: Any, row: dict[str, Any], name: str) -> tuple[str, str, list[int]]:
    if "prompt" not in row or "completion" not in row:
        raise DataError(
            f"Row {name} has no 'prompt' and 'completion'; it has: {', '.join(map(str, row)) or 'nothing'}.",
            hint=_SHAPE,
        )
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt, completion.removesuffix(tokenizer.eos_token or "\0"), tokenizer(text=prompt)["input_ids"]
    for part in ("prompt", "completion"):
        if not _is_messages(row[part]):
            raise DataError(
                f"Row {name}: its {part} is {str(row[part])[:60]!r} ({type(row[part]).__name__}), not a list of messages "
                "with a role and a text, nor are prompt and completion both strings.",
                hint=_SHAPE,
            )
    if len(completion) != 1:
        raise DataError(
            f"Row {name}: its completion has {len(completion)} messages, and scoring generates one.",
            hint="move all messages but the last answer into the prompt",
        )
    require_chat_template(tokenizer)
    tools = row.get("tools")
    prompt_ids = tokenizer.apply_chat_template(
        prompt,
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        tools=json.loads(tools) if isinstance(tools, str) else tools,
        **(row.get("chat_template_kwargs") or {}),
    )["input_ids"]
    return prompt[-1]["content"], completion[0]["content"], prompt_ids


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    )  # fmt: skip
