"""Start a trainer so that its cell returns at once, the run is recorded, and nothing is lost when it ends early."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nbkit import atomic, smoke
from nbkit.errors import RunError, require
from nbkit.training import checkpoint, devices, manifest, repairs, worker
from nbkit.training import detach as detaching
from nbkit.training import resume as resuming
from nbkit.training.recipe import data_identity, recipe, to_yaml
from nbkit.training.record import Recorder
from nbkit.training.run import Run
from nbkit.training.samples import NEW_TOKENS, Prompt, rendered
from nbkit.training.signals import Signals, in_script
from nbkit.training.status import Status

_SMOKE_STEPS, _SMOKE_ROWS = 3, 4
_busy = threading.Lock()


class StartedRun(Run):
    """A run whose worker thread lives in this process."""

    def __init__(self, path: Path, thread: threading.Thread, recorder: Recorder, signals: Signals | None) -> None:
        super().__init__(path)
        self._thread, self._recorder, self._signals = thread, recorder, signals

    @property
    def status(self) -> Status:
        """As any Run's; an end that a full disk kept from being written is told all the same."""
        seen = super().status
        if seen.active and not self._thread.is_alive():
            return (
                replace(self._recorder.status, state="failed")
                if self._recorder.status.active
                else self._recorder.status
            )
        return seen

    def _alive(self) -> bool:
        return self._thread.is_alive()

    def _pause(self, seconds: float) -> None:
        self._thread.join(seconds)
        if not self._thread.is_alive() and self._signals is not None:
            self._signals.restore()


def start(
    trainer: Any,
    *,
    name: str = "",
    resume: str | Path | Run | None = None,
    samples: Sequence[Prompt] = (),
    sample_tokens: int = NEW_TOKENS,
    detach: bool = False,
    calibrate: bool = False,
) -> Run:
    """Train in a worker thread and return at once; `run.wait()` waits, `run.stop()` ends it well.

    In a script SIGINT and SIGTERM end it well too, and the process then exits with 130 or 143; the script's own end
    waits for the run. When memory runs out, the run goes on once with half the batch and twice the accumulation.

    Args:
        trainer: Any transformers or TRL Trainer, ready to train. It writes its checkpoints under runs/<id>/checkpoints,
            and is mended (adapters in fp32, every step logged, NaN not hidden); the run's events.jsonl says what was done.
        name: Ends the run's id; default: the model's name.
        resume: None starts anew. "auto" goes on with the newest run of the same recipe and data that has not finished,
            or starts anew. A run, its id or its path goes on with that one.
        samples: Texts or conversations that the model answers greedily at each evaluation and at the end; `run.samples()`
            has the answers. The training is the same as without them.
        sample_tokens: The longest answer, in tokens.
        detach: Train in a process of its own that outlives this kernel; see detach.py for what can be carried there. This
            kernel keeps its own copy of the model: on a GPU, free it (a note of the run says how). Another run that
            trains on the same device is named in a note too.
        calibrate: First run two real steps on the longest rows, undone afterwards, and compare their peak with the
            prediction; the difference is a `memory` event, and later predictions for this device use it.
    Returns: The run. It is finished already when the run to resume was; the trainer's model then has its adapter.
    Raises: RunError when another run of this kernel is active, the run to resume has another recipe or other data, or
        something of the trainer cannot be carried into a process of its own; ModelError when the model's gradients would
        be wrong; StorageError when the directory cannot be written.
    """
    require("torch", "transformers", extra="train")
    if not (hasattr(trainer, "train") and hasattr(trainer, "args") and hasattr(trainer, "model")):
        raise RunError(f"{type(trainer).__name__} is no Trainer.", hint="nbkit.start(SFTTrainer(model, args=..., ...))")
    for prompt in samples:
        rendered(trainer, prompt)
    if not _busy.acquire(blocking=False):
        raise RunError("A run of this kernel is still active.", hint="run.wait() or run.stop(), then start again")
    run = None
    try:
        _shrink(trainer)
        mended = repairs.mend(trainer)
        values, data = recipe(trainer), data_identity(trainer)
        plan = resuming.plan(trainer, values, data, name, resume)
        if plan.finished is not None:
            resuming.load_result(trainer, plan.finished)
            return plan.finished
        job = worker.Job(plan.path, plan.checkpoint, data, tuple(samples), sample_tokens, calibrate)
        if detach:
            return detaching.launch(
                trainer, plan, job, lambda recorder: _begin(trainer, plan, values, data, mended, recorder, detach=True)
            )
        run = _in_thread(trainer, plan, values, job, mended)
    finally:
        if run is None:
            _busy.release()
    return run


def _begin(
    trainer: Any,
    plan: resuming.Plan,
    values: dict[str, Any],
    data: dict[str, Any],
    mended: list[str],
    recorder: Recorder,
    *,
    detach: bool = False,
) -> None:
    """Write what the run is: its recipe, its data, the versions, what was mended and what is to be known."""
    trainer.args.output_dir = str(plan.path / "checkpoints")
    swept = atomic.sweep(plan.path)
    if (plan.path / "checkpoints").is_dir():
        swept += atomic.sweep(plan.path / "checkpoints")
    atomic.write_text(plan.path / "config.yaml", to_yaml({**values, "output_dir": trainer.args.output_dir}), mode=0o600)
    forecast = checkpoint.forecast(trainer, plan.path / "checkpoints")
    device = devices.name(trainer)
    notes = [
        *plan.notes,
        *devices.notes(device, plan.path, detach=detach),
        *([f"disk: {forecast}"] if forecast else []),
    ]
    if getattr(trainer.args, "save_only_model", False):
        notes.append("save_only_model=True: these checkpoints cannot be resumed exactly")
    recorder.event(
        "resumed" if plan.checkpoint else "started",
        data=data,
        versions=manifest.versions(),
        mended=mended,
        device=device,
        notes=notes,
        checkpoint=plan.checkpoint.name if plan.checkpoint else None,
        **({"swept": swept} if swept else {}),
    )


def _in_thread(
    trainer: Any, plan: resuming.Plan, values: dict[str, Any], job: worker.Job, mended: list[str]
) -> StartedRun:
    recorder = Recorder(plan.path)
    try:
        _begin(trainer, plan, values, job.data, mended, recorder)
        script = in_script()
        signals = Signals(lambda: Run(plan.path).stop(), plan.path.name).install() if script else None
    except BaseException:
        recorder.close()
        raise

    def work() -> None:
        try:
            worker.work(trainer, recorder, job)
        finally:
            _busy.release()
            if signals is not None:
                signals.finish()

    # In a script Python waits for the thread; a kernel that is shut down must not.
    thread = threading.Thread(target=work, name=plan.path.name, daemon=not script)
    run = StartedRun(plan.path, thread, recorder, signals)
    thread.start()
    return run


def _shrink(trainer: Any) -> None:
    """Smoke mode: a few steps, a few evaluation rows."""
    if not smoke.on():
        return
    args = trainer.args
    args.max_steps = smoke.cap(args.max_steps if args.max_steps > 0 else _SMOKE_STEPS, _SMOKE_STEPS)
    held_out = trainer.eval_dataset
    if held_out is not None and hasattr(held_out, "select"):
        trainer.eval_dataset = held_out.select(range(smoke.cap(len(held_out), _SMOKE_ROWS)))
