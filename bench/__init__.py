"""nbkit against its peers: `python -m bench NAME [--json]`; `python -m bench` lists the names.

A benchmark is a module here whose `run()` returns an Outcome, or Figures; the first line of its docstring is its entry in
the list. An Outcome holds ratios from one run, ours and the peer in turn, so that a slow or busy machine moves both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from nbkit.display import Table


class CannotRunError(Exception):
    """The benchmark has no answer here; the text says what is missing."""


@dataclass(frozen=True)
class Line:
    """One comparison.

    Attributes:
        ours: What of nbkit is measured.
        peer: What it is measured against.
        ratios: Ours divided by the peer's, one a round; below 1 we are the cheaper.
        goal: The ratio to stay at or below.
        unit: Of `ours_median` and `peer_median`.
    """

    ours: str
    peer: str
    ratios: Sequence[float]
    goal: float
    ours_median: float
    peer_median: float
    unit: str

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios: one disturbed round does not move it."""
        return median(self.ratios)

    @property
    def holds(self) -> bool:
        """True when the goal is met."""
        return self.ratio <= self.goal


@dataclass(frozen=True)
class Outcome:
    """What a benchmark found: a title that says what was measured, and its comparisons."""

    title: str
    lines: Sequence[Line]

    @property
    def holds(self) -> bool:
        """True when every goal is met."""
        return all(line.holds for line in self.lines)

    def table(self) -> Table:
        """For a person."""
        rows = [
            [
                line.ours,
                line.peer,
                f"{line.ours_median:.3g} {line.unit}",
                f"{line.peer_median:.3g} {line.unit}",
                f"{line.ratio:.2f}",
                f"{min(line.ratios):.2f}-{max(line.ratios):.2f}",
                f"{line.goal:g}",
                "holds" if line.holds else "MISSED",
            ]
            for line in self.lines
        ]
        return Table(["ours", "peer", "ours, median", "peer, median", "ratio", "range", "goal", ""], rows, self.title)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        lines = [{**asdict(line), "ratio": line.ratio, "holds": line.holds} for line in self.lines]
        return {"title": self.title, "holds": self.holds, "lines": lines}


@dataclass(frozen=True)
class Goal:
    """A figure that is to stay at or below a limit; both are shares."""

    name: str
    value: float
    limit: float

    @property
    def holds(self) -> bool:
        """True when the goal is met."""
        return self.value <= self.limit


@dataclass(frozen=True)
class Figures:
    """What a benchmark found that has no single ratio: tables for a person, goals, and a record a measured thing."""

    title: str
    tables: Sequence[Table]
    goals: Sequence[Goal]
    records: Sequence[dict[str, Any]]

    @property
    def holds(self) -> bool:
        """True when every goal is met."""
        return all(goal.holds for goal in self.goals)

    def table(self) -> str:
        """For a person: the tables one below the other, the goals last."""
        rows = [[g.name, f"{g.value:.1%}", f"{g.limit:.0%}", "holds" if g.holds else "MISSED"] for g in self.goals]
        goals = Table(["goal", "found", "at most", ""], rows, "Goals")
        return "\n\n".join([self.title, *map(str, self.tables), str(goals)])

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "title": self.title,
            "holds": self.holds,
            "goals": [{**asdict(goal), "holds": goal.holds} for goal in self.goals],
            "tables": [{"title": one.title, "rows": one.as_dicts(), "notes": list(one.notes)} for one in self.tables],
            "records": list(self.records),
        }
