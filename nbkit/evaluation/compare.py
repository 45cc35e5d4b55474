"""Did fine-tuning help? The same model with its adapter off and on, on the same rows, with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbkit import atomic, smoke
from nbkit.display import Table
from nbkit.errors import DataError, require
from nbkit.evaluation.adapter import require_adapter, without_adapter
from nbkit.evaluation.encode import encode
from nbkit.evaluation.forgetting import Forgetting, forgetting
from nbkit.evaluation.score import SMOKE_TOKENS, Output, Score, capped, score_examples
from nbkit.evaluation.stats import METHOD, Difference, difference, finite, mcnemar

_FEW = 20
_VERDICTS = {(False, True): "fixed", (True, True): "both right", (False, False): "both wrong", (True, False): "broken"}


@dataclass(frozen=True)
class Pair:
    """Base and tuned on one set of rows.

    Attributes:
        name: Of the set.
        available: Rows the set has; fewer were scored where a limit was given.
        base: Adapter off.
        tuned: Adapter on.
        exact: Difference in exact match.
        fields: Difference in field accuracy; None where no JSON is expected.
        loss: Difference in loss; below zero is better.
        p: McNemar's exact two-sided p for exact match.
    """

    name: str
    available: int
    base: Score
    tuned: Score
    exact: Difference
    fields: Difference | None
    loss: Difference
    p: float

    @property
    def counts(self) -> str:
        """`50 of 200 rows`, or `200 rows`."""
        rows = self.base.rows
        return f"{rows} rows" if rows == self.available else f"{rows} of {self.available} rows"

    def verdicts(self) -> list[str]:
        """For each row: fixed, both right, both wrong, or broken by the fine-tune."""
        rows = zip(self.base.outputs, self.tuned.outputs, strict=True)
        return [_VERDICTS[base.exact, tuned.exact] for base, tuned in rows]


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: a table, answers side by side, a figure, a dictionary.

    Attributes:
        sets: One pair a set of rows, in the order given.
        general: What happened to general text; None when not asked.
        max_new_tokens: Where answers were cut off, the same for both.
    """

    sets: tuple[Pair, ...]
    general: Forgetting | None
    max_new_tokens: int

    def __getitem__(self, name: str) -> Pair:
        for pair in self.sets:
            if pair.name == name:
                return pair
        raise DataError(f"No set {name!r} was compared.", hint=f"choose one of: {', '.join(p.name for p in self.sets)}")

    def claim(self) -> str:
        """One sentence that the numbers carry: a change counts where McNemar's p is below 0.05.

        The exact test and not the bootstrap interval, which is too narrow on a handful of rows.
        """
        shown = [pair.exact.value for pair in self.sets if pair.p < 0.05]
        better, worse = sum(value > 0 for value in shown), sum(value < 0 for value in shown)
        total = f"{len(self.sets)} set{'s' if len(self.sets) > 1 else ''}"
        if worse:
            return f"Fine-tuning lowers exact match on {worse} of {total}" + (
                f", raises it on {better}" if better else ""
            )
        if better:
            return f"Fine-tuning raises exact match on {better} of {total}"
        return f"No clear change in exact match on {total}"

    def table(self) -> Table:
        """One line a set and measure: base, tuned, the difference with its interval."""
        lines: list[tuple[Any, ...]] = []
        for pair in self.sets:
            base, tuned = pair.base, pair.tuned
            where = f"{pair.name} ({pair.counts})"
            lines.append((where, "exact match", base.exact_match, tuned.exact_match, str(pair.exact), _p(pair.p)))
            if pair.fields:
                lines.append((where, "field accuracy", base.field_accuracy, tuned.field_accuracy, str(pair.fields), ""))
            lines += [
                (where, "loss", base.loss, tuned.loss, str(pair.loss), ""),
                (where, "stop rate", base.stop_rate, tuned.stop_rate, "", ""),
                (where, "latency, s", base.latency_s, tuned.latency_s, "", ""),
            ]
        few = [pair.name for pair in self.sets if pair.base.rows < _FEW]
        notes = [
            f"Greedy, at most {self.max_new_tokens} new tokens, same prompts; base is the same model, adapter off.",
            f"Intervals: {METHOD}.",
        ]
        if few:
            notes.append(f"Fewer than {_FEW} rows ({', '.join(few)}): the intervals are too narrow to rely on.")
        if self.general:
            notes.append(self.general.sentence())
        columns = ["set", "measure", "base", "tuned", "difference [95 %]", "p"]
        return Table(columns, lines, title=f"{self.claim()}.", notes=notes)

    def side_by_side(self, n: int = 5, set: str | None = None) -> Table:  # noqa: A002 - the notebook's word for it
        """`n` rows with both answers: in turn one that was fixed, one both have wrong, one broken, one both have right.

        So that neither the successes nor the failures are hidden, whichever are rare; the title counts all.
        """
        pair = self.sets[0] if set is None else self[set]
        verdicts = pair.verdicts()
        queues = [
            [i for i, v in enumerate(verdicts) if v == kind] for kind in ("fixed", "both wrong", "broken", "both right")
        ]
        order: list[int] = []
        while any(queues):
            order += [queue.pop(0) for queue in queues if queue]
        lines = []
        for index in sorted(order[:n]):
            base, tuned = pair.base.outputs[index], pair.tuned.outputs[index]
            texts = (_short(text) for text in (base.prompt_text, base.expected, base.got, tuned.got))
            lines.append((base.id, *texts, verdicts[index] + _fields(tuned)))
        found = ", ".join(f"{verdicts.count(kind)} {kind}" for kind in _VERDICTS.values())
        return Table(
            ["id", "prompt", "expected", "base", "tuned", "verdict"],
            lines,
            title=f"{pair.name} ({pair.counts}): {found}.",
        )

    def plot(self) -> Any:
        """A small matplotlib Figure: base and tuned per set, the difference's interval drawn from the base.

        Raises: MissingPackageError.
        """
        from nbkit.evaluation.figure import draw

        return draw(self)

    def as_dict(self) -> dict[str, Any]:
        """All numbers, for JSON; a number that is not finite becomes null."""
        return {
            "method": METHOD,
            "max_new_tokens": self.max_new_tokens,
            "sets": {pair.name: _numbers(pair) for pair in self.sets},
            "general": self.general.as_dict() if self.general else None,
        }

    def save(self, path: str | Path) -> Path:
        """Write `as_dict` as JSON, whole or not at all.

        Raises: StorageError.
        """
        return atomic.write_json(path, self.as_dict())

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def compare(
    model: Any,
    tokenizer: Any,
    sets: Mapping[str, Iterable[Mapping[str, Any]]],
    *,
    general: Iterable[Mapping[str, Any]] | None = None,
    max_new_tokens: int = 96,
    limit: int | None = None,
    batch_size: int = 32,
) -> Comparison:
    """Score one PEFT model twice on each set of rows, adapter off (base) and on (tuned).

    One model, no second copy in memory. Prompts, tokens, decoding and code are the same for both, so the rows are paired:
    differences carry a 95 % paired bootstrap interval, and exact match McNemar's exact p (see `stats`). In smoke mode at
    most 4 rows a set and 16 new tokens are used, which shows that it works and nothing about quality.

    Args:
        model: A PeftModel; left as it was.
        tokenizer: Its tokenizer.
        sets: Held-out rows by name.
        general: Rows that have nothing to do with the task, for the forgetting check.
        max_new_tokens: Where to cut off an answer that does not end; base models often ramble to it.
        limit: At most so many rows a set, the first ones; the table says so.
        batch_size: Prompts generated at once.
    Raises: ModelError when the model has no adapter; DataError for rows that cannot be scored, naming set and row.
    """
    require("torch", "transformers", "peft", extra="train")
    require_adapter(model)
    if not sets:
        raise DataError("No sets were given to compare on.", hint='compare(model, tokenizer, {"held out": rows})')
    max_new_tokens = smoke.cap(max_new_tokens, SMOKE_TOKENS)
    prepared = {}
    for name, rows in sets.items():
        every = list(rows)
        try:
            prepared[name] = (len(every), encode(tokenizer, capped(every, limit)))
        except DataError as error:
            raise DataError(f"Set {name!r}: {error.message}", hint=error.hint) from error
    pairs = []
    for name, (available, examples) in prepared.items():
        options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
        with without_adapter(model):
            base = score_examples(model, tokenizer, examples, name=f"{name}, base", **options)
        tuned = score_examples(model, tokenizer, examples, name=f"{name}, tuned", **options)
        pairs.append(pair(name, available, base, tuned))
    forgot = None if general is None else forgetting(model, tokenizer, general, limit=limit)
    return Comparison(tuple(pairs), forgot, max_new_tokens)


