"""What this machine remembers: the tunnels that are open now, and the boxes where a Jupyter of ours may run."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nbkit import atomic, folders


@dataclass(frozen=True)
class Place:
    """A box where a Jupyter of ours may run, from the first tunnel to `nbkit stop`.

    Attributes:
        host: What the user typed.
        config: The ssh_config in place of the user's own; empty for that one.
        python: Shell words that start its Python.
        port: Of the newest tunnel here, so that the next has the same and an open page finds it again.
    """

    host: str
    config: str = ""
    python: str = ""
    port: int = 0


@dataclass(frozen=True)
class Opened:
    """A tunnel that is open now, in process `pid` of this machine.

    Attributes:
        address: The URL, without the token.
        token_file: Holds the token; this user's alone, and gone with the tunnel.
        forwards: `local` port and `remote` port or path of each other forward.
    """

    host: str
    pid: int
    address: str
    token_file: str
    since: float
    forwards: list[dict[str, Any]] = field(default_factory=list)


def remember(place: Place) -> None:
    """Keep `place` until `forget`.

    Raises: StorageError.
    """
    _private(_places())
    atomic.write_json(_file(place.host), asdict(place), mode=0o600)


def remembered(host: str) -> Place | None:
    """What is known of `host`, as the user typed it."""
    try:
        return Place(**json.loads(_file(host).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def places() -> list[Place]:
    """Every box where a Jupyter of ours may run."""
    found = []
    for path in sorted(_places().glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            found.append(Place(**json.loads(path.read_text(encoding="utf-8"))))
    return found


def forget(host: str) -> None:
    """Nothing of ours runs on `host` any more."""
    _file(host).unlink(missing_ok=True)


def _places() -> Path:
    return folders.state() / "tunnels"


def _file(host: str) -> Path:
    name = re.sub(r"[^A-Za-z0-9.-]", "_", host)[:60]
    return _places() / f"{name}-{hashlib.sha256(host.encode()).hexdigest()[:12]}.json"


# -- open tunnels: a file each, locked by the process that holds the tunnel, so a file without a lock is a dead one's


def token_path() -> Path:
    """Where this process keeps the token of its tunnel number so and so: a name that no other has."""
    folder = _private(folders.runtime() / "tunnels")
    return folder / f"{os.getpid()}-{os.urandom(4).hex()}.token"


@contextlib.contextmanager
def listed(opened: Opened, token: str) -> Iterator[None]:
    """Have others of this user see the tunnel while the block runs.

    Raises: StorageError.
    """
    token_file = Path(opened.token_file)
    entry = token_file.with_suffix(".json")
    staged = entry.with_suffix(".new")
    atomic.write_text(token_file, token, mode=0o600)
    handle = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            json.dump(asdict(opened), file)
            file.flush()
            staged.replace(entry)  # locked before it has its name: nobody takes it for a dead one's
            yield
    finally:
        for path in (staged, entry, token_file):
            path.unlink(missing_ok=True)


def opened(host: str = "") -> list[Opened]:
    """The tunnels that are open now, to `host` or to any; what killed processes left is cleared away."""
    return [found for found in map(_read, _entries()) if found is not None and host in {"", found.host}]


def close(host: str) -> int:
    """Ask the processes that hold a tunnel to `host` to end it; how many there were."""
    asked = [entry for entry in _entries() if (found := _read(entry)) is not None and found.host == host]
    for entry in asked:
        entry.unlink(missing_ok=True)
    return len(asked)


def asked_to_close(token_file: str) -> bool:
    """True when another process called `close` for the tunnel of this token file."""
    return not Path(token_file).with_suffix(".json").exists()


def _entries() -> list[Path]:
    return sorted((folders.runtime() / "tunnels").glob("*.json"))


def _read(entry: Path) -> Opened | None:
    """The tunnel, or None for one that is gone."""
    with contextlib.suppress(OSError, ValueError, TypeError), entry.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return Opened(**json.load(file))
        for path in (entry, entry.with_suffix(".token")):
            path.unlink(missing_ok=True)
    return None


def _private(folder: Path) -> Path:
    with atomic.explain(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    return folder
