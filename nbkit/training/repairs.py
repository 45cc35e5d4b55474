"""What is mended in a trainer before it runs; each returns what it did, for the run's record."""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable
from typing import Any

_scores_compactly: contextvars.ContextVar[bool] = contextvars.ContextVar("nbkit_compact_head", default=False)


def fp32_adapters(trainer: Any) -> str:
    """Train adapters in fp32: TRL 1.16 casts those of a quantised model to bf16 at the start, and a resume loads them
    as fp32, so that a resumed run is not the run that was stopped. In fp16 training the gradient scaler wants it too.
    """
    import torch

    if not getattr(trainer.model, "peft_config", None):
        return ""
    narrow = [p for p in trainer.model.parameters() if p.requires_grad and p.dtype in {torch.bfloat16, torch.float16}]
    for parameter in narrow:
        parameter.data = parameter.data.float()
    return f"{len(narrow)} adapter tensors to fp32, so that a resume is exact" if narrow else ""


def one_row_a_step(trainer: Any) -> str:
    """Log every step, non-finite values as they are: Trainer's filter would write a NaN loss down as 0.0."""
    args = trainer.args
    changed = args.logging_steps != 1 or args.logging_nan_inf_filter
    args.logging_strategy = type(args.logging_strategy)("steps")
    args.logging_steps = 1
    args.logging_nan_inf_filter = False
    return "logging every step, NaN shown as NaN" if changed else ""


def score_trained_tokens_only(trainer: Any) -> str:
    """On a CPU, let TRL's fused head compute the loss of trained tokens only, as it does on a GPU.

    TRL 1.16 scores every position where there is no Triton, prompt and padding included, and masks afterwards ("the
    number of valid positions would change the tile shapes on every batch and trigger a recompilation": true of an
    accelerator that compiles, not of a CPU). Loss and gradients are the same (tested); on the embedded task a step takes
    about a third less time. It holds for this trainer's model, during the run and after it; no other trainer is changed.

    Source: trl/trainer/utils.py `add_fused_lm_head`, 1.16.
    """
    if trainer.args.device.type != "cpu" or not _is_sft(trainer):
        return ""
    from trl.trainer import utils

    if not hasattr(utils, "_use_triton"):
        return ""
    base = trainer.model.get_base_model() if hasattr(trainer.model, "get_base_model") else trainer.model
    if hasattr(base.forward, "nbkit_compact"):
        return ""
    if not hasattr(utils._use_triton, "nbkit_original"):
        utils._use_triton = _asked_for_compact(utils._use_triton)
    base.forward = _compact(base.forward)
    return "loss of trained tokens only, prompt and padding left out of the work"


def _asked_for_compact(original: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """What TRL's head asks before it leaves positions out: as before, but for the forwards below.

    The name in `utils` decides which positions are scored; the kernels ask their own module's function.
    """

    def use_triton(device: Any) -> bool:
        return (_scores_compactly.get() and device.type == "cpu") or original(device)

    use_triton.nbkit_original = original  # type: ignore[attr-defined]
    return use_triton


def _compact(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def compact(*args: Any, **kwargs: Any) -> Any:
        token = _scores_compactly.set(True)
        try:
            return forward(*args, **kwargs)
        finally:
            _scores_compactly.reset(token)

    compact.nbkit_compact = True  # type: ignore[attr-defined]
    return compact


def _is_sft(trainer: Any) -> bool:
    return any(kind.__name__ == "SFTTrainer" for kind in type(trainer).__mro__)


class _Secret(str):
    """A token that serves as one and is pickled as nothing: every plain `training_args.bin` holds the arguments."""

    __slots__ = ()

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, ("",)

    def __copy__(self) -> _Secret:
        return self

    def __deepcopy__(self, _memo: Any) -> _Secret:
        return self


def unsaved_token(trainer: Any) -> str:
    """Keep `hub_token` out of what `save_model` and a push to the hub write."""
    token = trainer.args.hub_token
    if not token or isinstance(token, _Secret):
        return ""
    trainer.args.hub_token = _Secret(token)
    return "hub_token kept out of saved arguments"


def mend(trainer: Any) -> list[str]:
    """All of the above; returns a line for each that changed something.

    Raises: ModelError when the model was evaluated before its 4-bit layers were mended; see `models.prepare`.
    """
    from nbkit.models.prepare import keep_differentiable

    layers = keep_differentiable(trainer.model)
    done = [
        f"{layers} 4-bit layers kept differentiable" if layers else "",
        fp32_adapters(trainer),
        one_row_a_step(trainer),
        score_trained_tokens_only(trainer),
        unsaved_token(trainer),
    ]
    return [line for line in done if line]
