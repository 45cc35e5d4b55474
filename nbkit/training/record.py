"""The side that writes a run directory: appended lines, and a small status file that is replaced whole."""

from __future__ import annotations

import json
import math
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
from nbkit.training.run import State, Status, process_started, runs_dir

_STATUS_EVERY_S = 0.5


class Recorder:
    """Writes one run. Rows and events are appended and flushed at once; the status at most twice a second.

    Args:
        path: The run directory; it is made, or taken up again when resuming.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with atomic.explain(path):
            path.mkdir(parents=True, exist_ok=True)
        (path / "STOP").unlink(missing_ok=True)
        self._lock = threading.Lock()
        self._written = 0.0
        pid, now = os.getpid(), time.time()
        self.status = Status("waiting", 0, 0, now, now, pid, socket.gethostname(), process_started(pid))
        self.set()

    def row(self, step: int, values: dict[str, Any]) -> None:
        """Append one row of metrics. A value that is not finite is written as null and named under `nonfinite`."""
        bad = sorted(key for key, value in values.items() if isinstance(value, float) and not math.isfinite(value))
        clean = {key: None if key in bad else value for key, value in values.items()}
        self._append("metrics.jsonl", {"step": step, **clean, **({"nonfinite": bad} if bad else {})})

    def event(self, event: str, **particulars: Any) -> None:
        """Append one event, secrets hidden."""
        self._append("events.jsonl", {"event": event, **redacted(particulars)})

    def _append(self, name: str, values: dict[str, Any]) -> None:
        line = json.dumps({"time": round(time.time(), 3), **values}, ensure_ascii=False, default=str)
        with self._lock, atomic.explain(self.path / name), (self.path / name).open("a") as file:
            file.write(line + "\n")

    def set(self, state: State | None = None, *, now: bool = True, **changes: Any) -> None:
        """Change the status; `now=False` lets it be written a little later."""
        self.status = replace(self.status, updated=time.time(), state=state or self.status.state, **redacted(changes))
        if now or time.monotonic() - self._written > _STATUS_EVERY_S:
            atomic.write_json(self.path / "status.json", asdict(self.status), durable=now)
            self._written = time.monotonic()

    @property
    def stop_asked(self) -> bool:
        """True when the STOP file is there."""
        return (self.path / "STOP").exists()


def new_path(name: str) -> Path:
    """A directory for a new run: its time and `name`, with a number when two start in one second."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
    base = f"{time.strftime('%Y%m%d-%H%M%S')}-{safe}"
    root = runs_dir()
    number = 1
    path = root / base
    while path.exists():
        number += 1
        path = root / f"{base}-{number}"
    return path
