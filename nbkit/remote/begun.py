"""What this machine remembers of the runs that it began on boxes: which host each is on, so that its id is enough."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from nbkit import atomic, folders
from nbkit.errors import RunError

_KEPT = 200


@dataclass(frozen=True)
class Begun:
    """A run on a box.

    Attributes:
        host: What the user typed.
        config: The ssh_config in place of the user's own; empty for that one.
        python: Shell words that start the box's Python.
    """

    id: str
    host: str
    config: str
    python: str
    file: str
    kind: str
    started: float


def remember(one: Begun) -> None:
    """Keep it; the oldest beyond 200 are forgotten.

    Raises: StorageError.
    """
    folder = _folder()
    with atomic.explain(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    which = sha256(f"{one.host} {one.config}".encode()).hexdigest()[:8]  # two boxes may give the same id
    atomic.write_json(folder / f"{one.id}-{which}.json", asdict(one), mode=0o600)
    for old in sorted(folder.glob("*.json"))[:-_KEPT]:
        old.unlink(missing_ok=True)


def every() -> list[Begun]:
    """All that are remembered, the newest first."""
    found = []
    for path in _folder().glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            found.append(Begun(**json.loads(path.read_text(encoding="utf-8"))))
    return sorted(found, key=lambda one: one.started, reverse=True)


def find(name: str = "") -> Begun | None:
    """The one called `name`, by its id, the start of one, or its file's name; the newest for "".

    Raises: RunError when `name` fits several.
    """
    known = every()
    exact = [one for one in known if one.id == name]
    fits = exact or [one for one in known if one.id.startswith(name)]
    fits = fits or [one for one in known if name in {one.file, Path(one.file).stem}][:1]
    if name and len(fits) > 1:
        raise RunError(
            f"{name!r} fits {', '.join(f'{one.id} on {one.host}' for one in fits)}.",
            hint="write more of the id, or name the host: --on HOST",
        )
    return fits[0] if fits else None


def _folder() -> Path:
    return folders.state() / "begun"
