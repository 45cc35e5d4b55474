"""The adapter, off for a while: one model is base and tuned."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from nbkit.errors import ModelError


def require_adapter(model: Any) -> None:
    """Raises: ModelError when `model` is not a PEFT model."""
    if not hasattr(model, "disable_adapter") or not getattr(model, "peft_config", None):
        raise ModelError(
            f"This {type(model).__name__} has no adapter, so there is no base to compare it with.",
            hint="give trainer.model, or PeftModel.from_pretrained(base, folder_of_the_adapter)",
        )


@contextlib.contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """The base model, for a while.

    PEFT's own switch makes every adapter trainable when it turns back on, also one that was loaded only to be used; so
    what was trainable is put back.
    """
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, requires_grad in trainable:
            parameter.requires_grad_(requires_grad)
