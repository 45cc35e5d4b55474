"""Which model is asked about: a config, a folder, a hub id, a loaded model or a trainer; only its config is read."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbkit.errors import ModelError, NbkitError
from nbkit.memory.fake import Task
from nbkit.models.known import config_of, known, similar


@dataclass(frozen=True)
class Source:
    """What was found out about the model.

    Attributes:
        config: Of the text model.
        dtype: Of its weights by torch's name, None where nothing says it.
        peft_config, quantization_config: Of a model that has adapters or quantised weights already.
        trainer: The trainer that was given.
        adapter_dtype: Format in which a trainer holds its adapters, None without.
        compact_head: The trainer was mended by nbkit.training.repairs.score_trained_tokens_only.
        local: Its files are on this machine: a folder, or a model that is loaded.
    """

    name: str
    config: Any
    dtype: str | None
    task: Task
    peft_config: Any = None
    quantization_config: Any = None
    trainer: Any = None
    notes: tuple[str, ...] = ()
    local: bool = False
    adapter_dtype: str | None = None
    compact_head: bool = False


def read(model: Any, *, trust_remote_code: bool = False) -> Source:
    """Find the config of `model`.

    Raises: ModelError for a model that cannot be found or read, or whose own code would have to run.
    """
    if isinstance(model, (str, Path)):
        return _named(str(model), trust_remote_code=trust_remote_code)
    if hasattr(model, "train_dataset") and hasattr(model, "args") and hasattr(model, "model"):
        return _loaded(model.model, trainer=model)
    if hasattr(model, "named_parameters") and hasattr(model, "config"):
        return _loaded(model)
    if hasattr(model, "to_dict") and hasattr(model, "model_type"):
        return _from_config(model, getattr(model, "_name_or_path", "") or model.model_type)
    raise NbkitError(
        f"{type(model).__name__} is no model: predict takes a config, a folder, a hub id, a model or a trainer.",
        hint="nbkit.predict('Qwen/Qwen2.5-7B', SFTConfig(...), peft_config=LoraConfig(...))",
        exit_code=2,
    )


def _from_config(config: Any, name: str, *, notes: tuple[str, ...] = ()) -> Source:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if text is not config:
        notes = (*notes, f"{config.model_type}: only its language model is counted, no images.")
    for field in ("num_hidden_layers", "hidden_size", "vocab_size"):
        value = getattr(text, field, None)
        if not isinstance(value, int) or value < 1:
            raise ModelError(
                f"The config of {name} says {field}={value!r}; a decoder has at least one of each.",
                hint="give the config of a decoder-only text model",
            )
    dtype = getattr(text, "dtype", None) or getattr(config, "dtype", None)
    architectures = " ".join(getattr(config, "architectures", None) or ())
    task: Task = "sequence classification" if "SequenceClassification" in architectures else "causal"
    quantization = getattr(config, "quantization_config", None)
    if isinstance(quantization, dict):
        quantization, notes = _stored_quantization(quantization, notes)
    return Source(name, text, _dtype_name(dtype), task, quantization_config=quantization, notes=notes)


def _stored_quantization(stored: dict[str, Any], notes: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
    method = str(stored.get("quant_method", ""))
    if "bitsandbytes" in method or stored.get("load_in_4bit") or stored.get("load_in_8bit"):
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig.from_dict({k: v for k, v in stored.items() if k != "quant_method"}), notes
    return None, (
        *notes,
        f"Its weights are stored with {method or 'an unknown'} quantisation; they are counted in 16 bit.",
    )


def _dtype_name(dtype: Any) -> str | None:
    name = str(dtype).removeprefix("torch.") if dtype is not None else ""
    return name if name in {"bfloat16", "float16", "float32"} else None


def _loaded(model: Any, trainer: Any = None) -> Source:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config
    source = _from_config(config, getattr(config, "_name_or_path", "") or type(base).__name__)
    dtypes = [p.dtype for p in base.parameters() if p.dtype.is_floating_point and not p.requires_grad]
    dtypes = dtypes or [p.dtype for p in base.parameters() if p.dtype.is_floating_point]
    peft = next(iter(model.peft_config.values())) if hasattr(model, "peft_config") else None
    trained = [p.dtype for p in model.parameters() if p.requires_grad and p.dtype.is_floating_point]
    held = (
        _dtype_name(max(set(trained), key=trained.count))
        if peft is not None and trainer is not None and trained
        else None
    )
    return Source(
        source.name,
        source.config,
        _dtype_name(max(set(dtypes), key=dtypes.count)) if dtypes else source.dtype,
        "sequence classification" if "SequenceClassification" in type(base).__name__ else "causal",
        peft_config=peft,
        quantization_config=getattr(config, "quantization_config", None) or source.quantization_config,
        trainer=trainer,
        notes=source.notes,
        local=True,
        adapter_dtype=held,
        compact_head=hasattr(base.forward, "nbkit_compact"),
    )


def _named(name: str, *, trust_remote_code: bool) -> Source:
    folder = Path(name).expanduser()
    if name == "embedded":
        from nbkit.models import embedded

        folder = embedded()
    if not folder.is_dir() and not _cached(name):
        entry = known(name)
        if entry is not None:
            note = f"Sizes of {name} from nbkit's own table ({entry.source}); nothing was read from the hub."
            return _from_config(config_of(entry), name, notes=(note,))
    from nbkit.models import resolve

    try:
        place = resolve(name)
    except ModelError as error:
        near = similar(name)
        if not near:
            raise
        raise ModelError(error.message, hint=f"{error.hint}; sizes known here: {', '.join(near)}") from error
    _refuse_code(place, trust_remote_code=trust_remote_code)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers checks a config with errors of several libraries
        first, *more = str(error).splitlines() or [type(error).__name__]
        said = f"{first} {more[0].strip()}" if more and first.endswith(":") else first
        hint = "download config.json again, or correct it"
        if "does not recognize" in said:
            hint = "pip install -U transformers      or give a config object: predict(LlamaConfig(...), ...)"
        raise ModelError(f"The config of {name} cannot be read: {said}", hint=hint) from error
    found = _from_config(config, folder.name if folder.is_dir() else name)
    return dataclasses.replace(found, local=folder.is_dir())


def _cached(name: str) -> bool:
    try:
        from huggingface_hub import try_to_load_from_cache

        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except (ImportError, ValueError):
        return False


def _refuse_code(place: str, *, trust_remote_code: bool) -> None:
    """Custom code is run only where the user says so."""
    if trust_remote_code or not Path(place).is_dir():
        return
    try:
        stored = json.loads((Path(place) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if not isinstance(stored, dict):
        return
    from transformers import CONFIG_MAPPING

    if "auto_map" in stored and stored.get("model_type") not in CONFIG_MAPPING:
        raise ModelError(
            f"{place} is built by code of its own ({', '.join(map(str, stored['auto_map'].values()))}).",
            hint="read that code; if you trust it: predict(..., trust_remote_code=True)",
        )
