"""The training itself, in a thread of a kernel or in a process of its own: from the first step to the kept result."""

from __future__ import annotations

import contextlib
import errno
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nbkit import atomic
from nbkit.errors import NbkitError, RunError, debugging
from nbkit.memory import calibrate
from nbkit.models.quiet import no_bars
from nbkit.training import checkpoint, manifest, oom, rng
from nbkit.training.callbacks import Recording, attach, breakable
from nbkit.training.guards import Guarding, NotFiniteError
from nbkit.training.mirrors import mirrored
from nbkit.training.record import Recorder
from nbkit.training.samples import NEW_TOKENS, Prompt, Sampling
from nbkit.training.status import State
from nbkit.training.system import Sampler


@dataclass(frozen=True)
class Job:
    """What is to be done with a trainer.

    Attributes:
        path: The run directory.
        point: The checkpoint to go on from; None starts at the beginning.
        data: The identity of the rows, for the manifests.
        samples: Prompts that the model answers at each evaluation.
        new_tokens: The longest answer.
        calibrate: Compare the memory of two real steps with its prediction before the training begins.
    """

    path: Path
    point: Path | None
    data: dict[str, Any]
    samples: Sequence[Prompt] = field(default=())
    new_tokens: int = NEW_TOKENS
    calibrate: bool = False


def work(trainer: Any, recorder: Recorder, job: Job) -> None:
    """Train, keep the result, and say how it ended, whatever ends it; nothing is raised."""
    sampler = Sampler(recorder.system).start()
    args = trainer.args
    batch, held_out = (
        (args.per_device_train_batch_size, args.gradient_accumulation_steps),
        args.per_device_eval_batch_size,
    )
    try:
        step = manifest.step_of(job.point) if job.point else 0
        recorder.set("waiting", resumed_from=step, step=step)
        if job.calibrate and not job.point:
            _calibrate(trainer, recorder)
        with _listening(trainer, recorder, job) as (recording, guarding):
            _train(trainer, recorder, job, guarding)
            stopped = recording.asked and trainer.state.global_step < trainer.state.max_steps
        _keep(trainer, job.path, recorder)
        end: State = "stopped" if stopped else "done"
        recorder.event(end, step=trainer.state.global_step)
        recorder.set(end, step=trainer.state.global_step)
    except BaseException as error:
        record_failure(error, recorder, getattr(trainer.state, "global_step", 0))
    finally:
        oom.apply(trainer, *batch)
        args.per_device_eval_batch_size = held_out
        sampler.stop()
        recorder.close()


def _calibrate(trainer: Any, recorder: Recorder) -> None:
    """Two real steps beside their prediction, told in an event. What fails here does not keep the run from training."""
    recorder.set("waiting", doing="two steps, to compare their memory with the prediction")
    try:
        found = calibrate(trainer)
    except (NbkitError, RuntimeError, MemoryError) as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        recorder.event("memory", calibration=f"not measured: {text}")
        oom.free()
        return
    recorder.event("memory", calibration=str(found), **asdict(found), ratio=round(found.ratio, 4))


