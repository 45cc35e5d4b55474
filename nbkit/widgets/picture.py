"""A run as one SVG: the dashboard as it stands, without a script; small enough to be kept in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import NamedTuple

from nbkit.widgets.feed import Feed
from nbkit.widgets.head import Head, number
from nbkit.widgets.plot import Box, Line, Point, chart, spaced
from nbkit.widgets.series import Row

WIDTH, HEIGHT = 880, 408
_OVERLAID = 6  # colours; a seventh run takes the first again
_DOTS = 40  # evaluations drawn
_NOTHING = number(None)
_LOG_FROM = 50  # a loss that falls by more is drawn on a logarithmic scale
_LIGHT = {
    "paper": "#ffffff", "edge": "#dfe3e8", "ink": "#1f2430", "dim": "#66707f", "grid": "#eceff3",
    "train": "#3b5bdb", "raw": "#b9c4f1", "eval": "#d9480f", "quiet": "#52637a", "fill": "#edeff2",
    "good": "#2b7a3d", "warn": "#9a6700", "bad": "#c92a2a", "o3": "#0c8599", "o4": "#9c36b5", "o5": "#846358",
}  # fmt: skip
_DARK = {
    "paper": "#15181d", "edge": "#2c313a", "ink": "#e3e6ec", "dim": "#98a1ae", "grid": "#23272e",
    "train": "#8aa4ff", "raw": "#3e4a78", "eval": "#ff9f5a", "quiet": "#a3b3c9", "fill": "#20242b",
    "good": "#69c97f", "warn": "#e3b341", "bad": "#ff8a80", "o3": "#66d9e8", "o4": "#e599f7", "o5": "#d0b8a8",
}  # fmt: skip
_DARK_HOSTS = ("body[data-jp-theme-light=false]", "html[theme=dark]", "body.vscode-dark")
_TONES = {"training": "train", "evaluating": "train", "done": "good", "stopped": "quiet", "paused": "warn",
          "stalled": "warn", "failed": "bad", "waiting": "quiet"}  # fmt: skip
# On a 14 by 14 grid, as in dashboard.js: a state is told by its word, its shape and its colour.
_SHAPES = {
    "waiting": '<path d="M12 7A5 5 0 1 1 7 2" fill="none" stroke-width="2.2"/>',
    "training": '<circle cx="7" cy="7" r="5"/>',
    "evaluating": '<path d="M7 1 13 7 7 13 1 7Z"/>',
    "paused": '<path d="M3 2h3v10H3zM8 2h3v10H8z"/>',
    "stalled": '<path d="M7 1.5 13.5 12.5H.5Z"/>',
    "done": '<path d="M2 7.5 5.5 11 12 3.5" fill="none" stroke-width="2.2"/>',
    "stopped": '<path d="M2 2h10v10H2z"/>',
    "failed": '<path d="M3 3 11 11M11 3 3 11" fill="none" stroke-width="2.2"/>',
}


def picture(feed: Feed, *, inline: bool, points: int = 240, note: str = "", metadata: str = "") -> str:
    """SVG of what `feed` has read so far.

    Args:
        inline: To stand in a page and follow the theme of its notebook; else to stand alone, as an image, and follow
            the reader's light or dark setting.
        points: Of the longest curve; fewer make a smaller file.
        note: A few words beside the run's id.
        metadata: Text kept inside, for whoever reads the file again.
    """
    head = feed.head or Head()
    drawn = "".join((_card(head, feed.run.title, note, _reason(feed)), *_charts(feed, points)))
    label = escape(f"{feed.run.title}: {head.line}", quote=True)
    kept = f'<metadata id="nbkit-run">{escape(metadata, quote=False)}</metadata>' if metadata else ""
    size = "" if inline else f'height="{HEIGHT}" '
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="nbkit-picture" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'{size}role="img" aria-label="{label}" style="max-width:100%;font:11.5px system-ui,sans-serif">'
        f"<title>{label}</title>{kept}<style>{_sheet(inline=inline)}</style>{drawn}</svg>"
    )


def overlaid(names: Sequence[str], curves: Sequence[tuple[Line, Line]]) -> str:
    """SVG of several runs' losses: of each a smoothed line and dots for its evaluations, in a colour of its own."""
    height = 300 + 18 * len(names)
    positive = [y for pair in curves for line in pair for _, y in line.points if y > 0]
    log = bool(positive) and max(positive) / min(positive) > _LOG_FROM
    steps = [x for pair in curves for line in pair for x, _ in line.points] or [0.0, 1.0]
    span = (min(steps), max(*steps, min(steps) + 1))
    styled = [
        replace(line, style=f"o{index % _OVERLAID}{'e' if line.dots else ''}")
        for index, pair in enumerate(curves)
        for line in pair
    ]
    legend = "".join(
        f'<text class="k" x="16" y="{48 + 18 * index}"><tspan class="o{index % _OVERLAID}d">▬</tspan> {escape(name)}</text>'
        for index, name in enumerate(names)
    )
    title = "loss, smoothed" + (", log scale" if log else "") + "; dots are evaluations"
    label = escape(f"loss of {', '.join(names)}", quote=True)
    sheet = _sheet(inline=False, name="overlay.css")
    drawn = chart(Box(16, 36 + 18 * len(names), WIDTH - 32, 254), styled, span, log=log, axis=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="nbkit-picture" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" aria-label="{label}" style="max-width:100%;font:11.5px system-ui,sans-serif">'
        f"<title>{label}</title><style>{sheet}</style>"
        f'<rect class="p" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="9"/>'
        f'<text class="k b" x="16" y="26">{title}</text>{legend}{drawn}</svg>'
    )


