"""Methods of one trainer replaced for a while, and given back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def override(trainer: Any, name: str, function: Callable[..., Any]) -> Callable[[], None]:
    """Let `trainer.name` be `function`. Returns: A function that gives back what was there."""
    absent = object()
    before = vars(trainer).get(name, absent)
    setattr(trainer, name, function)

    def undo() -> None:
        if before is absent:
            delattr(trainer, name)
        else:
            setattr(trainer, name, before)

    return undo


def overridden(trainer: Any) -> list[str]:
    """Methods that were replaced on this one object, by name."""
    kind = type(trainer)
    return sorted(
        name for name, value in vars(trainer).items() if callable(value) and callable(getattr(kind, name, None))
    )
