"""What real steps took on a device, against what was predicted for them: kept, and used by later predictions there.

The difference is kept by device, by method and by the versions of the packages that were run; a record of others is not
used. Measured so far on CPUs only: on a GPU the same code reads torch's counters.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nbkit import atomic, folders
from nbkit.errors import NbkitError
from nbkit.memory.asked import lengths_of
from nbkit.memory.measured import measured_step
from nbkit.memory.predict import predict

MARGIN = 0.01  # added to the largest difference seen: the next run differs from those that were measured
_KEPT = 200  # records, the newest


@dataclass(frozen=True)
class Calibration:
    """One measured step beside its prediction.

    Attributes:
        device: A card's name, or "cpu".
        method: Of Prediction.method, with the program's name before it.
        subject: What was run.
        predicted_gib, measured_gib: Allocated at the peak.
        reserved_gib: As measured; None on a CPU.
        versions: Of the packages that were run.
        time: Of the measurement, seconds since 1970.
    """

    device: str
    method: str
    subject: str
    predicted_gib: float
    measured_gib: float
    reserved_gib: float | None
    versions: Mapping[str, str]
    time: float

    @property
    def ratio(self) -> float:
        """Measured divided by predicted."""
        return self.measured_gib / self.predicted_gib

    def __str__(self) -> str:
        return (
            f"{self.subject}: predicted {self.predicted_gib:.2f} GiB, measured {self.measured_gib:.2f} on {self.device}, "
            f"{self.ratio:.3f} times as much."
        )


def calibrate(trainer: Any) -> Calibration:
    """Run two real steps of a trainer on its longest rows, compare the peak with the prediction, and keep the difference.

    Everything is put back afterwards, so training can begin as if nothing had happened; see measured_step.

    Returns: The Calibration; it is in the file of `path()` from now on.
    Raises: NbkitError when the trainer has no rows or its step cannot be predicted; StorageError when nothing can be kept.
    """
    measured = measured_step(trainer)
    on_gpu, longest = measured.reserved_gib is not None, max(lengths_of(trainer.train_dataset))
    prediction = predict(trainer, seq=longest, device="cuda" if on_gpu else "cpu")
    found = Calibration(
        device=device(None, on_gpu),
        method=f"{prediction.program.name}, {prediction.method}",
        subject=prediction.subject,
        predicted_gib=round(prediction.allocated_gib, 4),
        measured_gib=round(measured.allocated_gib, 4),
        reserved_gib=None if measured.reserved_gib is None else round(measured.reserved_gib, 4),
        versions=prediction.versions,
        time=time.time(),
    )
    with atomic.explain(path()):
        path().parent.mkdir(parents=True, exist_ok=True)
    atomic.write_json(path(), [asdict(one) for one in (*_all(), found)][-_KEPT:])
    return found


def device(gpu: str | None, on_gpu: bool) -> str:
    """The name under which a device's measurements are kept; "" for a GPU that is neither named nor here."""
    if not on_gpu:
        return "cpu"
    from nbkit.hardware import card

    if gpu is None:
        import torch

        if not torch.cuda.is_available():
            return ""
        gpu = str(torch.cuda.get_device_name())
    try:
        return card(gpu).name
    except NbkitError:
        return gpu


def earlier(where: str, method: str, versions: Mapping[str, str]) -> tuple[Calibration, ...]:
    """Measurements of that method on that device by the same versions, the oldest first."""
    return tuple(
        one for one in _all() if (one.device, one.method, dict(one.versions)) == (where, method, dict(versions))
    )


def bar(found: Sequence[Calibration]) -> float:
    """By which share of the peak the next prediction may be off."""
    return max(abs(one.ratio - 1) for one in found) + MARGIN


def path() -> Path:
    """The file, in nbkit's folder of what it remembers."""
    return folders.state() / "calibration.json"


def _all() -> tuple[Calibration, ...]:
    """Every record; none where the file is missing or damaged."""
    try:
        return tuple(Calibration(**one) for one in json.loads(path().read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return ()
