"""What a box has and what is wrong there: the probe and the doctor of `nbkit.hardware`, run by its own Python."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from nbkit.hardware import Diagnosis, Machine, examine
from nbkit.remote import program
from nbkit.ssh.text import plain

if TYPE_CHECKING:
    from nbkit.remote.box import Box

_PROBE_S = 60.0  # its parts have limits of their own; the rest is a slow disk under python3
_START_S = 30.0


def machine(box: Box, *, read_speed: bool = False) -> Machine:
    """What `nbkit.probe` tells of this machine, of the box.

    Raises: RemoteCommandError, UnreachableError.
    """
    told = box.call(program.text("probe", "nbkit.hardware"), {"speed": read_speed}, timeout_s=_PROBE_S)
    return Machine.from_facts(_harmless(told), name=box.host)


def diagnosis(box: Box, *, fast: bool = False, timeout_s: float = 120.0, error: str | None = None) -> Diagnosis:
    """What `nbkit.doctor` tells of this machine, of the box: the same rules over its facts.

    Raises: RemoteCommandError, UnreachableError.
    """
    began = time.monotonic()
    found = machine(box, read_speed=not fast)

    def ask(limit_s: float) -> Any:
        source = program.text("imports", "nbkit.hardware")
        told: dict[str, Any] = _harmless(box.call(source, {"timeout_s": limit_s}, timeout_s=limit_s + _START_S))
        return told

    has_torch = found.packages.get("torch") is not None
    return examine(found, None if fast else ask, error=error, has_torch=has_torch, timeout_s=timeout_s, began=began)


def _harmless(told: Any) -> Any:
    """What the box says, without characters that a terminal would act on."""
    if isinstance(told, str):
        return plain(told, 4000, lines=True)
    if isinstance(told, dict):
        return {name: _harmless(value) for name, value in told.items()}
    return [_harmless(value) for value in told] if isinstance(told, list) else told
