"""What the trainer tells the run directory at each step, and what the run directory tells the trainer: stop, pause."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from nbkit.training.record import Recorder

if TYPE_CHECKING:
    from transformers import TrainerCallback

_LOOK_EVERY_S = 0.05


class StopEvaluationError(Exception):
    """Raised inside an evaluation that a stop breaks off; caught where the evaluation was begun."""


def recording(recorder: Recorder) -> TrainerCallback:
    """A TrainerCallback that writes `recorder` and obeys its STOP and PAUSE files. Loads transformers."""
    from transformers import TrainerCallback

    class Recording(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
        """One row a step; a stop or a pause after the step in which it was asked for."""

        asked = False  # a stop was asked for, and the trainer told
        pausing = False

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.asked = self.pausing = False
            recorder.set("training", step=state.global_step, max_steps=state.max_steps)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            recorder.step(state.global_step)
            if recorder.status.state != "training":
                recorder.set("training")
            if recorder.stop_asked:
                self._stop(state, control)
            elif recorder.pause_asked:
                self.pausing = True
                control.should_save = True
                recorder.set("training", doing="saving a checkpoint, then paused")

        def _stop(self, state: Any, control: Any) -> None:
            if not self.asked:
                self.asked = True
                recorder.event("stopping", step=state.global_step)
            control.should_training_stop = True
            control.should_save = True
            control.should_evaluate = False

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            recorder.row(
                state.global_step,
                {key: value if type(value) is float else number(value) for key, value in (logs or {}).items()},
            )

        def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if recorder.stop_asked and state.global_step:
                raise StopEvaluationError
            if recorder.status.state != "evaluating":
                recorder.set("evaluating")

        def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if recorder.status.state == "evaluating":
                recorder.set("training")

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.pausing:
                self.pausing = False
                self._hold(state, control)

        def _hold(self, state: Any, control: Any) -> None:
            """Wait until the PAUSE file is gone or a stop is asked for; the checkpoint of this step is saved."""
            recorder.set("paused", step=state.global_step)
            recorder.event("paused", step=state.global_step)
            while recorder.pause_asked and not recorder.stop_asked:
                time.sleep(_LOOK_EVERY_S)
            if recorder.stop_asked:
                self._stop(state, control)
                control.should_save = False  # it is saved already
            else:
                recorder.event("unpaused", step=state.global_step)
                recorder.set("training")

    return Recording()


def number(value: Any) -> Any:
    """transformers logs some numbers as tensors or strings; a row holds numbers."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
