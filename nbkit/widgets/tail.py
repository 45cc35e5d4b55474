"""A file of JSON lines read as it grows: only new bytes, so that following a long run costs next to nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Tail:
    """Yields the objects appended to `path` since the last read; the file may not be there yet.

    A line still being written waits for its end. A damaged line is skipped: a view must survive it. A file that became
    shorter, or was replaced, is read from its start.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._inode = 0

    def read(self) -> list[dict[str, Any]]:
        """The new objects; empty in the common case, after one `stat`."""
        try:
            seen = self.path.stat()
        except OSError:
            return []
        if seen.st_size < self._offset or seen.st_ino != self._inode:
            self._offset, self._inode = 0, seen.st_ino
        if seen.st_size == self._offset:
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            fresh = file.read(seen.st_size - self._offset)
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [value for line in whole.splitlines() if (value := _parsed(line)) is not None]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
