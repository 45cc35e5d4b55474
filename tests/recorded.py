"""Run directories for tests of views: written by the recorder that training uses, in as many steps as are asked for."""

from __future__ import annotations

import json
import math
import time

from nbkit.training import Run
from nbkit.training.record import Recorder

ANSWERS = ("I can help you with that.", "I can help with <b>that</b>.")


def row(step, **more):
    """What a trainer logs at one step: a loss that falls, always the same."""
    loss = 0.5 + 2 * math.exp(-step / 20) + 0.05 * math.sin(step)
    return {"loss": loss, "grad_norm": 1.0, "learning_rate": 2e-4, "num_tokens": 1000.0 * step, **more}


def recorded(folder, name="20260101-000000-a", steps=60, total=60, state="done", config="", gpu=False, **status):
    """A finished run of `steps` steps, evaluated and sampled at every thirtieth, with readings of the machine."""
    recorder = Recorder(folder / name)
    recorder.set("training", step=0, max_steps=total)
    for step in range(1, steps + 1):
        recorder.row(step, row(step))
        if step % 30 == 0:
            recorder.row(step, {"eval_loss": row(step)["loss"] + 0.1})
            recorder.sample(step, 0, "Where is my <order>?", ANSWERS[(step // 30 - 1) % 2])
    for index in range(3):
        machine = {"cpu_percent": 190.0 + index, "rss_gib": 1.5, "ram_used_gib": 6.0, "ram_gib": 24.0}
        card = {"gpu_percent": 90, "gpu_used_gib": 11.4, "gpu_gib": 24.0}
        recorder.system({**machine, **(card if gpu else {"gpu_reason": "no NVIDIA driver"})})
    if config:
        (recorder.path / "config.yaml").write_text(config)
    recorder.flush()
    _spread(recorder.path / "metrics.jsonl")
    recorder.set(state, step=steps, **status)
    return Run(recorder.path)


def _spread(path):
    """Give the steps times a quarter of a second apart: written in a moment, they would have no speed."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    now = time.time()
    for line in rows:
        line["time"] = round(now - 0.25 * (rows[-1]["step"] - line["step"]), 3)
    if rows:
        path.write_text("".join(json.dumps(line) + "\n" for line in rows))
