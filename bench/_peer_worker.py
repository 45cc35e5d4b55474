"""Runs inside a peer's environment: questions as JSON on stdin, answers as JSON on stdout. Standard library and peers only.

Each peer is called through its own code and told all it understands of a row; where its choices are coarser than the row
(LoRA targets, say) it gets the nearest. What it refuses, or has no setting for, is "unsupported" with the reason.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from typing import Any

Row = dict[str, Any]  # a Question of bench/_peers.py
GIB = 2**30
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}


class UnsupportedError(Exception):
    """The peer has no way to say this row."""


def one_device(q: Row) -> None:
    if q["n_gpu"] > 1:
        raise UnsupportedError("more than one GPU")


def targets(q: Row) -> str:
    """attention (q, v), attention_all (q, k, v, o) or all_linear: the nearest that peers know."""
    names = set(q["targets"])
    if names <= {"q_proj", "v_proj"}:
        return "attention"
    return "attention_all" if names <= ATTENTION else "all_linear"


def family(config: Row) -> Row:
    """The numbers of a config.json that formulas read."""
    return {
        "hidden_size": config["hidden_size"],
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "intermediate_size": config.get("intermediate_size") or 4 * config["hidden_size"],
        "vocab_size": config["vocab_size"],
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
    }


def vramcalc(q: Row) -> float:
    """Its total is the allocator's peak; its overhead is added where the row was read from nvidia-smi."""
    from vramcalc import estimate

    one_device(q)
    if q["method"] == "qlora":
        raise UnsupportedError("no QLoRA")
    config = {key: value for key, value in q["config"].items() if value is not None}
    try:
        said = estimate(
            config,
            mode="train",
            dtype=q["dtype"],
            batch=q["batch"],
            seq_len=q["seq"],
            lora_rank=q["rank"] if q["method"] == "lora" else None,
            grad_checkpoint=q["checkpointing"],
            optimizer="adamw",
            precision="amp" if q["amp"] else "pure",
            attn_impl=q["attn"],
        )
    except ValueError as error:
        raise UnsupportedError(str(error)[:80]) from error
    return (said.total + (said.overhead if q["kind"] == "device" else 0)) / GIB


def ftuneai(q: Row) -> float:
    from ftuneai.core.memory import MemoryEstimator
    from ftuneai.core.models import (
        FineTuneMethod,
        LoRATarget,
        ModelSpec,
        OptimizerType,
        Quantization,
        ShardingStrategy,
        TrainingConfig,
    )

    sharding = {"": "none", "ddp": "none", "zero1": "zero_1", "zero2": "zero_2", "zero3": "zero_3", "fsdp": "fsdp"}
    if q["sharding"] not in sharding:
        raise UnsupportedError(q["sharding"])
    fields = family(q["config"])
    spec = ModelSpec(
        name=q["id"],
        parameters=q["params"],
        hidden_size=fields["hidden_size"],
        num_layers=fields["num_hidden_layers"],
        num_attention_heads=fields["num_attention_heads"],
        num_kv_heads=fields["num_key_value_heads"],
        intermediate_size=fields["intermediate_size"],
        vocab_size=fields["vocab_size"],
        max_seq_length=10**9,
        default_dtype="float32" if q["dtype"] == "fp32" or q["amp"] else "bfloat16",
    )
    config = TrainingConfig(
        method=FineTuneMethod(q["method"]),
        quantization=Quantization("4bit" if q["method"] == "qlora" else "none"),
        batch_size=q["batch"],
        seq_length=q["seq"],
        gradient_checkpointing=q["checkpointing"],
        optimizer=OptimizerType("adam_8bit" if "8bit" in q["optimizer"] else "adamw"),
        lora_rank=q["rank"] or 16,
        lora_target=LoRATarget(targets(q)),
        flash_attention=q["attn"] != "eager",
        sharding=ShardingStrategy(sharding[q["sharding"]]),
        num_gpus=q["n_gpu"],
    )
    return MemoryEstimator(spec, config).estimate().total_gb


