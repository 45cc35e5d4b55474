"""What a view draws: rows of numbers, thinned so that a run of any length stays small and keeps its spikes."""

from __future__ import annotations

import bisect
import itertools
import math
from collections import deque
from typing import Any, NamedTuple

RING = 2000  # rows kept for drawing; between this and twice as many before they are thinned
_RECENT = 20  # steps that speed and the time left are taken from
_ODD = 5  # a step's speed is the median of so many: an evaluation or a pause between two steps is no slow step


class Row(NamedTuple):
    """One logged training step; `None` where the trainer logged nothing or a value that is not finite."""

    step: int
    seconds: float  # since the first row
    loss: float | None
    smooth: float | None
    rate: float | None
    gradient: float | None
    speed: float | None  # tokens a second, or steps a second where tokens are not counted


class Load(NamedTuple):
    """One sample of the machine, placed on the axis of steps."""

    at: float
    percent: float | None
    gib: float | None


def thinned(rows: list[Row], most: int) -> list[Row]:
    """About `most` rows: of each stretch the first, and those with the lowest and highest loss and gradient."""
    if len(rows) <= most:
        return rows
    size = math.ceil(len(rows) / most * 4)
    kept: list[Row] = []
    for start in range(0, len(rows), size):
        stretch = rows[start : start + size]
        chosen = {stretch[0]}
        for column in ("loss", "gradient"):
            known = [(value, row) for row in stretch if (value := getattr(row, column)) is not None]
            if known:
                chosen |= {min(known)[1], max(known)[1]}
        kept += sorted(chosen, key=lambda row: row.step)
    return [*kept, rows[-1]] if kept[-1] != rows[-1] else kept


def thinned_loads(loads: list[Load], most: int) -> list[Load]:
    """At most `most` samples: of each stretch the one with the highest memory, else the first."""
    if len(loads) <= most:
        return loads
    size = math.ceil(len(loads) / most)
    return [max(loads[i : i + size], key=lambda load: load.gib or 0.0) for i in range(0, len(loads), size)]


def short(value: Any) -> float | None:
    """A finite number with five digits, as a message carries it; `None` for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(f"{value:.5g}")


def _median(values: list[float]) -> float | None:
    """The middle one; `statistics.median` takes ten times as long, and this runs five times a second beside training."""
    return sorted(values)[len(values) // 2] if values else None


class Series:
    """Training rows and evaluations so far, with what is told of them: first, last, best, speed, time left."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.evals: list[tuple[int, float]] = []
        self.begun: float | None = None
        self.first_loss: float | None = None
        self.counts_tokens = False
        self._smoothed = self._weight = 0.0
        self._speeds: deque[float] = deque(maxlen=_ODD)
        self._recent: deque[tuple[int, float, float | None]] = deque(maxlen=_RECENT + 1)  # step, time, tokens

    @property
    def last(self) -> Row | None:
        return self.rows[-1] if self.rows else None

    def add(self, raw: dict[str, Any], window: float) -> int | None:
        """Take one object of metrics.jsonl; `window` is the smoothing in rows.

        Returns: The step from which earlier rows were dropped, when a resumed run repeats steps; else None.
        """
        step, time = raw.get("step"), raw.get("time")
        if not isinstance(step, int) or not isinstance(time, (int, float)):
            return None
        held_out = short(raw.get("eval_loss"))
        if held_out is not None:
            self.evals = [pair for pair in self.evals if pair[0] < step] + [(step, held_out)]
        if "loss" not in raw:
            return None
        back = self._rewind(step) if self.rows and step <= self.rows[-1].step else None
        if self.begun is None:
            self.begun = time
        loss = short(raw["loss"])
        if loss is not None:
            self.first_loss = loss if self.first_loss is None else self.first_loss
            keep = 1 - 2 / (window + 1)
            self._smoothed = keep * self._smoothed + (1 - keep) * loss
            self._weight = keep * self._weight + (1 - keep)
        tokens = raw.get("num_tokens")
        speed = self._speed(step, time, float(tokens) if isinstance(tokens, (int, float)) else None)
        smooth = short(self._smoothed / self._weight) if self._weight else None
        rate, gradient = short(raw.get("learning_rate")), short(raw.get("grad_norm"))
        self.rows.append(Row(step, round(time - self.begun, 2), loss, smooth, rate, gradient, short(speed)))
        if len(self.rows) > 2 * RING:
            self.rows = thinned(self.rows, RING)
        return back

    def _rewind(self, step: int) -> int:
        self.rows = [row for row in self.rows if row.step < step]
        self.evals = [pair for pair in self.evals if pair[0] < step]
        self._recent.clear()
        self._speeds.clear()
        return step

    def _speed(self, step: int, time: float, tokens: float | None) -> float | None:
        before = self._recent[-1] if self._recent else None
        self._recent.append((step, time, tokens))
        if before is None or time <= before[1]:
            return None
        self.counts_tokens |= tokens is not None
        done = (tokens or 0) - (before[2] or 0) if self.counts_tokens else step - before[0]
        if done <= 0:
            return None
        self._speeds.append(done / (time - before[1]))
        return _median(list(self._speeds))

    @property
    def step_seconds(self) -> float | None:
        """Seconds a step takes: the median of the last twenty, so that evaluations and pauses do not count."""
        pairs = list(self._recent)
        gaps = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(pairs) if b[0] > a[0]]
        return _median(gaps)

    @property
    def recent_speed(self) -> float | None:
        """Median speed over the last twenty rows."""
        return _median([row.speed for row in self.rows[-_RECENT:] if row.speed is not None])

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and value of the lowest evaluation loss."""
        return min(self.evals, key=lambda pair: pair[1]) if self.evals else None

    def place(self, time: float) -> float:
        """Where a moment stands on the axis of steps: between rows, or a little after the last one."""
        if not self.rows or self.begun is None:
            return 0.0
        since = time - self.begun
        at = bisect.bisect_right(self.rows, since, key=lambda row: row.seconds)
        if at == 0:
            return float(self.rows[0].step)
        left = self.rows[at - 1]
        if at < len(self.rows):
            right = self.rows[at]
            part = (since - left.seconds) / ((right.seconds - left.seconds) or 1.0)
            return round(left.step + part * (right.step - left.step), 2)
        pace = self.step_seconds or 1.0
        return round(left.step + min(0.95, (since - left.seconds) / pace), 2)
