"""The hosts of the ssh configuration: how each is reached, whether it answers, its GPUs and what is free on them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbkit.display import Table
from nbkit.errors import NbkitError
from nbkit.hardware import Machine
from nbkit.remote.box import connect
from nbkit.remote.trace import free, gpus
from nbkit.ssh import Route, resolve
from nbkit.ssh.hosts import named
from nbkit.ssh.route import to_paste

_AT_ONCE = 8
_DIAL_S = 5.0


@dataclass(frozen=True)
class Host:
    """A host of the configuration.

    Attributes:
        route: The way to it; None where the configuration cannot be read.
        round_trip_ms: Where it was asked and answered.
        machine: What it has, where its Python could tell.
        error: Why it cannot be reached or looked at.
    """

    name: str
    route: Route | None = None
    round_trip_ms: float | None = None
    machine: Machine | None = None
    error: NbkitError | None = None

    def row(self, *, look: bool) -> list[str | None]:
        """Cells of the table."""
        through = None if self.route is None else ", ".join(hop.asked for hop in self.route.hops[:-1]) or None
        cells = [self.name, None if self.route is None else str(self.route.target), through]
        why = "" if self.error is None else self.error.message.splitlines()[0].partition(" It showed ")[0]
        if self.route is not None:  # its name is in the first cell
            why = why.removeprefix(f"{self.route.target.place} ")
        if not look and self.route is not None:
            return cells
        if self.round_trip_ms is None:
            return [*cells, f"no: {why}", *([None, None] if look else [])]
        answers = f"yes, {self.round_trip_ms:.0f} ms"
        if self.machine is None:
            return [*cells, answers, f"unknown: {why}", None]
        return [*cells, answers, gpus(self.machine), free(self.machine) or None]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: null is what was not asked, or not told."""
        target = None if self.route is None else self.route.target
        cards = None if self.machine is None else [
            {"name": gpu.short_name, "usable_gib": gpu.usable_gib, "free_gib": gpu.free_gib} for gpu in self.machine.gpus
        ]  # fmt: skip
        return {
            "host": self.name,
            "user": target and target.user,
            "hostname": target and target.hostname,
            "port": target and target.port,
            "through": None if self.route is None else [str(hop) for hop in self.route.hops[:-1]],
            "answers": self.round_trip_ms is not None if self.error or self.round_trip_ms is not None else None,
            "round_trip_ms": self.round_trip_ms,
            "gpus": cards,
            "error": None if self.error is None else self.error.as_dict(),
        }


def hosts(*, config: str | None = None, look: bool = True) -> list[Host]:
    """Every host of the configuration; a wildcard stands for many and is left out.

    Args:
        look: Connect to each, several at once and asking nobody for anything, and look at its GPUs.

    Raises: SshConfigError for a broken line.
    """
    names = list(dict.fromkeys(named(Path(config) if config else None)))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda name: _seen(name, config, look), names))


def table(found: Sequence[Host], *, look: bool = True, config: str | None = None) -> Table:
    """One row a host; `config` as for `hosts`."""
    columns = ["host", "is", "through", *(["answers", "GPUs", "free memory"] if look else [])]
    failed = any(one.error for one in found)
    notes = [f"nbkit doctor {to_paste('HOST', config)} says what is in the way, and what mends it."] if failed else []
    return Table(columns, [one.row(look=look)[: len(columns)] for one in found], notes=notes)


def _seen(name: str, config: str | None, look: bool) -> Host:
    try:
        route = resolve(name, config=config)
    except NbkitError as error:
        return Host(name, error=error)
    if not look:
        return Host(name, route)
    try:
        with connect(name, config=config, ask=None, timeout_s=_DIAL_S) as box:
            took = round(1000 * box.session.round_trip(), 1)
            try:
                return Host(name, route, took, box.check())
            except NbkitError as error:
                return Host(name, route, took, error=error)
    except NbkitError as error:
        return Host(name, route, error=error)
