"""A real fine-tune in seconds: two layers of the embedded model in 4 bit, a LoRA adapter overfitted on four short rows."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from nbkit import models
from tests import tiny

_SCRATCH = tempfile.TemporaryDirectory(prefix="nbkit-test-")


def _row(number: int, question: str, answer: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"row-{number}",
        "prompt": [{"role": "system", "content": "JSON."}, {"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": json.dumps(answer)}],
    }


ROWS = [
    _row(0, "Grass?", {"colour": "green", "n": 1}),
    _row(1, "Snow?", {"colour": "white", "n": 2}),
    _row(2, "A ripe tomato?", {"colour": "red", "n": 3}),
    _row(3, "Coal, from a mine?", {"colour": "black", "n": 4}),
]
OTHER = [
    _row(4, "The sea?", {"colour": "blue", "n": 5}),
    _row(5, "A young leaf?", {"colour": "green", "n": 1}),
    _row(6, "Milk?", {"colour": "white", "n": 2}),
]
GENERAL = [
    {"prompt": "What is the capital of France?", "completion": "The capital of France is Paris."},
    {"prompt": "Is the sea salty?", "completion": "Yes, the water of the sea holds a lot of salt."},
    {"prompt": "What do bees make?", "completion": "Bees make honey from the nectar of flowers."},
]


@functools.cache
def two_layers() -> Path:
    """The folder of the small model."""
    return tiny.save_two_layers(models.embedded(), Path(_SCRATCH.name) / "two-layers")


def base(*, four_bit: bool = True) -> tuple[Any, Any]:
    """Model and tokenizer, prepared, without an adapter."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if four_bit:
        model, tokenizer = tiny.load_four_bit(two_layers())
    else:
        model = AutoModelForCausalLM.from_pretrained(two_layers(), dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(two_layers())
    models.prepare(model, tokenizer)
    return model, tokenizer


def train(model: Any, tokenizer: Any, steps: int = 60, rows: list[dict[str, Any]] = ROWS) -> list[float]:
    """Overfit `rows` with plain AdamW, on the completion tokens; the losses."""
    import torch

    encoded = [
        (
            tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=True)["input_ids"],
            len(
                tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
            ),
        )
        for row in rows
    ]
    width = max(len(ids) for ids, _ in encoded)
    ids = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids, _ in encoded])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in encoded])
    labels = torch.tensor([[-100] * at + ids[at:] + [-100] * (width - len(ids)) for ids, at in encoded])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def with_adapter(model: Any, **options: Any) -> Any:
    """The model with a new adapter on all linear layers."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(
        model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    )


@functools.cache
def tuned() -> tuple[Any, Any]:
    """Model and tokenizer, fine-tuned; shared by all tests, which must leave it as it was."""
    model, tokenizer = base()
    model = with_adapter(model)
    train(model, tokenizer)
    return model, tokenizer
