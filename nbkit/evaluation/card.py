"""The model card: what was trained on what, how much better it is and how sure that is, what it lost, how to load it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from nbkit import __version__
from nbkit.data.prepared import Prepared
from nbkit.errors import require
from nbkit.evaluation._snippet import EMBEDDED, load_snippet
from nbkit.evaluation.compare import Comparison
from nbkit.evaluation.export import Export
from nbkit.evaluation.stats import METHOD
from nbkit.redact import redact, redacted

_EMBEDDED_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_STACK = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets")
# What decides a result, by the names of the field's own objects; shown at its default too, which a recipe leaves out.
_ARGUMENTS = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "max_length", "packing", "loss_type", "optim", "weight_decay", "max_grad_norm", "bf16",
    "fp16", "seed",
)  # fmt: skip
_ADAPTER = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora")
_ABOUT_THE_RUN = {
    "model_name_or_path", "output_dir", "run_name", "logging_dir", "report_to", "project", "disable_tqdm",
    "resume_from_checkpoint", "use_cpu",
}  # fmt: skip


@dataclass(frozen=True)
class Data:
    """The rows that were trained on.

    Attributes:
        name: Of the data set.
        rows: How many.
        sha256: Of the rows as they were stored.
        provenance: Where it is from, and its licence.
    """

    name: str
    rows: int
    sha256: str
    provenance: str

    @classmethod
    def of(cls, prepared: Prepared, split: str = "train") -> Data:
        """Take name, count, hash and provenance from a prepared set."""
        return cls(f"{prepared.path.name}, {split}", len(prepared[split]), prepared.hashes[split], prepared.provenance)


def model_card(
    *,
    name: str,
    base_model: str,
    license: str,  # noqa: A002 - the hub's word for it
    data: Data,
    recipe: Any,
    comparison: Comparison | None = None,
    exported: Export | None = None,
    example: Mapping[str, Any] | None = None,
    limits: Sequence[str] = (),
) -> str:
    """The text of README.md for a folder with an adapter, or with an exported model.

    Nothing is written; `nbkit.atomic.write_text(folder / "README.md", text)` does. Secrets are hidden and values that are
    paths of this machine left out.

    Args:
        name: Of the model.
        base_model: A hub id, a folder, or "embedded".
        license: An identifier of the hub's list, such as apache-2.0; it follows from the base model's and the data's.
        data: What was trained on, see `Data.of`.
        recipe: The trainer, or the mapping in a run's config.yaml.
        comparison: Base against tuned on held-out rows.
        exported: Given for a merged model; without it the card is that of an adapter.
        example: A row whose prompt the loading code uses.
        limits: What the model is not for, a sentence each, beside what can be told from the numbers.
    Raises: MissingPackageError.
    """
    require("yaml", extra="train")
    values = _hyperparameters(recipe)
    hub = _EMBEDDED_HUB if base_model == EMBEDDED else base_model if _is_hub_id(base_model) else ""
    shown = hub or PurePosixPath(base_model.replace("\\", "/")).name
    about_data = [
        ("name", data.name),
        ("rows", f"{data.rows:,}"),
        ("sha256", f"`{data.sha256}`"),
        ("origin and licence", data.provenance),
    ]
    kind = "merged model" if exported else "adapter"
    parts = [
        _front_matter(name, hub, license, exported, comparison, data),
        f"# {name}\n\nA {_method(values)} fine-tune of {shown}; this folder holds the {kind}.",
        f"## Results\n\n{_results(comparison, exported)}",
        f"## Data\n\n{_markdown(('what', 'value'), about_data)}",
        f"## Training\n\n{_markdown(('setting', 'value'), list(values.items()))}\n\nWhat is not listed is TRL's default.",
        f"## Load\n\n```python\n{load_snippet(base_model, values, merged=exported is not None, example=example)}```",
        f"## Limits\n\n{_limits(comparison, limits)}",
        f"## Versions\n\n{', '.join(_versions())}.",
    ]
    return redact("\n\n".join(parts)) + "\n"


def _front_matter(
    name: str, hub: str, licence: str, exported: Export | None, comparison: Comparison | None, data: Data
) -> str:
    import yaml

    fields: dict[str, Any] = {
        "library_name": "transformers" if exported else "peft",
        "pipeline_tag": "text-generation",
        "license": licence,
        "tags": ["nbkit", "trl", "sft", "text-generation", *(["lora"] if not exported else [])],
    }
    if hub:  # the hub takes ids only: a folder of this machine would be a broken link
        fields |= {"base_model": hub, "base_model_relation": "finetune" if exported else "adapter"}
    if comparison:
        fields["model-index"] = [{"name": name, "results": [_index(pair, data) for pair in comparison.sets]}]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _index(pair: Any, data: Data) -> dict[str, Any]:
    measures = [("exact_match", "exact match", pair.tuned.exact_match)]
    if pair.tuned.field_accuracy is not None:
        measures.append(("accuracy", "JSON field accuracy", pair.tuned.field_accuracy))
    slug = re.sub(r"[^a-z0-9]+", "-", data.name.lower()).strip("-")
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": f"{data.name.partition(',')[0]}, {pair.name} (held out)", "type": slug},
        "metrics": [{"type": kind, "name": label, "value": round(value, 4)} for kind, label, value in measures],
    }


def _method(values: Mapping[str, Any]) -> str:
    adapter = "DoRA" if values.get("use_dora") else "LoRA"
    return f"Q{adapter}" if values.get("load_in_4bit") else adapter


def _results(comparison: Comparison | None, exported: Export | None) -> str:
    found = []
    if comparison is None:
        found.append("Not measured.")
    else:
        lines = [(row[0], row[1], *map(_number, row[2:4]), *row[4:]) for row in comparison.table().rows]
        found += [
            f"{comparison.claim()}.",
            _markdown(comparison.table().columns, lines),
        ]
        found.append(
            f"Base is the same model without the adapter, on the same prompts, greedy, at most {comparison.max_new_tokens} "
            f"new tokens. Intervals: {METHOD}. Loss is per completion token, end of turn included."
        )
        found.append(comparison.general.sentence() if comparison.general else "Forgetting was not measured.")
    if exported:
        found.append(
            f"Export ({exported.dtype}): held-out loss {exported.loss_before:.4f} with the adapter on its base, "
            f"{exported.loss_after:.4f} from these files, on {exported.rows} rows; {exported.agreeing} of "
            f"{exported.answers} greedy answers are the same."
        )
    return "\n\n".join(found)


def _limits(comparison: Comparison | None, limits: Sequence[str]) -> str:
    found = list(limits)
    for pair in comparison.sets if comparison else ():
        wrong = 1 - pair.tuned.exact_match
        if wrong:
            found.append(f"It answers {wrong:.0%} of the held-out rows of {pair.name} not exactly ({pair.counts}).")
        if pair.base.rows < 100:
            found.append(f"{pair.name} was measured on {pair.base.rows} rows only: its intervals are rough.")
    found.append("One training run with one seed; other seeds were not tried.")
    found.append("Safety, bias and languages other than those of the data were not examined.")
    return "\n".join(f"- {line}" for line in found)


def _hyperparameters(recipe: Any) -> dict[str, Any]:
    values = dict(recipe) if isinstance(recipe, Mapping) else dict(_of_trainer(recipe))
    return {
        key: value
        for key, value in redacted(values).items()
        if key not in _ABOUT_THE_RUN and value is not None and not _is_path(value)
    }


def _of_trainer(trainer: Any) -> Iterator[tuple[str, Any]]:
    base = trainer.model.get_base_model() if hasattr(trainer.model, "get_base_model") else trainer.model
    quantization: Any = getattr(base.config, "quantization_config", None)
    if getattr(quantization, "load_in_4bit", False):
        yield "load_in_4bit", True
        yield "bnb_4bit_quant_type", quantization.bnb_4bit_quant_type
        yield "use_bnb_nested_quant", quantization.bnb_4bit_use_double_quant
    elif getattr(quantization, "load_in_8bit", False):
        yield "load_in_8bit", True
    for lora in list(getattr(trainer.model, "peft_config", {}).values())[:1]:
        for key in _ADAPTER:
            value = getattr(lora, key, None)
            prefix = "" if key.startswith(("lora_", "use_")) else "lora_"
            yield f"{prefix}{key}", sorted(value) if isinstance(value, (set, frozenset)) else value
    for key in _ARGUMENTS:
        value = getattr(trainer.args, key, None)
        yield key, getattr(value, "value", value)


def _versions() -> Iterator[str]:
    import platform
    from importlib import metadata

    yield f"nbkit {__version__}"
    yield f"Python {platform.python_version()}"
    for package in _STACK:
        try:
            yield f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def line(cells: Sequence[Any]) -> str:
        texts = (", ".join(map(str, cell)) if isinstance(cell, (list, tuple)) else str(cell) for cell in cells)
        return "| " + " | ".join(" ".join(text.replace("|", "\\|").split()) for text in texts) + " |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}"


def _is_hub_id(text: str) -> bool:
    return _HUB_ID.fullmatch(text) is not None


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and (
        value.startswith(("/", "~", "./", "../")) or re.match(r"[A-Za-z]:\\", value) is not None
    )
