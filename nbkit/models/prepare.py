"""Mend what is known to be broken in a freshly loaded model and its tokenizer, and say what was mended and why."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from nbkit.display import Table
from nbkit.errors import ModelError


@dataclass(frozen=True)
class Repair:
    """One thing that was looked at. `done` is False where it was right already."""

    what: str
    done: bool
    why: str


@dataclass(frozen=True)
class Repairs:
    """What `prepare` looked at; shown as a table."""

    items: tuple[Repair, ...]

    def table(self) -> Table:
        """One row a repair."""
        return Table(["what", "state", "why"], [(i.what, "mended" if i.done else "fine", i.why) for i in self.items])

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def prepare(model: Any, tokenizer: Any = None) -> Repairs:
    """Mend `model` and `tokenizer` in place. Call it right after `from_pretrained`, before the first forward pass.

    * bitsandbytes on CPUs with AVX512-BF16: see `keep_differentiable`.
    * A pad token that equals the end token: padding is left out of the loss, and the end of a turn with it, so the
      model never learns to stop. Another token of the vocabulary takes its place.
    * The model's `pad_token_id` follows the tokenizer's.

    Args:
        model: A transformers or PEFT model.
        tokenizer: Its tokenizer; without one only the model is mended.
    Returns: What was looked at, and what was done.
    Raises: ModelError when 4-bit weights were already repacked by an evaluation (load the model again), or when the
        tokenizer has no chat template.
    """
    items = [_four_bit(model)]
    if tokenizer is not None:
        require_chat_template(tokenizer)
        items += [_pad_token(tokenizer), _pad_id(model, tokenizer)]
    return Repairs(tuple(items))


def require_chat_template(tokenizer: Any) -> None:
    """Raises: ModelError when `tokenizer` cannot render a conversation."""
    if not getattr(tokenizer, "chat_template", None):
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise ModelError(
            f"The tokenizer of {name} has no chat template, so a conversation cannot be turned into tokens.",
            hint="choose the instruct variant of this model, or set tokenizer.chat_template (ChatML is a usual choice); "
            "for plain text use rows with string 'prompt' and 'completion'",
        )


def keep_differentiable(model: Any) -> int:
    """Keep bitsandbytes from repacking 4-bit weights for a CPU kernel that has no backward pass.

    On a CPU with AVX512-BF16, bitsandbytes 0.50.2 repacks every Linear4bit in its first eval-mode forward (evaluate,
    generate) and never unpacks it: gradients no longer flow through the base weights, training goes on with wrong ones
    (cosine 0.034 to the right ones on SmolLM2-135M) and nothing is reported. Turning the fast path off per module keeps
    the gradients exact. It changes nothing on a GPU.

    Returns: How many modules were mended.
    Raises: ModelError when some weights are repacked already; that step loses precision and cannot be undone.
    Source: bitsandbytes/nn/modules.py `Linear4bit.forward`, autograd/_functions.py `matmul_4bit` (0.50.2).
    """
    layers = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    if any(getattr(_quant_state(layer), "packing_format_for_cpu", False) for layer in layers):
        raise ModelError(
            "The 4-bit weights of this model were repacked by an evaluation or generation before nbkit.models.prepare; "
            "training it now would use wrong gradients.",
            hint="load the model again and call nbkit.models.prepare(model, tokenizer) before anything else",
        )
    mended = [layer for layer in layers if layer.support_avx512bf16_for_cpu]
    for layer in mended:
        layer.support_avx512bf16_for_cpu = False
    return len(mended)


def silence_optional_kernel() -> None:
    """bitsandbytes warns at import, on CPUs with AVX512-BF16, that a hub kernel is absent; nbkit does not use it."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def _quant_state(layer: Any) -> Any:
    return getattr(layer.weight, "quant_state", None)


def _four_bit(model: Any) -> Repair:
    mended = keep_differentiable(model)
    if mended:
        return Repair(
            "4-bit layers on this CPU", True, f"{mended} layers: evaluation would repack them and break their gradients"
        )
    return Repair("4-bit layers on this CPU", False, "none would be repacked by an evaluation")


def _pad_token(tokenizer: Any) -> Repair:
    eos, pad = tokenizer.eos_token, tokenizer.pad_token
    if pad is not None and pad != eos:
        return Repair("pad token", False, f"{pad!r} is not the end token {eos!r}")
    candidates = [tokenizer.unk_token, "<|endoftext|>", "<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]"]
    vocabulary = tokenizer.get_vocab()
    for candidate in candidates:
        if candidate and candidate != eos and candidate in vocabulary:
            tokenizer.pad_token = candidate
            return Repair(
                "pad token", True, f"{candidate!r} in place of {pad!r}: padding must not hide the end of a turn"
            )
    if pad is None:  # no spare token in the vocabulary: TRL's labels come from its own mask, so the end token will do
        tokenizer.pad_token = eos
    return Repair("pad token", pad is None, f"{tokenizer.pad_token!r}; the vocabulary has no spare token for padding")


def _pad_id(model: Any, tokenizer: Any) -> Repair:
    wanted = tokenizer.pad_token_id
    configs = [c for c in (model.config, getattr(model, "generation_config", None)) if c is not None]
    wrong = [config for config in configs if config.pad_token_id != wanted]
    for config in wrong:
        config.pad_token_id = wanted
    return Repair("pad id of the model", bool(wrong), f"{wanted}, as the tokenizer says")
