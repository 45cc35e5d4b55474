"""The first loss or gradient that is not finite ends the run before its step changes a weight."""

from __future__ import annotations

import math
from typing import Any

from nbkit.errors import RunError
from nbkit.training.overrides import override
from nbkit.training.record import Recorder

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


class Guarding:
    """A callback that looks at loss and gradient before the optimizer uses them.

    Trainer itself writes a nan loss down as 0.0 and goes on with dead weights. Where gradients are scaled (fp16), one
    that overflowed is the scaler's business, and only `_MOST_SKIPPED` in a row end the run.

    Attributes:
        undo: Leaves the trainer as it was.
        updating: True between the look at the gradients and the end of the optimizer's step: weights may be half changed.
    """

    def __init__(self, trainer: Any, recorder: Recorder) -> None:
        self.trainer, self.recorder = trainer, recorder
        self.updating = False
        self.skipped = 0
        self.norm: float | None = None
        self._take_norm = trainer._get_grad_norm  # noqa: SLF001 - so that the norm is not computed twice
        self.undo = override(trainer, "_get_grad_norm", self._keep_norm)

    def _keep_norm(self, *args: Any, **options: Any) -> Any:
        norm = self._take_norm(*args, **options)
        self.norm = None if norm is None else float(norm)
        return norm

    def on_pre_optimizer_step(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        step, norm = state.global_step + 1, self.norm
        loss = float(self.trainer._tr_loss)  # noqa: SLF001 - the loss reaches callbacks only after the step
        if not math.isfinite(loss):
            self._end(step, "loss", loss, {"loss": loss, "grad_norm": norm})
        if norm is None or math.isfinite(norm):
            self.skipped = 0
        else:
            self.skipped += 1
            if not self._scales() or self.skipped >= _MOST_SKIPPED:
                self._end(step, "grad_norm", norm, {"loss": loss, "grad_norm": norm})
        self.updating = True

    def on_optimizer_step(self, *_args: Any, **_: Any) -> None:
        self.updating = False

    def _end(self, step: int, name: str, value: float, row: dict[str, Any]) -> None:
        self.recorder.row(step, row)
        raise NotFiniteError(f"{name} became {value}", step)

    def _scales(self) -> bool:
        scaler = getattr(self.trainer.accelerator, "scaler", None)
        return scaler is not None and bool(scaler.is_enabled())


def check_weights(trainer: Any) -> None:
    """Look at every trained weight before it is saved: a step whose gradient was finite can still overflow.

    Raises: NotFiniteError.
    """
    import torch

    bad = [
        name for name, p in trainer.model.named_parameters() if p.requires_grad and not bool(torch.isfinite(p).all())
    ]
    if bad:
        raise NotFiniteError(f"{len(bad)} trained weights are not finite ({bad[0]})", trainer.state.global_step)
