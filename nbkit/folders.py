"""Where nbkit keeps its own files: one folder for what can be made again, one for what it remembers, one for this boot.

Each follows the XDG base directories; a variable of our own goes before them.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """What can be made again: NBKIT_CACHE, else XDG_CACHE_HOME/nbkit, else ~/.cache/nbkit."""
    return _folder("NBKIT_CACHE", "XDG_CACHE_HOME", ".cache")


def state() -> Path:
    """What is remembered, such as each box's Python: NBKIT_STATE, else XDG_STATE_HOME/nbkit, else ~/.local/state/nbkit."""
    return _folder("NBKIT_STATE", "XDG_STATE_HOME", ".local/state")


def runtime() -> Path:
    """Sockets, locks and tokens that no restart of the machine outlives: XDG_RUNTIME_DIR/nbkit, else `run` below state().

    Made if it is not there, 0700.
    """
    above = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(above, "nbkit") if above else state() / "run"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def _folder(own: str, xdg: str, below_home: str) -> Path:
    chosen = os.environ.get(own)
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get(xdg) or Path.home() / below_home) / "nbkit"
