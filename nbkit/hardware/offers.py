"""What can be rented, for how much: a frozen, dated snapshot, and the live market through gpuhunt where there is a network.

Prices move. Each offer says of when and from where it is; those known from memory only are marked and can be left out.

Source: offers.json names the source of each row. Live: gpuhunt (MPL-2.0), which reads dstack's price catalogue.
Not covered: committed-use and reserved prices, tax, disks, traffic; whether a machine can be had at that price now.
The live query was never run against its server by us (no network where this was written): its errors were.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any

from nbkit.display import Table
from nbkit.errors import NbkitError, require
from nbkit.hardware import specs


@dataclass(frozen=True)
class Offer:
    """One machine at one price.

    Attributes:
        gpu: The catalogue's name of the card or TPU chip; specs.gpu(offer.gpu) has its figures.
        count: Cards or chips in the machine.
        usd_per_hour: For the whole machine; 0 where it is free within limits.
        spot: May be taken away at any time.
        memory_gib: Usable memory of one card or chip.
        date: Month the price is of, the earliest possible where the source does not say.
        verified: False when the price is from memory or from an undated file.
    """

    provider: str
    name: str
    gpu: str
    count: int
    usd_per_hour: float
    spot: bool
    memory_gib: float
    date: str
    source: str
    region: str = "us"
    verified: bool = True
    note: str = ""

    @property
    def usd_per_gpu_hour(self) -> float:
        return self.usd_per_hour / self.count

    @property
    def total_memory_gib(self) -> float:
        """Usable memory of all its cards together: only a sharded run can use it as one."""
        return self.memory_gib * self.count

    @property
    def spec(self) -> specs.GpuSpec:
        return specs.gpu(self.gpu)


class Offers(list[Offer]):
    """A list of offers that shows itself as a table, the cheapest first."""

    def table(self) -> Table:
        """One row an offer; prices are list prices of the month shown."""
        rows = [
            (
                one.provider,
                one.name + (" (spot)" if one.spot else ""),
                f"{one.count} x {one.gpu}" if one.count > 1 else one.gpu,
                round(one.memory_gib, 1),
                f"{one.usd_per_hour:.2f}" if one.usd_per_hour else "free",
                f"{one.usd_per_gpu_hour:.2f}" if one.usd_per_hour else "free",
                one.date + ("" if one.verified else ", unverified"),
            )
            for one in self
        ]
        sources = sorted({one.source for one in self})
        notes = [
            "List prices in US dollars, without tax, disk and traffic; spot prices move by the hour.",
            *(f"From: {source}." for source in sources),
        ]
        columns = ("provider", "machine", "GPU", "GiB each", "$/h", "$/GPU h", "price of")
        return Table(columns, rows, title="Offers", notes=notes)

    def as_dicts(self) -> list[dict[str, Any]]:
        """JSON-ready."""
        return [asdict(one) for one in self]

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


@cache
def _snapshot() -> tuple[Offer, ...]:
    data = json.loads((files("nbkit.hardware") / "offers.json").read_text(encoding="utf-8"))
    sources: Mapping[str, str] = data["sources"]
    return tuple(
        Offer(**{**row, "source": sources[row["source"]]}, memory_gib=specs.gpu(row["gpu"]).usable_gib)
        for row in data["offers"]
    )


def offers(
    gpu: str | None = None,
    *,
    min_memory_gib: float = 0.0,
    min_total_gib: float = 0.0,
    count: int | None = None,
    provider: str | None = None,
    max_usd_per_hour: float | None = None,
    spot: bool | None = None,
    tpu: bool = True,
    verified_only: bool = False,
    live: bool = False,
) -> Offers:
    """Offers that meet every condition, the cheapest machine first.

    Args:
        gpu: A card's name in any spelling; a family ("A100") gives all its sizes.
        min_memory_gib: Usable memory of one card, at least.
        min_total_gib: Usable memory of all cards of the machine, at least.
        count: Exactly so many cards.
        provider: AWS, GCP, Lambda, RunPod, Modal, Colab, Kaggle; case does not matter.
        spot: True only spot, False only on-demand, None both.
        tpu: False leaves TPUs out.
        verified_only: Leave out prices known from memory only.
        live: Ask the market now (extra `cloud`, needs a network) instead of the snapshot.
    Raises: NbkitError (exit code 2) for an unknown card or provider; with `live`, MissingPackageError, or NbkitError
        (exit code 3) when the market cannot be reached.
    """
    market: Iterable[Offer] = _live() if live else _snapshot()
    names = _names(gpu) if gpu is not None else None
    market = list(market)
    if provider is not None:
        known = sorted({one.provider for one in market})
        if provider.lower() not in {name.lower() for name in known}:
            hint = f"known: {', '.join(known)}"
            raise NbkitError(f"No offers of a provider named {provider!r}.", hint=hint, exit_code=2)
    chosen = [
        one
        for one in market
        if (names is None or one.gpu in names)
        and one.memory_gib >= min_memory_gib
        and one.total_memory_gib >= min_total_gib
        and count in {None, one.count}
        and (provider is None or one.provider.lower() == provider.lower())
        and (max_usd_per_hour is None or one.usd_per_hour <= max_usd_per_hour)
        and spot in {None, one.spot}
        and (tpu or not one.spec.is_tpu)
        and (one.verified or not verified_only)
    ]
    return Offers(sorted(chosen, key=lambda one: (one.usd_per_hour, one.provider, one.name)))


def _names(gpu: str) -> set[str]:
    """The catalogue's names for a card, or for every size of a family."""
    family = specs.variants(gpu)
    return {one.name for one in family} if family else {specs.gpu(gpu).name}


