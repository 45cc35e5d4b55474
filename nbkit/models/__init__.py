"""Models, made ready for this machine: find one, mend what is known to be broken, test that gradients are right."""

from __future__ import annotations

from nbkit.models.embedded import embedded
from nbkit.models.encoder import encoder
from nbkit.models.prepare import Repairs, prepare
from nbkit.models.resolve import resolve
from nbkit.models.selftest import SelfTest, self_test

__all__ = ["Repairs", "SelfTest", "embedded", "encoder", "prepare", "resolve", "self_test"]
