"""The state of every random number generator that training draws from, taken and put back."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any


def capture() -> dict[str, Any]:
    """Python's, numpy's, torch's, and each GPU's once CUDA is in use."""
    import numpy as np
    import torch

    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}  # noqa: NPY002 - the global one is what trainers use
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore(state: dict[str, Any]) -> None:
    """Put back what `capture` gave."""
    import numpy as np
    import torch

    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002 - as above
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Whatever is drawn in the block, training goes on as if it had not been."""
    state = capture()
    try:
        yield
    finally:
        restore(state)
