"""A plan's surface set right by fake steps, where the formula cannot decide: two lengths a variant, seconds each."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from nbkit.errors import ModelError, NbkitError, require
from nbkit.memory.formula import Method
from nbkit.memory.option import Option
from nbkit.memory.plan import Plan
from nbkit.memory.predict import Prediction, predict
from nbkit.memory.program import Program
from nbkit.memory.shapes import ALSO, SHAPES, Shape
from nbkit.memory.subject import Subject
from nbkit.memory.sweep import Surface

_MARGIN = 1.15  # a formula's yes or no this far from the room is believed
_SHORT = 256
_kept: dict[
    tuple[Any, ...], Prediction
] = {}  # a fake step takes seconds, and a plan is asked again with one thing changed


def refine(plan: Plan, options: Sequence[Option] | None = None) -> tuple[Surface, tuple[str, ...]]:
    """Run fake steps for the options that the formula leaves open, or for those given.

    Returns: The surface, and notes on what was run and what was not.
    Raises: MissingPackageError without the train extra.
    """
    require("torch", "transformers", "trl", "peft", extra="train")
    ground, said = plan.surface, []
    if options is None:
        options = [one for one in plan.options if one.how == "one" and _open(one, plan.place.room_gib)]
    for option in options:
        started = time.monotonic()
        try:
            found = [
                predicted(plan, option.method, option.checkpointing, batch, seq)
                for batch, seq in dict.fromkeys([(1, min(_SHORT, plan.wish.seq)), (option.batch, plan.wish.seq)])
            ]
        except NbkitError as error:
            said.append(f"{option.name}: no fake step ({error.message.rstrip('.')}); its memory is the formula's.")
            continue
        seen = [(one.batch * one.seq, one.allocated_gib, one.low_gib, one.high_gib) for one in found]
        ground = ground.corrected(option.method, option.checkpointing, seen)
        print(f"{option.name}: fake steps in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return ground, tuple(said)


def _open(option: Option, room_gib: float) -> bool:
    memory = option.memory
    return memory.low_gib <= room_gib * _MARGIN and memory.high_gib * _MARGIN >= room_gib


def predicted(plan: Plan, method: Method, checkpointing: bool, batch: int, seq: int) -> Prediction:
    """The fake step of one option: the plan's own objects, given to nbkit.memory.predict.

    Raises: NbkitError when the model cannot be built.
    """
    from peft import LoraConfig
    from trl import SFTConfig

    wish, place = plan.wish, plan.place
    key = (
        plan.subject.shape,
        method,
        checkpointing,
        batch,
        seq,
        wish.rank,
        wish.targets,
        wish.optimizer,
        place.dtype,
        place.device,
    )
    if key in _kept:
        return _kept[key]
    cpu = place.device == "cpu"
    optim = "adamw_bnb_8bit" if wish.optimizer == "adamw_8bit" else "adamw_torch" if cpu else "adamw_torch_fused"
    args = SFTConfig(
        output_dir="out", max_length=seq, per_device_train_batch_size=batch, gradient_accumulation_steps=2, bf16=False,
        activation_checkpointing=checkpointing, optim=optim, use_cpu=cpu, report_to=[],
    )  # fmt: skip
    # A machine without a GPU refuses bf16=True; the program says what the arguments cannot.
    program = Program.nbkit(args).but(autocast=None if place.dtype == "float32" else place.dtype)
    targets: Any = "all-linear" if wish.targets == "all-linear" else ["q_proj", "k_proj", "v_proj", "o_proj"]
    lora = LoraConfig(r=wish.rank, target_modules=targets, task_type="CAUSAL_LM")
    dtype = "float32" if method == "full" and place.dtype == "float16" else place.dtype
    _kept[key] = predict(
        model_of(plan.subject), args, peft_config=None if method == "full" else lora,
        quantization_config=_four_bit(place.dtype) if method == "qlora" else None, program=program, batch=batch, seq=seq,
        dtype=dtype, device=place.device,
    )  # fmt: skip
    return _kept[key]


def _four_bit(dtype: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )  # fmt: skip


def model_of(known: Subject) -> Any:
    """What predict takes for this subject: a config of the same shape where the source is only a name.

    Raises: ModelError for a shape that has no config.
    """
    source = known.source
    if not isinstance(source, str) or source not in {one.name for one in (*SHAPES, *ALSO)}:
        if isinstance(source, str) and source == known.shape.name:
            raise ModelError(f"{source} is a shape without a config.", hint="give a transformers config or a folder")
        return source
    return _config(known.shape)


def _config(shape: Shape) -> Any:
    from transformers import LlamaConfig, Qwen2Config

    kind = Qwen2Config if shape.qkv_bias else LlamaConfig
    return kind(
        num_hidden_layers=shape.layers, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim,
        vocab_size=shape.vocab, tie_word_embeddings=shape.tied, max_position_embeddings=2**20,
    )  # fmt: skip
