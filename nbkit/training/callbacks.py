"""What the trainer tells the run directory at each step, and what the run directory tells the trainer: stop, pause.

The classes here become TrainerCallbacks by `attach`, so that importing them does not load transformers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from nbkit.training.overrides import override
from nbkit.training.record import Recorder

_LOOK_EVERY_S = 0.05


class StopEvaluationError(Exception):
    """Raised inside an evaluation that a stop breaks off; caught where the evaluation was begun."""


def attach(trainer: Any, callback: Any) -> Any:
    """Make `callback`, an object with some of TrainerCallback's methods, a callback of `trainer`. Returns it."""
    from transformers import TrainerCallback

    kind = type(callback)
    callback.__class__ = type(kind.__name__, (kind, TrainerCallback), {})
    trainer.add_callback(callback)
    return callback


class Recording:
    """One row a step; a stop or a pause after the step in which it was asked for.

    Attributes:
        asked: A stop was asked for, and the trainer told.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.asked = self.pausing = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.recorder.set("training", step=state.global_step, max_steps=state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        recorder = self.recorder
        recorder.stepped = state.global_step
        if recorder.stop_asked:
            self.stop(state, control)
        elif recorder.pause_asked:
            self.pausing = True
            control.should_save = True
            recorder.set(doing="saving a checkpoint, then paused")

    def stop(self, state: Any, control: Any) -> None:
        """Tell the trainer to save and end."""
        if not self.asked:
            self.asked = True
            self.recorder.event("stopping", step=state.global_step)
        control.should_training_stop = control.should_save = True
        control.should_evaluate = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        self.recorder.row(state.global_step, logs or {})

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.recorder.stop_asked:
            raise StopEvaluationError
        if self.recorder.status.state != "evaluating":
            self.recorder.set("evaluating")

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.recorder.status.state == "evaluating":
            self.recorder.set("training")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.pausing:
            self.pausing = False
            self._hold(state, control)

    def _hold(self, state: Any, control: Any) -> None:
        """Wait until the PAUSE file is gone or a stop is asked for; the checkpoint of this step is saved."""
        recorder = self.recorder
        recorder.event("paused", step=state.global_step)
        recorder.set("paused", step=state.global_step)
        while recorder.pause_asked and not recorder.stop_asked:
            time.sleep(_LOOK_EVERY_S)
        if recorder.stop_asked:
            self.stop(state, control)
            control.should_save = False  # it is saved already
        else:
            recorder.event("unpaused", step=state.global_step)
            recorder.set("training")


def breakable(trainer: Any, recording: Recording) -> Callable[[], None]:
    """Let a stop break off an evaluation: the run then saves and ends, and a resume goes on after that evaluation.

    The random numbers are those of a whole evaluation where there is one evaluation set: a data loader draws when it
    begins. Returns: A function that undoes it.
    """
    evaluate, best = trainer._evaluate, trainer._determine_best_metric  # noqa: SLF001 - no public method is called there

    def evaluate_or_stop(*args: Any, **options: Any) -> Any:
        try:
            return evaluate(*args, **options)
        except StopEvaluationError:
            recording.recorder.set("training")
            recording.stop(trainer.state, trainer.control)
            return {}

    def best_of(metrics: dict[str, float], trial: Any) -> bool:
        return bool(metrics and best(metrics=metrics, trial=trial))

    undo = [override(trainer, "_evaluate", evaluate_or_stop), override(trainer, "_determine_best_metric", best_of)]

    def undo_both() -> None:
        for each in undo:
            each()

    return undo_both
