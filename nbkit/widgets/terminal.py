"""A run in a terminal: the dashboard's header, a bar and small curves of block characters, in a few lines."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from nbkit.training import Run
from nbkit.training.status import Status
from nbkit.widgets.feed import Feed
from nbkit.widgets.head import Head, number
from nbkit.widgets.plot import spaced
from nbkit.widgets.series import Row

BLOCKS, PLAIN_BLOCKS = "▁▂▃▄▅▆▇█", "_.-~=+*#"
_MARKS = {"training": "●", "evaluating": "◆", "done": "✓", "stopped": "■", "paused": "‖", "stalled": "▲", "failed": "✗"}
_COLOURS = {"training": 34, "evaluating": 34, "done": 32, "paused": 33, "stalled": 33, "failed": 31}
_LABEL = 15


def sparkline(values: Sequence[float | None], width: int, blocks: str = BLOCKS) -> str:
    """`values` as one line of at most `width` characters, scaled from their lowest to their highest."""
    points = spaced([(float(i), value) for i, value in enumerate(values)], width)
    if not points:
        return ""
    low, high = min(y for _, y in points), max(y for _, y in points)
    top = len(blocks) - 1
    return "".join(blocks[round((y - low) / ((high - low) or 1.0) * top)] for _, y in points[-width:])


def screen(
    feed: Feed, width: int = 80, *, plain: bool = False, colour: bool = False, samples: bool = False
) -> list[str]:
    """What is shown of `feed` now, as lines of at most `width` characters.

    Args:
        plain: ASCII only, for a terminal that cannot show blocks.
        colour: The state and the bar in colour.
        samples: With the answers of the last evaluation.
    """
    head = feed.head or Head()
    blocks = PLAIN_BLOCKS if plain else BLOCKS
    mark = "*" if plain else _MARKS.get(head.state, "○")
    words = f"{mark} {head.state}" + (f": {head.doing}" if head.doing else "")
    facts = _ascii(head.facts) if plain else head.facts
    lines = [_painted(words, head.state, on=colour) + "  " + facts[: max(0, width - len(words) - 2)]]
    lines.append(_painted(_bar(head, width, plain=plain), head.state, on=colour))
    room = max(10, width - _LABEL - 24)
    for label, values, told in _curves(feed):
        if any(value is not None for value in values):
            curve = sparkline(values, room, blocks).ljust(room)
            lines.append(f"{label:<{_LABEL}}{curve}  {told}"[:width])
    for label, text in (("cause", head.cause), ("fix", head.hint if head.cause else "")):
        lines += textwrap.wrap(f"{label}: {text}", width, subsequent_indent="  ") if text else []
    if samples and feed.samples:
        step = feed.samples[-1].step
        lines.append(f"samples at step {step}")
        for sample in {sample.index: sample for sample in feed.samples if sample.step == step}.values():
            lines += [_one_line(f"> {sample.prompt}", width), _one_line(f"  {sample.text}", width)]
    return [_ascii(line) if plain else line for line in lines]


def can_show_blocks(stream: TextIO) -> bool:
    """False for a terminal whose encoding has no block characters."""
    try:
        "█━●".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


class Stream:
    """A run as objects for `--json`: each has a `kind`, and otherwise what stands in the run directory.

    `row` and `eval` are lines of metrics.jsonl, `system` and `sample` of their files; `state` comes first, and again when
    the state changes.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.active = True
        self._state = ""
        self._tails = {name: run.tail(name) for name in ("metrics", "system", "samples")}

    def read(self) -> Iterator[dict[str, Any]]:
        """What is new. `active` is False once the run had ended before this reading: nothing comes after it."""
        status = self.run.status
        if not self._state:
            yield self._told(status)
        for value in self._tails["metrics"].read():
            yield {"kind": "eval" if "eval_loss" in value else "row", **value}
        for name, kind in (("system", "system"), ("samples", "sample")):
            for value in self._tails[name].read():
                yield {"kind": kind, **value}
        if status.state != self._state:
            yield self._told(status)
        self.active = status.active

    def _told(self, status: Status) -> dict[str, Any]:
        self._state = status.state
        told = {"kind": "state", "run": self.run.id, "state": status.state, "step": status.step}
        more = {"max_steps": status.max_steps, "cause": status.cause, "hint": status.hint}
        return {**told, **{key: value for key, value in more.items() if value}}


def _curves(feed: Feed) -> list[tuple[str, list[float | None], str]]:
    rows: list[Row] = feed.series.rows
    last = feed.series.last
    evals = feed.series.evals
    speed = "tokens/s" if feed.series.counts_tokens else "steps/s"
    told = f"{number(last.smooth if last else None)}" + (f"  eval {number(evals[-1][1])}" if evals else "")
    load = feed.loads[-1] if feed.loads else None
    gpu = feed.machine.get("gpu", False)
    found: list[tuple[str, list[float | None], str]] = [
        ("loss", [row.smooth for row in rows], told),
        ("learning rate", [row.rate for row in rows], number(last.rate if last else None)),
        (speed, [row.speed for row in rows], number(feed.series.recent_speed)),
    ]
    if load is not None:
        name = "GPU" if gpu else "CPU"
        found.append((name, [one.percent for one in feed.loads[-200:]], f"{number(load.percent)} %"))
    return found


def _bar(head: Head, width: int, *, plain: bool) -> str:
    full = width - 6
    part = min(1.0, head.step / head.steps) if head.steps else 0.0
    done = round(full * part)
    filled, empty = ("=", "-") if plain else ("━", "─")
    return f"{filled * done}{empty * (full - done)} {part:>4.0%}"


def _painted(text: str, state: str, *, on: bool) -> str:
    return f"\x1b[{_COLOURS.get(state, 2)}m{text}\x1b[0m" if on else text


def _one_line(text: str, width: int) -> str:
    flat = text[:2] + " ".join(text[2:].split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def _ascii(text: str) -> str:
    known = {"·": "|", "–": "-", "…": "~", "→": "->"}  # noqa: RUF001 - what is replaced
    return "".join(known.get(char, char) for char in text).encode("ascii", "replace").decode()
