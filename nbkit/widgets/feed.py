"""A run as its views see it: everything in the run directory, read as it grows, and what changed since the last look."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from nbkit.training import Run
from nbkit.training.lines import Tail
from nbkit.training.status import Status, recorded
from nbkit.widgets.head import Head, clock, gib, number
from nbkit.widgets.series import RING, Load, Row, Series, short, thinned_loads
from nbkit.widgets.words import Segment, changes

_LIVENESS_EVERY_S = 1.0  # how often it is checked that a process that writes nothing is still there
_SAMPLES_KEPT = 24  # evaluations
_SAMPLE_CHARACTERS = 1500
_SMOOTH_LEAST, _SMOOTH_MOST = 6.0, 100.0  # rows; in between, a fortieth of the run


@dataclass(frozen=True)
class Sample:
    """The answer to one fixed prompt at one evaluation, with what changed since the evaluation before."""

    step: int
    index: int
    prompt: str
    text: str
    segments: list[Segment]


@dataclass
class Delta:
    """What is new since the last look. `back` is a step from which earlier rows no longer hold: a resumed run repeats."""

    rows: list[Row] = field(default_factory=list)
    evals: list[tuple[int, float]] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    head: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    back: int | None = None

    def message(self) -> dict[str, Any]:
        """JSON for a view: short keys, nothing that is empty."""
        parts = {
            "rows": self.rows, "evals": self.evals, "loads": self.loads, "head": self.head, "machine": self.machine,
            "samples": [sample_message(sample) for sample in self.samples], "back": self.back,
        }  # fmt: skip
        return {key: value for key, value in parts.items() if value not in ([], {}, None)}


class Feed:
    """Follows one run. Thread-safe: a pump polls it, a page that connects takes a snapshot.

    Args:
        run: The run; it may belong to another kernel, or to another machine on a shared disk.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.series = Series()
        self.loads: list[Load] = []
        self.samples: list[Sample] = []
        self.machine: dict[str, Any] = {}
        self.peak_gib: float | None = None
        self.head: Head | None = None
        self._status_seen, self._checked = _changed(run), time.monotonic()
        self.status: Status = run.status
        self._lock = threading.RLock()
        self._metrics, self._system, self._samples = (run.tail(name) for name in ("metrics", "system", "samples"))
        self._answers: dict[int, str] = {}

    def poll(self) -> Delta:
        """Read what is new."""
        with self._lock:
            delta = Delta()
            self._read_status()
            self._read_rows(delta)
            self._read_loads(delta)
            self._read_samples(delta)
            head = self._head()
            delta.head = head.since(self.head)
            self.head = head
            return delta

    def snapshot(self) -> dict[str, Any]:
        """All of it, thinned, as one message: what a page that connects needs."""
        with self._lock:
            return {
                "run": self.run.title,
                "named": self.run.named,
                "again": self.run.again,
                "rows": list(self.series.rows),
                "evals": list(self.series.evals),
                "loads": thinned_loads(self.loads, RING),
                "samples": [sample_message(sample) for sample in self.samples],
                "head": self.head.since(None) if self.head else {},
                "machine": self.machine,
            }

    def _read_status(self) -> None:
        """The recorded status when the file changed; when it has not for a while, what can be seen of its process, too."""
        seen = _changed(self.run)
        if not seen:
            return  # moved or removed: the last known state stays
        now = time.monotonic()
        if seen != self._status_seen:
            self._status_seen, self._checked = seen, now
            self.status = recorded(self.run.path)
        elif self.status.active and now - self._checked > _LIVENESS_EVERY_S:
            self._checked = now
            self.status = self.run.status

    def _read_rows(self, delta: Delta) -> None:
        window = min(_SMOOTH_MOST, max(_SMOOTH_LEAST, self.status.max_steps / 40))
        evals, last = len(self.series.evals), self.series.last
        for raw in _fresh(self._metrics):
            back = self.series.add(raw, window)
            if back is not None:
                delta.back = back if delta.back is None else min(back, delta.back)
                delta.rows = [row for row in delta.rows if row.step < back]
                evals = min(evals, len(self.series.evals))
            if self.series.last is not last and self.series.last is not None:
                last = self.series.last
                delta.rows.append(last)
        delta.evals = self.series.evals[evals:]

    def _read_loads(self, delta: Delta) -> None:
        for raw in _fresh(self._system):
            if not self.machine:
                self.machine = delta.machine = _machine(raw)
            gpu = self.machine["gpu"]
            percent = short(raw.get("gpu_percent" if gpu else "cpu_percent"))
            memory = short(raw.get("gpu_used_gib" if gpu else "rss_gib"))
            moment = raw.get("time")
            place = self.series.place(moment) if isinstance(moment, (int, float)) else 0.0
            load = Load(place, percent, memory)
            if memory is not None:
                self.peak_gib = max(memory, self.peak_gib or 0.0)
            self.loads.append(load)
            delta.loads.append(load)
        if len(self.loads) > 2 * RING:
            self.loads = thinned_loads(self.loads, RING)

    def _read_samples(self, delta: Delta) -> None:
        for raw in _fresh(self._samples):
            step, index, text = raw.get("step"), raw.get("index"), raw.get("text")
            if not isinstance(step, int) or not isinstance(index, int) or not isinstance(text, str):
                continue
            text = text[:_SAMPLE_CHARACTERS]
            before = self._answers.get(index)
            segments = [("=", text)] if before is None else changes(before, text)
            self._answers[index] = text
            prompt = _prompt(raw.get("prompt"))[:_SAMPLE_CHARACTERS]
            sample = Sample(step, index, prompt, text, segments)
            self.samples.append(sample)
            delta.samples.append(sample)
        steps = sorted({sample.step for sample in self.samples})
        if len(steps) > _SAMPLES_KEPT:
            oldest = steps[-_SAMPLES_KEPT]
            self.samples = [sample for sample in self.samples if sample.step >= oldest]

    def _head(self) -> Head:
        status, series = self.status, self.series
        step = max(status.step, series.last.step if series.last else 0) if status.active else status.step
        losses = [row.loss for row in series.rows[-5:] if row.loss is not None]
        speed, unit = series.recent_speed, "tok/s" if series.counts_tokens else "steps/s"
        pace = series.step_seconds
        moves = status.state in {"training", "evaluating"} and not status.away
        left = (status.max_steps - step) * pace if pace and moves else None
        return Head(
            state=status.state,
            step=step,
            steps=status.max_steps,
            loss=number(losses[-1]) if losses else "",
            speed=f"{number(speed)} {unit}" if speed else "",
            memory=self._memory(),
            eta=clock(left) if left is not None and left > 0 else "",
            doing=status.doing,
            cause=status.cause,
            hint=status.hint,
            away=status.away,
        )

    def _memory(self) -> str:
        if not self.loads or self.loads[-1].gib is None:
            return ""
        total = self.machine.get("total")
        return gib(self.loads[-1].gib) + (f"/{gib(total)}" if total else "")


