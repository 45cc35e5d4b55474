"""Where a run stands: the state word, and whether the process that wrote it is still there."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import psutil

State = Literal["waiting", "training", "evaluating", "paused", "stalled", "done", "stopped", "failed"]
ACTIVE = ("waiting", "training", "evaluating", "paused", "stalled")
_LOG_END = 2000  # bytes of run.log that may explain a death


@dataclass(frozen=True)
class Status:
    """Where a run stands; times are seconds since the epoch.

    Attributes:
        started: When the run began or was last resumed: "the newest run" is the one with the latest.
        away: It is not seen now: the link to the box that it is on is lost.
        doing: What it is at, in words, where the state word does not say ("loading the model"); often empty.
        resumed_from: The step it was last resumed from; 0 for a run that began anew.
    """

    state: State
    step: int
    max_steps: int
    started: float
    updated: float
    pid: int
    host: str
    process_started: float
    cause: str = ""
    hint: str = ""
    resumed_from: int = 0
    doing: str = ""
    away: bool = False

    @property
    def active(self) -> bool:
        """True while it may still write."""
        return self.state in ACTIVE

    @property
    def words(self) -> str:
        """The state word, with what it is doing: `waiting: loading the model`."""
        return f"{self.state}: {self.doing}" if self.doing else self.state


def recorded(path: Path) -> Status:
    """What the run directory `path` says; keys of a later version are left out, a damaged one is told as a failure."""
    file = path / "status.json"
    known = {field.name for field in fields(Status)}
    try:
        values = json.loads(file.read_text())
        return Status(**{key: value for key, value in values.items() if key in known})
    except (ValueError, TypeError, AttributeError) as error:  # one damaged run must not hide the others
        when = file.stat().st_mtime
        return Status("failed", 0, 0, when, when, 0, "", 0.0, cause=f"its status.json is damaged ({error})")


def read(path: Path) -> Status:
    """The recorded status, corrected by what can be seen: a run whose process is gone has failed."""
    status = recorded(path)
    if not status.active or not gone(status):
        return status
    return replace(status, state="failed", doing="", cause=_why_gone(path, status), hint=_hint(path))


def _why_gone(path: Path, status: Status) -> str:
    cause = f"its process {status.pid} is gone (killed, out of memory, or the kernel was restarted)"
    last = _last_line(path / "run.log") if status.state == "waiting" else ""
    return f"{cause}; the last line of run.log: {last}" if last else cause


def _hint(path: Path) -> str:
    if (path / "run.log").is_file():
        return (
            'nbkit.start(trainer, resume="auto", detach=True) goes on from the last checkpoint; run.log has its output'
        )
    return 'start the cell again with nbkit.start(trainer, resume="auto"): it goes on from the last checkpoint'


def _last_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_END))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].strip() if lines else ""


def process_started(pid: int) -> float:
    """When `pid` began, so that a number used again by another process is not taken for it; 0.0 when it is gone."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return 0.0
        return float(process.create_time())
    except psutil.Error:
        return 0.0


def gone(status: Any) -> bool:
    """True when the process that wrote `status` runs no more; False where that cannot be seen (another machine)."""
    if status.host != socket.gethostname():
        return False
    return bool(abs(process_started(status.pid) - status.process_started) > 1.0)