def pair(name: str, available: int, base: Score, tuned: Score) -> Pair:
    """Two scores of the same rows, with their differences."""
    exact = [[output.exact for output in each.outputs] for each in (base, tuned)]
    fields = [
        [output.fields_right / output.fields for output in each.outputs if output.fields] for each in (base, tuned)
    ]
    losses = [[output.loss.nll / output.loss.tokens for output in each.outputs] for each in (base, tuned)]
    return Pair(
        name=name,
        available=available,
        base=base,
        tuned=tuned,
        exact=difference(exact[0], exact[1]),
        fields=difference(fields[0], fields[1]) if fields[0] else None,
        loss=difference(losses[0], losses[1], [output.loss.tokens for output in base.outputs]),
        p=mcnemar(exact[0], exact[1]),
    )


def _numbers(pair: Pair) -> dict[str, Any]:
    found: dict[str, Any] = {"rows": pair.base.rows, "available": pair.available}
    for label, each in (("base", pair.base), ("tuned", pair.tuned)):
        for measure in ("exact_match", "field_accuracy", "loss", "stop_rate", "latency_s", "tokens_per_s"):
            found[f"{label}_{measure}"] = finite(getattr(each, measure))
    for measure, change in (("exact_match", pair.exact), ("field_accuracy", pair.fields), ("loss", pair.loss)):
        found[f"{measure}_difference"] = None if change is None else change.as_dict()
    return {**found, "mcnemar_p": pair.p}


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _short(text: str, most: int = 160) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else f"{flat[: most - 3]}..."


def _fields(output: Output) -> str:
    return f", {output.fields_right} of {output.fields} fields" if output.fields and not output.exact else ""
