"""The other side of carry.py and weights.py: a trainer built from what was written down, and compared with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbkit.errors import RunError
from nbkit.training import carry, repairs, weights
from nbkit.training.recipe import data_identity


def read(folder: Path) -> dict[str, Any]:
    """The description in the launch folder."""
    found: dict[str, Any] = json.loads((folder / "trainer.json").read_text())
    return found


def trainer(spec: dict[str, Any], folder: Path, doing: Callable[[str], None]) -> Any:
    """Build the trainer of `spec`.

    Args:
        doing: Told in words what is being done.
    Raises: RunError when what was built is not what was written down.
    """
    from datasets import load_from_disk

    args = _arguments(spec["arguments"])
    doing("loading the model")
    model, tokenizer = weights.load(spec["model"], folder)
    _same_trainable(model, spec["model"]["digests"])
    doing("reading the rows")
    rows = {name: load_from_disk(str(folder / "rows" / name)) for name in spec["rows"]}
    doing("building the trainer")
    built = _construct(spec, args, model, tokenizer, rows)
    built.data_collator = _thing(spec["collator"], built)
    for name, value in spec["attributes"].items():
        if vars(built).get(name) != value:
            setattr(built, name, value)
    _callbacks(built, spec["callbacks"])
    repairs.mend(built)
    weights.set_adapter(built.model, spec["model"], folder)
    _require_same(spec, built)
    return built


def _arguments(spec: dict[str, Any]) -> Any:
    """A value that the constructor of the arguments changes is set back to what it was over there."""
    args = carry.find(spec["class"])(**spec["fields"])
    for name, value in spec["fields"].items():
        if carry.plain(getattr(args, name), name) != value:
            setattr(args, name, value)
    return args


def _construct(spec: dict[str, Any], args: Any, model: Any, tokenizer: Any, rows: dict[str, Any]) -> Any:
    held_out: Any = rows.get("eval")
    several = {name.removeprefix("eval-"): dataset for name, dataset in rows.items() if name.startswith("eval-")}
    options: dict[str, Any] = {name: carry.find(place) for name, place in spec["functions"].items()}
    kept = getattr(args, "dataset_kwargs", None)
    if hasattr(args, "dataset_kwargs"):  # TRL: the rows are prepared already
        args.dataset_kwargs = {**(kept or {}), "skip_prepare_dataset": True}
    kind = carry.find(spec["trainer"])
    built = kind(
        model=model,
        args=args,
        train_dataset=rows["train"],
        eval_dataset=several or held_out,
        processing_class=tokenizer,
        **options,
    )
    if hasattr(args, "dataset_kwargs"):
        args.dataset_kwargs = kept
    return built


def _thing(spec: dict[str, Any], built: Any) -> Any:
    if "function" in spec:
        return carry.find(spec["function"])
    kind = carry.find(spec["class"])
    made = kind.__new__(kind)
    processing = built.processing_class
    known = {
        "model": built.model,
        "processing_class": processing,
        "tokenizer": getattr(processing, "tokenizer", processing),
    }
    for name, held in spec["holds"].items():
        setattr(made, name, known[held["is"]] if "is" in held else held["value"])
    return made


def _callbacks(built: Any, specs: list[dict[str, Any]]) -> None:
    """The user's own, beside those that a trainer has by itself."""
    there = {type(callback).__name__ for callback in built.callback_handler.callbacks}
    for spec in specs:
        made = _thing(spec, built)
        if type(made).__name__ not in there:
            built.add_callback(made)


def _same_trainable(model: Any, digests: dict[str, str]) -> None:
    for name, parameter in model.named_parameters():
        if name in digests:
            parameter.requires_grad_(digests[name].startswith("trained"))


def _require_same(spec: dict[str, Any], built: Any) -> None:
    then, now = spec["model"]["digests"], weights.digests(built.model)
    wrong = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if wrong:
        name = wrong[0]
        raise RunError(
            f"The model loaded here is not the one that was given to nbkit.start: {len(wrong)} tensors differ, first "
            f"{name} ({then.get(name, 'absent')} there, {now.get(name, 'absent')} here).",
            hint="a base model that was changed in memory is not carried: save it with save_pretrained and load it from "
            "there, or start without detach=True",
        )
    data = data_identity(built)
    if data != spec["job"]["data"]:
        raise RunError(
            f"The rows read here are not those that were given: {data['rows']} rows, or other ones.",
            hint="start without detach=True, and report this with the dataset's features",
        )
