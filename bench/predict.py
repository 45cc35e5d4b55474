"""An 8B QLoRA prediction in a fresh process: time by part and memory, beside accelerate's estimate of the same model; and
how soon the planner's picture follows a slider in a real Chromium."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench import CannotRunError, Figures, Goal
from nbkit.display import Table

ROUNDS = 3
WORKER = Path(__file__).with_name("_predict_worker.py")
# The issue's own goals, and of a prediction over rows of many lengths: at most twice one of a single length.
COLD_S, RAM_GIB, MIXED, SLIDER_MS = 10.0, 1.0, 2.0, 100.0
PARTS = {
    "fixed": ("imports", "build", "step", "other"),
    "mixed": ("imports", "build", "step", "replay", "other"),
    "accelerate": ("imports", "estimate"),
}
SAYS = {
    "fixed": "nbkit, rows of one length",
    "mixed": "nbkit, rows of many lengths",
    "accelerate": "accelerate (weights and Adam of full training, no activations)",
}


def measured(kind: str) -> dict[str, Any]:
    """One fresh process: wall and CPU seconds in all, by part, and the most RAM it held.

    Raises: CannotRunError if it fails.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(WORKER), kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    out, err = process.communicate()
    if process.returncode:
        raise CannotRunError(f"{kind} failed: {err.strip()[-400:]}")
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return {"kind": kind, "wall_s": time.perf_counter() - started, **found}


def slider() -> float:
    """Milliseconds from a slider's event to the picture laid out again, median of thirty moves.

    Raises: CannotRunError without Chromium or Playwright.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_widgets_planner"], capture_output=True, text=True, check=False, timeout=240,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        raise CannotRunError(f"no slider was moved: {done.stderr.strip()[-400:]}")
    return float(median(json.loads(done.stdout.splitlines()[-1])["moves_ms"]))


def run() -> Figures:
    """Each kind in turn, a few rounds.

    Raises: CannotRunError without the train extra.
    """
    rounds = [{kind: measured(kind) for kind in PARTS} for _ in range(ROUNDS)]
    rows, parts = [], []
    for kind, says in SAYS.items():
        all_of = [one[kind] for one in rounds]
        wall, ram = median(one["wall_s"] for one in all_of), max(one["ram_gib"] for one in all_of)
        cpu = median(sum(one["cpu_s"].values()) for one in all_of)
        rows.append([says, round(wall, 1), round(cpu, 1), round(ram, 2), round(all_of[0]["answer_gib"], 2)])
        parts += [
            [says, part, round(median(one["cpu_s"][part] for one in all_of), 2)]
            for part in PARTS[kind]
            if part in all_of[0]["cpu_s"]
        ]
    cold = median(one["fixed"]["wall_s"] for one in rounds)
    ram = max(one["fixed"]["ram_gib"] for one in rounds)
    mixed = median(one["mixed"]["wall_s"] / one["fixed"]["wall_s"] for one in rounds)
    ratio = median(one["fixed"]["wall_s"] / one["accelerate"]["wall_s"] for one in rounds)
    moved = slider()
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    return Figures(
        f"Llama-3.1-8B, QLoRA NF4 r=16, 1 x 2,048 tokens, TRL; fresh processes, {ROUNDS} rounds in turn; load {load}. "
        f"nbkit takes {ratio:.2f} times accelerate's time. A slider of the planner is followed in {moved:.0f} ms.",
        [
            Table(["", "wall s", "CPU s", "RAM GiB", "answer GiB"], rows, "From nothing to the answer"),
            Table(["", "part", "CPU s"], parts, "Where the CPU time goes"),
        ],
        [
            Goal(f"cold prediction, of {COLD_S:g} s", cold / COLD_S, 1.0),
            Goal(f"RAM, of {RAM_GIB:g} GiB", ram / RAM_GIB, 1.0),
            Goal(f"a slider's move, of {SLIDER_MS:g} ms", moved / SLIDER_MS, 1.0),
            Goal("rows of many lengths, of one length's time", mixed, MIXED),
        ],
        [one for all_kinds in rounds for one in all_kinds.values()],
    )
