"""Which device a run trains on, and what else is on it."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

from nbkit.training.run import Run

FREE = "import gc, torch; del trainer, model; gc.collect(); torch.cuda.empty_cache()"


def name(trainer: Any) -> str:
    """`cpu`, or a GPU's id, which is the same in every process whatever CUDA_VISIBLE_DEVICES makes of its number."""
    device = trainer.args.device
    if device.type != "cuda":
        return str(device.type)
    import torch

    found = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return f"GPU-{found}" if found is not None else f"cuda:{device.index or 0}"


def notes(device: str, path: Path, *, detach: bool) -> list[str]:
    """What is to be known before a run in `path` begins on `device`: the starting kernel's own copy of the model on a GPU,
    and the other runs in the folder that train there now.
    """
    found = []
    if detach and device != "cpu":
        found.append(f"memory: this kernel keeps its own copy of the model on the GPU; to give it back: {FREE}")
    for other in sorted(path.parent.glob("*/status.json")):
        # A directory that is damaged, or half written, is no reason not to train.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found += _beside(Run(other.parent), device) if other.parent != path else []
    return found


def _beside(run: Run, device: str) -> list[str]:
    status = run.status
    if not status.active or status.host != socket.gethostname():
        return []
    begun = [event for event in run.events() if event["event"] in {"started", "resumed"}]
    if not begun or begun[-1].get("device") != device:
        return []
    where = "this CPU" if device == "cpu" else device
    what = "both will be slower" if device == "cpu" else "memory may run out, and both will be slower"
    end = f"to end it well: nbkit stop {run.id}"
    return [f"device: {run.id} trains on {where} too ({status.state}, process {status.pid}): {what}; {end}"]
