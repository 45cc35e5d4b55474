"""A run as one self-contained piece of HTML: a line of facts and the loss curve as SVG; small, no script, no network."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from nbkit.training.run import Run, headline

_WIDTH, _HEIGHT = 640, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 8, 22
_MOST_POINTS = 400
_TRAIN, _EVAL = "#4c78a8", "#e4572e"


def picture(run: Run) -> str:
    """HTML for `run` as it stands; under 25 kB however long the run is."""
    rows = run.metrics()
    line = escape(headline(run.status, rows))
    head = f"<div style='font-family:monospace;font-size:13px'><b>{escape(run.id)}</b> · {line}</div>"
    return f"<div>{head}{curve(rows)}</div>"


def curve(rows: list[dict[str, Any]]) -> str:
    """Training loss (line) and evaluation loss (dots) over steps, on a logarithmic scale when it spans a decade."""
    train = _thinned([(row["step"], row["loss"]) for row in rows if row.get("loss") is not None])
    held_out = [(row["step"], row["eval_loss"]) for row in rows if row.get("eval_loss") is not None]
    values = [value for _, value in train + held_out if value > 0]
    if len(train) < 2 or not values:
        return "<div style='opacity:.6;font-size:13px'>no loss yet</div>"
    low, high = min(values), max(values)
    log = high / low > 10

    def scale(value: float) -> float:
        return float(math.log10(value)) if log else value

    bottom, top = scale(low), scale(high)
    span = top - bottom or 1.0
    last = float(max(step for step, _ in train + held_out))

    def x(step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / last

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - (scale(max(value, low)) - bottom) / span)

    points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in train)
    dots = "".join(f'<circle cx="{x(s):.1f}" cy="{y(v):.1f}" r="3.5" fill="{_EVAL}"/>' for s, v in held_out)
    marks = "".join(
        f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="currentColor" opacity=".15"/>'
        for value in _ticks(low, high, log=log)
    )
    legend = f"<tspan fill='{_TRAIN}'>training loss</tspan>" + (
        f"<tspan fill='{_EVAL}'> ● evaluation loss</tspan>" if held_out else ""
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" aria-label="loss by step" '
        f'style="max-width:100%;font:11px sans-serif;fill:currentColor">{marks}'
        f'<polyline points="{points}" fill="none" stroke="{_TRAIN}" stroke-width="1.5"/>{dots}'
        f'<text x="{_WIDTH - _RIGHT}" y="{_TOP + 10}" text-anchor="end">{legend}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 6}">step 0</text>'
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">{last:.0f}</text></svg>'
    )


def _ticks(low: float, high: float, *, log: bool) -> list[float]:
    if not log:
        return [low, (low + high) / 2, high]
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    return [10.0**power for power in powers] or [low, high]


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `_MOST_POINTS`, the lowest and the highest of each stretch, so that no spike is lost."""
    if len(points) <= _MOST_POINTS:
        return points
    size = math.ceil(2 * len(points) / _MOST_POINTS)
    kept: list[tuple[int, float]] = []
    for at in range(0, len(points), size):
        stretch = points[at : at + size]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept
