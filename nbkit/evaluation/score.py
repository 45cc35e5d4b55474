"""How good is a model on rows with a right answer: loss, exact match, JSON fields, whether it stops, and how fast."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbkit import smoke
from nbkit.data.rows import Progress
from nbkit.display import Table
from nbkit.errors import require
from nbkit.evaluation.encode import Example, encode
from nbkit.evaluation.fields import match
from nbkit.evaluation.generate import greedy
from nbkit.evaluation.loss import RowLoss, mean_loss, row_losses

SMOKE_ROWS, SMOKE_TOKENS = 4, 16
_LATENCY_ROWS = 3
# Measured on two cores with the embedded 4-bit model: 13 tokens/s at batch 1, 45-90 at 16, 87-113 at 32, 120 at 64; the
# KV cache doubles with the batch.
_BATCH = 32


@dataclass(frozen=True)
class Output:
    """One row and what the model made of it.

    Attributes:
        id: The row's id.
        prompt_text: The question, as a person reads it.
        expected: The right answer.
        got: What was generated, without special tokens.
        exact: See `fields.match`.
        fields_right: Expected JSON fields whose value is right.
        fields: Expected JSON fields; 0 where the answer is not a JSON object.
        stopped: True when the model ended its turn itself.
        tokens: Tokens generated.
        loss: Of the expected answer, not of the generated one.
    """

    id: str
    prompt_text: str
    expected: str
    got: str
    exact: bool
    fields_right: int
    fields: int
    stopped: bool
    tokens: int
    loss: RowLoss


@dataclass(frozen=True)
class Score:
    """What `score` found.

    Attributes:
        name: Which model on which rows; for display.
        rows: How many rows.
        loss: Mean negative log-likelihood per completion token, in nats; end of turn included, padding never.
        exact_match: Share of rows answered exactly.
        field_accuracy: Mean over rows of the share of expected JSON fields that are right; an answer that is not one JSON
            object has none right. None where no row expects a JSON object.
        stop_rate: Share of answers that ended by themselves within `max_new_tokens`.
        tokens_per_s: Generated tokens per second, in batches of `batch_size`, prompts included in the time.
        latency_s: Median seconds for one answer at batch 1, measured separately over `latency_rows` rows.
        latency_rows: 0 when the latency was not measured.
        batch_size: Rows a batch.
        max_new_tokens: Where answers were cut off.
        outputs: One a row, in order.
    """

    name: str
    rows: int
    loss: float
    exact_match: float
    field_accuracy: float | None
    stop_rate: float
    tokens_per_s: float
    latency_s: float | None
    latency_rows: int
    batch_size: int
    max_new_tokens: int
    outputs: tuple[Output, ...]

    def table(self) -> Table:
        """One line a measure, each with what it counts."""
        latency = f"median of {self.latency_rows} rows at batch 1" if self.latency_rows else "not measured"
        lines = [
            ("loss", self.loss, "nats per completion token, end of turn included"),
            ("exact match", self.exact_match, "share of rows"),
            ("field accuracy", self.field_accuracy, "mean share of expected JSON fields"),
            ("stop rate", self.stop_rate, f"ended within {self.max_new_tokens} tokens"),
            ("tokens/s", self.tokens_per_s, f"batch {self.batch_size}"),
            ("latency, s", self.latency_s, latency),
        ]
        title = f"{self.name}: {self.rows} rows" if self.name else f"{self.rows} rows"
        return Table(["measure", "value", "of"], lines, title=title)

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def score(
    model: Any,
    tokenizer: Any,
    rows: Iterable[Mapping[str, Any]],
    *,
    max_new_tokens: int = 96,
    batch_size: int | None = None,
    name: str = "",
    latency_rows: int = _LATENCY_ROWS,
) -> Score:
    """Score a model on rows: the loss of the right answers, and greedy answers compared with them.

    The model is left as it was: training mode, generation settings, gradients' way. The tokenizer is only read. In smoke
    mode at most 4 rows and 16 new tokens are used.

    Args:
        model: A causal model of transformers or PEFT, on any device, quantised or not.
        tokenizer: With a chat template where rows are conversational.
        rows: Prompt-completion rows, see `encode`.
        max_new_tokens: Where to cut off an answer that does not end; a model that rambles costs all of them on each row.
        batch_size: Prompts generated at once; 32 when not given, halved when a GPU runs out of memory.
        name: For display.
        latency_rows: Rows to time at batch 1; 0 for none.
    Raises: DataError for rows that cannot be scored; ModelError without a chat template; MissingPackageError.
    """
    require("torch", "transformers", extra="train")
    return score_examples(
        model,
        tokenizer,
        encode(tokenizer, capped(rows)),
        max_new_tokens=smoke.cap(max_new_tokens, SMOKE_TOKENS),
        batch_size=batch_size or _BATCH,
        name=name,
        latency_rows=latency_rows,
    )


def capped(rows: Iterable[Mapping[str, Any]], limit: int | None = None) -> list[Mapping[str, Any]]:
    """The first `limit` rows; in smoke mode at most 4."""
    every = list(rows)
    return every[: smoke.cap(len(every) if limit is None else limit, SMOKE_ROWS)]


def score_examples(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    batch_size: int = _BATCH,
    name: str = "",
    latency_rows: int = _LATENCY_ROWS,
) -> Score:
    """`score` for rows that are tokens already: base and tuned see the very same ones."""
    label = f"{name}: " if name else ""
    losses = row_losses(model, examples, Progress(f"{label}loss of {len(examples)} rows"))
    began = time.perf_counter()
    answers = greedy(
        model,
        tokenizer,
        examples,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=Progress(f"{label}answers to {len(examples)} rows"),
    )
    seconds = time.perf_counter() - began
    timed = examples[:: max(1, len(examples) // latency_rows)][:latency_rows] if latency_rows else []
    outputs = []
    for example, answer, loss in zip(examples, answers, losses, strict=True):
        found = match(example.expected, answer.text)
        outputs.append(
            Output(
                id=example.id,
                prompt_text=example.prompt_text,
                expected=example.expected,
                got=answer.text,
                exact=found.exact,
                fields_right=found.right,
                fields=found.fields,
                stopped=answer.stopped,
                tokens=answer.tokens,
                loss=loss,
            )
        )
    shares = [output.fields_right / output.fields for output in outputs if output.fields]
    return Score(
        name=name,
        rows=len(outputs),
        loss=mean_loss(losses),
        exact_match=statistics.fmean(output.exact for output in outputs),
        field_accuracy=statistics.fmean(shares) if shares else None,
        stop_rate=statistics.fmean(output.stopped for output in outputs),
        tokens_per_s=sum(output.tokens for output in outputs) / seconds,
        latency_s=_latency(model, tokenizer, timed, max_new_tokens) if timed else None,
        latency_rows=len(timed),
        batch_size=min(batch_size, len(outputs)),
        max_new_tokens=max_new_tokens,
        outputs=tuple(outputs),
    )


def _latency(model: Any, tokenizer: Any, examples: Sequence[Example], max_new_tokens: int) -> float:
    seconds = []
    for example in examples:
        began = time.perf_counter()
        greedy(model, tokenizer, [example], max_new_tokens=max_new_tokens, batch_size=1)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
