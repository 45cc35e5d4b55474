"""Files of JSON lines: appended by a thread of the writer's process, and read as they grow.

A line costs its author an append to a list; a thread writes what has gathered every `FLUSH_S` seconds. A normal end and
an exception lose nothing; `kill -9` loses at most the lines of the last `FLUSH_S`; a power cut, what the system had not
written yet.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbkit import atomic

FLUSH_S = 0.05


class Lines:
    """The writing side of all JSON-lines files of one folder; they stay open, mode 0600.

    A line cut short by a kill is taken off the end of a file before anything is appended to it.

    Args:
        numbers: The file whose values are numbers: tensors and texts that hold one are written as such. A tensor is read
            by the thread that writes, as Trainer's own log_history keeps it: it must not be changed in place.
    """

    def __init__(self, folder: Path, numbers: str = "") -> None:
        self.folder, self.numbers = folder, numbers
        self.trouble = ""  # why the last write failed; what could not be written is kept and tried again
        self._waiting: deque[tuple[str, float, Mapping[str, Any]]] = deque()
        self.note = self._waiting.append  # (name, time, values), as `append` notes them: without a call of its own
        self._unwritten: dict[str, bytes] = {}
        self._files: dict[str, int] = {}
        self._lock = threading.Lock()

    def append(self, name: str, values: Mapping[str, Any]) -> None:
        """Note one line for the file `name`; it gets the time of this moment. `values` must not be changed afterwards."""
        self._waiting.append((name, time.time(), values))

    def flush(self) -> None:
        """Write what has gathered.

        Raises: StorageError when the disk is full or may not be written; the lines are kept and tried again next time.
        """
        with self._lock:
            while self._waiting:
                name, at, values = self._waiting.popleft()
                if name == self.numbers:
                    values = {key: number(value) for key, value in values.items()}
                line = _line(at, values)
                self._unwritten[name] = self._unwritten.get(name, b"") + line
            for name in list(self._unwritten):
                with atomic.explain(self.folder / name):
                    self._write(name)
            self.trouble = ""

    def _write(self, name: str) -> None:
        if name not in self._files:
            self._files[name] = _open(self.folder / name)
        rest = self._unwritten[name]
        try:
            while rest:
                rest = rest[os.write(self._files[name], rest) :]
        finally:
            self._unwritten[name] = rest
        del self._unwritten[name]

    def try_flush(self) -> None:
        """`flush`, for a thread that must go on: a failure is kept in `trouble`."""
        try:
            self.flush()
        except Exception as error:
            self.trouble = str(error)

    def close(self) -> None:
        """Write the rest, make it last and close the files; a later `flush` opens them again."""
        self.try_flush()
        with self._lock:
            for handle in self._files.values():
                with contextlib.suppress(OSError):
                    os.fsync(handle)
                os.close(handle)
            self._files.clear()


def _open(path: Path) -> int:
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    size = os.fstat(handle).st_size
    end = size
    while end and os.pread(handle, 1, end - 1) != b"\n":
        block = os.pread(handle, min(end, 65536), max(0, end - 65536))
        end = max(0, end - 65536) + block.rfind(b"\n") + 1 if b"\n" in block else max(0, end - 65536)
    if end != size:
        os.ftruncate(handle, end)
    return handle


def _line(at: float, values: Mapping[str, Any]) -> bytes:
    """A value that is not finite is written as null and named under `nonfinite`: the file stays JSON for any program."""
    row: dict[str, Any] = {"time": round(at, 3), **values}
    bad = sorted(key for key, value in row.items() if isinstance(value, float) and not math.isfinite(value))
    if bad:
        row.update(dict.fromkeys(bad), nonfinite=bad)
    return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"


def number(value: Any) -> Any:
    """transformers logs some numbers as tensors or strings; a row holds numbers."""
    with contextlib.suppress(ValueError, RuntimeError):  # a text of words, a tensor of many numbers: as it is
        if hasattr(value, "item"):
            return value.item()
        if isinstance(value, str):
            return float(value)
    return value


class Tail:
    """The reading side: each `read()` gives the lines that are new, and reads only their bytes.

    Args:
        path: The file; it need not be there yet.
        offset: Bytes to leave out, as an earlier Tail's `offset` told.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset

    def read(self, most: int = 16 * 2**20) -> list[dict[str, Any]]:
        """The whole lines among the next `most` bytes, parsed. A line still being written is left for the next time;
        one that is no JSON (a damaged file) is left out. A file that became shorter is read from its start.
        """
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < self.offset:
                    self.offset = 0
                file.seek(self.offset)
                block = file.read(min(most, size - self.offset))  # a buffer of `most` would be made for each look
        except FileNotFoundError:
            return []
        whole = block[: block.rfind(b"\n") + 1]
        self.offset += len(whole)
        found = []
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    found.append(value)
        return found


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines of `path`; none when it is not there."""
    tail, found = Tail(path), []
    while block := tail.read():
        found += block
    return found


def last(path: Path, most: int = 16_384) -> list[dict[str, Any]]:
    """The whole lines among the last `most` bytes."""
    try:
        start = max(0, path.stat().st_size - most)
    except FileNotFoundError:
        return []
    return Tail(path, start).read()  # a first line cut by the offset is no JSON and is left out


def join(rows: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
    """Add `new` rows of metrics to `rows`: a resumed run writes the steps after its checkpoint again, and the later
    writing counts.
    """
    for row in new:
        if "loss" in row and rows and row["step"] <= rows[-1]["step"] and _trained(rows) >= row["step"]:
            while rows and rows[-1]["step"] >= row["step"]:
                rows.pop()
        rows.append(row)


def _trained(rows: list[dict[str, Any]]) -> int:
    """The last step with a training loss."""
    return next((int(row["step"]) for row in reversed(rows) if "loss" in row), -1)
