"""What is told of a run beside its picture: a table, the last samples, and the record that the picture carries."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from nbkit.display import Table
from nbkit.redact import redacted
from nbkit.widgets.feed import Feed, Sample
from nbkit.widgets.head import gib, number
from nbkit.widgets.plot import spaced
from nbkit.widgets.series import short, thinned

VERSION = 1
_COLUMNS = ("step", "seconds", "loss", "rate", "gradient", "speed")
_EVALS_SHOWN = 4
_SAMPLES_SHOWN, _SAMPLE_CHARACTERS = 4, 600


@dataclass(frozen=True)
class Record:
    """A run in small: what a picture carries and what runs are compared by.

    Attributes:
        facts: Results, numbers as numbers: state, step, max_steps, first_loss, last_loss, best_eval, best_step, minutes,
            tokens_per_second or steps_per_second, peak_gib, cause.
        recipe: The keys of config.yaml, without folders of the machine.
        rows: Columns of equal length: step, seconds, loss, rate, gradient, speed; thinned.
        evals: Step and evaluation loss.
    """

    run: str
    facts: dict[str, Any]
    recipe: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, list[float | None]] = field(default_factory=dict)
    evals: list[tuple[int, float]] = field(default_factory=list)

    def dumps(self) -> str:
        """JSON in one line."""
        return json.dumps({"nbkit": VERSION, **asdict(self)}, separators=(",", ":"), ensure_ascii=False)

    @staticmethod
    def loads(text: str) -> Record:
        """Raises: ValueError when `text` is not such a record."""
        try:
            value = json.loads(text)
            if value["nbkit"] != VERSION:
                raise ValueError(f"its record has version {value['nbkit']}, this nbkit reads {VERSION}")
            rows = {name: list(value["rows"][name]) for name in _COLUMNS}
            if len({len(column) for column in rows.values()}) != 1:
                raise ValueError("its columns differ in length")
            evals = [(int(step), float(loss)) for step, loss in value["evals"]]
            return Record(str(value["run"]), dict(value["facts"]), dict(value["recipe"]), rows, evals)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error


def record(feed: Feed, points: int = 2000) -> Record:
    """`feed` in small, with about `points` rows."""
    rows = thinned(feed.series.rows, points)
    columns = {name: [getattr(row, name) for row in rows] for name in _COLUMNS}
    evals = [(int(step), loss) for step, loss in spaced(feed.series.evals, max(20, points // 2))]
    return Record(feed.run.id, facts(feed), _recipe(feed), columns, evals)


def facts(feed: Feed) -> dict[str, Any]:
    """The results as data; what is not known is left out."""
    status, series = feed.status, feed.series
    losses = [row.loss for row in series.rows if row.loss is not None]
    best = series.best
    speed = "tokens_per_second" if series.counts_tokens else "steps_per_second"
    known = {
        "state": status.state,
        "step": status.step,
        "max_steps": status.max_steps,
        "first_loss": series.first_loss,
        "last_loss": losses[-1] if losses else None,
        "last_eval": series.evals[-1][1] if series.evals else None,
        "best_eval": best[1] if best else None,
        "best_step": best[0] if best else None,
        "minutes": round((status.updated - status.started) / 60, 2),
        speed: series.recent_speed,
        "peak_gib": short(feed.peak_gib),
        "memory": "GPU" if feed.machine.get("gpu") else "RAM",
        "cause": status.cause or None,
    }
    return {key: value for key, value in known.items() if value is not None}


def summary(feed: Feed) -> Table:
    """The table under a finished run."""
    found = facts(feed)
    evals = feed.series.evals
    shown = ", ".join(f"{number(loss, 4)} at {step}" for step, loss in evals[-_EVALS_SHOWN:])
    unit = "tokens" if "tokens_per_second" in found else "steps"
    speed = found.get(f"{unit}_per_second")
    lines: list[tuple[str, str | None]] = [
        ("state", found["state"]),
        ("cause", found.get("cause")),
        ("fix", feed.status.hint if found.get("cause") else None),
        ("steps", f"{found['step']:,} of {found['max_steps']:,}"),
        ("training loss", _arrow(found.get("first_loss"), found.get("last_loss"))),
        ("evaluation loss", ("… " if len(evals) > _EVALS_SHOWN else "") + shown if evals else None),
        ("best", f"{number(found['best_eval'], 4)} at step {found['best_step']}" if evals else None),
        ("minutes", f"{found['minutes']:.1f}"),
        (f"{unit}/s", number(speed) if speed else None),
        (f"peak {found['memory']}", f"{gib(found['peak_gib'])} GiB" if "peak_gib" in found else None),
        ("result", _result(feed)),
    ]
    return Table(["run", feed.run.title], [(name, text) for name, text in lines if text])


def samples_html(feed: Feed) -> str:
    """The last evaluation's samples, differences marked, folded; empty without samples. Tags only: GitHub takes styles out."""
    if not feed.samples:
        return ""
    step = feed.samples[-1].step
    last = {sample.index: sample for sample in feed.samples if sample.step == step}
    body = "".join(_sample_html(sample) for sample in list(last.values())[:_SAMPLES_SHOWN])
    return f"<details><summary>samples at step {step}, changes since the evaluation before marked</summary>{body}</details>"


def _sample_html(sample: Sample) -> str:
    tags = {"=": "{}", "+": "<ins>{}</ins>", "-": "<del>{}</del>"}
    left, parts = _SAMPLE_CHARACTERS, []
    for kind, text in sample.segments:
        parts.append(tags[kind].format(escape(text[:left])))
        left -= len(text)
        if left <= 0:
            parts.append("…")
            break
    return f"<p><b>{escape(sample.prompt[:_SAMPLE_CHARACTERS])}</b><br>{''.join(parts)}</p>"


def _arrow(first: float | None, last: float | None) -> str | None:
    return None if first is None or last is None else f"{number(first, 4)} → {number(last, 4)}"


def _result(feed: Feed) -> str | None:
    """The folder of the result, from the folder of the notebook; never a path of the whole machine. Of a run on a box the
    line that fetches it.
    """
    if feed.run.host:
        return f"nbkit pull {feed.run.named}"
    folder = feed.run.adapter
    if not folder.is_dir():
        return None
    root = feed.run.path.parent
    return f"{folder}" if not root.is_absolute() else f"{root.name}/{feed.run.id}/{folder.name}"


def _recipe(feed: Feed) -> dict[str, Any]:
    try:
        values = feed.run.config()
    except (OSError, ImportError, ValueError):
        return {}
    kept = {key: value for key, value in values.items() if key not in {"output_dir", "logging_dir"}}
    return {key: _without_folders(value) for key, value in dict(redacted(kept)).items()}


def _without_folders(value: Any) -> Any:
    """A path of this machine becomes its last part."""
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value
