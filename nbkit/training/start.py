"""Start a trainer so that its cell returns at once, the run is recorded, and nothing is lost when it ends early."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from nbkit import atomic, smoke
from nbkit.errors import NbkitError, RunError, debugging, require
from nbkit.training import checkpoint, repairs
from nbkit.training.callbacks import recording
from nbkit.training.guards import guarding
from nbkit.training.recipe import data_identity, differences, read_yaml, recipe, to_yaml
from nbkit.training.record import Recorder, new_path
from nbkit.training.run import Run, latest, runs
from nbkit.training.status import State
from nbkit.training.system import Sampler

_VERSIONS = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "nbkit-llm")
_SMOKE_STEPS, _SMOKE_ROWS = 3, 4
_busy = threading.Lock()


class StartedRun(Run):
    """A run whose worker thread lives in this process."""

    def __init__(self, path: Path, thread: threading.Thread) -> None:
        super().__init__(path)
        self._thread = thread

    def _alive(self) -> bool:
        return self._thread.is_alive()

    def _pause(self, seconds: float) -> None:
        self._thread.join(seconds)


@dataclass(frozen=True)
class _Plan:
    """Where a run goes and what it starts from."""

    path: Path
    checkpoint: Path | None
    notes: tuple[str, ...]


def start(trainer: Any, *, name: str = "", resume: str | Path | Run | None = None) -> Run:
    """Train in a worker thread and return at once; `run.wait()` waits, `run.stop()` ends it well.

    Args:
        trainer: Any transformers or TRL Trainer, ready to train. It gets a callback, writes its checkpoints under
            runs/<id>/checkpoints, and is mended (adapters in fp32, every step logged, NaN not hidden); the run's
            events.jsonl says what was done.
        name: Ends the run's id; default: the model's name.
        resume: None starts anew. "auto" goes on with the newest run of the same recipe and data that has not finished,
            or starts anew. A run, its id or its path goes on with that one.
    Returns: The run. It is finished already when the run to resume was; the trainer's model then has its adapter.
    Raises: RunError when another run of this kernel is active, or the run to resume has another recipe or other data;
        ModelError when the model's gradients would be wrong; StorageError when the directory cannot be written.
    """
    require("torch", "transformers", extra="train")
    if not _busy.acquire(blocking=False):
        raise RunError("A run of this kernel is still active.", hint="run.wait() or run.stop(), then start again")
    try:
        _shrink(trainer)
        mended = repairs.mend(trainer)
        values, data = recipe(trainer), data_identity(trainer)
        plan = _plan(values, data, name, resume)
        if plan.checkpoint is None and (plan.path / "status.json").is_file():
            finished = Run(plan.path)
            _load_result(trainer, finished)
            _busy.release()
            return finished
        run = _launch(trainer, plan, values, data, mended)
    except BaseException:
        _busy.release()
        raise
    return run


def _load_result(trainer: Any, run: Run) -> None:
    """Give the trainer the weights of a run that had finished, so that what follows in the notebook holds for it."""
    if run.adapter.name != "adapter" or not run.adapter.is_dir():
        return
    from peft import load_peft_weights, set_peft_model_state_dict

    set_peft_model_state_dict(trainer.model, load_peft_weights(str(run.adapter), device=str(trainer.args.device)))


def _launch(trainer: Any, plan: _Plan, values: dict[str, Any], data: dict[str, Any], mended: list[str]) -> StartedRun:
    recorder = Recorder(plan.path)
    trainer.args.output_dir = str(plan.path / "checkpoints")
    values = {**values, "output_dir": trainer.args.output_dir}
    atomic.write_text(plan.path / "config.yaml", to_yaml(values))
    recorder.event(
        "resumed" if plan.checkpoint else "started",
        data=data,
        versions={package: _version(package) for package in _VERSIONS},
        mended=mended,
        notes=list(plan.notes),
        checkpoint=plan.checkpoint.name if plan.checkpoint else None,
    )
    _track(trainer, plan.path, recorder)
    callback = _attach(trainer, recorder)
    checkpoint.safely(trainer, lambda path: recorder.event("saved", checkpoint=path.name))
    thread = threading.Thread(target=_train, args=(trainer, recorder, callback, plan), name=plan.path.name, daemon=True)
    run = StartedRun(plan.path, thread)
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


def _plan(values: dict[str, Any], data: dict[str, Any], name: str, resume: str | Path | Run | None) -> _Plan:
    fresh = _Plan(new_path(name or Path(values["model_name_or_path"]).name), None, ())
    if resume is None:
        return fresh
    if resume == "auto":
        candidates = [run for run in runs() if not _mismatch(run, values, data)]
        if not candidates:
            return _Plan(fresh.path, None, ("resume: no earlier run has this recipe and these rows; started anew",))
        run = candidates[0]
    else:
        run = resume if isinstance(resume, Run) else latest(resume)
        found = _mismatch(run, values, data)
        if found:
            raise RunError(
                f"Run {run.id} cannot be resumed with this trainer: {'; '.join(found)}.",
                hint="build the trainer as it was, or start anew: nbkit.start(trainer)",
            )
    status = run.status
    if status.state == "done":
        return _Plan(run.path, None, ())
    if status.active:
        raise RunError(
            f"Run {run.id} is still {status.state}.", hint=f"nbkit watch {run.id}      or: nbkit stop {run.id}"
        )
    point, skipped = checkpoint.newest(run.path / "checkpoints")
    if point is None:
        why = "; ".join(skipped) or "it has no checkpoint"
        if resume == "auto":
            return _Plan(fresh.path, None, (f"resume: {run.id} has nothing to go on from ({why}); started anew",))
        raise RunError(f"Run {run.id} has nothing to resume from: {why}.", hint="start anew: nbkit.start(trainer)")
    return _Plan(run.path, point, tuple(f"resume: skipped {line}" for line in skipped))


def _mismatch(run: Run, values: dict[str, Any], data: dict[str, Any]) -> list[str]:
    """What keeps `run` from being resumed; empty when recipe and rows are the same."""
    begun = next((event for event in run.events() if event["event"] == "started"), None)
    try:
        found = differences(read_yaml(run.path / "config.yaml"), values)
    except OSError:
        return ["it has no config.yaml"]
    if begun is None:
        return ["its events.jsonl has no start"]
    if begun["data"] != data:
        found.append(f"training rows: {begun['data']['rows']}, now {data['rows']}, or other ones")
    return found


def _attach(trainer: Any, recorder: Recorder) -> Any:
    """Put our callback in the place of the progress bars: they would print into whatever cell runs next."""
    from transformers import PrinterCallback, ProgressCallback

    for callback in list(trainer.callback_handler.callbacks):
        kind = type(callback).__name__
        if isinstance(callback, (PrinterCallback, ProgressCallback)) or kind in {
            "Recording",
            "Guarding",
            "NotebookProgressCallback",
        }:
            trainer.remove_callback(callback)
    trainer.args.disable_tqdm = True
    callback = recording(recorder)
    trainer.add_callback(callback)
    trainer.add_callback(guarding(trainer, recorder))
    return callback


def _track(trainer: Any, path: Path, recorder: Recorder) -> None:
    """W&B works without an account: offline, into the run directory, unless a key or a mode is set."""
    if "wandb" not in (trainer.args.report_to or []):
        return
    os.environ.setdefault("WANDB_DIR", str(path.absolute()))
    if not os.environ.get("WANDB_MODE") and not os.environ.get("WANDB_API_KEY") and not _wandb_login():
        os.environ["WANDB_MODE"] = "offline"
    if os.environ.get("WANDB_MODE") == "offline":
        recorder.event("wandb", mode="offline", sync=f"wandb sync {path}/wandb/offline-run-*")


def _wandb_login() -> bool:
    netrc = Path.home() / ".netrc"
    return netrc.is_file() and "wandb" in netrc.read_text(errors="replace")


def _train(trainer: Any, recorder: Recorder, callback: Any, plan: _Plan) -> None:
    """The worker: train, keep the result, and say how it ended, whatever ends it."""
    sampler = Sampler(recorder.system).start()
    try:
        resumed = int(plan.checkpoint.name.rpartition("-")[2]) if plan.checkpoint else 0
        recorder.set("waiting", resumed_from=resumed)
        trainer.train(resume_from_checkpoint=str(plan.checkpoint) if plan.checkpoint else None)
        _keep(trainer, plan.path, recorder)
        end: State = "stopped" if callback.asked and trainer.state.global_step < trainer.state.max_steps else "done"
        recorder.event(end, step=trainer.state.global_step)
        recorder.set(end, step=trainer.state.global_step)
    except BaseException as error:
        _record_failure(error, recorder, trainer)
    finally:
        sampler.stop()
        recorder.close()
        _busy.release()


def _keep(trainer: Any, path: Path, recorder: Recorder) -> None:
    """Save the adapter (or the model) and its tokenizer, whole or not at all."""
    name = "adapter" if getattr(trainer.model, "peft_config", None) else "model"
    with atomic.folder(path / name) as staged:
        trainer.save_model(str(staged))
        (staged / "training_args.bin").unlink(missing_ok=True)  # a pickle, with any hub token in it
    recorder.event("kept", result=name)


def _record_failure(error: BaseException, recorder: Recorder, trainer: Any) -> None:
    import traceback

    cause = error.message if isinstance(error, NbkitError) else f"{type(error).__name__}: {error}"
    hint = error.hint if isinstance(error, NbkitError) else _hint(error)
    step = getattr(trainer.state, "global_step", 0)
    try:
        recorder.event("failed", step=step, cause=cause, traceback=traceback.format_exc())
        recorder.set("failed", step=step, cause=cause, hint=hint)
    except BaseException:  # the disk may be what failed: the kernel still shows it
        traceback.print_exc()
    if debugging():
        traceback.print_exc()


def _hint(error: BaseException) -> str:
    import errno

    text = str(error)
    if "out of memory" in text.lower():
        return "halve per_device_train_batch_size and double gradient_accumulation_steps, or turn on activation_checkpointing"
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left" in text:
        return "free space on the disk of NBKIT_RUNS, then nbkit.start(trainer, resume='auto')"
    return "the traceback is in events.jsonl of the run (NBKIT_DEBUG=1 prints it)"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
