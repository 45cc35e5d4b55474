"""The hosts of the ssh configuration: how each is reached, whether it answers, its GPUs and what is free on them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nbkit.display import Table
from nbkit.errors import NbkitError
from nbkit.remote.box import connect
from nbkit.remote.trace import free, gpus
from nbkit.ssh import resolve
from nbkit.ssh.hosts import named

_AT_ONCE = 8
_DIAL_S = 5.0


def table(*, config: str | None = None, look: bool = True) -> Table:
    """One row a host of the configuration; a wildcard stands for many and is left out.

    Args:
        look: Connect to each, several at once and asking nobody for anything, and look at its GPUs.

    Raises: SshConfigError for a broken line.
    """
    names = list(dict.fromkeys(named(Path(config) if config else None)))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        rows = list(pool.map(lambda name: _row(name, config, look), names))
    columns = ["host", "is", "through", *(["answers", "GPUs", "free memory"] if look else [])]
    return Table(columns, [row[: len(columns)] for row in rows])


def _row(name: str, config: str | None, look: bool) -> list[str | None]:
    try:
        route = resolve(name, config=config)
    except NbkitError as error:
        return [name, None, None, f"no: {_first(error)}", None, None]
    through = ", ".join(str(hop) for hop in route.hops[:-1]) or None
    return [name, str(route.target), through, *(_seen(name, config) if look else [])]


def _seen(name: str, config: str | None) -> list[str | None]:
    """Whether it answers, its GPUs, and their free memory."""
    try:
        with connect(name, config=config, ask=None, timeout_s=_DIAL_S) as box:
            answers = f"yes, {1000 * box.session.round_trip():.0f} ms"
            try:
                machine = box.check()
            except NbkitError as error:
                return [answers, f"unknown: {_first(error)}", None]
            return [answers, gpus(machine), free(machine) or None]
    except NbkitError as error:
        return [f"no: {_first(error)}", None, None]


def _first(error: NbkitError) -> str:
    return error.message.splitlines()[0]
