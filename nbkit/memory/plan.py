"""What to do with this model on that machine: which methods fit, how far they go, what mends a misfit, how long and dear.

`plan` puts a model's memory surface, a place and the time of its data together. Memory is the formula's, set right by
fake steps where asked (`measure`); time and money follow from nbkit.memory.time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from nbkit.display import Table
from nbkit.errors import NbkitError
from nbkit.memory.batches import lengths_of
from nbkit.memory.disk import Disk, of_run
from nbkit.memory.disk import said as disk_said
from nbkit.memory.fits import NAMES
from nbkit.memory.formula import Method, Step
from nbkit.memory.lengths import Prophecy, prophecy
from nbkit.memory.option import HOWS, Option, Wish, feed_of, option
from nbkit.memory.place import Place, place
from nbkit.memory.subject import Subject, subject
from nbkit.memory.sweep import How, Surface, surface
from nbkit.memory.time import Load, Rates, human

METHODS: tuple[Method, ...] = ("lora", "qlora", "full")  # in the order of preference: see Plan.best
_SLOWER = 1.5  # LoRA may take so much longer than QLoRA before it is not worth it


@dataclass(frozen=True)
class Plan:
    """The answer. Shows itself as a table; `.best`, `.of(...)`, `.changes(...)`, `.market()`, `.code()`, `.prophecy(...)`.

    Attributes:
        options: Every method with and without checkpointing, the best first.
        tokens: What the times are for: the data's tokens, or a million.
        notes: Doubts, a sentence each.
    """

    subject: Subject
    place: Place
    wish: Wish
    surface: Surface
    options: tuple[Option, ...]
    tokens: int
    data: Any
    notes: tuple[str, ...]

    @property
    def best(self) -> Option | None:
        """The option to take: of those that fit for sure, else of those that may; None when nothing does.

        LoRA before QLoRA, for 4-bit weights lose a little and gain no speed, unless QLoRA is much the faster (it may fit
        on each GPU where LoRA must be sharded). Full training last: it is worth its price only with much data.
        """
        for verdict in ("yes", "tight"):
            by_method = {method: self._fastest(method, verdict) for method in METHODS}
            lora, qlora = by_method["lora"], by_method["qlora"]
            if lora and qlora and lora.time.seconds > _SLOWER * qlora.time.seconds:
                return qlora
            first = lora or qlora or by_method["full"]
            if first:
                return first
        return None

    def _fastest(self, method: Method, verdict: str) -> Option | None:
        fitting = [one for one in self.options if one.method == method and one.verdict == verdict]
        return min(fitting, key=lambda one: one.time.seconds, default=None)

    def of(self, method: Method, checkpointing: bool = True) -> Option:
        """The option of that method."""
        for one in self.options:
            if (one.method, one.checkpointing) == (method, checkpointing):
                return one
        raise NbkitError(f"method={method!r} is not in this plan.", hint="full, lora or qlora", exit_code=2)

    def changes(self, method: Method = "lora", checkpointing: bool = True) -> tuple[Any, ...]:
        """The single changes that each make this option fit, the least intrusive first; empty when it fits already."""
        from nbkit.memory.changes import changes

        return changes(self, self.of(method, checkpointing))

    def market(self, method: Method | None = None, **conditions: Any) -> Any:
        """Cost and time on every offer where it fits, with the Pareto set marked; see nbkit.memory.market.market."""
        from nbkit.memory.market import market

        return market(self, method, **conditions)

    def code(self, method: Method | None = None, checkpointing: bool | None = None) -> str:
        """The field's own objects for one option (default: the best), as Python to paste."""
        from nbkit.memory.paste import paste

        return paste(self, self.chosen(method, checkpointing))

    def disk(self, method: Method | None = None) -> Disk:
        """What the run puts on disk under an option (default: the best): two checkpoints kept, adapters merged at the end."""
        option, shape = self.chosen(method), self.subject.shape
        adapted = option.method != "full"
        width = 2 if option.method == "full" and self.place.dtype == "bfloat16" else 4
        found, _ = of_run(
            shape.params,
            shape.lora_params(self.wish.rank, self.wish.targets) if adapted else shape.params,
            adapted=adapted,
            trained_bytes=width,
            state_bytes=2 if self.wish.optimizer == "adamw_8bit" else 2 * width,
            lengths=() if self.data is None else lengths_of(self.data, self.wish.seq)[0],
            local=self.subject.local,
        )
        return found

    def prophecy(
        self, data: Any = None, *, method: Method | None = None, checkpointing: bool | None = None
    ) -> Prophecy:
        """Which rows of the data would run out of memory under an option (default: the best), and what to do."""
        data = self.data if data is None else data
        if data is None:
            raise NbkitError(
                "There is no data to look at.", hint="plan.prophecy(nbkit.data.token_stats(rows, tokenizer))"
            )
        chosen = self.chosen(method, checkpointing)

        def peak(on: bool) -> Callable[[int, int], float]:
            gpus = self.place.count if chosen.how == "sharded" else 1
            return lambda rows, tokens: (
                self.surface.at(chosen.method, on, rows, tokens, rank=self.wish.rank, gpus=gpus).high_gib
            )

        limit = max(lengths_of(data)[0]) if self.data is None else self.wish.seq
        feed = replace(feed_of(self.wish, chosen.batch, chosen.accumulation, self.place.count), max_length=limit)
        again = None if chosen.checkpointing else peak(True)
        return prophecy(
            data, self.place.room_gib, peak(chosen.checkpointing), feed, epochs=self.wish.epochs, checkpointed=again
        )

    def chosen(self, method: Method | None = None, checkpointing: bool | None = None) -> Option:
        """The option meant: the best, or the faster one of a method that fits; with checkpointing where none does."""
        if method is None:
            return self.best or self.of("qlora")
        if checkpointing is not None:
            return self.of(method, checkpointing)
        both = [self.of(method, on) for on in (False, True)]
        return next((one for one in both if one.verdict == "yes"), both[1])

    def table(self) -> Table:
        """One row an option; for what does not fit, the single change that mends it."""
        rows = []
        several = self.place.count > 1
        for one in self.options:
            mend = (
                "" if one.verdict == "yes" else next((str(c) for c in self.changes(one.method, one.checkpointing)), "-")
            )
            cost = "" if one.usd is None else f", ${one.usd:.2f}"
            took = f"{human(one.time.seconds)}{cost}" if one.verdict != "no" else "-"
            memory = f"{one.memory.low_gib:.1f}-{one.memory.high_gib:.1f}"
            how = [HOWS[one.how]] if several else []
            rows.append(
                [("> " if one is self.best else "") + one.name, *how, one.verdict, memory,
                 f"{one.batch} x {one.accumulation}", one.largest_batch, one.longest_seq, took, mend]
            )  # fmt: skip
        columns = ["method", *(["how"] if several else []), "fits", "GiB each" if several else "GiB", "batch x accum.",
                   "largest batch", "longest row", "time", "what would make it fit"]  # fmt: skip
        title = (
            f"{self.subject.shape.name} on {self.place.label}: {self.wish.seq:,} tokens, {self.place.room_gib:.1f} GiB"
        )
        return Table(columns, rows, title + (" each" if several else ""), self._all_notes())

    def _all_notes(self) -> list[str]:
        said = [self.explain()]
        first = self.options[0].time
        what = "the data's" if self.data is not None else "ten million"
        said.append(
            f"Time is for {what} tokens ({self.tokens:,}), by {first.basis}; it may be {first.high_s / first.seconds:.1f} "
            "times longer or shorter. Loading, evaluation and checkpoints come on top."
        )
        by = sorted({one.memory.basis for one in self.options})
        said.append(f"Memory by {' and '.join(by)}; yes: the high end fits, tight: only the low end does.")
        if (best := self.best) is not None:
            said.append(f"{disk_said(self.disk().as_mapping())} For {best.name}; merge is a copy to export, in 16 bit.")
        return [*said, *self.place.notes, *self.subject.notes, *self.notes]

    def explain(self) -> str:
        """The answer in a few sentences."""
        best, room = self.best, f"{self.place.room_gib:.1f} GiB"
        name = f"{self.subject.shape.name} on {self.place.label}"
        if best is None:
            near = min(self.options, key=lambda one: one.memory.low_gib)
            mend = next((str(change) for change in self.changes(near.method, near.checkpointing)), "")
            return (
                f"{name}: nothing fits. Even {near.name} needs {near.memory.low_gib:.1f} GiB and more of {room}; the largest "
                f"share is {near.memory.largest}." + (f" What would make it fit: {mend}." if mend else "")
            )
        sure = "fits" if best.verdict == "yes" else "may fit (try one step with the longest row first)"
        text = f"{name}: {best.name} {sure} with {_span(best)} of {room}{_BY_HOW[best.how]}"
        others = []
        for method in get_args(Method):
            if method == best.method:
                continue
            other = self._fastest(method, "yes") or self._fastest(method, "tight")
            if other is None:
                share = self.of(method).memory
                others.append(f"{NAMES[method]} does not ({share.largest} {share.parts[share.largest]:.1f} GiB)")
            else:
                also = "fits too" if other.verdict == "yes" else "may fit"
                on = ", checkpointing" if other.checkpointing else ""
                others.append(f"{NAMES[method]} {also}{on} ({_span(other)}{_BY_HOW[other.how]})")
        return f"{text}. {'; '.join(others)}."

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "model": self.subject.shape.name,
            "parameters": self.subject.shape.params,
            "place": self.place.name,
            "gpus": self.place.count,
            "room_gib": round(self.place.room_gib, 2),
            "dtype": self.place.dtype,
            "seq": self.wish.seq,
            "tokens": self.tokens,
            "best": None
            if self.best is None
            else {"method": self.best.method, "checkpointing": self.best.checkpointing},
            "options": [
                {
                    **one.as_dict(),
                    "disk": _rounded(self.disk(one.method).as_mapping()),
                    "changes": [c.as_dict() for c in self.changes(one.method, one.checkpointing)],
                }
                for one in self.options
            ],
            "explanation": self.explain(),
            "notes": [*self.place.notes, *self.subject.notes, *self.notes],
        }

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def _rounded(kinds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(gib, 3) for name, gib in kinds.items()}


