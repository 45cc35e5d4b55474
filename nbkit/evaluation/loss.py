"""The loss on completions: one function for every number nbkit reports, masked as TRL masks it in training."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbkit.errors import ModelError
from nbkit.evaluation.encode import Example, encode
from nbkit.models.prepare import keep_differentiable

_TOKENS_A_BATCH_CPU, _TOKENS_A_BATCH_GPU = 2048, 8192  # more gains nothing on two cores; a GPU wants more at once


@dataclass(frozen=True)
class RowLoss:
    """Negative log-likelihood of one completion: its sum in nats, and over how many tokens."""

    nll: float
    tokens: int


def completion_loss(model: Any, tokenizer: Any, rows: Iterable[Mapping[str, Any]]) -> float:
    """Mean negative log-likelihood (nats) of a completion token, over all completion tokens of `rows`.

    End of turn included, padding and prompt never: what TRL's completion-only loss counts. Every token weighs the same,
    so a long row weighs more than a short one.

    Raises: DataError, ModelError; see `encode`.
    """
    return mean_loss(row_losses(model, encode(tokenizer, rows)))


def mean_loss(losses: Sequence[RowLoss]) -> float:
    """Loss per token over rows of different lengths."""
    return sum(row.nll for row in losses) / sum(row.tokens for row in losses)


def row_losses(model: Any, examples: Sequence[Example], progress: Callable[[int], None] | None = None) -> list[RowLoss]:
    """The loss of each example, in order; `progress` is called with the number of rows done.

    The model's mode is as before afterwards. Padding is on the right and has no effect on a row's loss.
    """
    import torch

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    partial = "logits_to_keep" in inspect.signature(base.forward).parameters
    device = input_device(model)
    budget = _TOKENS_A_BATCH_CPU if device.type == "cpu" else _TOKENS_A_BATCH_GPU
    found: dict[int, RowLoss] = {}
    with evaluating(model):
        for batch in _batches(examples, budget):
            chosen = [examples[index] for index in batch]
            width = max(len(example.ids) for example in chosen)
            # ids, mask: int64 [batch, width]; mask is 0 on padding
            ids = torch.tensor([[*e.ids, *[0] * (width - len(e.ids))] for e in chosen], device=device)
            mask = torch.tensor([[1] * len(e.ids) + [0] * (width - len(e.ids)) for e in chosen], device=device)
            # Logits of the prompt are not needed, and over a large vocabulary they are most of the memory.
            first = min(e.start for e in chosen) - 1 if partial else 0
            keep = {"logits_to_keep": torch.arange(first, width, device=device)} if partial else {}
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **keep).logits
            for row, (index, example) in enumerate(zip(batch, chosen, strict=True)):
                # The logits at position p predict the token at p + 1.
                predicted = logits[row, example.start - 1 - first : len(example.ids) - 1 - first].float()
                target = ids[row, example.start : len(example.ids)].to(predicted.device)
                nll = torch.nn.functional.cross_entropy(predicted, target, reduction="none").double().sum()
                found[index] = RowLoss(float(nll), example.counted)
            if progress:
                progress(len(found))
    return [found[index] for index in range(len(examples))]


def _batches(examples: Sequence[Example], budget: int) -> Iterator[list[int]]:
    """Indices grouped by length, the longest first (memory runs out at once or not at all), `budget` padded tokens each."""
    batch: list[int] = []
    width = 0
    for index in sorted(range(len(examples)), key=lambda i: -len(examples[i].ids)):
        width = width or len(examples[index].ids)
        if batch and (len(batch) + 1) * width > budget:
            yield batch
            batch, width = [], len(examples[index].ids)
        batch.append(index)
    yield batch


def input_device(model: Any) -> Any:
    """The device that takes the token ids; a model may be spread over several."""
    return model.get_input_embeddings().weight.device


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module is in the mode it was in.

    `no_grad` and not `inference_mode`: a rotary cache or a lazily made buffer that a model keeps would be an inference
    tensor, and the next training step in this process would fail on it.
    """
    import torch

    # An eval-mode forward would repack 4-bit weights on some CPUs and break later training. A model that is repacked
    # already cannot be mended and can still be scored.
    with contextlib.suppress(ModelError):
        keep_differentiable(model)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
