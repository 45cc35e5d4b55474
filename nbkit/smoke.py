"""Smoke mode: the same notebooks, small enough for every commit.

NBKIT_SMOKE=1 is read here and by the library's verbs, never by a notebook's cells: the file that users open is the file
that the tests execute.
"""

from __future__ import annotations

import os


def on() -> bool:
    """True when NBKIT_SMOKE is set to anything but 0."""
    return os.environ.get("NBKIT_SMOKE", "") not in {"", "0"}


def cap(number: int, small: int) -> int:
    """`number`, or at most `small` in smoke mode (rows to score, steps to train)."""
    return min(number, small) if on() else number
