"""Runs: start one, watch it, stop it, resume it. A run is a directory; training writes it and every view reads it."""

from __future__ import annotations

from nbkit.training.run import Run, latest, runs, runs_dir
from nbkit.training.settings import Settings, settings
from nbkit.training.start import start

__all__ = ["Run", "Settings", "latest", "runs", "runs_dir", "settings", "start"]
