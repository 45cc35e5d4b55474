"""The side that writes a run directory: lines that a thread appends, and a small status file that is replaced whole."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import socket
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nbkit import atomic
from nbkit.redact import redacted
from nbkit.training.lines import FLUSH_S, Lines
from nbkit.training.run import runs_dir
from nbkit.training.status import State, Status, process_started

_STATUS_EVERY_S = 0.5


class Recorder:
    """Writes one run, and sees what is asked of it.

    Rows and steps are noted at once and written by a thread within 0.05 s (`lines.py` says what a kill may lose); events
    and changes of state are written before the call returns.

    Args:
        path: The run directory; it is made, or taken up again when resuming.

    Attributes:
        stop_asked: True when the STOP file is there, looked at every 0.05 s.
        pause_asked: The same for PAUSE.
        stepped: Set to a step that is done; the status says so within half a second. (An attribute: what is called after
            each step costs the training more than what it does, as its code is not in the processor's cache.)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with atomic.explain(path):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("STOP", "PAUSE"):
            (path / name).unlink(missing_ok=True)
        self.stop_asked = self.pause_asked = False
        self._lines = Lines(path, numbers="metrics.jsonl")
        self._note = self._lines.note
        self._lock = threading.Lock()
        self._written = 0.0
        self.stepped: int | None = None
        pid, now = os.getpid(), time.time()
        self.status = Status("waiting", 0, 0, now, now, pid, socket.gethostname(), process_started(pid))
        self.set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"record {path.name}", daemon=True)
        self._thread.start()
        atexit.register(self._lines.try_flush)

    def row(self, step: int, values: dict[str, Any]) -> None:
        """Note one row of metrics. A value that is not finite is written as null and named under `nonfinite`."""
        self._note(("metrics.jsonl", time.time(), {"step": step, **values}))

    def step(self, step: int) -> None:
        """Note that `step` is done; the status says so within half a second."""
        self.stepped = step

    def sample(self, step: int, index: int, prompt: str, text: str) -> None:
        """Note what the model answers to a fixed prompt at `step`."""
        self._lines.append("samples.jsonl", {"step": step, "index": index, "prompt": prompt, "text": text})

    def system(self, values: dict[str, Any]) -> None:
        """Note one reading of the machine."""
        self._lines.append("system.jsonl", values)

    def event(self, event: str, **particulars: Any) -> None:
        """Write one event, secrets hidden.

        Raises: StorageError.
        """
        self._lines.append("events.jsonl", {"event": event, **redacted(particulars)})
        self._lines.flush()

    def set(self, state: State | None = None, **changes: Any) -> None:
        """Change the status and write it, after all that was noted before. An ended run closes its files.

        Raises: StorageError; the change is kept in `status` all the same.
        """
        with self._lock:
            self._take_step()
            # The state word alone says all, unless the caller adds what is being done.
            changes = {"doing": "", **changes} if state else changes
            self.status = replace(
                self.status, updated=time.time(), state=state or self.status.state, **redacted(changes)
            )
            self._lines.flush()
            self._write_status(durable=True)
        if not self.status.active:
            self.close()

    def hand_over(self, pid: int) -> None:
        """Say that another process, `pid`, writes this run from now on; what follows is its own to say."""
        with self._lock:
            self.status = replace(
                self.status, pid=pid, process_started=process_started(pid), doing="starting its process"
            )
            self._write_status(durable=True)

    def flush(self) -> None:
        """Write now what was noted.

        Raises: StorageError.
        """
        self._lines.flush()

    def close(self) -> None:
        """End the thread and close the files. The status stays as it is."""
        if hasattr(self, "_end"):
            self._end.set()
            if threading.current_thread() is not self._thread:
                self._thread.join(5.0)
        self._lines.close()
        atexit.unregister(self._lines.try_flush)

    def _take_step(self) -> None:
        stepped, self.stepped = self.stepped, None
        if stepped is not None:
            self.status = replace(self.status, step=max(stepped, 0), updated=time.time())

    def _write_status(self, *, durable: bool) -> None:
        atomic.write_json(self.path / "status.json", asdict(self.status), mode=0o600, durable=durable)
        self._written = time.monotonic()

    def _work(self) -> None:
        while not self._end.wait(FLUSH_S):
            self.look()
            self._lines.try_flush()
            if self.stepped is not None and time.monotonic() - self._written > _STATUS_EVERY_S:
                with self._lock, contextlib.suppress(Exception):  # a full disk: tried again, and told at the end
                    self._take_step()
                    self._write_status(durable=False)

    def look(self) -> None:
        """See now whether a stop or a pause is asked for."""
        self.stop_asked = self.stop_asked or (self.path / "STOP").exists()
        self.pause_asked = (self.path / "PAUSE").exists()


def in_path(name: str) -> str:
    """A run's name as it stands in that of its directory."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"


def new_path(name: str) -> Path:
    """A directory for a new run: its time and `name`, with a number when two start in one second."""
    base = f"{time.strftime('%Y%m%d-%H%M%S')}-{in_path(name)}"
    root = runs_dir()
    number = 1
    path = root / base
    while path.exists():
        number += 1
        path = root / f"{base}-{number}"
    return path
