"""Each published measurement as a call of nbkit.predict: model, arguments, program, and how to read its number.

Nothing here is fitted to a row. What a framework's loop does was read in its code, which is named beside it; what all of its
runs have in common is in nbkit.memory.frameworks, where others' runs can be described with it too. A row whose program or
data cannot be known has the reason in place of a call.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from bench._memory_rows import Row, config

if TYPE_CHECKING:
    from nbkit.memory.distributed import How

Compare = str  # an attribute of Prediction


@dataclass(frozen=True)
class Call:
    """Arguments for nbkit.predict, and which of its numbers is comparable.

    Attributes:
        compare: `allocated_gib`, `reserved_gib`, `device_gib` or, where the longest row that fits was sought, `needed_gib`.
        how: How the step is spread over GPUs; what is compared is then one device's share, times `devices`.
        devices: Over how many the published figure is summed up.
    """

    model: Any
    options: dict[str, Any] = field(default_factory=dict)
    compare: Compare = "allocated_gib"
    how: How | None = None
    devices: int = 1


class LeftOutError(Exception):
    """Why a row is not asked; the text stands in the table."""


TARGETS = {
    "q": ("q_proj",), "k": ("k_proj",), "v": ("v_proj",), "o": ("o_proj", "dense"),
    "gate": ("gate_proj",), "up": ("up_proj",), "down": ("down_proj",),
    "mlp": ("gate_proj", "up_proj", "down_proj", "fc1", "fc2"),
}  # fmt: skip
ATTENTION = ("q_proj", "k_proj", "v_proj")
CHUNKS = 8  # torchtune's CEWithChunkedOutputLoss
LINEAR = (*ATTENTION, "o_proj", "gate_proj", "up_proj", "down_proj")
REPLICATED = "fsdp_qlora(ddp)"  # every GPU holds everything, gradients are summed in place
FUSED = ("qwen", "baichuan")  # one map gives query, key and value; here three of two thirds of its rank stand for it


def call(row: Row) -> Call:
    """How to ask nbkit for that row.

    Raises: LeftOutError with the reason where it cannot be asked.
    """
    if row.suspect:
        raise LeftOutError("a note calls it SUSPECT")
    describe = _FRAMEWORKS.get(row.framework)
    if describe is None:
        raise LeftOutError(_REASONS.get(row.framework, "its program is not described"))
    return describe(row)


def _model(row: Row) -> Any:
    found = config(row.fields["model"])
    if found is None:
        raise LeftOutError("transformers has no such model")
    return found


def _shape(row: Row) -> dict[str, Any]:
    batch, seq = row.fields["batch"], row.fields["seq_len"]
    if not batch or not seq:
        raise LeftOutError("batch or length of the rows is not published")
    return {"batch": int(batch), "seq": int(seq), "checkpointing": row.fields["grad_ckpt"].startswith("yes")}


def _lora(row: Row, targets: tuple[str, ...], **options: Any) -> Any:
    from peft import LoraConfig

    rank = int(row.fields["lora_rank"])
    if row.fields["model"].startswith(FUSED):
        options["rank_pattern"] = dict.fromkeys(ATTENTION, max(1, round(rank * 2 / 3)))
    return LoraConfig(r=rank, target_modules=list(targets), task_type="CAUSAL_LM", **options)


def _targets(row: Row) -> tuple[str, ...]:
    names: tuple[str, ...] = ()
    for one in row.fields["lora_targets"].replace(" ", "").split(","):
        names += TARGETS.get(one, (one,))
    return names


def _four_bit(*, double_quant: bool) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _plain(row: Row) -> Call:
    """vramcalc 0.1.2, bench.py: `del out, loss` after the backward, AdamW(foreach=True), zero_grad(set_to_none=False)."""
    from nbkit.memory import Program

    amp = "amp" in row.fields["dtype"]
    program = Program.named(
        "plain loop", holds_outputs="backward", set_to_none=False, autocast="bfloat16" if amp else None,
        attention=row.fields["attn"],
    )  # fmt: skip
    lora = _lora(row, (*ATTENTION, "o_proj")) if row.fields["method"] == "lora" else None
    dtype = "float32" if amp else "bfloat16"
    return Call(_model(row), {**_shape(row), "program": program, "peft_config": lora, "dtype": dtype})


def _litgpt(row: Row) -> Call:
    """finetune/lora.py: dropout 0.05, AdamW (paged where the table says so), bitsandbytes before 0.43.2.

    The tables of October 2023 (A100) run the longest sample first, so nothing of a step before is held; those of 2024
    (A10G) shuffle, and the loss of the step before holds its graph.
    """
    from nbkit.memory import Program

    method, mixed = row.fields["method"], "mixed" in row.fields["dtype"]
    program = Program.named(
        "litgpt",
        optimizer="adamw paged" if "paged" in row.fields["optimizer"] else "adamw foreach",
        extra_4bit_copy=method == "qlora",
        holds_outputs="backward" if row.fields["gpu"].startswith("A100") else "next",
        autocast="bfloat16" if mixed else None,
    )
    quantised = _four_bit(double_quant="double_quant=yes" in row.fields["note"]) if method == "qlora" else None
    lora = None if method == "full" else _lora(row, _targets(row), lora_dropout=0.05)
    options = {
        **_shape(row), "program": program, "peft_config": lora, "dtype": "float32" if mixed else "bfloat16",
        "quantization_config": quantised, "accumulates": True,
    }  # fmt: skip
    return Call(_model(row), options)


def _metamath(row: Row) -> Call:
    """PEFT's method_comparison/MetaMathQA/run.py: bf16 base, float32 adapters, outputs and loss bound until the next.

    Rows are cut at 768 tokens and batched by length; the worst batch of the run is 4 of 768.
    """
    from peft import IA3Config, LNTuningConfig

    from nbkit.memory import Program

    adapters: dict[str, Callable[[], Any]] = {
        "full": lambda: None,
        "lora": lambda: _lora(row, _targets(row)),
        "ln_tuning": lambda: LNTuningConfig(task_type="CAUSAL_LM"),
        "ia3": lambda: IA3Config(task_type="CAUSAL_LM"),
    }
    options = {
        **_shape(row), "program": Program.named("peft metamath"), "dtype": "bfloat16",
        "peft_config": adapters[row.fields["method"]](),
    }  # fmt: skip
    return Call(_model(row), options, "reserved_gib")


def _qwen(row: Row) -> Call:
    """QwenLM/Qwen, finetune.py and finetune/*.sh at the end of 2023; torch 2.0, PEFT before 0.7 (float32 adapters).

    transformers' Trainer under bf16 autocast, LoRA of dropout 0.05 on every linear map, eight micro-batches a step; a
    model loads in bf16, the fully trained one in float32. modeling_qwen.py shifts the logits before it upcasts them.
    Q-LoRA runs in DeepSpeed's fp16 engine (ds_config_zero2.json: two buckets of 2e8 elements), and its GPTQ weights of
    4.16 bits stand here as NF4's 4.13, unpacked as AutoGPTQ does. What was measured is not stated; it is read as the
    device's use in GB.
    """
    from nbkit.memory import Program

    method = row.fields["method"]
    full, quantised = method == "full", method == "qlora"
    program = Program.named("qwen finetune.py")
    if quantised:
        program = program.but(
            optimizer="adamw masters", bucket_bytes=2 * 2 * 200_000_000, autocast=None, outputs_to_fp32=False,
            adapter_dtype="float16", unpacks_4bit=True,
        )  # fmt: skip
    saved = ["embed_tokens", "lm_head"] if method == "lora(emb)" else None
    options = {
        **_shape(row), "program": program, "dtype": "float32" if full else "float16" if quantised else "bfloat16",
        "peft_config": None if full else _lora(row, LINEAR, lora_dropout=0.05, modules_to_save=saved),
        "quantization_config": _four_bit(double_quant=True) if quantised else None, "accumulates": True,
    }  # fmt: skip
    return Call(_model(row), options, "device_gib")


def _swift(row: Row) -> Call:
    """ms-swift 2, `swift sft`: its Trainer under bf16 autocast, float32 adapters of dropout 0.05, torch 2.1.

    docs/source_en/LLM/Benchmark.md: cls-fudan-news-zh, whose tokens are 3234 +- 2547, 91 to 19548; longer rows than
    max_length are deleted (truncation_strategy 'delete'). Its GPU memory is what torch has reserved; at the end of 2023,
    when these models and packages were new, it was read after the 21st micro-batch (swift/trainers/trainers.py,
    training_step: `_iter_perf > 20`), later at the end. The page does not say which; the rows of the first models fit
    the former, and so all are read. From torch 2.1 on it checkpoints without reentrance (swift/llm/utils/model.py,
    fix_gradient_checkpointing_warning). bitsandbytes 0.41.3.
    """
    from nbkit.memory import Program

    name, method, note = row.fields["model"], row.fields["method"], row.fields["note"]
    if name == "baichuan2-13b":
        raise LeftOutError("Baichuan2-13B's ALiBi attention is in no model of transformers")
    if row.id in {"r179", "r182"}:
        raise LeftOutError("GPTQ in 8 bits, by its source")
    program = Program.named(
        "ms-swift 2", upcasts_logits="no" if name.startswith(FUSED) else "at the head",
        attention="flash" if row.fields["attn"] == "flash2" else "eager", extra_4bit_copy="bnb" in note,
        unpacks_4bit="gptq" in note,
    )  # fmt: skip
    shape = _shape(row)
    rows = lengths(3234.4, 2547.5, 91, min(19548, shape["seq"]), count=21 * shape["batch"])
    options = {
        **shape, "seq": max(rows), "program": program, "dtype": "bfloat16", "accumulates": True,
        "peft_config": None if method == "full" else _lora(row, ATTENTION, lora_dropout=0.05),
        "quantization_config": _four_bit(double_quant=True) if method == "qlora" else None,
        "dataset": rows, "gpu": row.fields["gpu"],
    }  # fmt: skip
    return Call(_model(row), options, "reserved_gib")


@functools.cache
def lengths(mean: float, deviation: float, least: int, most: int, count: int) -> list[int]:
    """Tokens of `count` rows from `least` to `most`, of data whose mean and deviation are known: quantiles of a log-normal
    without what lies beyond."""
    spread = math.log(1 + (deviation / mean) ** 2)
    normal = NormalDist(math.log(mean) - spread / 2, math.sqrt(spread))
    low, high = normal.cdf(math.log(least)), normal.cdf(math.log(most))
    return [round(math.exp(normal.inv_cdf(low + (high - low) * (i + 0.5) / count))) for i in range(count)]


def _torchtune(row: Row) -> Call:
    """recipes/full_finetune_single_device.py and its table in README.md: packed rows, bf16, fused AdamW.

    The loss is chunked from the row '+chunked CE' on; before it cross entropy is taken in float32 over all logits.
    """
    from nbkit.memory import Program

    note, fields = row.fields["note"], row.fields
    if "offload" in fields["grad_ckpt"]:
        raise LeftOutError("activations offloaded to RAM")
    if int(fields["n_gpu"]) > 1:
        raise LeftOutError("sharded with FSDP2, to which torchtune's own code is not rebuilt")
    if "+compile" in note or "+chunked CE" in note:
        raise LeftOutError("torch.compile decides what is kept without checkpointing")
    if "flags not stated" in note or "likely" in note:
        raise LeftOutError("its settings are not published")
    in_backward = "in bwd" in fields["optimizer"] or "optimizer_in_bwd" in note
    shape = _shape(row)
    program = Program.named("torchtune", steps_in_backward=in_backward, chunk=shape["seq"] // CHUNKS)
    if "paged_adamw8bit" in fields["optimizer"]:
        program = program.but(optimizer="adamw paged 8-bit")
    if "+packed" in note:
        program = program.but(loss="plain", chunked_head=False)
    return Call(_model(row), {**shape, "program": program, "dtype": "bfloat16"})


def _answer_ai(row: Row) -> Call:
    """fsdp_qlora's train.py of March 2024 without sharding: everything in bf16, dropout 0.1, outputs held to the step.

    transformers 4.38, bitsandbytes 0.43.0; dummy rows of one length; what is reported is torch's max_memory_reserved.
    """
    from nbkit.memory import Program

    quantised = row.fields["method"] == "qlora"
    program = Program.named("fsdp_qlora", extra_4bit_copy=quantised)
    options = {
        **_shape(row), "program": program, "dtype": "bfloat16", "peft_config": _lora(row, _targets(row), lora_dropout=0.1),
        "quantization_config": _four_bit(double_quant=False) if quantised else None,
    }  # fmt: skip
    return Call(_model(row), options, "reserved_gib")


def _capacity(row: Row) -> Call:
    """Unsloth's table of the longest row that fits (December 2024), its Hugging Face column: TRL 0.12, transformers 4.46,
    FlashAttention 2.

    The table's script is not published. What its authors publish of their Hugging Face baseline (unslothai/unsloth,
    tests/utils/hf_utils.py, setup_model) calls peft.prepare_model_for_kbit_training and hands a PeftModel to SFTTrainer,
    which then leaves it alone (trl/trainer/sft_trainer.py, 0.12.2): embedding, head and norms stay float32, adapters too.
    """
    from nbkit.memory import Program

    program = Program.named("qlora script", optimizer="adamw 8-bit", attention="flash")
    options = {
        **_shape(row), "program": program, "dtype": "bfloat16", "peft_config": _lora(row, LINEAR),
        "quantization_config": _four_bit(double_quant=True), "accumulates": True,
    }  # fmt: skip
    return Call(_model(row), options, "needed_gib")


def _sharded(describe: Callable[[Row], Call], row: Row) -> Call:
    """The same program with torch's FSDP over all of the row's GPUs, everything in bf16 (FULL_SHARD, a layer a unit, the
    next one prefetched): fsdp_qlora's train.py with precision bf16; LitGPT's FSDPStrategy with auto_wrap_policy={Block},
    whose finetune scripts accumulate under no_backward_sync.
    """
    from nbkit.memory.distributed import How

    if row.framework.startswith("litgpt") and row.fields["method"] == "lora":
        raise LeftOutError("its size is that of the whole model and a share of it: held before the split, it seems")
    offload = "cpu_offload=yes" in row.fields["note"]
    how = How(
        "fsdp", int(row.fields["n_gpu"]), mixed_precision=False, offload_params=offload, offload_optimizer=offload,
        quant_storage_float=row.fields["method"] == "qlora", no_sync=row.framework.startswith("litgpt"),
    )  # fmt: skip
    found = describe(row)
    return Call(found.model, found.options, f"{row.kind}_gib", how)


def _zero3(row: Row) -> Call:
    """Qwen's finetune.py with finetune/ds_config_zero3.json: bf16 throughout, communication overlapped, buckets as large
    as the square of the model's width. The sum over the GPUs is published."""
    from nbkit.memory.distributed import How

    found, gpus = _qwen(row), int(row.fields["n_gpu"])
    how = How("zero3", gpus, bucket_elements=found.model.hidden_size**2)
    options = {**found.options, "dtype": "bfloat16", "program": found.options["program"].but(autocast=None)}
    return Call(found.model, options, "device_gib", how, devices=gpus)


_FRAMEWORKS: dict[str, Callable[[Row], Call]] = {
    "transformers 4.57 + peft (plain loop)": _plain,
    "litgpt": _litgpt,
    "peft/transformers": _metamath,
    "transformers(4.3x)+peft": _qwen,
    "ms-swift 2.x (transformers)": _swift,
    "torchtune": _torchtune,
    "torchtune+compile": _torchtune,
    "transformers+trl (HF+FA2)": _capacity,
    REPLICATED: _answer_ai,
    "fsdp_qlora(fsdp)": functools.partial(_sharded, _answer_ai),
    "litgpt+fsdp": functools.partial(_sharded, _litgpt),
    "transformers+deepspeed zero3": _zero3,
}
_REASONS = {
    "unsloth": "activations offloaded to RAM; of the notebooks the longest row is not published either",
    "trl+liger": "activations offloaded to RAM",
    "peft+accelerate": "batch or length of the rows is not published",
    "transformers+peft": "batch or length of the rows is not published",
}
