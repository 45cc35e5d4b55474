"""What the notebooks of these tests import: a run whose steps cost nothing, and a small one that truly trains."""

from __future__ import annotations

import math
import random
import threading
import time

from nbkit.training import Run
from nbkit.training.record import Recorder, new_path


def row(step, total):
    """What a trainer logs at one step: a loss that falls, with noise of a fixed seed."""
    noise = random.Random(step).gauss(0, 0.04)
    return {
        "loss": 2.2 * math.exp(-3 * step / total) + 0.4 + noise,
        "grad_norm": 0.8 + abs(noise) * 4,
        "learning_rate": 2e-4 * (1 - step / total),
        "num_tokens": step * 1024.0,
    }


def write(recorder, total, every_s):
    """Steps at a steady pace until `total` or until asked to stop."""
    began, step = time.monotonic(), 0
    recorder.set("training", max_steps=total)
    while step < total and not recorder.stop_asked:
        step += 1
        recorder.row(step, row(step, total))
        if step % 50 == 0:
            recorder.row(step, {"eval_loss": row(step, total)["loss"] + 0.1})
        recorder.set(now=False, step=step)
        time.sleep(max(0.0, began + step * every_s - time.monotonic()))
    end = "stopped" if recorder.stop_asked else "done"
    recorder.event(end, step=step, ended=time.time())
    recorder.set(end, step=step)


def begin(total=2000, every_s=0.05, name="steps"):
    """Start such a run in a thread of this kernel and return it: 20 steps/s unless told otherwise."""
    recorder = Recorder(new_path(name))
    threading.Thread(target=write, args=(recorder, total, every_s), daemon=True).start()
    return Run(recorder.path)