def _fresh(tail: Tail) -> list[dict[str, Any]]:
    """What is new, after one `stat` where nothing is; and no larger a buffer than is needed."""
    try:
        size = tail.path.stat().st_size
    except OSError:
        return []
    return [] if size == tail.offset else tail.read(size - tail.offset if size > tail.offset else size)


def _changed(run: Run) -> int:
    """When the status was written, in nanoseconds; 0 when it is not there."""
    try:
        return (run.path / "status.json").stat().st_mtime_ns
    except OSError:
        return 0


def sample_message(sample: Sample) -> dict[str, Any]:
    """One sample for a view; its text is the segments that are not gone."""
    return {"step": sample.step, "index": sample.index, "prompt": sample.prompt, "segments": sample.segments}


def _machine(raw: dict[str, Any]) -> dict[str, Any]:
    """What the system panels show, decided by the first sample: the GPU, or the process and why there is no GPU."""
    gpu = raw.get("gpu_used_gib") is not None or raw.get("gpu_percent") is not None
    total = short(raw.get("gpu_gib" if gpu else "ram_gib"))
    reason = raw.get("gpu_reason")
    return {"gpu": gpu, "total": total, "reason": str(reason) if reason and not gpu else ""}


def _prompt(value: Any) -> str:
    """A prompt as text; a list of messages becomes its last one."""
    if isinstance(value, list) and value:
        value = value[-1]
    if isinstance(value, dict):
        value = value.get("content", "")
    return value if isinstance(value, str) else str(value)