@contextlib.contextmanager
def _listening(trainer: Any, recorder: Recorder, job: Job) -> Iterator[tuple[Recording, Guarding]]:
    """Our callbacks and safe saving, for the time of the training; afterwards the trainer is as it was."""
    before = list(trainer.callback_handler.callbacks)
    with contextlib.ExitStack() as undo:
        undo.callback(lambda: trainer.callback_handler.callbacks.__setitem__(slice(None), before))
        undo.enter_context(_undisturbed())
        _quieten(trainer)
        undo.callback(mirrored(trainer, job.path, recorder))
        recording = attach(trainer, Recording(recorder))
        guarding = attach(trainer, Guarding(trainer, recorder))
        undo.callback(guarding.undo)
        undo.callback(breakable(trainer, recording))
        if job.samples:
            attach(trainer, Sampling(trainer, recorder, job.samples, job.new_tokens))
        undo.enter_context(checkpoint.safely(trainer, _tell(recorder), job.data))
        yield recording, guarding


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Arguments for another trainer may be built in the notebook meanwhile: they would reset accelerate's state, which is
    one for the whole process, under the run that uses it (AttributeError in its next step).
    """
    from accelerate.state import AcceleratorState

    reset = vars(AcceleratorState)["_reset_state"]
    AcceleratorState._reset_state = staticmethod(lambda **_: None)  # noqa: SLF001 - what TrainingArguments calls
    try:
        yield
    finally:
        AcceleratorState._reset_state = reset  # noqa: SLF001


def _tell(recorder: Recorder) -> Callable[[Path], None]:
    return lambda path: recorder.event("saved", checkpoint=path.name)


def _quieten(trainer: Any) -> None:
    """No progress bars: they would print into whatever cell runs next."""
    from transformers import PrinterCallback, ProgressCallback

    for callback in list(trainer.callback_handler.callbacks):
        if isinstance(callback, (PrinterCallback, ProgressCallback)) or type(callback).__name__ == (
            "NotebookProgressCallback"
        ):
            trainer.remove_callback(callback)
    trainer.args.disable_tqdm = True


def _train(trainer: Any, recorder: Recorder, job: Job, guarding: Guarding) -> None:
    """Train to the end; once, when memory runs out, go on with a smaller batch."""
    start, point = rng.capture(), job.point
    if point is not None:
        _same_batch(trainer, recorder, point)
        if _is_the_end(trainer, point):
            return
    for last in (False, True):
        failed = _attempt(trainer, point, last=last)
        if not failed:
            return
        point = _shrink(trainer, recorder, job.path / "checkpoints", guarding, failed)
        if point is None:
            rng.restore(start)


def _is_the_end(trainer: Any, point: Path) -> bool:
    """True when all steps were done at `point`: the run ended between its last save and its result. The trainer then has
    the weights of that moment; its own `train` would do one step more.
    """
    from transformers import TrainerState

    state = TrainerState.load_from_json(str(point / "trainer_state.json"))
    if state.global_step < state.max_steps:
        return False
    trainer._load_from_checkpoint(str(point))  # noqa: SLF001 - as `train` does it, which has no public part for it
    trainer.state = state
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint:
        trainer._load_best_model()  # noqa: SLF001
    trainer.control = trainer.callback_handler.on_train_end(trainer.args, state, trainer.control)
    return True


def _attempt(trainer: Any, point: Path | None, *, last: bool) -> str:
    """One call of `train`. Returns: What memory error ended it; empty when none did. The error itself is let go: it
    holds the tensors of the failed step.
    """
    try:
        trainer.train(resume_from_checkpoint=str(point) if point else None)
    except BaseException as error:
        if not oom.is_oom(error):
            raise
        text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
        if last:
            raise RunError(f"Out of memory again with half the batch: {text}", hint=oom.HINT) from error
        return text
    return ""


def _shrink(trainer: Any, recorder: Recorder, root: Path, guarding: Guarding, failed: str) -> Path | None:
    """Halve the batch and say where the run goes on: at the step that failed, or where it was last saved.

    Raises: RunError when the batch is 1, or when weights may be half changed and nothing is saved.
    """
    args, step = trainer.args, trainer.state.global_step
    sizes = oom.smaller(args.per_device_train_batch_size, args.gradient_accumulation_steps)
    if sizes is None:
        raise RunError(f"Out of memory with a batch of one row: {failed}", hint=oom.HINT)
    trainer.model.zero_grad(set_to_none=True)
    oom.free()
    if step and not guarding.updating and not (root / f"checkpoint-{step}").exists():
        # No weight was touched since this step was done: it is saved, and nothing is lost.
        with contextlib.suppress(Exception):
            trainer._save_checkpoint(trainer.model, None)  # noqa: SLF001 - Trainer has no public way to save one now
    point, _ = manifest.newest(root)
    if point is None and (step or guarding.updating):
        raise RunError(f"Out of memory at step {step}, and no checkpoint to go on from: {failed}", hint=oom.HINT)
    oom.release(trainer)
    before = f"{args.per_device_train_batch_size} x {args.gradient_accumulation_steps}"
    oom.apply(trainer, *sizes)
    recorder.event(
        "memory",
        error=failed,
        step=step,
        batch=f"{before} to {sizes[0]} x {sizes[1]} (rows x accumulation): the effective batch is the same",
        goes_on_from=point.name if point else "the beginning",
    )
    recorder.set("waiting", doing=f"out of memory: going on with {sizes[0]} rows x {sizes[1]}")
    return point


def _same_batch(trainer: Any, recorder: Recorder, point: Path) -> None:
    """A run that had to halve its batch goes on with the halved one."""
    batch, args = manifest.read(point).get("batch") or {}, trainer.args
    then = int(batch.get("per_device") or 0), int(batch.get("accumulation") or 0)
    now = args.per_device_train_batch_size, args.gradient_accumulation_steps
    if then == now or then[0] * then[1] != now[0] * now[1]:
        return
    oom.apply(trainer, *then)
    recorder.event("memory", batch=f"{now[0]} x {now[1]} to {then[0]} x {then[1]}, as when the checkpoint was saved")


def _keep(trainer: Any, path: Path, recorder: Recorder) -> None:
    """Save the adapter (or the model) and its tokenizer, whole or not at all."""
    name = "adapter" if getattr(trainer.model, "peft_config", None) else "model"
    recorder.set(doing="saving the result")
    with atomic.folder(path / name, private=True) as staged, no_bars():
        trainer.save_model(str(staged), _internal_call=True)
        (staged / checkpoint.PICKLED_ARGUMENTS).unlink(missing_ok=True)
    recorder.event("kept", result=name)
    if trainer.args.push_to_hub:
        trainer.push_to_hub(commit_message="Model save", revision=trainer.args.hub_revision)


def record_failure(error: BaseException, recorder: Recorder, step: int) -> None:
    """Write down what ended a run, with what to do next."""
    cause = error.message if isinstance(error, NbkitError) else f"{type(error).__name__}: {error}"
    hint = error.hint if isinstance(error, NbkitError) else _hint(error)
    kind = "not finite" if isinstance(error, NotFiniteError) else "memory" if "out of memory" in cause.lower() else ""
    try:
        recorder.event(
            "failed", step=step, cause=cause, kind=kind, traceback="".join(traceback.format_exception(error))
        )
        recorder.set("failed", step=step, cause=cause, hint=hint)
    except BaseException:  # the disk may be what failed: `status` of the recorder still says it
        traceback.print_exc()
    if debugging():
        traceback.print_exc()


def _hint(error: BaseException) -> str:
    if oom.is_oom(error):
        return oom.HINT
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left" in str(error):
        return "free space on the disk of NBKIT_RUNS, then nbkit.start(trainer, resume='auto')"
    return "the traceback is in events.jsonl of the run (NBKIT_DEBUG=1 prints it)"
