"""A Prediction without torch: the formula of nbkit.memory.formula, with its own, wider range."""

from __future__ import annotations

from typing import Any, Literal

from nbkit.errors import NbkitError
from nbkit.memory import asked as asking
from nbkit.memory.disk import host_gib, of_run
from nbkit.memory.formula import UNCERTAINTY, Step, estimate, outside
from nbkit.memory.predict import Prediction
from nbkit.memory.program import Program
from nbkit.memory.shapes import Targets
from nbkit.memory.source import Source
from nbkit.memory.subject import subject

# Of what the tensors take, by which the allocator holds more: batches of one length, and of many.
FIXED_SHARE, VARYING_SHARE = 0.05, 0.10
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}


def by_formula(
    model: Any,
    args: Any,
    *,
    peft_config: Any,
    quantization_config: Any,
    dataset: Any,
    program: Program | None,
    batch: int | None,
    seq: int | None,
    dtype: str | None,
    checkpointing: bool | None,
    accumulates: bool | None,
    device: Literal["cuda", "cpu"] | None,
) -> Prediction:
    """Answer for a dense decoder of known sizes.

    Raises: ModelError for a model whose sizes are not known or that the formula does not cover; NbkitError (exit code 2)
        for methods that it does not cover.
    """
    found = subject(model)
    habits = program if program is not None else Program.of(args)
    _refuse(peft_config, quantization_config, habits)
    place = Source(found.shape.name, _Config(found.positions), None, "causal")
    asked = asking.read(
        args, place, habits, full=peft_config is None, quantization=quantization_config, dataset=dataset, batch=batch,
        seq=seq, dtype=dtype or "bfloat16", device=device,
    )  # fmt: skip
    notes = [
        "torch is not installed: this is a formula's answer. With the train extra the step itself is run on fake tensors.",
        *found.notes,
        *asked.notes,
    ]
    if dtype is None:
        notes.append("Weights in bfloat16 are taken; give dtype=... if you load them otherwise.")
    if habits.name not in {"trl.SFTTrainer", "transformers.Trainer"}:
        notes.append(f"The formula knows TRL's and transformers' trainers, not the habits of {habits.name}.")
    step = Step(
        method="full" if peft_config is None else ("lora" if quantization_config is None else "qlora"),
        seq=asked.seq,
        micro_batch=asked.batch,
        dtype=asked.dtype,  # type: ignore[arg-type] # asked.read lets these three pass only
        rank=getattr(peft_config, "r", 16) if peft_config is not None else 16,
        targets=_targets(peft_config, notes),
        checkpointing=checkpointing if checkpointing is not None else asked.checkpointing is not None,
        accumulation=accumulates if accumulates is not None else asked.accumulates,
        optimizer="adamw_8bit" if habits.optimizer.endswith("8-bit") else "adamw",
        loss="fused" if habits.loss == "trl fused" else "logits",
        device=asked.device,
    )
    answer = estimate(found.shape, step)
    allocated, (low, high) = answer.allocated_gib, outside(step)
    share = VARYING_SHARE if len(set(asked.lengths)) > 1 else FIXED_SHARE
    reserved = allocated * (1 + (share if asked.device == "cuda" else 0))
    params = found.shape.params
    trained = params if peft_config is None else found.shape.lora_params(step.rank, step.targets)
    width = 4 if peft_config is not None or asked.dtype == "float32" else 2
    files, unsure = of_run(
        params, trained, adapted=peft_config is not None, trained_bytes=width, args=args, lengths=asked.lengths,
        state_bytes=2 if step.optimizer == "adamw_8bit" else 2 * width, local=found.local,
    )  # fmt: skip
    notes += unsure
    return Prediction(
        subject=answer.table().title or found.shape.name,
        allocated_gib=allocated,
        reserved_gib=reserved,
        device_gib=reserved + (low + high) / 2,
        low_gib=answer.low_gib,
        high_gib=reserved * (1 + UNCERTAINTY) + high,
        bar=f"±{UNCERTAINTY:.0%} of the tensors by formula, and {low:g} to {high:g} GiB outside of torch's allocator.",
        parts={part.name: part.gib for part in answer.parts},
        peak=None,
        host_gib=host_gib(2 * params)[0],
        disk=files.as_mapping(),
        notes=tuple(notes),
        basis="formula",
        versions={},
        batch=asked.batch,
        seq=asked.seq,
        program=habits,
        method=step.method,
    )


class _Config:
    """What asked.read looks at: how far the positions reach. All models of the formula have rotary ones."""

    rope_theta = 10_000.0

    def __init__(self, positions: int | None) -> None:
        self.max_position_embeddings = positions


def _refuse(peft_config: Any, quantization_config: Any, program: Program) -> None:
    missing = [
        name
        for name, there in (
            ("8-bit weights", getattr(quantization_config, "load_in_8bit", False)),
            ("4-bit weights without adapters", quantization_config is not None and peft_config is None),
            ("DoRA", getattr(peft_config, "use_dora", False)),
            (
                "adapters other than LoRA",
                peft_config is not None and not isinstance(getattr(peft_config, "r", None), int),
            ),
            ("sequence classification", getattr(peft_config, "task_type", None) == "SEQ_CLS"),
            ("eager attention", program.attention == "eager"),
            (f"the optimizer {program.optimizer!r}", program.optimizer in {"sgd", "other"}),
            ("a model of LitGPT's", program.model_code == "litgpt"),
        )
        if there
    ]
    if missing:
        raise NbkitError(
            f"Without torch the formula answers, and it does not cover {', '.join(missing)}.",
            hint='pip install "nbkit-llm[train]"      then the step itself is run on fake tensors',
            exit_code=2,
        )


def _targets(peft_config: Any, notes: list[str]) -> Targets:
    asked = getattr(peft_config, "target_modules", "all-linear")
    if asked is None or isinstance(asked, str):
        if asked not in {None, "all-linear"}:
            notes.append(f"target_modules={asked!r} is counted as all linear maps.")
        return "all-linear"
    if set(asked) <= _ATTENTION:
        if set(asked) != _ATTENTION:
            notes.append("Adapters are counted on q, k, v and o alike.")
        return "attention"
    return "all-linear"
