"""The hosts that a configuration names, how each is reached, and whether it can be."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nbkit.display import Table
from nbkit.errors import NbkitError, SshConfigError
from nbkit.ssh.config import split
from nbkit.ssh.resolve import resolve
from nbkit.ssh.route import valid_host
from nbkit.ssh.tokens import home

_AT_ONCE = 8
_DEEPEST = 16


def named(path: Path | None = None, depth: int = 0) -> Iterator[str]:
    """Names in Host lines without a wildcard, in the order of the files; Include is followed.

    Raises: SshConfigError for a broken line.
    """
    path = path or Path(home(), ".ssh", "config")
    if depth > _DEEPEST or not path.is_file():
        return
    for number, line in enumerate(path.read_text("utf-8", "surrogateescape").split("\n"), start=1):
        keyword, _, rest = line.strip().replace("=", " ", 1).replace("\t", " ").partition(" ")
        if keyword.lower() not in {"host", "include"}:
            continue
        for word in split(rest.strip(), f"{path}, line {number}"):
            if keyword.lower() == "host":
                if valid_host(word) and not any(c in word for c in "*?!"):
                    yield word
                continue
            pattern = word.replace("~", home(), 1) if word.startswith("~/") else word
            pattern = pattern if pattern.startswith("/") else f"{home()}/.ssh/{pattern}"
            for name in sorted(glob.glob(pattern)):  # noqa: PTH207 - patterns are absolute and OpenSSH's own
                yield from named(Path(name), depth + 1)


def table(*, config: str | None = None, connect: bool = False) -> Table:
    """One row a host; with `connect`, each is tried, several at once, and nobody is asked for anything."""
    names = list(dict.fromkeys(named(Path(config) if config else None)))

    def row(name: str) -> list[object]:
        try:
            route = resolve(name, config=config)
        except NbkitError as error:
            return [name, None, None, *([_first(error)] if connect else [])]
        through = ", ".join(str(hop) for hop in route.hops[:-1]) or None
        return [name, str(route.target), through, *([_state(name, config)] if connect else [])]

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        rows = list(pool.map(row, names))
    return Table(["host", "is", "through", *(["answers"] if connect else [])], rows)


def _state(name: str, config: str | None) -> str:
    from nbkit.ssh.connect import connect as open_session

    try:
        with open_session(name, config=config, ask=None, timeout_s=5.0) as session:
            return f"yes, {1000 * session.round_trip():.0f} ms"
    except NbkitError as error:
        return f"no: {_first(error)}"


def _first(error: NbkitError) -> str:
    return error.message.splitlines()[0]


__all__ = ["SshConfigError", "named", "table"]
