"""Machines: what one has, what it can train in, what cards one might rent. `probe` here is the function."""

from __future__ import annotations

from nbkit.hardware.machine import Machine, probe
from nbkit.hardware.parts import Choice, Cpu, Disk, Gpu, Memory, Process
from nbkit.hardware.specs import CARDS, Card, card
from nbkit.hardware.stack import Stack, stack

__all__ = [
    "CARDS", "Card", "Choice", "Cpu", "Disk", "Gpu", "Machine", "Memory", "Process", "Stack", "card", "probe", "stack",
]  # fmt: skip
