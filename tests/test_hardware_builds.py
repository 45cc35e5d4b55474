"""Which build of torch fits a driver and its cards."""

from __future__ import annotations

import copy

import pytest

from nbkit.errors import NbkitError
from nbkit.hardware import Machine, torch_builds
from tests.hardware_cases import HEALTHY


def machine(cuda="13.0", level=(8, 9), name="NVIDIA GeForce RTX 4090", gpus=1):
    told = copy.deepcopy(HEALTHY["machine"])
    told["driver"]["cuda"] = cuda
    told["gpus"] = [{**told["gpus"][0], "compute_capability": list(level), "name": name}] * gpus
    return Machine.from_facts(told)


@pytest.mark.parametrize(
    ("told", "builds", "reason"),
    [
        ({}, ("cu130", "cu129", "cu128", "cu126"), "driver 580.95.05 reaches CUDA 13.0"),
        ({"cuda": "12.8"}, ("cu128", "cu126"), "reaches CUDA 12.8"),
        ({"cuda": "12.2"}, ("cu126",), "reaches CUDA 12.2"),
        ({"cuda": None}, ("cu126",), "unknown, the oldest build is the safe one"),
        ({"level": (7, 0), "name": "Tesla V100"}, ("cu126",), "V100 (compute capability 7.0) needs cu126"),
        ({"level": (12, 0), "name": "RTX 5090"}, ("cu130", "cu129", "cu128"), "needs cu128 or newer"),
        ({"gpus": 0}, ("cpu",), "no NVIDIA GPU there"),
    ],
)
def test_builds_fit_driver_and_card(told, builds, reason):
    """The newest build that the driver reaches and that has kernels for the card stands first; the reason says why."""
    found = torch_builds(machine(**told))
    assert builds == found.value
    assert reason in found.reason


@pytest.mark.parametrize("told", [{"cuda": "11.8"}, {"cuda": "12.2", "level": (12, 0)}])
def test_nothing_fits(told):
    """A driver for CUDA 11, or one too old for a new card, is an error with its fix and the doctor's exit code."""
    with pytest.raises(NbkitError, match="No build of torch fits") as caught:
        torch_builds(machine(**told))
    assert 5 == caught.value.exit_code
    assert "update" in caught.value.hint