_BY_HOW: dict[How, str] = {"one": "", "each": " on each GPU, rows shared", "sharded": " on each GPU, weights shared"}


def _span(one: Option) -> str:
    return f"{one.memory.low_gib:.1f} to {one.memory.high_gib:.1f} GiB"


def plan(
    model: Any,
    where: Any = None,
    data: Any = None,
    *,
    seq: int | None = None,
    rates: Rates | None = None,
    measure: bool = False,
    **wishes: Any,
) -> Plan:
    """Which ways to train `model` fit `where`, and what each gives.

    Args:
        model: A well-known name, "embedded", a folder, a hub id, a config, or a Shape.
        where: A machine (default: this one), a card's name, "2x RTX 4090", or an offer.
        data: TokenStats (nbkit.data.token_stats), token counts or a tokenised dataset: decides time and, unless `seq` is
            given, the length. Without: 1,024 tokens a row, ten million in all.
        seq: Rows are cut to so many tokens (max_length).
        rates: What the device sustains, where measured: nbkit.memory.benchmark.benchmark or with_run.
        measure: Run fake steps of what the formula cannot decide (needs the train extra; seconds a variant).
        wishes: Fields of Wish: effective_batch, batch, rank, targets, optimizer, packing, epochs.
    Returns: A Plan.
    Raises: NbkitError (exit code 2) for nonsense or an unknown card; ModelError for a model that is not found.
    """
    known, there = subject(model), place(where, rates=rates)
    if data is not None:
        longest = max(lengths_of(data)[0])
        seq = longest if seq is None else min(seq, longest)
    try:
        wish = Wish(**{"seq": 1024 if seq is None else seq, **wishes})
    except TypeError as error:
        fields = ", ".join(Wish.__dataclass_fields__)
        raise NbkitError(
            f"plan() {str(error).partition('() ')[2]}.", hint=f"wishes are: {fields}", exit_code=2
        ) from error
    step = Step(
        "lora", wish.seq, dtype=there.dtype, rank=wish.rank, targets=wish.targets, optimizer=wish.optimizer,
        device=there.device,
    )  # fmt: skip
    notes = []
    if known.positions is not None and wish.seq > known.positions:
        notes.append(f"{wish.seq:,} tokens are more than the {known.positions:,} positions of {known.shape.name}.")
    ground = surface(known.shape, step)
    narrowest = min(min(sizes) for sizes in known.shape.linears.values())
    if wish.rank > narrowest:
        notes.append(
            f"rank={wish.rank:,} is more than the {narrowest:,} of the narrowest linear map: adapters of a higher rank than "
            "what they adapt gain nothing."
        )
    made = build(known, there, wish, ground, data, tuple(notes))
    if measure:
        from nbkit.memory.measure import refine

        ground, said = refine(made)
        made = build(known, there, wish, ground, data, (*notes, *said))
    return made


def build(
    known: Subject,
    there: Place,
    wish: Wish,
    ground: Surface,
    data: Any,
    notes: tuple[str, ...],
) -> Plan:
    """A Plan from a surface that is there already."""
    counted: dict[tuple[int, int], Load] = {}
    options = tuple(
        option(known, there, wish, ground, data, method, checkpointing, counted)
        for method in METHODS
        for checkpointing in (False, True)
    )
    return Plan(known, there, wish, ground, options, options[0].time.tokens, data, notes)
