"""The run that a recipe describes: `python -m nbkit.training.from_recipe recipe.yaml`, in the folder of the recipe.

A recipe is what `trl sft --config` reads: keys of SFTConfig, ModelConfig and ScriptArguments. `dataset_name` may also be
data of nbkit: a file of rows beside the recipe, a folder that `save_prepared` wrote, or an embedded set. Ends with 0, with
1 when the run failed, with 2 for a recipe that cannot be used.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from nbkit.data import convert, load_prepared, read
from nbkit.data.prepared import EMBEDDED, MANIFEST
from nbkit.errors import NbkitError, require
from nbkit.models import prepare
from nbkit.training.start import start


def trainer(path: Path) -> Any:
    """Build an SFTTrainer as `trl sft --config path` does, its model mended.

    Raises: NbkitError (2) for a key that nobody knows, or rows that are not there.
    """
    require("trl", extra="train")
    from trl import (
        DatasetMixtureConfig,
        ModelConfig,
        ScriptArguments,
        SFTConfig,
        SFTTrainer,
        TrlParser,
        get_peft_config,
    )

    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
    try:
        script, args, chosen, mixture = parser.parse_args_and_config(["--config", str(path)])
    except ValueError as error:
        raise NbkitError(f"{path}: {error}", hint="see: trl sft --help", exit_code=2) from error
    if args.trust_remote_code:
        raise NbkitError(f"{path}: nbkit runs no code of a model.", hint="leave trust_remote_code out", exit_code=2)
    train, held_out = _rows(script, mixture)
    if args.eval_strategy != "no" and held_out is None:
        raise NbkitError(f"{path}: there are no rows to evaluate on.", hint='eval_strategy: "no"', exit_code=2)
    model, tokenizer = _model(chosen, args)
    return SFTTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=held_out if args.eval_strategy != "no" else None,
        processing_class=tokenizer,
        peft_config=get_peft_config(chosen),
    )


def _model(chosen: Any, args: Any) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import get_quantization_config

    quantization = get_quantization_config(chosen)
    options = {"revision": chosen.model_revision, "dtype": chosen.dtype, **(args.model_init_kwargs or {})}
    if chosen.attn_implementation:
        options["attn_implementation"] = chosen.attn_implementation
    if quantization is not None:
        options["quantization_config"] = quantization
        options["device_map"] = {"": torch.cuda.current_device()} if torch.cuda.is_available() else None
    args.model_init_kwargs = None  # TRL's, for a model that it loads itself
    model = AutoModelForCausalLM.from_pretrained(chosen.model_name_or_path, **options)
    tokenizer = AutoTokenizer.from_pretrained(chosen.model_name_or_path, revision=chosen.model_revision)
    prepare(model, tokenizer if tokenizer.chat_template else None)
    return model, tokenizer


def _rows(script: Any, mixture: Any) -> tuple[Any, Any]:
    """Rows to train on, and to evaluate on where there are some."""
    name = str(script.dataset_name or "")
    if name in EMBEDDED or Path(name, MANIFEST).is_file():
        prepared = load_prepared(name)
        test = script.dataset_test_split
        others = [test] if test in prepared.splits else [split for split in prepared if split != "train"]
        return prepared.dataset(script.dataset_train_split), prepared.dataset(others[0]) if others else None
    if Path(name).is_file():
        rows = read(name)
        known = {"text", "input_ids"} & set(rows[0]) if len(rows) else set()
        return (rows if known else convert(rows)).to_dataset(), None
    from datasets import load_dataset
    from trl import get_dataset

    if mixture.datasets:
        found = get_dataset(mixture)
    elif name:
        found = load_dataset(name, name=script.dataset_config, streaming=script.dataset_streaming)
    else:
        raise NbkitError("The recipe names no data.", hint="dataset_name: train.jsonl", exit_code=2)
    return found[script.dataset_train_split], found.get(script.dataset_test_split)


def main(argv: list[str] | None = None) -> int:
    """Build, train, wait."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or not Path(arguments[0]).is_file():
        print("usage: python -m nbkit.training.from_recipe recipe.yaml", file=sys.stderr)
        return 2
    try:
        run = start(trainer(Path(arguments[0])), name=Path(arguments[0]).stem)
        print(f"{run.id}: {run.headline()}", flush=True)
        run.wait()
        print(f"{run.id}: {run.headline()}", flush=True)
    except NbkitError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
