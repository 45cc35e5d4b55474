"""A trainer small enough to be killed hundreds of times: a Llama of 20,000 weights from a config, no files, no tokenizer.

A whole run takes a fraction of a second, so the tests of stops, faults and resumes can have many.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

from tests.waiting import until

VOCABULARY = 64


def model(seed: int = 0, **changes: Any) -> Any:
    """A new Llama with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    options = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
               "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 64,
               "attention_dropout": 0.1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **changes}  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**options))


def rows(number: int = 64, length: int = 16) -> Any:
    """A dataset of made token ids that a model can learn: counting upwards from somewhere."""
    from datasets import Dataset

    made = [[3 + (start + place) % (VOCABULARY - 3) for place in range(length)] for start in range(number)]
    return Dataset.from_dict({"input_ids": made, "labels": made, "attention_mask": [[1] * length] * number})


def trainer(
    folder: Path | str = "unused", *, kind: Any = None, lora: bool = False, given: Any = None, **arguments: Any
) -> Any:
    """A plain Trainer on `rows()`, 8 steps, a checkpoint every 2; `arguments` go to TrainingArguments.

    Args:
        kind: A subclass of Trainer.
        lora: Train an adapter with dropout in place of the whole model.
        given: A model in place of a new one.
    """
    from transformers import Trainer, TrainingArguments

    options: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 1e-2,
        "use_cpu": True, "save_steps": 2, "report_to": [], "seed": 0, "dataloader_pin_memory": False, "disable_tqdm": True,
        **arguments,
    }  # fmt: skip
    network = given if given is not None else model()
    if lora:
        from peft import LoraConfig, get_peft_model

        network = get_peft_model(
            network, LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
        )
    return (kind or Trainer)(
        model=network, args=TrainingArguments(**options), train_dataset=rows(), eval_dataset=rows(16)
    )


def tokenizer() -> Any:
    """One word a token: `w3 w4 w5`; with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{n}": n for n in range(3, VOCABULARY)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    made.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    return made


def leave_nothing(folder: Path) -> None:
    """End every run of `folder`, those in threads of this process and those in processes of their own."""
    import psutil

    from nbkit.training import runs

    found = runs(folder)
    for run in found:
        (run.path / "STOP").touch()
        run.unpause()
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "nbkit.training.script" in words and any(str(folder) in word for word in words):
            with contextlib.suppress(psutil.Error):
                process.kill()
                process.wait(30)
    names = {run.id for run in found}
    for thread in [thread for thread in threading.enumerate() if thread.name in names]:
        thread.join(60)


def stopped_at(trainer: Any, step: int, **options: Any) -> Any:
    """Start `trainer` and stop it after `step`, however slow or fast the machine is. Returns: The run, ended."""
    from nbkit import training

    reached, goes_on, plain = threading.Event(), threading.Event(), trainer.training_step

    def held(*args: Any, **given: Any) -> Any:
        if trainer.state.global_step == step - 1:
            reached.set()
            goes_on.wait(120)
        return plain(*args, **given)

    trainer.training_step = held
    run = training.start(trainer, **options)
    try:
        reached.wait(120)
        run.stop()
        until(lambda: run._recorder.stop_asked, "the request to stop")
    finally:
        goes_on.set()
    run.wait(120)
    del trainer.training_step
    return run


def events(run: Any) -> list[str]:
    """The names of what happened, in order."""
    return [event["event"] for event in run.events()]


def losses(run: Any) -> dict[int, float]:
    """Training losses by step."""
    return {row["step"]: row["loss"] for row in run.metrics() if "loss" in row}


def weights(run: Any) -> bytes:
    """The result's bytes."""
    name = "adapter_model.safetensors" if run.adapter.name == "adapter" else "model.safetensors"
    return (run.adapter / name).read_bytes()
