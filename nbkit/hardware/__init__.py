"""Machines: what one has, what it can train in, what cards one might rent. `probe` here is the function."""

from __future__ import annotations

from typing import Any

from nbkit.hardware.builds import torch_builds
from nbkit.hardware.doctor import Diagnosis, Finding, diagnose, doctor, examine
from nbkit.hardware.facts import Facts, Wanted
from nbkit.hardware.machine import Machine, probe
from nbkit.hardware.offers import Offer, Offers, offers
from nbkit.hardware.parts import Choice, Cpu, Disk, Gpu, Memory, Process
from nbkit.hardware.specs import Card, GpuSpec, card, gpu, spec_of
from nbkit.hardware.stack import Stack, stack

__all__ = [
    "CARDS",
    "Card",
    "Choice",
    "Cpu",
    "Diagnosis",
    "Disk",
    "Facts",
    "Finding",
    "Gpu",
    "GpuSpec",
    "Machine",
    "Memory",
    "Offer",
    "Offers",
    "Process",
    "Stack",
    "Wanted",
    "card",
    "diagnose",
    "doctor",
    "examine",
    "gpu",
    "offers",
    "probe",
    "spec_of",
    "stack",
    "torch_builds",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "CARDS":  # read from a file, so not at import
        from nbkit.hardware import specs

        return specs.CARDS
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
