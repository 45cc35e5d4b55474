"""A trainer's own objects, written as the YAML that `trl sft --config` reads, and the identity of its data."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from pathlib import Path
from typing import Any

from nbkit.redact import HIDDEN, redacted

_FINGERPRINT_ROWS = 1000
# They name this run or this machine, not the method: two runs that differ only here are one recipe.
_OF_THE_RUN = {
    "output_dir",
    "resume_from_checkpoint",
    "run_name",
    "logging_dir",
    "report_to",
    "disable_tqdm",
    "project",
}
# Filled in by TrainingArguments itself from the others.
_DERIVED = {"accelerator_config", "fsdp_config", "deepspeed", "parallelism_config", "gradient_checkpointing"}
_ALWAYS = {"output_dir", "bf16", "fp16", "use_cpu", "seed"}


def recipe(trainer: Any) -> dict[str, Any]:
    """The keys of TRL's ModelConfig and of the trainer's own arguments that differ from their defaults.

    Not covered: what has no key there (a custom data collator, callbacks, several adapters).
    """
    found: dict[str, Any] = {"model_name_or_path": _name(trainer.model)}
    found.update(_quantization(trainer.model))
    found.update(_adapter(trainer.model))
    found.update(_arguments(trainer.args))
    # A hidden token is left out: `***` would be sent to the hub as one.
    return {key: value for key, value in redacted(found).items() if value != HIDDEN}


def to_yaml(values: dict[str, Any]) -> str:
    """Block-style YAML, keys in the order given."""
    import yaml

    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text


def read_yaml(path: Path) -> dict[str, Any]:
    """What `to_yaml` wrote."""
    import yaml

    values: dict[str, Any] = yaml.safe_load(path.read_text())
    return values


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """`learning_rate: 0.001, now 0.0002` for each key that is not the same, those of the run itself left out."""
    keys = [key for key in {**one, **other} if key not in _OF_THE_RUN]
    return [f"{key}: {one.get(key)}, now {other.get(key)}" for key in keys if one.get(key) != other.get(key)]


def data_identity(trainer: Any) -> dict[str, Any]:
    """Row count and a hash over up to 1,000 evenly spaced tokenised rows of the training set."""
    rows = trainer.train_dataset
    if not hasattr(rows, "__len__"):
        return {"rows": None, "sha256": None}  # a stream has neither
    digest = hashlib.sha256(str(len(rows)).encode())
    for index in range(0, len(rows), max(1, len(rows) // _FINGERPRINT_ROWS)):
        digest.update(json.dumps(rows[index], sort_keys=True, default=str).encode())
    return {"rows": len(rows), "sha256": digest.hexdigest()}


def _name(model: Any) -> str:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return str(getattr(base, "name_or_path", "") or getattr(base.config, "_name_or_path", ""))


def _quantization(model: Any) -> dict[str, Any]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = getattr(base.config, "quantization_config", None)
    if config is None or (not getattr(config, "load_in_4bit", False) and not getattr(config, "load_in_8bit", False)):
        return {}
    if config.load_in_8bit:
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": config.bnb_4bit_quant_type,
        "use_bnb_nested_quant": config.bnb_4bit_use_double_quant,
    }


def _adapter(model: Any) -> dict[str, Any]:
    configs = getattr(model, "peft_config", None)
    if not configs:
        return {}
    lora = next(iter(configs.values()))
    targets = lora.target_modules
    return {
        "use_peft": True,
        "lora_r": lora.r,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": lora.lora_dropout,
        "lora_target_modules": sorted(targets) if isinstance(targets, (set, list, tuple)) else targets,
        "use_rslora": bool(getattr(lora, "use_rslora", False)),
        "use_dora": bool(getattr(lora, "use_dora", False)),
    }


def _arguments(args: Any) -> dict[str, Any]:
    # Field defaults, not a second instance: building TrainingArguments resets the process's accelerator.
    found: dict[str, Any] = {}
    for field in dataclasses.fields(args):
        if field.name.startswith("_") or not field.init or field.name in _DERIVED:
            continue
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        value = _plain(getattr(args, field.name))
        if value != _plain(default) or field.name in _ALWAYS:
            found[field.name] = value
    return found


def _plain(value: Any) -> Any:
    """A YAML-ready copy."""
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
