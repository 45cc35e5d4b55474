"""What the notebooks of these tests import: a run whose steps cost nothing, and a small one that truly trains."""

from __future__ import annotations

import math
import random
import threading
import time

from nbkit.training import Run
from nbkit.training.record import Recorder, new_path


def row(step, total):
    """What a trainer logs at one step: a loss that falls, with noise of a fixed seed."""
    noise = random.Random(step).gauss(0, 0.04)
    return {
        "loss": 2.2 * math.exp(-3 * step / total) + 0.4 + noise,
        "grad_norm": 0.8 + abs(noise) * 4,
        "learning_rate": 2e-4 * (1 - step / total),
        "num_tokens": step * 1024.0,
    }


def write(recorder, total, every_s):
    """Steps at a steady pace until `total` or until asked to stop; a pause holds them."""
    step = 0
    recorder.set("training", max_steps=total)
    due = time.monotonic()
    while step < total and not recorder.stop_asked:
        if recorder.pause_asked:
            recorder.set("paused")
            while recorder.pause_asked and not recorder.stop_asked:
                time.sleep(0.02)
            recorder.set("training")
            due = time.monotonic()
            continue
        step += 1
        recorder.row(step, row(step, total))
        if step % 50 == 0:
            recorder.row(step, {"eval_loss": row(step, total)["loss"] + 0.1})
        recorder.step(step)
        due += every_s
        time.sleep(max(0.0, due - time.monotonic()))
    end = "stopped" if recorder.stop_asked else "done"
    recorder.event(end, step=step, ended=time.time())
    recorder.set(end, step=step)


def begin(total=2000, every_s=0.05, name="steps"):
    """Start such a run in a thread of this kernel and return it: 20 steps/s unless told otherwise."""
    recorder = Recorder(new_path(name))
    threading.Thread(target=write, args=(recorder, total, every_s), daemon=True).start()
    return Run(recorder.path)


def trainer(max_steps=3000, **arguments):
    """A real transformers Trainer: LoRA on two layers of 32 numbers, some ten milliseconds a step."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **size)).save_pretrained("base")
    model = LlamaForCausalLM.from_pretrained("base")
    ids = torch.randint(0, 64, (64, 16)).tolist()
    options = {
        "max_steps": max_steps, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "use_cpu": True,
        "save_strategy": "no", "report_to": [], "logging_steps": 1, "output_dir": "unused",
        "dataloader_pin_memory": False, **arguments,
    }  # fmt: skip
    return Trainer(
        model=get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")),
        args=TrainingArguments(**options),
        train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}),
    )


def fast(refreshes, per_s):
    """A dashboard that is refreshed far more often than it would be by itself: one row each, from a thread."""
    from IPython.display import display

    from nbkit.widgets.dashboard import Dashboard
    from nbkit.widgets.feed import Feed

    recorder = Recorder(new_path("fast"))
    recorder.set("training", max_steps=2 * refreshes)
    dashboard = Dashboard(Feed(Run(recorder.path)))
    display(dashboard)

    def work():
        due = time.monotonic()
        for step in range(1, refreshes + 1):
            recorder.row(step, row(step, refreshes))
            recorder.step(step)
            recorder.flush()
            dashboard.refresh()
            due += 1 / per_s
            time.sleep(max(0.0, due - time.monotonic()))

    threading.Thread(target=work, daemon=True).start()
