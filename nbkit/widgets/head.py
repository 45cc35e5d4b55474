"""The line above every view: state, step, loss, speed, memory, time left; the same words in a browser and a terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Head:
    """What is said of a run at one moment; numbers are ready to be shown, an empty text is not known yet."""

    state: str = "waiting"
    step: int = 0
    steps: int = 0
    loss: str = ""
    speed: str = ""
    memory: str = ""
    eta: str = ""
    doing: str = ""
    cause: str = ""
    hint: str = ""
    away: bool = False

    @property
    def facts(self) -> str:
        """`step 412/900 · loss 1.03 · 5,020 tok/s · 11.4/24 GiB · ETA 07:12`; what is not known is left out."""
        known = (
            f"step {self.step}/{self.steps or '?'}",
            f"loss {self.loss}" if self.loss else "",
            self.speed,
            f"{self.memory} GiB" if self.memory else "",
            f"ETA {self.eta}" if self.eta else "",
        )
        return " · ".join(part for part in known if part)

    @property
    def line(self) -> str:
        """State and what it is at, facts, and the cause of a failure."""
        words = f"{self.state}: {self.doing}" if self.doing else self.state
        return " · ".join(part for part in (words, self.facts, self.cause) if part)

    def since(self, before: Head | None) -> dict[str, Any]:
        """The fields that changed, all of them for the first time."""
        now = dict(vars(self))
        return now if before is None else {key: value for key, value in now.items() if value != getattr(before, key)}


def number(value: float | None, digits: int = 3) -> str:
    """`2e-4`, `0.0132`, `1.03`, `412`, `5,020`, `1.2e6`: short, and never 0 for what is not 0."""
    if value is None or not math.isfinite(value):
        return "–"  # noqa: RUF001 - a dash for what is not there
    if value == 0:
        return "0"
    size = abs(value)
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    brief = f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    if size < 1e-3 or size >= 1e6 or (size < 1e-2 and len(brief) <= 4):
        return brief
    if size >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    places = digits - 1 - math.floor(math.log10(size))
    return f"{value:.{places}f}"


def gib(value: float) -> str:
    """`11.4`, `24`, `0.5`: one decimal, none where it is zero."""
    return f"{value:.1f}".removesuffix(".0")


def clock(seconds: float) -> str:
    """`07:12`, or `3:07:12` from an hour on."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60:02d}:{rest % 60:02d}"
