"""Waiting for what happens, not for the clock: every wait has an end, and says what it waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(holds: Callable[[], Any], what: str = "", within_s: float = 60.0) -> Any:
    """What `holds()` returns, as soon as that is true.

    Raises: AssertionError with `what` after `within_s`.
    """
    end = time.monotonic() + within_s
    while not (found := holds()):
        assert time.monotonic() < end, f"waited {within_s:g} s in vain{': ' * bool(what)}{what}"
        time.sleep(0.02)
    return found
