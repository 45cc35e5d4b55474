"""An option of a plan as the field's own objects, in Python to paste."""

from __future__ import annotations

from nbkit.memory.option import Option
from nbkit.memory.plan import Plan


def paste(plan: Plan, option: Option) -> str:
    """SFTConfig, and LoraConfig and BitsAndBytesConfig where the method has them. Executes as it stands."""
    wish, dtype = plan.wish, plan.place.dtype
    cpu = plan.place.device == "cpu"
    imports, blocks = ["from trl import SFTConfig"], []
    optim = "adamw_bnb_8bit" if wish.optimizer == "adamw_8bit" else "adamw_torch" if cpu else "adamw_torch_fused"
    lines = {
        "output_dir": '"out"',
        "max_length": str(wish.seq),
        "per_device_train_batch_size": str(option.batch),
        "gradient_accumulation_steps": str(option.accumulation),
        "activation_checkpointing": str(option.checkpointing),
        "bf16": str(dtype == "bfloat16" and not cpu),
        "fp16": str(dtype == "float16"),
        "optim": f'"{optim}"',
        "num_train_epochs": str(wish.epochs),
    }
    if wish.packing:
        lines["packing"] = "True"
    if cpu:
        lines["use_cpu"] = "True"
    blocks.append(_call("args", "SFTConfig", lines))
    if option.method != "full":
        imports = ["from peft import LoraConfig", *imports]
        targets = '"all-linear"' if wish.targets == "all-linear" else '["q_proj", "k_proj", "v_proj", "o_proj"]'
        lora = {
            "r": str(wish.rank),
            "lora_alpha": str(2 * wish.rank),
            "target_modules": targets,
            "task_type": '"CAUSAL_LM"',
        }
        blocks.append(_call("peft_config", "LoraConfig", lora))
    if option.method == "qlora":
        imports = ["import torch", imports[0], "from transformers import BitsAndBytesConfig", *imports[1:]]
        small = {
            "load_in_4bit": "True",
            "bnb_4bit_quant_type": '"nf4"',
            "bnb_4bit_use_double_quant": "True",
            "bnb_4bit_compute_dtype": f"torch.{dtype}",
        }
        if option.how == "sharded":  # FSDP splits float tensors only
            small["bnb_4bit_quant_storage"] = f"torch.{dtype}"
        blocks.append(_call("quantization_config", "BitsAndBytesConfig", small))
    span = f"{option.memory.low_gib:.1f} to {option.memory.high_gib:.1f} of {plan.place.room_gib:.1f} GiB"
    head = (
        f"# {plan.subject.shape.name}, {option.name}, on {plan.place.label}: predicted {span} ({option.memory.basis})"
    )
    how = (
        ""
        if option.how != "sharded"
        else "\n# Sharded over all GPUs: start it with accelerate launch --use_fsdp (or ZeRO-3)."
    )
    return "\n".join([head + how, *imports, "", *blocks])


def _call(name: str, kind: str, arguments: dict[str, str]) -> str:
    inner = "\n".join(f"    {key}={value}," for key, value in arguments.items())
    return f"{name} = {kind}(\n{inner}\n)"
