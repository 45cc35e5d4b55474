"""The process of a detached run: `python -m nbkit.training.script RUN_DIR` builds the trainer and trains it.

Ends with 0 when the run is done or was stopped, 1 when it failed, 130 or 143 after SIGINT or SIGTERM, which finish the
step and save; a second one leaves at once.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType

from nbkit.training import carry
from nbkit.training.record import Recorder


def main(argv: list[str] | None = None) -> int:
    """Run; the argument is the run directory that `detach.launch` filled."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or not carry.folder_of(Path(arguments[0])).is_dir():
        print("usage: python -m nbkit.training.script RUN_DIR      (a run started with detach=True)", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    os.umask(0o077)
    recorder = Recorder(path)
    received: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        recorder.stop_asked = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    _run(path, recorder)
    shutil.rmtree(carry.folder_of(path), ignore_errors=True)
    if received:
        return 128 + received[0]
    return 1 if recorder.status.state == "failed" else 0


def _run(path: Path, recorder: Recorder) -> None:
    recorder.set("waiting", doing="loading torch and transformers")
    from nbkit.training import detach, rebuild, rng, worker

    folder = carry.folder_of(path)
    try:
        import torch

        spec = rebuild.read(folder)
        torch.set_num_threads(spec["torch"]["threads"])
        torch.set_float32_matmul_precision(spec["torch"]["precision"])
        trainer = rebuild.trainer(spec, folder, lambda words: recorder.set("waiting", doing=words))
        trainer.args.output_dir = str(path / "checkpoints")
        known = spec["job"]
        point = path / "checkpoints" / known["point"] if known["point"] else None
        job = worker.Job(path, point, known["data"], tuple(known["samples"]), known["new_tokens"], known["calibrate"])
        rng.restore(detach.unpack(spec["rng"]))
    except BaseException as error:
        worker.record_failure(error, recorder, 0)
        return
    if recorder.stop_asked:
        recorder.event("stopped", step=0)
        recorder.set("stopped")
        return
    worker.work(trainer, recorder, job)


if __name__ == "__main__":
    sys.exit(main())