def _reason(feed: Feed) -> str:
    return str(feed.machine.get("reason", ""))


def _card(head: Head, *about: str) -> str:
    tone = _TONES.get(head.state, "quiet")
    done = min(1.0, head.step / head.steps) if head.steps else 0.0
    width = WIDTH - 32
    told = " · ".join(part for part in (*about, head.doing, head.cause) if part)
    told = told if len(told) < 150 else told[:149] + "…"
    return (
        f'<rect class="p" x=".5" y=".5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="9"/>'
        f'<g transform="translate(16 15)" class="c-{tone}">{_SHAPES.get(head.state, _SHAPES["waiting"])}</g>'
        f'<text class="h" x="36" y="27"><tspan class="b c-{tone}">{escape(head.state)}</tspan>'
        f'<tspan class="k" dx="14">{escape(head.facts)}</tspan></text>'
        f'<rect class="g" x="16" y="38" width="{width}" height="3" rx="1.5" style="stroke:none"/>'
        f'<rect class="c-{tone}" x="16" y="38" width="{width * done:.0f}" height="3" rx="1.5" style="stroke:none"/>'
        f'<text class="d" x="16" y="57">{escape(told)}</text>'
    )


class _Small(NamedTuple):
    """One of the five small charts."""

    title: str
    value: str
    points: list[tuple[float, float]]
    zero: bool = True
    roof: float | None = None
    cap: float | None = None


def _charts(feed: Feed, most: int) -> list[str]:
    series, rows = feed.series, feed.series.rows
    last = series.last
    few = max(24, most // 2)
    span = _span(rows, series.evals)
    train, smooth = _column(rows, "loss", most), _column(rows, "smooth", few * 2)
    evals = spaced([(float(step), value) for step, value in series.evals], _DOTS)
    positive = [value for _, value in (*train, *evals) if value > 0]
    log = bool(positive) and max(positive) / min(positive) > _LOG_FROM
    gpu, total = feed.machine.get("gpu", False), feed.machine.get("total")
    loads = [load for load in feed.loads if load.at >= span[0]]
    memory = [(load.at, load.gib) for load in loads]
    percent = [(load.at, load.percent) for load in loads]
    speed = "tokens/s" if series.counts_tokens or not rows else "steps/s"
    width, wide = 272.0, 560.0
    left, middle, right = 16.0, 304.0, 592.0
    grid = [(right, 66.0), (right, 178.0), (left, 290.0), (middle, 290.0), (right, 290.0)]
    load = feed.loads[-1] if feed.loads else None
    used = f"{number(load.gib)} GiB" if load else _NOTHING
    busy = f"{number(load.percent)} %" if load else _NOTHING
    small = [
        _Small("learning rate", number(last.rate if last else None), _column(rows, "rate", few)),
        _Small("gradient norm", number(last.gradient if last else None), _column(rows, "gradient", few), zero=False),
        _Small(speed, number(last.speed if last else None), _column(rows, "speed", few), cap=3.0),
        _Small("GPU memory" if gpu else "RAM", used, spaced(memory, few), roof=total if gpu else None),
        _Small("GPU" if gpu else "CPU", busy, spaced(percent, few), roof=100.0 if gpu else None),
    ]
    legend = (
        f'<tspan class="l-raw">▬</tspan> train {number(last.loss if last else None)}'
        f'  <tspan class="l-train">▬</tspan> smoothed {number(last.smooth if last else None)}'
        + (f'  <tspan class="l-eval">●</tspan> eval {number(evals[-1][1])}' if evals else "")
    )
    lines = [Line(train, "r"), Line(smooth, "t"), Line(evals, "v", dots=True)]
    parts = [
        _titled(16, 66, wide, "loss" + (", log scale" if log else ""), legend),
        chart(Box(16, 84, wide, 200), lines, span, log=log, axis=True),
    ]
    for (x, y), panel in zip(grid, small, strict=True):
        curve = [Line(panel.points, "q", fill=panel.zero)]
        parts.append(_titled(x, y, width, panel.title, escape(panel.value)))
        parts.append(chart(Box(x, y + 18, width, 86), curve, span, zero=panel.zero, roof=panel.roof, cap=panel.cap))
    return parts


def _titled(x: float, y: float, width: float, title: str, value: str) -> str:
    return (
        f'<text class="k b" x="{x:.0f}" y="{y + 13:.0f}">{title}</text>'
        f'<text class="k e" x="{x + width - 6:.0f}" y="{y + 13:.0f}" xml:space="preserve">{value}</text>'
    )


def _column(rows: list[Row], name: str, most: int) -> list[tuple[float, float]]:
    points: list[Point] = [(row.step, getattr(row, name)) for row in rows]
    return spaced(points, most)


def _span(rows: list[Row], evals: list[tuple[int, float]]) -> tuple[float, float]:
    first = rows[0].step if rows else 0
    last = max(rows[-1].step if rows else 0, evals[-1][0] if evals else 0)
    return float(min(first, last - 1)), float(max(last, first + 1))


def _sheet(*, inline: bool, name: str = "picture.css") -> str:
    """The style sheet, without its comment and line ends."""
    rules = (Path(__file__).parent / name).read_text(encoding="utf-8").partition("*/")[2].replace("\n", "")
    light, dark = (f".nbkit-picture{{{_variables(colours)}}}" for colours in (_LIGHT, _DARK))
    if not inline:
        return f"{light}@media(prefers-color-scheme:dark){{{dark}}}{rules}"
    return light + "".join(f"{host} {dark}" for host in _DARK_HOSTS) + rules


def _variables(colours: dict[str, str]) -> str:
    return ";".join(f"--{name}:{value}" for name, value in colours.items())
