"""The planner: an anywidget whose sliders move over a plan's memory surface, computed in the browser.

Loads anywidget when imported; `nbkit.planner` imports it only where a widget can be shown.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from nbkit.memory import Option, Plan
from nbkit.memory.fits import NAMES
from nbkit.memory.plan import METHODS, build
from nbkit.memory.time import work
from nbkit.widgets.still import Still

_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_SEQS = (128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768)
_RANKS = (4, 8, 16, 32, 64, 128, 256)
_PROBE = 1 << 20  # tokens; the work of a token is read off where rounding does not matter


def _asset(name: str) -> str:
    # As text: anywidget keeps every widget alive whose script is a path (manzt/anywidget#929).
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


class Planner(anywidget.AnyWidget):  # type: ignore[misc]  # anywidget has no types
    """Sliders over one plan. The browser computes each move itself; the kernel only hears where the sliders stand."""

    _esm = _asset("planner.js")
    _css = _asset("planner.css")
    data = traitlets.Dict().tag(sync=True)
    method = traitlets.Enum(list(METHODS)).tag(sync=True)
    checkpointing = traitlets.Bool().tag(sync=True)
    batch = traitlets.Int().tag(sync=True)
    seq = traitlets.Int().tag(sync=True)
    rank = traitlets.Int().tag(sync=True)

    def __init__(self, plan: Plan) -> None:
        self._start = plan
        first = plan.chosen()
        super().__init__(
            data=_data(plan),
            method=first.method,
            checkpointing=first.checkpointing,
            batch=first.batch,
            seq=plan.wish.seq,
            rank=plan.wish.rank,
        )

    @property
    def plan(self) -> Plan:
        """The plan for where the sliders stand."""
        wish = replace(self._start.wish, batch=self.batch, seq=self.seq, rank=self.rank)
        start = self._start
        return build(start.subject, start.place, wish, start.surface, start.data, start.notes)

    @property
    def option(self) -> Option:
        """The option for where the sliders stand."""
        return self.plan.of(self.method, self.checkpointing)

    def code(self) -> str:
        """The field's own objects for where the sliders stand, as Python to paste."""
        return self.plan.code(self.method, self.checkpointing)

    def __repr__(self) -> str:
        return repr(Still(self.plan))  # no address: notebooks are compared

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget, and beside it the still picture for where no widget can be shown."""
        bundle = super()._repr_mimebundle_(**options)
        if bundle is None:
            return None
        data, metadata = bundle
        return {**data, "text/html": Still(self.plan)._repr_html_()}, metadata


def _data(plan: Plan) -> dict[str, Any]:
    """What planner.js needs: the surface, the card, the work of a token, and the sliders' stops."""
    place, wish, shape = plan.place, plan.wish, plan.subject.shape
    return {
        "title": shape.name,
        "place": place.label,
        "room": place.room_gib,
        "gpus": place.count,
        "effective": wish.effective_batch,
        "surface": plan.surface.as_dict(),
        "names": NAMES,
        "stops": {
            "batch": _stops(_BATCHES, plan.chosen().batch),
            "seq": _stops(_SEQS, wish.seq),
            "rank": _stops(_RANKS, wish.rank),
        },
        "positions": plan.subject.positions,
        "rates": {
            "flops": place.rates.flops_per_s,
            "layer": place.rates.layer_s,
            "unpack": place.rates.unpack_per_s or place.rates.bytes_per_s,
            "spread": place.rates.spread,
        },
        "work": {
            f"{method}:{'on' if on else 'off'}": _work(plan, method, on) for method in METHODS for on in (True, False)
        },
        "notes": [*place.notes, *plan.subject.notes, *plan.notes],
    }


def _stops(usual: tuple[int, ...], own: int) -> list[int]:
    return sorted({*usual, own})


def _work(plan: Plan, method: Any, on: bool) -> dict[str, float]:
    """Operations a token (at rank 0, and more a rank), a pair; bytes unpacked; launches: as nbkit.memory.time counts."""
    step = replace(plan.surface.step, method=method, checkpointing=on, rank=1)
    one = work(plan.subject.shape, step, _PROBE, 0)
    two = work(plan.subject.shape, replace(step, rank=2), _PROBE, 0)
    pairs = work(plan.subject.shape, step, 0, 1)
    rank = (two.flops - one.flops) / _PROBE
    return {
        "token": one.flops / _PROBE - rank,
        "rank": rank,
        "pair": pairs.flops,
        "unpacked": one.unpacked_bytes,
        "launches": one.launches,
    }
