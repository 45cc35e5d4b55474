"""What the run costs and how long it takes on every offer where it fits, and which of those nobody beats in both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from nbkit.display import Table
from nbkit.hardware import Offer, offers
from nbkit.memory.fits import NAMES
from nbkit.memory.formula import Method
from nbkit.memory.option import HOWS, Option, option
from nbkit.memory.place import Place, place
from nbkit.memory.plan import METHODS, Plan
from nbkit.memory.sweep import Surface, surface
from nbkit.memory.time import Load, human

_SHOWN = 12


@dataclass(frozen=True)
class Deal:
    """One offer, and the best option on it: its time and price are the option's."""

    offer: Offer
    option: Option
    pareto: bool

    @property
    def usd(self) -> float:
        return self.option.usd or 0.0

    @property
    def hours(self) -> float:
        return self.option.time.seconds / 3600


@dataclass(frozen=True)
class Market:
    """Every offer where the run fits for sure, the cheapest run first. `.pareto` are those no other beats in both."""

    plan: Plan
    methods: tuple[Method, ...]
    deals: tuple[Deal, ...]
    considered: int

    @property
    def pareto(self) -> tuple[Deal, ...]:
        """From the cheapest to the fastest."""
        return tuple(deal for deal in self.deals if deal.pareto)

    def table(self) -> Table:
        """The Pareto set and the next cheapest."""
        shown = [*self.pareto, *(deal for deal in self.deals if not deal.pareto)][:_SHOWN]
        rows = [
            [
                "*" if deal.pareto else "",
                deal.offer.provider,
                deal.offer.name + (" (spot)" if deal.offer.spot else ""),
                f"{deal.offer.count} x {deal.offer.gpu}" if deal.offer.count > 1 else deal.offer.gpu,
                deal.option.name + (f", {HOWS[deal.option.how]}" if deal.offer.count > 1 else ""),
                human(deal.option.time.seconds),
                f"${deal.usd:.2f}" if deal.offer.usd_per_hour else "free",
                deal.offer.date + ("" if deal.offer.verified else ", unverified"),
            ]
            for deal in sorted(shown, key=lambda deal: (deal.usd, deal.hours))
        ]
        wide = max((deal.option.time.high_s / deal.option.time.seconds for deal in self.deals), default=1)
        names = " or ".join(NAMES[method] for method in self.methods)
        held = f"{len(self.deals)} of {self.considered} offers hold {self.plan.subject.shape.name} with {names}"
        notes = [
            f"{held} at {self.plan.wish.seq:,} tokens. *: no other offer is both cheaper and faster.",
            f"For {self.plan.tokens:,} tokens; times from data sheets, up to {wide:.1f} times off.",
            "Prices move: see `price of`. Ten minutes of setting up are in the cost; disks and tax are not.",
        ]
        columns = ["", "provider", "machine", "GPU", "with", "time", "cost", "price of"]
        return Table(columns, rows, "Where to train it", notes)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "considered": self.considered,
            "deals": [
                {
                    "provider": deal.offer.provider, "machine": deal.offer.name, "gpu": deal.offer.gpu,
                    "count": deal.offer.count, "spot": deal.offer.spot, "usd_per_hour": deal.offer.usd_per_hour,
                    "price_of": deal.offer.date, "verified": deal.offer.verified, "pareto": deal.pareto,
                    "hours": round(deal.hours, 4), "usd": round(deal.usd, 3), "method": deal.option.method,
                    "checkpointing": deal.option.checkpointing, "how": deal.option.how, "batch": deal.option.batch,
                }
                for deal in self.deals
            ],
        }  # fmt: skip

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def market(plan: Plan, method: Method | None = None, **conditions: Any) -> Market:
    """Put the plan's run on every offer.

    Args:
        method: Only this one; None takes on each offer the better of LoRA and QLoRA that fits (full training is another
            thing, ask for it by name).
        conditions: Passed to nbkit.hardware.offers: provider=, spot=, verified_only=, live=, max_usd_per_hour=, ...
    Returns: A Market. Cards that today's torch has no kernels for, and TPUs, are left out.
    Raises: NbkitError (exit code 2) for an unknown provider or card.
    """
    methods: tuple[Method, ...] = (method,) if method else METHODS[:2]
    all_offers = offers(**{"tpu": False, **conditions})
    grounds: dict[str, Surface] = {plan.place.dtype: plan.surface} if plan.place.device == "cuda" else {}
    counted: dict[tuple[int, int], Load] = {}
    fitting: list[tuple[Offer, Option]] = []
    for offer in all_offers:
        there = place(offer)
        if offer.spec.compute_capability < (7, 5):
            continue
        found = _best(plan, there, methods, grounds, counted)
        if found is not None:
            fitting.append((offer, found))
    deals = [Deal(offer, one, _unbeaten(one, [other for _, other in fitting])) for offer, one in fitting]
    return Market(plan, methods, tuple(sorted(deals, key=lambda deal: (deal.usd, deal.hours))), len(all_offers))


def _best(
    plan: Plan,
    there: Place,
    methods: tuple[Method, ...],
    grounds: dict[str, Surface],
    counted: dict[tuple[int, int], Load],
) -> Option | None:
    """The fastest option of the first method that fits for sure."""
    if there.dtype not in grounds:
        step = replace(plan.surface.step, dtype=there.dtype, device="cuda")
        grounds[there.dtype] = surface(plan.subject.shape, step)
    for method in methods:
        both = [
            option(plan.subject, there, plan.wish, grounds[there.dtype], plan.data, method, on, counted)
            for on in (False, True)
        ]
        fitting = [one for one in both if one.verdict == "yes"]
        if fitting:
            return min(fitting, key=lambda one: one.time.seconds)
    return None


def _unbeaten(one: Option, others: list[Option]) -> bool:
    """No other is at least as cheap and as fast, and better in one of them."""
    mine = (one.usd or 0.0, one.time.seconds)
    return not any(
        (other.usd or 0.0) <= mine[0]
        and other.time.seconds <= mine[1]
        and ((other.usd or 0.0), other.time.seconds) != mine
        for other in others
    )
