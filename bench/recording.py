"""What recording a step costs the training thread, against opening and appending a file for each row."""

from __future__ import annotations

import gc
import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from bench import Line, Outcome
from nbkit.training.callbacks import Recording
from nbkit.training.record import Recorder

ROUNDS, STEPS = 15, 400
GOAL_US = 10.0
# Between two rows the thread computes without the interpreter's lock, as a training step does, for about half a millisecond.
WORK = bytes(2**20)
# What a TRL trainer logs at a step.
LOGS = {
    "loss": 0.2531, "grad_norm": 1.25, "learning_rate": 1e-4, "entropy": 0.51, "num_tokens": 12345.0,
    "mean_token_accuracy": 0.93, "epoch": 0.25,
}  # fmt: skip


def ours(folder: Path) -> float:
    """Microseconds a step of what our callback does at the end of a step and at its log.

    The thread that writes has its turns meanwhile. The median step: other programs take the processor away in some.
    """
    recorder = Recorder(folder / "run")
    callback, control = Recording(recorder), SimpleNamespace()
    recorder.set("training", max_steps=STEPS)
    spent = []
    for step in range(STEPS):
        state = SimpleNamespace(global_step=step)
        logs = dict(LOGS)
        began = time.perf_counter()
        callback.on_step_end(None, state, control)
        callback.on_log(None, state, control, logs=logs)
        spent.append(time.perf_counter() - began)
        hashlib.sha256(WORK).digest()
    recorder.set("done")
    rows = sum(1 for _ in (folder / "run" / "metrics.jsonl").open())
    if rows != STEPS:
        raise RuntimeError(f"{rows} of {STEPS} rows were written")
    return median(spent) * 1e6


def append(folder: Path) -> float:
    """The same of a callback that opens its file for each row."""
    path = folder / "rows.jsonl"
    spent = []
    for step in range(STEPS):
        logs: dict[str, Any] = dict(LOGS)
        began = time.perf_counter()
        with path.open("a") as file:
            file.write(json.dumps({"time": time.time(), "step": step, **logs}) + "\n")
        spent.append(time.perf_counter() - began)
        hashlib.sha256(WORK).digest()
    return median(spent) * 1e6


def run() -> Outcome:
    """Both in turn, each in a new folder; and ours against the goal of 10 µs."""
    mine, theirs = [], []
    gc.collect()
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            mine.append(ours(Path(folder)))
            theirs.append(append(Path(folder)))
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    lines = [
        Line("record a step", "open, append, close", ratios, 0.5, median(mine), median(theirs), "µs"),
        Line(
            "record a step",
            f"the goal of {GOAL_US:g} µs",
            [a / GOAL_US for a in mine],
            1.0,
            median(mine),
            GOAL_US,
            "µs",
        ),
    ]
    return Outcome(f"Recording, {ROUNDS} rounds of {STEPS} steps in turn, Python {sys.version.split()[0]}", lines)
