"""Views: they read a run directory and change nothing in it. The full dashboard will live here."""

from __future__ import annotations

from nbkit.widgets.live import start, watch

__all__ = ["start", "watch"]
