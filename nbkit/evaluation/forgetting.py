"""What did it cost? The loss on general text, adapter off and on, and a few fixed questions answered by both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbkit import smoke
from nbkit.data.rows import Progress
from nbkit.display import Table
from nbkit.errors import require
from nbkit.evaluation.adapter import require_adapter, without_adapter
from nbkit.evaluation.encode import encode
from nbkit.evaluation.generate import greedy
from nbkit.evaluation.loss import mean_loss, row_losses
from nbkit.evaluation.score import SMOKE_TOKENS, capped
from nbkit.evaluation.stats import Difference, difference, finite

PROMPTS = (
    "What is the capital of France?",
    "Name three uses of a hammer.",
    "Write one sentence about the sea.",
    "What is 7 plus 5?",
    "Translate into French: good morning.",
)
# 0.02 nats is 2 % in perplexity, 0.3 nats is 35 %: the house's own words for it, not a standard.
_TRACE, _LOT = 0.02, 0.3


@dataclass(frozen=True)
class Sample:
    """One general question, and what both models answer."""

    prompt: str
    base: str
    tuned: str


@dataclass(frozen=True)
class Forgetting:
    """What `forgetting` found.

    Attributes:
        rows: Rows of general text.
        base_loss: Nats per completion token, adapter off.
        tuned_loss: The same, adapter on.
        change: Tuned minus base, with its 95 % interval; above zero is forgetting.
        samples: Fixed questions with both answers.
    """

    rows: int
    base_loss: float
    tuned_loss: float
    change: Difference
    samples: tuple[Sample, ...]

    def sentence(self) -> str:
        """The numbers, read."""
        change = self.change
        interval = f"{change.value:+.2f} [{change.low:.2f}, {change.high:.2f}]"
        return f"General text, {self.rows} rows: loss {self.base_loss:.2f} -> {self.tuned_loss:.2f} ({interval}): {self._read()}."

    def _read(self) -> str:
        change = self.change
        if not math.isfinite(change.value):
            return "the loss is not a number, the tuned model is broken"
        if change.sign == 0:
            return "no forgetting was shown on these rows"
        if change.sign < 0:
            return "it does better on general text than before"
        if change.value < _TRACE:
            return "it has forgotten a trace"
        return "it has forgotten a lot" if change.value >= _LOT else "it has forgotten a little"

    def table(self) -> Table:
        """The questions with both answers, and the sentence."""
        lines = [
            (sample.prompt, *(" ".join(text.split()) for text in (sample.base, sample.tuned)))
            for sample in self.samples
        ]
        return Table(["general question", "base", "tuned"], lines, title=self.sentence())

    def as_dict(self) -> dict[str, Any]:
        """The numbers, for JSON; one that is not finite becomes null."""
        return {
            "rows": self.rows,
            "base_loss": finite(self.base_loss),
            "tuned_loss": finite(self.tuned_loss),
            "loss_difference": self.change.as_dict(),
            "sentence": self.sentence(),
        }

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def forgetting(
    model: Any,
    tokenizer: Any,
    rows: Iterable[Mapping[str, Any]],
    *,
    prompts: Sequence[str] = PROMPTS,
    max_new_tokens: int = 48,
    limit: int | None = None,
) -> Forgetting:
    """Compare a PEFT model's loss on general text, adapter off and on, and let both answer a few fixed questions.

    Rows of two strings are asked as a chat turn where the tokenizer has a chat template: that is how the model is used
    afterwards. The interval is a paired bootstrap over rows (see `stats.difference`). In smoke mode at most 4 rows, one
    question and 16 new tokens are used.

    Args:
        model: A PeftModel; left as it was.
        tokenizer: Its tokenizer.
        rows: Text that has nothing to do with the task: prompt and completion, or `text`.
        prompts: Questions to show; empty for none.
        max_new_tokens: Where to cut off their answers.
        limit: At most so many rows, the first ones.
    Raises: ModelError when the model has no adapter; DataError for rows that cannot be scored.
    """
    require("torch", "transformers", "peft", extra="train")
    require_adapter(model)
    examples = encode(tokenizer, [_asked(tokenizer, row) for row in capped(rows, limit)])
    asked = prompts[: smoke.cap(len(prompts), 1)]
    # An answer has to be there for a row to be complete; nothing reads it.
    questions = encode(tokenizer, [_asked(tokenizer, {"prompt": p, "completion": "."}) for p in asked]) if asked else []

    def both(name: str) -> tuple[Any, Any]:
        losses = row_losses(model, examples, Progress(f"general text, {name}: loss of {len(examples)} rows"))
        new = smoke.cap(max_new_tokens, SMOKE_TOKENS)
        return losses, greedy(model, tokenizer, questions, max_new_tokens=new, batch_size=8)

    with without_adapter(model):
        base, base_answers = both("base")
    tuned, tuned_answers = both("tuned")
    weights = [row.tokens for row in base]
    change = difference(
        [row.nll / row.tokens for row in base], [row.nll / row.tokens for row in tuned], weights=weights
    )
    samples = (
        Sample(prompt, one.text, other.text)
        for prompt, one, other in zip(asked, base_answers, tuned_answers, strict=True)
    )
    return Forgetting(len(examples), mean_loss(base), mean_loss(tuned), change, tuple(samples))


def _asked(tokenizer: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    strings = isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str)
    if not strings or not getattr(tokenizer, "chat_template", None):
        return dict(row)
    return {
        **row,
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
    }
