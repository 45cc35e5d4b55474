"""What every test shares: no network, no settings of the person who runs it, and honest skips."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from pathlib import Path

import pytest

# Read at import by the libraries themselves, so set before any test module is.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", WANDB_MODE="disabled", TOKENIZERS_PARALLELISM="false")
# A person's own settings would change what the tests see; a test that wants one sets it. NBKIT_CACHE stays: it holds
# the converted model, which is the same for everyone.
for _name in ("NBKIT_SMOKE", "NBKIT_DEBUG", "NBKIT_DISPLAY", "NBKIT_RUNS"):
    os.environ.pop(_name, None)

TRAIN_STACK = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets")


def missing_for(marker: str) -> str:
    """Why a test with this marker cannot run here; empty when it can."""
    if marker == "train":
        absent = [name for name in TRAIN_STACK if importlib.util.find_spec(name) is None]
        return f"needs the train extra ({', '.join(absent)} not installed): make setup" if absent else ""
    if marker == "gpu":
        return "" if Path("/proc/driver/nvidia/version").exists() else "needs an NVIDIA GPU"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with a reason, what this machine cannot run."""
    reasons = {marker: missing_for(marker) for marker in ("train", "gpu")}
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_report_header() -> str:
    """The versions that decide a training result, read without importing anything."""
    found = []
    for name in TRAIN_STACK:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} absent")
    return "stack: " + ", ".join(found)
