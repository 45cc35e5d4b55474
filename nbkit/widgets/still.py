"""The planner where it does not move: bars and the plan's table as HTML, letters in a terminal; and the choice between."""

from __future__ import annotations

from typing import Any

from nbkit.display import mode
from nbkit.memory import Plan, plan
from nbkit.memory.view import Bar


class Still:
    """A plan's best option as a bar against the card, and the table of all options. Nothing in it needs a kernel."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @property
    def bar(self) -> Bar:
        """The parts of the option that is shown first."""
        memory = self.plan.chosen().memory
        return Bar(
            memory.parts,
            low_gib=memory.low_gib,
            high_gib=memory.high_gib,
            room_gib=self.plan.place.room_gib,
            room_name=self.plan.place.name,
        )

    def __repr__(self) -> str:
        return f"{self._title}\n{self.bar}\n\n{self.plan}"

    def _repr_html_(self) -> str:
        return f"<div><b>{self._title}</b>{self.bar._repr_html_()}{self.plan._repr_html_()}</div>"

    @property
    def _title(self) -> str:
        one, shape = self.plan.chosen(), self.plan.subject.shape
        return f"{shape.name}, {one.name}, {one.batch} x {self.plan.wish.seq:,} tokens on {self.plan.place.label}"


def planner(model: Any, gpu: Any = None, data: Any = None, **wishes: Any) -> Any:
    """Sliders for batch, sequence, rank, method and checkpointing over the memory of a training step on a card.

    Args:
        model: A Plan, or what nbkit.plan takes: a well-known name, "embedded", a folder, a hub id, a config.
        gpu: A card's name, "2x RTX 4090", a machine, an offer; this machine when left out.
        data: See nbkit.plan.
        wishes: See nbkit.plan; the sliders start there.
    Returns: In a notebook a widget: read `.option`, `.code()` and `.plan` for where its sliders stand. Elsewhere, in CI, and
        with NBKIT_DISPLAY=html or text: a still picture.
    Raises: NbkitError for what nbkit.plan refuses.
    """
    made = model if isinstance(model, Plan) else plan(model, gpu, data, **wishes)
    if mode() != "widget":
        return Still(made)
    from nbkit.widgets.planner import Planner

    return Planner(made)
