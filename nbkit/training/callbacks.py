"""What the trainer tells the run directory at each step, and what the run directory tells the trainer: stop."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from nbkit.training.record import Recorder

if TYPE_CHECKING:
    from transformers import TrainerCallback


def recording(recorder: Recorder) -> TrainerCallback:
    """A TrainerCallback that writes `recorder` and obeys its STOP file. Loads transformers."""
    from transformers import TrainerCallback

    class Recording(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
        """One row a step; a stop after the step in which it was asked for; an end at the first value that is not finite."""

        cause = ""
        asked = False

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            recorder.set("training", step=state.global_step, max_steps=state.max_steps)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            recorder.set("training", now=False, step=state.global_step)
            if recorder.stop_asked and not self.asked:
                self.asked = True
                recorder.event("stopping", step=state.global_step)
                control.should_training_stop = True
                control.should_save = True
                control.should_evaluate = False

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            values = {key: _number(value) for key, value in (logs or {}).items()}
            recorder.row(state.global_step, values)
            for name in ("loss", "grad_norm", "eval_loss"):
                value = values.get(name)
                if isinstance(value, float) and not math.isfinite(value):
                    self.cause = f"{name} became {value} at step {state.global_step}"
                    control.should_training_stop = True
                    control.should_save = control.should_evaluate = False

        def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if recorder.status.state != "evaluating":
                recorder.set("evaluating")

    return Recording()


def _number(value: Any) -> Any:
    """transformers logs some numbers as tensors or strings; a row holds numbers."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
