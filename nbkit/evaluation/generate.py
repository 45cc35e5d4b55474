"""Greedy decoding in batches: the same for base and tuned, whatever sampling the model's own settings ask for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nbkit.errors import DataError
from nbkit.evaluation.encode import Example
from nbkit.evaluation.loss import evaluating, input_device


@dataclass(frozen=True)
class Generated:
    """What the model wrote for one prompt.

    Attributes:
        text: Without special tokens.
        tokens: How many were generated, the end token included.
        stopped: True when it ended its turn; False when `max_new_tokens` cut it off.
    """

    text: str
    tokens: int
    stopped: bool


def greedy(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[Generated]:
    """Generate one answer for each example, in order; always the likeliest token, with a KV cache.

    Prompts of like length share a batch, which ends when its last row has ended. Neither the model's mode, its
    generation settings nor the tokenizer's padding side are changed. When a GPU runs out of memory, the batch is halved.

    Raises: DataError when a prompt and `max_new_tokens` exceed the model's context.
    """
    import torch

    _check_room(model, examples, max_new_tokens)
    ends = end_tokens(model, tokenizer, examples)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    found: dict[int, Generated] = {}
    waiting = sorted(range(len(examples)), key=lambda index: -len(examples[index].prompt_ids))
    with evaluating(model), _plain_settings(model):
        while waiting:
            batch = waiting[:batch_size]
            prompts = [examples[index].prompt_ids for index in batch]
            try:
                rows = _generate(model, prompts, max_new_tokens, ends, pad)
            except torch.OutOfMemoryError:
                if batch_size == 1:
                    raise
                batch_size = max(1, len(batch) // 2)
                torch.cuda.empty_cache()
                continue
            del waiting[:batch_size]
            found.update((index, _read(tokenizer, row, ends)) for index, row in zip(batch, rows, strict=True))
            if progress:
                progress(len(found))
    return [found[index] for index in range(len(examples))]


def _generate(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, ends: list[int], pad: int
) -> list[list[int]]:
    """The new tokens of each prompt, padded on the right to the longest answer."""
    import torch
    from transformers import GenerationConfig

    device = input_device(model)
    width = max(map(len, prompts))
    # ids, mask: int64 [batch, width]; padding on the left, where the mask is 0, so that all answers start together
    ids = torch.tensor([[*[pad] * (width - len(p)), *p] for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, use_cache=True, eos_token_id=ends, pad_token_id=pad
    )
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    new: list[list[int]] = out[:, width:].tolist()
    return new


def _read(tokenizer: Any, ids: list[int], ends: list[int]) -> Generated:
    # By position and not by counting pad tokens: in many models the pad token is the end token.
    end = next((place for place, token in enumerate(ids) if token in ends), None)
    text = tokenizer.decode(ids if end is None else ids[:end], skip_special_tokens=True)
    return Generated(text, len(ids) if end is None else end + 1, end is not None)


def end_tokens(model: Any, tokenizer: Any, examples: Sequence[Example]) -> list[int]:
    """The ids that end an answer: the model's, the tokenizer's, and the one that the chat template writes after an answer.

    The last is what training teaches; a base model that was given a chat template ends its turn with a token that its
    generation settings do not name, and would ramble on.
    """
    # Both: a token is in the second alone when the tokenizer has given it no role, as a base model's end of turn.
    special = {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}
    # Not the first completion token: a template may open the answer with a special token.
    taught = {next((t for t in reversed(e.ids[e.start + 1 :]) if t in special), None) for e in examples}
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = [*(named if isinstance(named, (list, tuple)) else [named]), tokenizer.eos_token_id]
    if len(taught) == 1:  # the same in every row, so it is the template's and not the data's
        ids += taught
    found = list(dict.fromkeys(token for token in ids if token is not None))
    if not found:
        raise DataError(
            "Neither the tokenizer nor the model names an end token, so no answer would ever end.",
            hint="set tokenizer.eos_token to the token that ends an answer",
        )
    return found


@contextlib.contextmanager
def _plain_settings(model: Any) -> Iterator[None]:
    """Set the model's generation settings aside: a repetition penalty or a sampling temperature is not greedy decoding,
    and transformers fills what a call leaves open from there (or warns that the two disagree)."""
    from transformers import GenerationConfig

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    holders = [holder for holder in (model, base) if hasattr(holder, "generation_config")]
    kept = [holder.generation_config for holder in holders]
    for holder in holders:
        holder.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for holder, settings in zip(holders, kept, strict=True):
            holder.generation_config = settings


def _check_room(model: Any, examples: Sequence[Example], max_new_tokens: int) -> None:
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for example in examples:
        if not example.prompt_ids:
            raise DataError(f"Row {example.id} has an empty prompt: there is nothing to answer.", hint="leave it out")
        if room and len(example.prompt_ids) + max_new_tokens > room:
            raise DataError(
                f"Row {example.id} has a prompt of {len(example.prompt_ids):,} tokens; with {max_new_tokens} new ones it "
                f"exceeds the model's context of {room:,}.",
                hint="leave the row out, or lower max_new_tokens",
            )
