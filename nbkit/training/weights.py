"""A trainer's model and tokenizer as files: by reference where it is frozen, as safetensors where it is trained."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from nbkit.errors import RunError
from nbkit.training.carry import find, name_of

_SAMPLED = 64  # elements of a frozen tensor that go into its digest


def save(trainer: Any, folder: Path) -> dict[str, Any]:
    """Write model, adapter and tokenizer below `folder`.

    A frozen base is loaded again by its name or path; a model that is trained as a whole, or has no name, is written as
    it stands. Either way every tensor's digest is noted, so that another result of the loading is noticed.

    Returns: What `load` needs, JSON-ready.
    Raises: RunError for a model that cannot be built again.
    """
    model = trainer.model
    peft = getattr(model, "peft_config", None)
    base = model.get_base_model() if peft else model
    if not hasattr(base, "config") or not hasattr(base, "save_pretrained"):
        raise RunError(
            f"{type(base).__name__} is no transformers model, so a detached run cannot load it.",
            hint="start without detach=True",
        )
    if peft and len(peft) > 1:
        raise RunError(f"A detached run carries one adapter, not {len(peft)}.", hint="start without detach=True")
    found = _base(base, folder, frozen=bool(peft))
    if peft:
        model.save_pretrained(str(folder / "adapter"))
        found["adapter"] = next(iter(peft))
    if trainer.processing_class is not None:
        trainer.processing_class.save_pretrained(str(folder / "tokenizer"))
        found["tokenizer"] = name_of(type(trainer.processing_class), "the tokenizer's class")
    found["digests"] = digests(model)
    return found


def _base(base: Any, folder: Path, *, frozen: bool) -> dict[str, Any]:
    name = str(getattr(base, "name_or_path", "") or "")
    quantization = getattr(base.config, "quantization_config", None)
    found: dict[str, Any] = {
        "class": name_of(type(base), "the model's class"),
        "config": name_of(type(base.config), "the class of the model's config"),
        "dtype": str(getattr(base.config, "dtype", None) or base.dtype).removeprefix("torch."),
        "attention": getattr(base.config, "_attn_implementation", None),
        "name": name if frozen and name else "",
    }
    places = {key: str(place) for key, place in (getattr(base, "hf_device_map", None) or {}).items()}
    if set(places.values()) - {"cpu"}:
        found["device_map"] = {key: int(place) if place.isdigit() else place for key, place in places.items()}
    if quantization is not None and not found["name"]:
        raise RunError(
            "A quantised model that was not loaded by a name or path cannot be loaded again.",
            hint="load it with from_pretrained(name, quantization_config=...), or start without detach=True",
        )
    if quantization is not None and not _quantized_on_disk(base, name):
        found["quantization"] = {
            "class": name_of(type(quantization), "the quantisation's class"), "values": quantization.to_dict(),
        }  # fmt: skip
    _save_config(base, folder / "config", keep_quantization="quantization" not in found)
    if not found["name"]:
        base.save_pretrained(str(folder / "model"), state_dict=_without_adapter(base) if frozen else None)
    return found


def _quantized_on_disk(base: Any, name: str) -> bool:
    values, _ = type(base.config).get_config_dict(name)
    return "quantization_config" in values


def _save_config(base: Any, folder: Path, *, keep_quantization: bool) -> None:
    import copy

    config = copy.deepcopy(base.config)
    if not keep_quantization and hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(str(folder))
    if getattr(base, "generation_config", None) is not None:
        base.generation_config.save_pretrained(str(folder))


def _without_adapter(base: Any) -> dict[str, Any]:
    """The base's own weights under their own names; LoRA keeps them in `base_layer`."""
    return {key.replace(".base_layer.", "."): value for key, value in base.state_dict().items() if ".lora_" not in key}


def load(spec: dict[str, Any], folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer (None where there was none) of what `save` noted; 4-bit layers kept differentiable."""
    import torch
    from transformers import GenerationConfig

    from nbkit.models import prepare

    config = find(spec["config"]).from_pretrained(str(folder / "config"))
    options: dict[str, Any] = {"config": config, "dtype": getattr(torch, spec["dtype"])}
    if spec["attention"]:
        options["attn_implementation"] = spec["attention"]
    if "device_map" in spec:
        options["device_map"] = spec["device_map"]
    if "quantization" in spec:
        options["quantization_config"] = find(spec["quantization"]["class"]).from_dict(spec["quantization"]["values"])
    model = find(spec["class"]).from_pretrained(spec["name"] or str(folder / "model"), **options)
    if (folder / "config" / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(folder / "config"))
    prepare(model)
    if "adapter" in spec:
        from peft import PeftModel

        model = PeftModel.from_pretrained(
            model, str(folder / "adapter"), adapter_name=spec["adapter"], is_trainable=True
        )
    tokenizer = find(spec["tokenizer"]).from_pretrained(str(folder / "tokenizer")) if "tokenizer" in spec else None
    return model, tokenizer


def set_adapter(model: Any, spec: dict[str, Any], folder: Path) -> None:
    """Load the adapter's values once more: TRL casts those of a quantised model to bf16 when it is built."""
    if "adapter" not in spec:
        return
    from peft import load_peft_weights, set_peft_model_state_dict

    device = str(next(model.parameters()).device)
    set_peft_model_state_dict(model, load_peft_weights(str(folder / "adapter"), device=device), spec["adapter"])


def digests(model: Any) -> dict[str, str]:
    """For each parameter its kind and a digest: of all values where it is trained, of some where it is frozen."""
    import torch

    found = {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        if not parameter.requires_grad:
            values = values[:: max(1, values.numel() // _SAMPLED)]
        raw = values.cpu().contiguous().view(torch.uint8).numpy().tobytes()
        kind = "trained" if parameter.requires_grad else "frozen"
        found[name] = f"{kind} {parameter.dtype} {tuple(parameter.shape)} {hashlib.sha256(raw).hexdigest()[:16]}"
    return found
