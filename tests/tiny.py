"""A real but small model for tests: the embedded one, cut to two layers, loaded in 4 bit as a notebook would."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_two_layers(source: Path, folder: Path) -> Path:
    """Write the first two layers of the model in `source`, with its tokenizer, to `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, num_hidden_layers=2)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def load_four_bit(folder: Path) -> tuple[Any, Any]:
    """Model (NF4, double quantisation, fp32 compute) and tokenizer; not yet prepared."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=quantization)
    return model, AutoTokenizer.from_pretrained(folder)


def trainer(folder: Path, *, prepare: bool = True, rows: int = 64, **arguments: Any) -> Any:
    """An SFTTrainer on `rows` tickets, with LoRA on all linear layers; `arguments` go to SFTConfig."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from nbkit import models
    from nbkit.data import tickets

    model, tokenizer = load_four_bit(folder)
    if prepare:
        models.prepare(model, tokenizer)
    splits = tickets.generate(train=rows, held_out=4)
    options: dict[str, Any] = {
        "max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "bf16": False, "use_cpu": True,
        "activation_checkpointing": False, "dataloader_pin_memory": False, "optim": "adamw_torch", "max_length": 256,
        "report_to": [], "save_steps": 2, "seed": 0, **arguments,
    }  # fmt: skip
    return SFTTrainer(
        model=model,
        args=SFTConfig(**options),
        train_dataset=Dataset.from_list(splits["train"]),
        eval_dataset=Dataset.from_list(splits["seen"]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.1, task_type="CAUSAL_LM"),
    )
