"""The parts of a prediction as one stacked bar against a card: HTML with inline SVG for a notebook, characters elsewhere.

No script and no style sheet: the picture survives GitHub's viewer, nbconvert and an e-mail. Colours are Okabe and Ito's,
which colour-blind readers tell apart; every part also stands in the legend with its number. Text takes the page's colour,
so that it reads on dark themes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

# weights, adapters, gradients, optimizer, activations, loss, and whatever else comes.
_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#D55E00", "#F0E442", "#7f7f7f")
_LETTERS = "#=+o*x~:"
_REST = "#bdbdbd"
_WIDE, _HIGH, _TEXT_WIDE = 640, 22, 60
_HAIR = 1e-9  # a figure rounded for print is judged as it reads
_SMALL = 0.01  # a part below this share of the whole goes into "other"


@dataclass(frozen=True)
class Bar:
    """What is drawn.

    Attributes:
        parts: GiB by name; they add up to what is allocated.
        reserved_gib, device_gib: What the allocator holds, and the whole device's use; 0 where not known.
        low_gib, high_gib: Range of the device's use; 0 where not known.
        room_gib: The card's usable memory; None draws no limit.
        room_name: Of the card.
    """

    parts: Mapping[str, float]
    reserved_gib: float = 0.0
    device_gib: float = 0.0
    low_gib: float = 0.0
    high_gib: float = 0.0
    room_gib: float | None = None
    room_name: str = "the card"

    @property
    def segments(self) -> tuple[tuple[str, float, str, str], ...]:
        """Name, GiB, colour and letter from left to right; what is too small to see is put together as "other"."""
        whole = max(self.whole_gib, 1e-9)
        large = [(name, gib) for name, gib in self.parts.items() if gib >= _SMALL * whole]
        other = sum(self.parts.values()) - sum(gib for _, gib in large)
        if other > 0:
            large.append(("other", other))
        found = [
            (name, gib, _COLOURS[i % len(_COLOURS)], _LETTERS[i % len(_LETTERS)]) for i, (name, gib) in enumerate(large)
        ]
        allocated = sum(self.parts.values())
        if self.reserved_gib - allocated > _SMALL * whole:
            found.append(("held by the allocator", self.reserved_gib - allocated, _REST, "."))
        outside = self.device_gib - max(self.reserved_gib, allocated)
        if self.device_gib and outside > _SMALL * whole:
            found.append(("outside of the allocator", outside, "#666666", "'"))
        return tuple(found)

    @property
    def whole_gib(self) -> float:
        """Where the axis ends: the largest of use, range and room."""
        return max(sum(self.parts.values()), self.reserved_gib, self.device_gib, self.high_gib, self.room_gib or 0)

    @property
    def verdict(self) -> str:
        """A sentence on the room; empty where none was given."""
        if self.room_gib is None:
            return ""
        used = self.device_gib or sum(self.parts.values())
        high, low = self.high_gib or used, self.low_gib or used
        room = f"the {self.room_gib:.1f} GiB that {self.room_name} gives"
        if high <= self.room_gib + _HAIR:
            return f"Fits: {self.room_gib - high:.1f} GiB of {room} stay free even at the high end."
        if low <= self.room_gib + _HAIR:
            return f"Tight: the range crosses {room}."
        return f"Does not fit: even the low end is {low - self.room_gib:.1f} GiB above {room}."

    def _repr_html_(self) -> str:
        scale = _WIDE / max(self.whole_gib, 1e-9)
        boxes, x = [], 0.0
        for name, gib, colour, _ in self.segments:
            wide = gib * scale
            boxes.append(
                f'<rect x="{x:.1f}" y="0" width="{wide:.1f}" height="{_HIGH}" fill="{colour}">'
                f"<title>{escape(name)}: {gib:.2f} GiB</title></rect>"
            )
            x += wide
        if self.high_gib:
            left, right, y = self.low_gib * scale, self.high_gib * scale, _HIGH + 6
            boxes.append(
                f'<path d="M{left:.1f} {y - 3}v6M{left:.1f} {y}H{right:.1f}M{right:.1f} {y - 3}v6" stroke="currentColor" '
                f'fill="none"><title>range: {self.low_gib:.1f} to {self.high_gib:.1f} GiB</title></path>'
            )
        if self.room_gib is not None:
            at = min(self.room_gib * scale, _WIDE - 1)
            boxes.append(
                f'<path d="M{at:.1f} -4V{_HIGH + 12}" stroke="currentColor" stroke-width="2">'
                f"<title>{escape(self.room_name)}: {self.room_gib:.1f} GiB usable</title></path>"
            )
        legend = "".join(
            f'<span style="white-space:nowrap;margin-right:1em"><span style="color:{colour}">&#9632;</span> '
            f"{escape(name)} {gib:.2f}</span>"
            for name, gib, colour, _ in self.segments
        )
        label = escape(f"Memory by part, in GiB. {self.verdict}".strip())
        return (
            f'<div style="max-width:{_WIDE}px"><svg viewBox="0 -6 {_WIDE} {_HIGH + 20}" width="100%" role="img" '
            f'aria-label="{label}">{"".join(boxes)}</svg>'
            f'<div style="font-size:85%">{legend}</div><div>{escape(self.verdict)}</div></div>'
        )

    def __str__(self) -> str:
        """A line of letters, the room as |, the legend and the verdict."""
        scale = _TEXT_WIDE / max(self.whole_gib, 1e-9)
        line, reached = "", 0.0
        for _, gib, _, letter in self.segments:
            reached += gib
            line += letter * (round(reached * scale) - len(line))
        line = line.ljust(_TEXT_WIDE)
        if self.room_gib is not None:
            at = min(round(self.room_gib * scale), _TEXT_WIDE)
            line = line[:at] + "|" + line[at:]
        legend = "  ".join(f"{letter} {name} {gib:.2f}" for name, gib, _, letter in self.segments)
        return "\n".join(text for text in (line.rstrip(), f"GiB: {legend}", self.verdict) if text)

    __repr__ = __str__