def fitscout(q: Row) -> float:
    from fitscout.memory.estimator import estimate_memory
    from fitscout.model.introspect import extract_arch_fields
    from fitscout.model.profile import ModelProfile

    one_device(q)
    wide = q["dtype"] == "fp32" or q["amp"]
    fields = extract_arch_fields({**q["config"], "tie_word_embeddings": family(q["config"])["tie_word_embeddings"]})
    said = estimate_memory(
        ModelProfile(params=q["params"], dtype_bytes=4 if wide else 2, **fields),
        method=q["method"],
        micro_batch=q["batch"],
        seq_len=q["seq"],
        grad_ckpt=q["checkpointing"],
        opt_8bit="8bit" in q["optimizer"],
        lora_rank=q["rank"] or 16,
        grad_dtype_bytes=4 if wide else 2,
    )
    return said.total_gb


def canifinetune(q: Row) -> float:
    """Without its safety margin, which it reports apart."""
    from canifinetune.estimator import EstimateRequest, estimate

    one_device(q)
    scope = {"attention": "conservative", "attention_all": "attention", "all_linear": "all_linear"}[targets(q)]
    optimizer = q["optimizer"] if q["optimizer"] in {"adamw_8bit", "paged_adamw_8bit"} else "adamw"
    try:
        said = estimate(
            EstimateRequest(
                model_id=q["id"],
                method=q["method"],
                seq_len=q["seq"],
                micro_batch_size=q["batch"],
                base_dtype="fp32" if q["amp"] else q["dtype"],
                quantization="nf4_double_quant" if q["double_quant"] else "nf4",
                lora_rank=q["rank"] or 16,
                lora_target_scope=scope,
                optimizer=optimizer,
                gradient_checkpointing=q["checkpointing"],
                attention_implementation="flash_attention_2" if q["attn"] == "flash" else q["attn"],
                gpu_vram_gb=q["gpu_gib"],
                use_network=False,
                override={**family(q["config"]), "family": q["config"]["model_type"], "total_params": q["params"]},
            )
        )
    except ValueError as error:
        raise UnsupportedError(str(error).splitlines()[0][:80]) from error
    return said.memory.total_estimated_gb - said.memory.safety_margin_gb


def _meta_model(q: Row, dtype: Any) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = dict(q["config"])
    kind = config.pop("model_type")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config), dtype=dtype)


def kitsune(q: Row) -> float:
    """4-bit is reckoned from float32 parameters, as its code expects."""
    import torch
    from kitsune.predict import LoRAConfig, estimate_lora_memory, predict_memory

    one_device(q)
    wide = q["dtype"] == "fp32" or q["amp"] or q["method"] == "qlora"
    model = _meta_model(q, torch.float32 if wide else torch.bfloat16)
    shape, dtype = (q["seq"],), "float32" if q["dtype"] == "fp32" else "bfloat16"
    if q["method"] == "full":
        return predict_memory(model, shape, q["batch"], dtype=dtype, optimizer="adamw", training=True).total_gb
    settings = LoRAConfig(rank=q["rank"], target_modules=tuple(q["targets"]), use_qlora=q["method"] == "qlora")
    return estimate_lora_memory(model, shape, q["batch"], dtype=dtype, config=settings).total_gb


def accelerate(q: Row) -> float:
    one_device(q)
    if q["method"] != "full":
        raise UnsupportedError("full fine-tuning only")
    import torch
    from accelerate.commands.estimate import estimate_training_usage
    from accelerate.utils import calculate_maximum_sizes

    total, _ = calculate_maximum_sizes(_meta_model(q, torch.float32))
    sizes = estimate_training_usage(total, "float32" if q["dtype"] == "fp32" else "bfloat16")
    return max(sizes.values()) / GIB


PEERS = {one.__name__: one for one in (vramcalc, ftuneai, fitscout, canifinetune, kitsune, accelerate)}


def answer(name: str, questions: list[Row]) -> list[Row]:
    """One answer a question: {"gib": x}, {"unsupported": why} or {"failed": what}."""
    answers = []
    for question in questions:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                answers.append({"gib": float(PEERS[name](question))})
        except UnsupportedError as error:
            answers.append({"unsupported": str(error)})
        except Exception as error:
            answers.append({"failed": f"{type(error).__name__}: {str(error)[:200]}"})
    return answers


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    print(json.dumps({name: answer(name, asked["questions"]) for name in asked["peers"]}))
