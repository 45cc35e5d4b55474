"""The first loss or gradient that is not finite ends the run before its step changes a weight."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from nbkit.errors import RunError
from nbkit.training.record import Recorder

if TYPE_CHECKING:
    from transformers import TrainerCallback

# A gradient scaler (fp16) skips a step whose gradients overflowed and halves its scale; that many in a row are no search
# for a scale any more: from 65536 it would have come down to 0.06.
_MOST_SKIPPED = 20


class NotFiniteError(RunError):
    """A loss, a gradient or a weight that is nan or inf."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(
            f"{what} at step {step}; the weights of that step were not saved",
            hint="lower the learning rate or max_grad_norm, or train in bf16 instead of fp16; the last checkpoint is good",
        )


def guarding(trainer: Any, recorder: Recorder) -> TrainerCallback:
    """A TrainerCallback that looks at loss and gradient before the optimizer uses them.

    Trainer itself writes a nan loss down as 0.0 and goes on with dead weights. Where gradients are scaled (fp16), one
    that overflowed is the scaler's business, and only `_MOST_SKIPPED` in a row end the run.
    """
    from transformers import TrainerCallback

    norms = _remember_norm(trainer)

    class Guarding(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
        updating = False  # True between the look at the gradients and the end of the optimizer's step
        skipped = 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.updating, self.skipped = False, 0

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step = state.global_step + 1
            loss, norm = float(trainer._tr_loss), norms.get("last")
            if not math.isfinite(loss):
                self._end(step, "loss", loss, {"loss": loss, "grad_norm": norm})
            if norm is None or math.isfinite(norm):
                self.skipped = 0
            else:
                self.skipped += 1
                if not _scales(trainer) or self.skipped >= _MOST_SKIPPED:
                    self._end(step, "grad_norm", norm, {"loss": loss, "grad_norm": norm})
            self.updating = True

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.updating = False

        def _end(self, step: int, name: str, value: float, row: dict[str, Any]) -> None:
            recorder.row(step, row)
            raise NotFiniteError(f"{name} became {value}", step)

    return Guarding()


def _remember_norm(trainer: Any) -> dict[str, float | None]:
    """Keep the norm that the trainer takes of each step's gradients, so that it is not computed twice."""
    last: dict[str, float | None] = {}
    original = getattr(trainer._get_grad_norm, "nbkit_original", trainer._get_grad_norm)

    def remember(*args: Any, **options: Any) -> Any:
        norm = original(*args, **options)
        last["last"] = None if norm is None else float(norm)
        return norm

    remember.nbkit_original = original  # type: ignore[attr-defined]
    trainer._get_grad_norm = remember
    return last


def _scales(trainer: Any) -> bool:
    scaler = getattr(trainer.accelerator, "scaler", None)
    return scaler is not None and bool(scaler.is_enabled())


def check_weights(trainer: Any) -> None:
    """Look at every trained weight before it is saved: a step whose gradient was finite can still overflow.

    Raises: NotFiniteError.
    """
    import torch

    bad = [name for name, p in trainer.model.named_parameters() if p.requires_grad and not bool(torch.isfinite(p).all())]
    if bad:
        raise NotFiniteError(f"{len(bad)} trained weights are not finite ({bad[0]})", trainer.state.global_step)
