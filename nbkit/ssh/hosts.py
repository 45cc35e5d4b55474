"""The hosts that a configuration names."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

from nbkit.ssh.config import split
from nbkit.ssh.route import valid_host
from nbkit.ssh.tokens import home

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
