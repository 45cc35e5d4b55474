"""Which sessions at relays this machine's processes have: a file each, locked as long as its process lives.

A process that is killed cannot tell its relay so; the next one that goes there does, and what was kept for it is given back.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
from pathlib import Path

from nbkit import folders


class Mark:
    """Says that the session `name`, at the relay that `to` leads to, is of this process."""

    def __init__(self, to: str, name: str) -> None:
        self._path = _folder() / f"{os.getpid()}-{os.urandom(4).hex()}.json"
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        os.write(self._file, json.dumps({"to": to, "name": name}).encode())

    def remove(self) -> None:
        """The session is over, and the relay knows it."""
        self._path.unlink(missing_ok=True)
        os.close(self._file)


def mark(to: str, name: str) -> Mark | None:
    """A Mark; None where nothing can be written: the session is waited for, then, should this process be killed."""
    try:
        return Mark(to, name)
    except OSError:
        return None


def behind(to: str) -> dict[str, Path]:
    """Sessions there whose processes are gone, and the files that say so, to be removed once the relay knows."""
    found = {}
    for path in sorted(_folder().glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError), path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # BlockingIOError: it lives
            about = json.load(file)
            if about["to"] == to:
                found[str(about["name"])] = path
    return found


def _folder() -> Path:
    """Of this machine: several may share a home folder."""
    folder = folders.runtime() / "sessions" / (platform.node() or "here")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
