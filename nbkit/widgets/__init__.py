"""Views: they read a run directory and change nothing in it.

A dashboard while a run goes on, a picture with its metrics when it has ended, several runs laid over each other.
"""

from __future__ import annotations

from nbkit.widgets.live import start, watch
from nbkit.widgets.overlay import Overlay, overlay

__all__ = ["Overlay", "overlay", "start", "watch"]
