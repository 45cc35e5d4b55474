"""Scales, ticks and one small chart as SVG: the same decisions that dashboard.js takes on its canvas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from nbkit.widgets.head import number

Point = tuple[float, float | None]
LEFT, RIGHT, TOP = 44.0, 6.0, 6.0


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round values from `low` to `high`, at least two where there is room for them."""
    raw = (high - low) / count or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999) * power
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    found = [i * step for i in range(first, last + 1)]
    return ticks(low, high, 2 * count) if len(found) < 2 and count < 12 else found


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade, the decades alone when that would be many, even steps when fewer than two are inside."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [value for p in powers for m in (1, 2, 5) if low * 0.999 <= (value := float(f"{m}e{p}")) <= high * 1.001]
    decades = [value for value in inside if f"{value:e}".startswith("1.000000e")]
    if len(inside) > 6 and len(decades) > 1:
        return decades
    return inside if len(inside) > 1 else ticks(low, high, 4)


def tick_label(value: float, step: float) -> str:
    """Short and distinct for values `step` apart: 2e-4, 0.02, 1.5, 12k."""
    if abs(value) < step * 1e-6:
        return "0"
    if 1e4 <= abs(value) < 1e6:
        return f"{value / 1e3:.2f}".rstrip("0").rstrip(".") + "k"
    if abs(value) < 1e-3 or abs(value) >= 1e6:
        return number(value)
    text = f"{value:,.{max(0, 1 - math.floor(math.log10(step)))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def spaced(points: Sequence[Point], most: int) -> list[tuple[float, float]]:
    """At most about `most` of the known points: the lowest and the highest of each stretch, so that no spike is lost."""
    known = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
    if len(known) <= most:
        return known
    size = math.ceil(2 * len(known) / most)
    kept: list[tuple[float, float]] = []
    for at in range(0, len(known), size):
        stretch = known[at : at + size]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept


@dataclass(frozen=True)
class Line:
    """One curve; `style` is a class of the picture's style sheet."""

    points: Sequence[tuple[float, float]]
    style: str
    fill: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Box:
    """Where a chart stands, in the picture's units."""

    x: float
    y: float
    width: float
    height: float


def chart(
    box: Box,
    lines: Sequence[Line],
    span: tuple[float, float],
    *,
    zero: bool = False,
    log: bool = False,
    roof: float | None = None,
    cap: float | None = None,
    axis: bool = False,
) -> str:
    """SVG of one chart, without its title.

    Args:
        span: First and last step.
        zero: The scale starts at nought.
        roof: A value that the scale reaches, such as 100 % or all of the memory.
        cap: The scale ends at so many times the median, so that one odd value flattens nothing.
        axis: With steps below.
    """
    values = [y for line in lines for _, y in line.points if not log or y > 0]
    bottom, right = box.y + box.height - (18 if axis else 4), box.x + box.width - RIGHT
    if not values:
        middle = f'x="{(box.x + LEFT + right) / 2:.0f}" y="{(box.y + bottom) / 2:.0f}"'
        return f'<text class="d m" {middle}>nothing recorded</text>'
    if cap is not None:
        most = cap * sorted(values)[len(values) // 2]
        values = [min(value, most) for value in values]
    low, high = _limits(values, zero=zero, log=log, roof=roof)
    bend = math.log10 if log else float
    base, reach = bend(low), (bend(high) - bend(low)) or 1.0

    def x(step: float) -> float:
        return box.x + LEFT + (right - box.x - LEFT) * (step - span[0]) / ((span[1] - span[0]) or 1.0)

    def y(value: float) -> float:
        return bottom - (bottom - box.y - TOP) * (bend(min(max(value, low), high)) - base) / reach

    marks = log_ticks(low, high) if log else ticks(low, high, 5 if axis else 3)
    gap = marks[1] - marks[0] if len(marks) > 1 else abs(marks[0]) or 1.0
    parts = [
        f'<path class="g" d="M{box.x + LEFT:.0f} {y(m):.1f}H{right:.0f}"/>'
        f'<text class="d e" x="{box.x + LEFT - 6:.0f}" y="{y(m) + 3.5:.1f}">'
        f"{number(m, 1) if log else tick_label(m, gap)}</text>"
        for m in marks
    ]
    if axis:
        steps = [s for s in ticks(*span, 6) if s == int(s) and x(s) < right - 58]
        parts += [f'<text class="d m" x="{x(s):.0f}" y="{bottom + 14:.0f}">{tick_label(s, 1)}</text>' for s in steps]
        parts.append(f'<text class="d e" x="{right:.0f}" y="{bottom + 14:.0f}">step {span[1]:,.0f}</text>')
    for line in lines:
        points = [(x(s), y(v)) for s, v in line.points if not log or v > 0]
        if not points:
            continue
        path = _path(points)
        if line.fill:
            parts.append(
                f'<path class="f" d="{path}L{points[-1][0]:.1f} {bottom:.1f}L{points[0][0]:.1f} {bottom:.1f}Z"/>'
            )
        parts.append(f'<path class="{line.style}" d="{path}"/>')
        if line.dots or len(points) == 1:
            parts += [f'<circle class="{line.style}d" cx="{a:.1f}" cy="{b:.1f}" r="3.2"/>' for a, b in points]
    return "".join(parts)


def _path(points: list[tuple[float, float]]) -> str:
    """Relative, on a grid of a tenth of a pixel: two thirds of the bytes of absolute numbers, and no error adds up."""
    grid = [(round(10 * x), round(10 * y)) for x, y in points]
    moves = "".join(
        f"l{_tenths(x2 - x1)}{'' if y2 < y1 else ' '}{_tenths(y2 - y1)}"
        for (x1, y1), (x2, y2) in itertools.pairwise(grid)
        if (x1, y1) != (x2, y2)
    )
    return f"M{_tenths(grid[0][0])} {_tenths(grid[0][1])}{moves}"


def _tenths(value: int) -> str:
    text = f"{value / 10:.1f}".removesuffix(".0")
    return text.replace("0.", ".") if abs(value) < 10 else text


def _limits(values: list[float], *, zero: bool, log: bool, roof: float | None) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        return low * 0.92, high * 1.08
    if zero:
        low = min(0.0, low)
    if roof is not None:
        high = max(roof, high)
    room = (high - low or abs(high) or 1.0) * 0.06
    return (low if zero and low >= 0 else low - room), high + (0.0 if roof is not None else room)
