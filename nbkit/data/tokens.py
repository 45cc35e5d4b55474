"""What the trainer will see of a row: its tokens, which of them the loss counts, and what max_length cuts.

The mask follows TRL 1.16's SFTTrainer step by step (`_prepare_dataset` in trl/trainer/sft_trainer.py: tokenise the
prompt with the generation prompt, tokenise prompt and completion together, and let the completion start where the two
diverge), and tests/test_data_tokens.py compares it with a real trainer's labels. Not covered: packing, images,
`assistant_only_loss=True`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any

from nbkit.data import formats
from nbkit.data.rows import Progress, Row, Rows
from nbkit.display import Table
from nbkit.errors import DataError, require

if TYPE_CHECKING:
    from collections.abc import Sequence

_SHARES = (0.5, 0.9, 0.95, 0.99, 1.0)


def tokenize_row(row: Row, tokenizer: Any) -> tuple[list[int], list[bool]]:
    """The tokens of one row and where the loss counts, as SFTTrainer makes them before it cuts at max_length.

    Args:
        row: prompt and completion (conversational or strings), messages, or text.
        tokenizer: A transformers tokenizer; with a chat template when the row has roles.
    Returns: ids: list of int [seq]; loss_mask: list of bool [seq], True where the loss counts: the completion and the
        tokens that end it, or every token of a row without a prompt.
    Raises: DataError for a row of another format, or roles without a chat template.
    """
    name = formats.name_of(row)
    if name not in {"prompt-completion", "messages", "text"}:
        raise DataError(
            f"SFTTrainer does not read {name or 'these'} rows ({', '.join(row) or 'no columns'}).",
            hint="convert them first: rows = nbkit.data.convert(rows)",
        )
    if name == "prompt-completion":
        return _prompt_completion(row, tokenizer)
    ids = (
        _chat(row["messages"], row, tokenizer)
        if name == "messages"
        else _plain(_closed(row, tokenizer)["text"], tokenizer)
    )
    return ids, [True] * len(ids)


def _prompt_completion(row: Row, tokenizer: Any) -> tuple[list[int], list[bool]]:
    if isinstance(row["prompt"], list):
        if not isinstance(row["completion"], list):
            raise DataError(
                "The prompt is a list of messages and the completion a string; SFTTrainer wants both in one form.",
                hint="rows = nbkit.data.convert(rows)",
            )
        prompt = _chat(row["prompt"], row, tokenizer, add_generation_prompt=True)
        ids = _chat(row["prompt"] + row["completion"], row, tokenizer)
    else:
        prompt = _plain(row["prompt"], tokenizer)
        ids = _plain(row["prompt"] + _closed(row, tokenizer)["completion"], tokenizer)
    start = 0
    while start < min(len(prompt), len(ids)) and prompt[start] == ids[start]:
        start += 1
    return ids, [False] * start + [True] * (len(ids) - start)


def _closed(row: Row, tokenizer: Any) -> Row:
    """Plain strings get the end-of-text token; TRL gives it to `text` where a row has that too, and then only there."""
    column = "text" if "text" in row and not row["text"].endswith(tokenizer.eos_token) else "completion"
    if column in row and not row[column].endswith(tokenizer.eos_token):
        return {**row, column: row[column] + tokenizer.eos_token}
    return row


def _plain(text: str, tokenizer: Any) -> list[int]:
    ids: list[int] = tokenizer(text=text)["input_ids"]
    return ids


def _chat(messages: list[formats.Message], row: Row, tokenizer: Any, **options: Any) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"The tokenizer {getattr(tokenizer, 'name_or_path', '') or type(tokenizer).__name__} has no chat template, "
            "so roles cannot be written as text.",
            hint="choose an instruct model, or set tokenizer.chat_template to the template of its family",
        )
    tools = row.get("tools")
    ids: list[int] = tokenizer.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=True,
        tools=json.loads(tools) if isinstance(tools, str) else tools,
        **{**options, **(row.get("chat_template_kwargs") or {})},
    )["input_ids"]
    return ids


@dataclass(frozen=True)
class TokenStats:
    """How long rows are in tokens, and what a limit does to them.

    Attributes:
        total: Tokens of each row.
        trained: Tokens of each row that the loss counts.
        first: Where the first of those stands in its row.
        max_length: The limit asked about, or None.
        source: Where the rows came from.
    """

    total: tuple[int, ...]
    trained: tuple[int, ...]
    first: tuple[int, ...]
    max_length: int | None
    source: str

    @property
    def total_tokens(self) -> int:
        """Tokens of all rows together, uncut: one epoch."""
        return sum(self.total)

    @property
    def trained_tokens(self) -> int:
        """Tokens that the loss counts, of all rows together, uncut."""
        return sum(self.trained)

    @property
    def truncated(self) -> int:
        """Rows longer than max_length: their end is cut, and with it the token that teaches to stop."""
        return 0 if self.max_length is None else sum(total > self.max_length for total in self.total)

    @property
    def lost(self) -> int:
        """Rows of which max_length leaves nothing to learn from; TRL drops them without a word."""
        if self.max_length is None:
            return sum(trained == 0 for trained in self.trained)
        return sum(
            trained == 0 or first >= self.max_length for trained, first in zip(self.trained, self.first, strict=True)
        )

    @property
    def suggest_max_length(self) -> int:
        """The smallest multiple of 64 that cuts no row, or at most 1 % of them where a few are over twice as long."""
        longest, most = max(self.total), percentile(self.total, 0.99)
        return 64 * math.ceil((longest if longest <= 2 * most else most) / 64)

    def table(self) -> Table:
        """Percentiles of both lengths, and the counts as sentences."""
        shown: list[list[Any]] = [
            [_share_name(share), percentile(self.total, share), percentile(self.trained, share)] for share in _SHARES
        ]
        share = self.trained_tokens / max(self.total_tokens, 1)
        notes = [f"{self.total_tokens:,} tokens in all, {self.trained_tokens:,} ({share:.0%}) of them trained on."]
        if self.max_length is not None:
            notes.append(
                f"max_length={self.max_length}: {self.truncated:,} rows are cut; {self.lost:,} rows have no trained "
                "token left and are dropped by the trainer."
            )
        notes.append(f"Suggested: max_length={self.suggest_max_length}.")
        title = f"{len(self.total):,} rows"
        return Table(["of the rows", "tokens, at most", "trained, at most"], shown, title=title, notes=notes)

    def plot(self) -> Any:
        """A small matplotlib Figure: how many rows are how long.

        Raises: MissingPackageError.
        """
        require("matplotlib", extra="train")
        import matplotlib.pyplot as plt

        limit = max(self.max_length or 0, *self.total)
        width = max(1, math.ceil(limit / 40))
        edges = [width * step for step in range(math.ceil((limit + 1) / width) + 1)]
        figure, axes = plt.subplots(figsize=(6.4, 2.6), layout="constrained")
        axes.hist(self.total, bins=edges, color="#9aa5b1", label="all tokens of a row")
        axes.hist(self.trained, bins=edges, color="#2f9e62", alpha=0.65, label="tokens the loss counts")
        if self.max_length is not None:
            axes.axvline(self.max_length, color="#c92a2a", linestyle="--", label=f"max_length {self.max_length}")
        axes.set(xlabel="tokens", ylabel="rows")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        plt.close(figure)  # the cell's value is shown once; an open figure would be shown again
        return figure

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def token_stats(rows: Rows, tokenizer: Any, *, max_length: int | None = None) -> TokenStats:
    """Tokenise every row as SFTTrainer will and count.

    Args:
        rows: Rows that SFTTrainer reads: prompt and completion, messages or text.
        tokenizer: The tokenizer that will be trained with.
        max_length: The limit to ask about (SFTConfig's; 1024 unless set).
    Returns: TokenStats.
    Raises: DataError for rows that SFTTrainer does not read, naming the first, or no rows.
    """
    if not len(rows):
        raise DataError(f"{rows.source} holds no rows.", hint="nothing can be counted in no rows")
    total, trained, first = [], [], []
    progress = Progress("tokenising")
    for index, row in enumerate(rows):
        try:
            ids, loss_mask = tokenize_row(row, tokenizer)
        except DataError as error:
            raise DataError(f"{rows.where(index)}: {error.message}", hint=error.hint) from error
        total.append(len(ids))
        trained.append(sum(loss_mask))
        first.append(loss_mask.index(True) if True in loss_mask else len(ids))
        progress(index + 1)
    return TokenStats(tuple(total), tuple(trained), tuple(first), max_length, rows.source)


def percentile(values: Sequence[int], share: float) -> int:
    """The smallest value that at least `share` of the values do not exceed."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def _share_name(share: float) -> str:
    return "all" if share == 1 else f"{share:.0%}"


@dataclass(frozen=True)
class Marked:
    """One row as the model reads it, its trained tokens marked: in colour in a notebook, in ⟦ ⟧ as text.

    Attributes:
        runs: (text, True where the loss counts), in order; together they are the whole row.
        total: Number of tokens.
        trained: Number of tokens that the loss counts.
    """

    runs: tuple[tuple[str, bool], ...]
    total: int
    trained: int

    def __repr__(self) -> str:
        marked = "".join(f"⟦{text}⟧" if counts else text for text, counts in self.runs)
        return f"{marked}\n({self.total} tokens, ⟦ ⟧ marks the {self.trained} that are trained on)"

    def _repr_html_(self) -> str:
        # A translucent background under the theme's own text colour reads in light and in dark.
        green = "background:rgba(47,158,98,.32);border-bottom:2px solid rgb(47,158,98)"
        body = "".join(
            f'<span style="{green}">{escape(text)}</span>' if counts else f"<span>{escape(text)}</span>"
            for text, counts in self.runs
        )
        return (
            '<div style="white-space:pre-wrap;overflow-wrap:anywhere;font-family:monospace;line-height:1.5;'
            f'border:1px solid rgba(128,128,128,.4);padding:.6em">{body}</div>'
            f'<div style="opacity:.8;margin-top:.3em"><span style="{green}">marked</span>: the {self.trained} of '
            f"{self.total} tokens that the loss counts; the rest is read, not learned.</div>"
        )


def marked(row: Row, tokenizer: Any) -> Marked:
    """Show which tokens of a row are trained on: those that tokenize_row's mask names.

    Args:
        row: See tokenize_row.
        tokenizer: See tokenize_row.
    Returns: Marked, which a notebook shows in colour.
    Raises: DataError.
    """
    ids, loss_mask = tokenize_row(row, tokenizer)
    runs, end, before = [], 0, ""
    for counts, run in groupby(loss_mask):
        end += len(list(run))
        # Text of a run is what it adds to the text so far: decoded alone, some tokenizers drop its first blank.
        so_far = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        runs.append((so_far[len(before) :], counts))
        before = so_far
    return Marked(tuple(runs), total=len(ids), trained=sum(loss_mask))
