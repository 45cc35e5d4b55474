"""Rows into tokens, as TRL's SFTTrainer makes them: the loss counts what follows the prompt, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nbkit.errors import DataError
from nbkit.models.prepare import require_chat_template


@dataclass(frozen=True)
class Example:
    """One row, ready to be scored.

    Attributes:
        id: The row's `id`, else its number from 0.
        prompt_text: What a person reads as the question: the last message of the prompt, or the prompt string.
        expected: The text that should be generated.
        prompt_ids: What generation starts from.
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
    """Tokenise prompt-completion rows, conversational or plain strings.

    Args:
        tokenizer: With a chat template, where rows are conversational.
        rows: `{"prompt": ..., "completion": ...}`, both lists of messages or both strings; `id` is optional.
    Raises: DataError for rows of another form or without a completion, naming the row; ModelError for conversational
        rows and a tokenizer without a chat template.
    Source: TRL 1.16 `SFTTrainer._prepare_dataset`: the completion begins where the tokens of the prompt alone and of
        prompt and completion first differ; an end token is appended to plain strings.
    """
    examples = [_example(tokenizer, row, number) for number, row in enumerate(rows)]
    if not examples:
        raise DataError("There are no rows to score.", hint="give at least one row of a held-out split")
    return examples


def _example(tokenizer: Any, row: Mapping[str, Any], number: int) -> Example:
    name = str(row.get("id", number)) if isinstance(row, Mapping) else str(number)
    if not isinstance(row, Mapping) or "prompt" not in row or "completion" not in row:
        keys = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise DataError(
            f"Row {name} has no 'prompt' and 'completion'; it has: {keys or 'nothing'}.",
            hint="turn the rows into TRL's prompt-completion form first, with nbkit.data",
        )
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        end = tokenizer.eos_token or ""
        whole = prompt + completion + ("" if end and completion.endswith(end) else end)
        expected = completion.removesuffix(end) if end else completion
        return _cut(name, prompt, expected, tokenizer(text=prompt)["input_ids"], tokenizer(text=whole)["input_ids"])
    prompt, completion = _messages(prompt, "prompt", name), _messages(completion, "completion", name)
    if len(completion) != 1:
        raise DataError(
            f"Row {name}: its completion has {len(completion)} messages, and scoring generates one.",
            hint="move all messages but the last answer into the prompt",
        )
    require_chat_template(tokenizer)
    prompt_ids = _render(tokenizer, prompt, add_generation_prompt=True)
    return _cut(name, prompt[-1]["content"], completion[0]["content"], prompt_ids, _render(tokenizer, prompt + completion))


def _messages(value: Any, part: str, name: str) -> list[dict[str, str]]:
    good = isinstance(value, list) and value and all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    )  # fmt: skip
    if not good:
        raise DataError(
            f"Row {name}: its {part} is {type(value).__name__} {str(value)[:60]!r}, not a list of messages with a role and "
            "a text, nor are prompt and completion both strings.",
            hint='write it as [{"role": "user", "content": "..."}], or make prompt and completion both strings',
        )
    return [{"role": m["role"], "content": m["content"]} for m in value]


def _render(tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)["input_ids"]
    return ids


def _cut(name: str, prompt_text: str, expected: str, prompt_ids: list[int], ids: list[int]) -> Example:
    start = next((i for i, (a, b) in enumerate(zip(prompt_ids, ids, strict=False)) if a != b), min(len(prompt_ids), len(ids)))
    # The first token of a sequence has nothing before it that could predict it.
    start = max(start, 1)
    if start >= len(ids):
        raise DataError(
            f"Row {name} has no completion tokens to score: its completion is {expected[:40]!r}.",
            hint="leave rows with an empty completion out",
        )
    return Example(name, prompt_text, expected, tuple(prompt_ids), tuple(ids), start)