def _live() -> list[Offer]:
    """The market as gpuhunt knows it now.

    Raises: MissingPackageError without the cloud extra; NbkitError (exit code 3) when its server does not answer.
    """
    require("gpuhunt", extra="cloud")
    gpuhunt: Any = import_module("gpuhunt")  # no type information
    # The catalogue itself, not gpuhunt.query: that would also ask providers that need credentials.
    catalog = gpuhunt.Catalog(balance_resources=False, auto_reload=False)
    try:
        catalog.load()
        items = catalog.query(min_gpu_count=1)
    except Exception as error:  # GPUHuntError, URLError, a proxy's HTML instead of a catalogue
        raise NbkitError(
            f"The market cannot be asked now: {type(error).__name__}: {error}",
            hint=f"use the snapshot of {_snapshot_date()} instead: leave live=True out",
            exit_code=3,
        ) from error
    today = datetime.now(UTC).date().isoformat()
    found = (offer_of(item, today) for item in items)
    return [one for one in found if one is not None]


def offer_of(item: Any, date: str) -> Offer | None:
    """An Offer from gpuhunt's CatalogItem; None for cards that the catalogue does not list.

    gpuhunt gives a card's short name (`A100`, `RTX4090`, `v5litepod`) and its memory apart, and a TPU's memory as 0.
    """
    is_tpu = getattr(item.gpu_vendor, "value", item.gpu_vendor) == "google"
    name = f"TPU {item.gpu_name}" if is_tpu else item.gpu_name
    try:
        spec = specs.gpu(str(name).removesuffix("litepod") + ("e" if str(name).endswith("litepod") else ""),
                         memory_gib=item.gpu_memory or None)  # fmt: skip
    except NbkitError:
        return None
    source = "gpuhunt, dstack's catalogue"
    return Offer(item.provider, item.instance_name, spec.name, item.gpu_count, item.price, item.spot, spec.usable_gib,
                 date, source, item.location)  # fmt: skip


def _snapshot_date() -> str:
    return str(json.loads((files("nbkit.hardware") / "offers.json").read_text(encoding="utf-8"))["snapshot"])
