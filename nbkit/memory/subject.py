"""Which model a question is about: by a well-known name, a folder, a hub id, a config or a loaded model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nbkit.errors import MissingPackageError, ModelError
from nbkit.memory.shapes import ALSO, SHAPES, Shape, shape
from nbkit.models.known import all_known, known

EMBEDDED = "SmolLM2-135M"
_MOST_BYTES = 16 << 20  # of a config.json
_CHECKED = {"llama", "mistral", "qwen2", "qwen3"}  # the model types that the formula was compared with


@dataclass(frozen=True)
class Subject:
    """A model as a plan needs it.

    Attributes:
        source: What to give to `from_pretrained`, or to nbkit.predict.
        positions: Tokens its positions reach, where the config says so.
        notes: Doubts, a sentence each.
    """

    shape: Shape
    source: Any
    positions: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def local(self) -> bool:
        """Its files are on this machine."""
        return isinstance(self.source, str) and (self.source == "embedded" or Path(self.source).is_dir())


def subject(model: Any) -> Subject:
    """Find the shape of `model`; only a config is read.

    Args:
        model: A Shape, a well-known name ("Mistral-7B"), "embedded", a folder, a hub id, a transformers config or model.
    Raises: ModelError when there is no such model, its config cannot be read, or the formula does not cover it.
    """
    if isinstance(model, Subject):
        return model
    if isinstance(model, Shape):
        return Subject(model, model.name)
    if isinstance(model, (str, Path)):
        return _named(str(model))
    config = getattr(model, "config", model)
    positions = getattr(config, "max_position_embeddings", None)
    return Subject(Shape.from_config(config), model, positions, _doubts(config))


def _named(model: str) -> Subject:
    names = {one.name.lower() for one in (*SHAPES, *ALSO)}
    if model == "embedded":
        return Subject(shape(EMBEDDED), "embedded", 8192)
    if not model.strip():
        raise ModelError("The model's name is empty.", hint="nbkit fit Mistral-7B", exit_code=2)
    path = Path(model).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.is_file() or model.startswith(("/", "./", "../", "~")):
        wrong = f"{model} is a file, not a folder with a model" if path.is_file() else f"There is no folder {model}"
        raise ModelError(f"{wrong}.", hint="give the folder that holds config.json", exit_code=2)
    if "/" in model:
        return _hub(model)
    if model.lower() not in names and (listed := _listed(model)) is not None:
        return listed
    near = None if model.lower() in names else _like(model)
    if near is not None:
        return Subject(near, near.name, _positions(near.name), (f"Taken as {near.name}, which {model!r} begins with.",))
    found = shape(model)
    return Subject(found, found.name, _positions(found.name))


def _positions(name: str) -> int | None:
    """Of a built-in shape, from the table's first model whose name begins like it."""
    for entry in all_known():
        if any(_plain(repo.rpartition("/")[2]).startswith(_plain(name)) for repo in entry.ids):
            return entry.config.get("max_position_embeddings")
    return None


def _doubts(config: Any) -> tuple[str, ...]:
    """What the formula cannot know of a model that is not among those it was made for, or not stored as they are."""
    kind = getattr(config, "model_type", None)
    stored = getattr(config, "quantization_config", None)
    notes: tuple[str, ...] = ()
    if stored:
        how = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
        said = f"Its weights are stored quantised ({getattr(how, 'value', how) or 'in an unnamed way'})"
        notes = (f"{said}: LoRA and full are for a 16-bit copy of it, and so is the download.",)
    if kind in _CHECKED and not getattr(config, "auto_map", None):
        return notes
    code = ", which comes with code of its own that was not run," if getattr(config, "auto_map", None) else ""
    said = (
        f"The formula was not checked on models of type {kind!r}: this one{code} is counted as if it were built like "
        "Llama. nbkit.predict runs the model's own code on fake tensors."
    )
    return (*notes, said)


def _folder(path: Path) -> Subject:
    file = path / "config.json"
    if not file.is_file():
        raise ModelError(
            f"{path} holds no config.json.", hint="give the folder with config.json and the safetensors files"
        )
    return _read(file, path.name, str(path))


def _read(file: Path, name: str, source: str) -> Subject:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has {file.stat().st_size:,} bytes, and a config has some thousand")
        values = json.loads(file.read_text(encoding="utf-8"))
        inner = values.get("text_config", values) if isinstance(values, dict) else values
        if not isinstance(inner, dict):
            raise TypeError(f"it is {type(inner).__name__}, not an object with keys")
        config = SimpleNamespace(**inner)
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise ModelError(f"The config of {source} cannot be read: {error}.", hint="download it again") from error
    positions = getattr(config, "max_position_embeddings", None)
    return Subject(Shape.from_config(config, name), source, positions, _doubts(config))


def _listed(name: str) -> Subject | None:
    """From nbkit's table of hub ids, which needs no network and no torch."""
    entry = known(name)
    if entry is None:
        return None
    config = SimpleNamespace(**entry.config)
    positions = getattr(config, "max_position_embeddings", None)
    return Subject(Shape.from_config(config, name.rpartition("/")[2]), name, positions, _doubts(config))


def _hub(repo: str) -> Subject:
    """From the hub's cache, nbkit's table or the hub; where none answers, a well-known model like it, and said so."""
    name = repo.rpartition("/")[2]
    near = _like(name)
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        from nbkit.models import resolve
    except ImportError:
        if (listed := _listed(repo)) is not None:
            return listed
        return _nearby(near, repo, "huggingface_hub is not installed")
    try:
        cached = try_to_load_from_cache(repo, "config.json")
        if not isinstance(cached, str) and (listed := _listed(repo)) is not None:
            return listed
        resolve(repo)
        cached = try_to_load_from_cache(repo, "config.json")
        if isinstance(cached, str):
            return _read(Path(cached), name, repo)
        reason = "its config is not in the cache"
    except HFValidationError as error:
        raise ModelError(
            f"{repo!r} is neither a folder here nor a hub id ('owner/name').",
            hint="check the spelling, or give the folder that holds config.json",
            exit_code=2,
        ) from error
    except (ModelError, MissingPackageError) as error:
        if near is None:
            raise
        reason = error.message.rstrip(".")
    return _nearby(near, repo, reason)


def _nearby(near: Shape | None, repo: str, reason: str) -> Subject:
    """The well-known model that `repo` is like, with the reason why it is taken.

    Raises: ModelError where none is like it.
    """
    if near is None:
        raise ModelError(
            f"The config of {repo} cannot be had: {reason}.", hint="give a folder that holds its config.json"
        )
    return Subject(near, near.name, notes=(f"Taken as {near.name}, because the config could not be read: {reason}.",))


def _like(name: str) -> Shape | None:
    """The well-known model whose name `name` begins with: Mistral-7B for Mistral-7B-Instruct-v0.3."""
    plain = _plain(name)
    found = [one for one in (*SHAPES, *ALSO) if plain.startswith(_plain(one.name))]
    return max(found, key=lambda one: len(one.name), default=None)


def _plain(name: str) -> str:
    """Without separators and the words that hubs put in between: Meta-Llama-3-8B, Llama-2-7b-hf."""
    return "".join(letter for letter in name.lower().removeprefix("meta-") if letter.isalnum())
