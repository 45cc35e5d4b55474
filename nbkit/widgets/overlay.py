"""Several runs in one picture, with what differs between them: from run directories, saved notebooks, or pictures."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from nbkit.display import Table
from nbkit.errors import RunError
from nbkit.training import Run, latest
from nbkit.widgets.feed import Feed
from nbkit.widgets.frozen import records_in
from nbkit.widgets.head import number
from nbkit.widgets.picture import overlaid
from nbkit.widgets.plot import Line, spaced
from nbkit.widgets.summary import Record, record

_POINTS = 400
_RESULTS = ("state", "step", "max_steps", "first_loss", "last_loss", "last_eval", "best_eval", "best_step", "minutes",
            "tokens_per_second", "steps_per_second", "peak_gib", "cause")  # fmt: skip


@dataclass(frozen=True)
class Overlay:
    """Runs beside each other; a table and a picture in a notebook, the table elsewhere.

    Attributes:
        names: A short, distinct name for each run.
        records: What is known of each.
    """

    names: tuple[str, ...]
    records: tuple[Record, ...]

    def differences(self) -> dict[str, list[Any]]:
        """The keys that are not the same in all recipes that are known, with the value of each run."""
        known = [one.recipe for one in self.records if one.recipe]
        keys = {key: None for recipe in known for key in recipe}
        different = [key for key in keys if any(recipe.get(key) != known[0].get(key) for recipe in known)]
        return {key: [one.recipe.get(key) for one in self.records] for key in different}

    def table(self) -> Table:
        """Results first, then what differs in the recipes."""
        rows: list[tuple[Any, ...]] = []
        for key in _RESULTS:
            values = [one.facts.get(key) for one in self.records]
            if any(value is not None for value in values):
                rows.append((key.replace("_", " "), *(_text(value) for value in values)))
        different = self.differences()
        rows += [(key, *(_text(value) for value in values)) for key, values in different.items()]
        return Table(["", *self.names], rows, notes=self._notes(len(different)))

    def _notes(self, different: int) -> list[str]:
        known = [one.recipe for one in self.records if one.recipe]
        without = [name for name, one in zip(self.names, self.records, strict=True) if not one.recipe]
        notes = [f"The recipe of {', '.join(without)} is not known."] if without else []
        same = len({key for recipe in known for key in recipe}) - different
        return [*notes, f"{same} other keys of the recipes are the same."] if len(known) > 1 else notes

    def svg(self) -> str:
        """The smoothed losses as lines and the evaluations as dots, in one chart."""
        curves = []
        for one in self.records:
            points = list(zip(one.rows.get("step", []), _smoothed(one.rows.get("loss", [])), strict=True))
            line = spaced([(float(step or 0), loss) for step, loss in points], _POINTS)
            curves.append((Line(line, ""), Line([(float(step), loss) for step, loss in one.evals], "", dots=True)))
        return overlaid(self.names, curves)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: every record whole, and the differences of the recipes."""
        return {
            "runs": [{"name": name, **asdict(one)} for name, one in zip(self.names, self.records, strict=True)],
            "differences": self.differences(),
        }

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        image = base64.b64encode(self.svg().encode()).decode()
        told = escape(f"loss of {', '.join(self.names)}", quote=True)
        source = f"data:image/svg+xml;base64,{image}"
        return f'<div><img alt="{told}" style="max-width:100%" src="{source}">{self.table()._repr_html_()}</div>'


def overlay(*sources: Run | str | Path) -> Overlay:
    """Lay runs over each other: `nbkit.overlay(run, "20261130-0102", "monday.ipynb")`.

    Args:
        sources: A run, its id (or the start of one), its directory, a notebook whose saved outputs hold finished runs, or
            an SVG of one. A notebook may hold several.
    Raises: RunError when there is no such run, a notebook holds none or is damaged, or there are fewer than two runs.
    """
    found: list[tuple[str, Record]] = []
    for source in sources:
        found += _records(source)
    if len(found) < 2:
        raise RunError(
            f"To compare takes two runs; {' '.join(map(str, sources)) or 'nothing'} gives {len(found)}.",
            hint="nbkit compare RUN OTHER.ipynb      nbkit runs lists what is here",
        )
    names = [one.run for _, one in found]
    if len(set(names)) < len(names):  # the same run twice, or two of one name from two machines
        names = [f"{one.run} ({place})" for place, one in found]
    if len(set(names)) < len(names):
        names = [f"{name} #{index}" for index, name in enumerate(names, start=1)]
    return Overlay(_shortened(names), tuple(one for _, one in found))


def _records(source: Run | str | Path) -> list[tuple[str, Record]]:
    if isinstance(source, Run):
        return [("run", _followed(source))]
    path = Path(source)
    if path.suffix in {".ipynb", ".svg"}:
        return [(path.name, one) for one in _from_file(path)]
    return [("run", _followed(latest(source)))]


def _followed(run: Run) -> Record:
    feed = Feed(run)
    feed.poll()
    return record(feed)


def _from_file(path: Path) -> list[Record]:
    try:
        text = path.read_text(encoding="utf-8")
        html = text if path.suffix == ".svg" else "\n".join(_outputs(json.loads(text)))
    except FileNotFoundError:
        raise RunError(f"There is no file {path}.", hint="ls *.ipynb      nbkit runs lists run directories") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path} is not a notebook that can be read: {error}.",
            hint="open it in Jupyter and save it again; git diff shows a merge conflict left in it",
        ) from error
    try:
        found = records_in(html)
    except ValueError as error:
        raise RunError(
            f"{path} holds a run whose record is damaged: {error}.",
            hint="show the run again in that notebook with nbkit.watch(RUN), and save it",
        ) from error
    if not found:
        raise RunError(
            f"{path} holds no finished run.",
            hint="a view becomes a record when its run ends; show the run again with nbkit.watch(RUN) in a cell, and save",
        )
    return list({one.run: one for one in found}.values())


def _outputs(notebook: dict[str, Any]) -> list[str]:
    """The HTML of every output; a notebook writes a text as one string or as lines."""
    found = []
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            html = output.get("data", {}).get("text/html", "")
            found.append("".join(html) if isinstance(html, list) else html)
    return found


def _smoothed(values: Sequence[float | None]) -> list[float | None]:
    """An average that forgets: the window is a fortieth of the rows."""
    keep = 1 - 2 / (max(6.0, len(values) / 40) + 1)
    level = weight = 0.0
    found: list[float | None] = []
    for value in values:
        if value is not None:
            level, weight = keep * level + (1 - keep) * value, keep * weight + (1 - keep)
        found.append(level / weight if weight else None)
    return found


def _shortened(names: list[str]) -> tuple[str, ...]:
    return tuple(name if len(name) <= 44 else f"{name[:21]}…{name[-22:]}" for name in names)


def _text(value: Any) -> str | None:
    if isinstance(value, float):
        return number(value, 4)
    if value is None or isinstance(value, (str, bool)):
        return str(value) if value is not None else None
    return f"{value:,}" if isinstance(value, int) else json.dumps(value, ensure_ascii=False)
