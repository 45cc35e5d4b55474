"""A trainer written down so that another process can build it again: JSON, safetensors and Arrow, no pickle, no token.

What cannot be written down is refused by name, with what to do instead; nothing is left out silently.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
from pathlib import Path
from typing import Any

from nbkit.errors import RunError
from nbkit.redact import redacted
from nbkit.training.overrides import overridden

FUNCTIONS = ("compute_metrics", "preprocess_logits_for_metrics", "compute_loss_func")
# What every trainer has, or makes by itself from its arguments.
_USUAL_CALLBACKS = {"DefaultFlowCallback", "PrinterCallback", "ProgressCallback", "NotebookProgressCallback"}
_NOT_CARRIED = {"hub_token", "model_init_kwargs", "logging_dir"}


def name_of(thing: Any, what: str) -> str:
    """`module:qualname` of a class or function that another process can import.

    Raises: RunError for one that lives in the notebook, inside a function, or is a lambda.
    """
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", "")
    if module and module != "__main__" and name and "<" not in name:
        try:
            if find(f"{module}:{name}") is thing:
                return f"{module}:{name}"
        except (ImportError, AttributeError):
            pass
    where = "in this notebook or script" if module == "__main__" else "where another process cannot import it"
    raise RunError(
        f"{what} ({name or type(thing).__name__}) is defined {where}, so a detached run cannot have it.",
        hint="put it into a .py file beside the notebook and import it from there, or start without detach=True",
    )


def find(name: str) -> Any:
    """What `name_of` named."""
    module, _, path = name.partition(":")
    found = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def plain(value: Any, what: str) -> Any:
    """A JSON-ready copy.

    Raises: RunError for a value that JSON cannot hold, named by `what`.
    """
    if isinstance(value, enum.Enum):
        return plain(value.value, what)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(item, f"{what}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, what) for item in value]
    if isinstance(value, set):
        return sorted(plain(item, what) for item in value)
    if hasattr(value, "to_dict"):
        return plain(value.to_dict(), what)
    raise RunError(
        f"{what} is a {type(value).__name__}, which a detached run cannot have.",
        hint="use a value that JSON can hold (a number, a text, a list), or start without detach=True",
    )


def arguments(args: Any) -> dict[str, Any]:
    """The class and the fields of TrainingArguments, without tokens.

    Raises: RunError for a token that the run would need, or a field that looks like one.
    """
    if args.push_to_hub and args.hub_token:
        raise RunError(
            "args.hub_token is not written to disk, and this detached run would need it to push.",
            hint="log in once with: hf auth login      and leave hub_token out",
        )
    fields = {
        field.name: plain(getattr(args, field.name), f"args.{field.name}")
        for field in dataclasses.fields(args)
        if field.init and not field.name.startswith("_") and field.name not in _NOT_CARRIED
    }
    hidden = [key for key, value in fields.items() if redacted({key: value}) != {key: value}]
    if hidden:
        raise RunError(
            f"args.{hidden[0]} holds a token, which is not written to disk.",
            hint="set it in the environment instead (HF_TOKEN, WANDB_API_KEY): a detached run inherits that",
        )
    return {"class": name_of(type(args), "the class of the arguments"), "fields": fields}


def thing(value: Any, trainer: Any, what: str) -> dict[str, Any]:
    """A function by name, or an object by its class and its values; the tokenizer and the model stand for themselves."""
    if (
        isinstance(value, type)
        or not hasattr(value, "__dict__")
        or (callable(value) and hasattr(value, "__qualname__"))
    ):
        return {"function": name_of(value, what)}
    references = {
        id(trainer.model): "model",
        id(trainer.processing_class): "processing_class",
        id(getattr(trainer.processing_class, "tokenizer", trainer)): "tokenizer",
    }
    held = {}
    for key, item in vars(value).items():
        known = references.get(id(item)) if item is not None else None
        held[key] = {"is": known} if known else {"value": plain(item, f"{what}.{key}")}
    return {"class": name_of(type(value), what), "holds": held}


def callbacks(trainer: Any) -> list[dict[str, Any]]:
    """The user's own callbacks, and the names of all."""
    found = []
    for callback in trainer.callback_handler.callbacks:
        kind = type(callback)
        if kind.__name__ in _USUAL_CALLBACKS or kind.__module__.startswith("transformers.integrations"):
            continue
        found.append(thing(callback, trainer, f"the callback {kind.__name__}"))
    return found


def describe(trainer: Any) -> dict[str, Any]:
    """Everything but weights, rows and tokenizer; those are written as files by `files.save`.

    Raises: RunError naming what cannot be carried.
    """
    changed = overridden(trainer)
    if changed:
        raise RunError(
            f"trainer.{changed[0]} was replaced on this object, so a detached run would not have it.",
            hint="write a subclass with that method in a .py file and import it, or start without detach=True",
        )
    if trainer.optimizer is not None or getattr(trainer, "optimizer_cls_and_kwargs", None) is not None:
        raise RunError(
            "The trainer was given an optimizer of its own (or has trained before); a detached run makes its own.",
            hint="choose it by args.optim and args.learning_rate in a new trainer, or start without detach=True",
        )
    if trainer.model_init is not None:
        raise RunError("model_init cannot be carried into a detached run.", hint="pass the model itself to the trainer")
    functions = {}
    for key in FUNCTIONS:
        value = getattr(trainer, key, None)
        if value is not None:
            functions[key] = name_of(value, key)
    return {
        "trainer": name_of(type(trainer), "the trainer's class"),
        "arguments": arguments(trainer.args),
        "collator": thing(trainer.data_collator, trainer, "the data collator"),
        "functions": functions,
        "callbacks": callbacks(trainer),
        "attributes": _scalars(trainer),
    }


def _scalars(trainer: Any) -> dict[str, Any]:
    """Plain values that the trainer's constructor derived, from rows that it sees in another form the second time."""
    return {
        key: value
        for key, value in vars(trainer).items()
        if isinstance(value, (bool, int, float, str)) and not key.startswith("__")
    }


def datasets(trainer: Any) -> dict[str, Any]:
    """The prepared rows by the folder they are saved in: train, and eval or eval-NAME.

    Raises: RunError for rows that are not a `datasets.Dataset`.
    """
    held_out = trainer.eval_dataset
    found = {"train": trainer.train_dataset}
    if isinstance(held_out, dict):
        found.update({f"eval-{key}": rows for key, rows in held_out.items()})
    elif held_out is not None:
        found["eval"] = held_out
    for key, rows in found.items():
        if not hasattr(rows, "save_to_disk") or not hasattr(rows, "__len__"):
            raise RunError(
                f"The {key} rows are a {type(rows).__name__}; a detached run needs a datasets.Dataset.",
                hint="make one with datasets.Dataset.from_list(list(rows)), or start without detach=True",
            )
    return found


def folder_of(path: Path) -> Path:
    """Where the files of a run directory's trainer are, until the run has ended."""
    return path / "launch"
