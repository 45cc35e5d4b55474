"""A run in a process of its own: it outlives the kernel that started it, and any view or terminal can follow it.

The trainer is written down in the run directory (`launch/`, gone when the run has ended) and built again over there:
arguments as JSON without tokens, the frozen base by reference, what is trained as safetensors, prepared rows as Arrow.
The losses are those of the same run in a thread, bit for bit on a CPU (tested).

Carried: classes and functions that can be imported, data collators and callbacks made of plain values, one PEFT adapter,
`datasets.Dataset` rows, the state of the random number generators. Refused, by name: what is defined in the notebook,
lambdas, methods replaced on the trainer object, an optimizer object, model_init, streams.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nbkit import atomic
from nbkit.models.quiet import no_bars
from nbkit.training import carry, rng, weights
from nbkit.training.record import Recorder
from nbkit.training.resume import Plan
from nbkit.training.run import Run
from nbkit.training.worker import Job

LOG = "run.log"


def launch(trainer: Any, plan: Plan, job: Job, begin: Callable[[Recorder], None]) -> Run:
    """Write the trainer down, start its process, and return while that loads the model.

    Args:
        begin: Writes the run's recipe and first event.
    Raises: RunError naming what cannot be carried, before anything is written; StorageError.
    """
    spec = carry.describe(trainer)
    rows = carry.datasets(trainer)
    recorder = Recorder(plan.path)
    try:
        begin(recorder)
        recorder.set("waiting", doing="writing the trainer down")
        _write(trainer, spec, rows, job)
        process = _spawn(plan.path)
        recorder.hand_over(process.pid)
    finally:
        recorder.close()
    threading.Thread(target=process.wait, name=f"reap {plan.path.name}", daemon=True).start()
    return Run(plan.path)


def _write(trainer: Any, spec: dict[str, Any], rows: dict[str, Any], job: Job) -> None:
    import torch

    folder = carry.folder_of(job.path)
    shutil.rmtree(folder, ignore_errors=True)
    with atomic.folder(folder, private=True) as staged, no_bars(), _quiet_rows():
        spec["model"] = weights.save(trainer, staged)
        for name, dataset in rows.items():
            dataset.save_to_disk(str(staged / "rows" / name))
        spec["rows"] = list(rows)
        spec["rng"] = pack(rng.capture())
        spec["torch"] = {
            "threads": torch.get_num_threads(), "precision": torch.get_float32_matmul_precision(),
        }  # fmt: skip
        spec["job"] = {
            "point": job.point.name if job.point else None, "data": job.data,
            "samples": carry.plain(list(job.samples), "samples"), "new_tokens": job.new_tokens,
            "calibrate": job.calibrate,
        }  # fmt: skip
        atomic.write_json(staged / "trainer.json", spec, mode=0o600)


@contextlib.contextmanager
def _quiet_rows() -> Iterator[None]:
    """No bars of datasets in the cell."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def _spawn(path: Path) -> subprocess.Popen[bytes]:
    """A session of its own, no open files of ours, nothing on stdin; what it prints goes to run.log (0600)."""
    log = os.open(path / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    # Modules beside the notebook must be found there too.
    places = [str(Path(place or ".").resolve()) for place in sys.path]
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "nbkit.training.script", str(path.absolute())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            close_fds=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(places)), "PYTHONUNBUFFERED": "1"},
        )
    finally:
        os.close(log)


def pack(state: dict[str, Any]) -> dict[str, Any]:
    """The states of the random number generators as JSON."""
    version, numbers, gauss = state["python"]
    kind, keys, place, has_gauss, cached = state["numpy"]
    packed: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, [int(key) for key in keys], int(place), int(has_gauss), float(cached)],
        "torch": base64.b64encode(state["torch"].numpy().tobytes()).decode(),
    }
    if "cuda" in state:
        packed["cuda"] = [base64.b64encode(one.cpu().numpy().tobytes()).decode() for one in state["cuda"]]
    return packed


def unpack(packed: dict[str, Any]) -> dict[str, Any]:
    """What `pack` packed."""
    import numpy as np
    import torch

    def tensor(text: str) -> Any:
        return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)

    version, numbers, gauss = packed["python"]
    kind, keys, place, has_gauss, cached = packed["numpy"]
    state: dict[str, Any] = {
        "python": (version, tuple(numbers), gauss),
        "numpy": (kind, np.array(keys, dtype=np.uint32), place, has_gauss, cached),
        "torch": tensor(packed["torch"]),
    }
    if "cuda" in packed:
        state["cuda"] = [tensor(one) for one in packed["cuda"]]
    return state
