"""A run in a process of its own: the same losses, alive after its starter was killed, and nothing left out silently."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest

from nbkit import training
from nbkit.errors import RunError
from nbkit.training import carry, detach, devices, manifest, rebuild, repairs, worker
from nbkit.training.recipe import data_identity
from nbkit.training.run import Run
from nbkit.training.status import process_started
from tests import little
from tests.waiting import until

pytestmark = [pytest.mark.train, pytest.mark.usefixtures("own_runs")]
LONG_S = 240  # a process that loads torch on a busy machine; below the 300 s that a test may take


def until_it(run, holds):
    """Wait until `holds()`; an AssertionError when the run ends first, or after a long time."""
    until(lambda: holds() or not run.status.active, within_s=LONG_S)
    assert holds(), run.status


STARTER = """
import os, signal
from nbkit import training
from tests import little
trainer = little.trainer(lora=True, eval_strategy="steps", eval_steps=4, hub_token="hf_" + "a1B2c3D4" * 4)
trainer.processing_class = little.tokenizer()
run = training.start(trainer, name="away", detach=True, samples=["w3 w4"], sample_tokens=4)
print(run.path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


class TestDetached:
    def test_outlives_its_starter_with_the_same_losses(self):
        """The starter is killed as soon as it has the run; 8 steps later losses and adapter are those of a thread's run."""
        trainer = little.trainer(lora=True, eval_strategy="steps", eval_steps=4)
        trainer.processing_class = little.tokenizer()
        here = training.start(trainer, name="here", samples=["w3 w4"], sample_tokens=4).wait(120)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(
            [sys.executable, "-c", STARTER], env=env, capture_output=True, text=True, timeout=LONG_S, check=False
        )
        assert -9 == done.returncode, done.stderr
        run = Run(done.stdout.strip())
        run.wait(LONG_S)
        assert ("done", 8) == (run.status.state, run.status.step)
        assert little.losses(here) == little.losses(run)
        assert little.weights(here) == little.weights(run)
        assert [row["text"] for row in here.samples()] == [row["text"] for row in run.samples()]
        assert 0o600 == stat.S_IMODE((run.path / "run.log").stat().st_mode)
        until(lambda: not (run.path / "launch").exists())
        files = [path for path in run.path.rglob("*") if path.is_file()]
        assert [] == [path for path in files if b"hf_a1B2" in path.read_bytes()]

    def test_is_followed_paused_and_stopped_from_here(self):
        """start returns while it loads; then pause, stop, and a resume in a thread goes on where it was."""
        run = training.start(little.trainer(max_steps=4000), detach=True)
        assert "waiting" == run.status.state
        pid = run.status.pid
        assert (True, pid) == (pid != os.getpid(), os.getsid(pid))
        until_it(run, lambda: run.status.step >= 1)
        run.pause()
        until_it(run, lambda: run.status.state == "paused")
        beside = devices.notes("cpu", run.path.parent / "another", detach=True)
        assert [f"device: {run.id} trains on this CPU too (paused, process {pid})"] == [
            n.partition(": both")[0] for n in beside
        ]
        run.stop()
        run.wait(LONG_S)
        assert "stopped" == run.status.state
        assert "" == manifest.wrong(run.path / "checkpoints" / f"checkpoint-{run.status.step}")
        until(lambda: not process_started(pid))
        at = run.status.step
        again = training.start(little.trainer(max_steps=4000), resume="auto")
        assert run.path == again.path
        until_it(again, lambda: again.status.step > at)
        again.stop()
        assert at == again.wait(120).status.resumed_from


def written_and_built(trainer, folder):
    """The trainer after the way through files, in this process."""
    repairs.mend(trainer)
    spec, rows = carry.describe(trainer), carry.datasets(trainer)
    detach._write(trainer, spec, rows, worker.Job(folder, None, data_identity(trainer)))
    launch = carry.folder_of(folder)
    return rebuild.trainer(rebuild.read(launch), launch, lambda _words: None)


class TestCarried:
    def test_a_collator_functions_and_callbacks_come_along(self, tmp_path):
        """By import, with their values; the arguments are the same field by field."""
        from transformers import DataCollatorWithPadding, EarlyStoppingCallback

        trainer = little.trainer(
            eval_strategy="steps", save_strategy="steps", load_best_model_at_end=True, warmup_steps=3, save_steps=500
        )
        trainer.processing_class = little.tokenizer()
        trainer.data_collator = DataCollatorWithPadding(trainer.processing_class, pad_to_multiple_of=8)
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=7))
        built = written_and_built(trainer, tmp_path)
        assert 8 == built.data_collator.pad_to_multiple_of
        assert built.processing_class is built.data_collator.tokenizer
        patience = [c.early_stopping_patience for c in built.callback_handler.callbacks if "Early" in type(c).__name__]
        assert [7] == patience
        assert carry.arguments(trainer.args) == carry.arguments(built.args)

    def test_a_base_that_was_changed_in_memory_is_noticed(self, tmp_path):
        """Loaded by path, then changed: the other process would train another model, so it refuses."""
        import torch
        from transformers import LlamaForCausalLM

        little.model().save_pretrained(tmp_path / "base")
        changed = LlamaForCausalLM.from_pretrained(tmp_path / "base")
        with torch.no_grad():
            changed.lm_head.weight.mul_(1.5)
        with pytest.raises(RunError, match=r"not the one that was given (.|\n)*lm_head"):
            written_and_built(little.trainer(lora=True, given=changed), tmp_path / "run")

    def test_frozen_parts_stay_frozen(self, tmp_path):
        """A full model with a frozen embedding."""
        made = little.model()
        made.model.embed_tokens.weight.requires_grad_(False)
        built = written_and_built(little.trainer(given=made), tmp_path)
        assert ["model.embed_tokens.weight"] == [n for n, p in built.model.named_parameters() if not p.requires_grad]


class TestRefused:
    """Each by name, before anything is written."""

    def refused(self, trainer, match):
        with pytest.raises(RunError, match=match):
            training.start(trainer, detach=True)
        assert [] == training.runs()

    def test_a_class_of_the_notebook(self):
        """A subclass that only lives here."""
        from transformers import Trainer

        class Mine(Trainer):
            pass

        self.refused(
            little.trainer(kind=Mine), r"the trainer's class \(.*Mine\) is defined where another process cannot"
        )

    def test_a_lambda(self):
        """compute_metrics must be importable."""
        trainer = little.trainer()
        trainer.compute_metrics = lambda _: {}
        self.refused(trainer, r"compute_metrics \(.*<lambda>\) is defined")

    def test_a_replaced_method(self):
        """A method set on the object."""
        trainer = little.trainer()
        trainer.compute_loss = lambda *_args, **_options: None
        self.refused(trainer, r"trainer\.compute_loss was replaced on this object")

    def test_an_optimizer(self):
        """An object with state."""
        import torch

        trainer = little.trainer()
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), 0.1)
        self.refused(trainer, "an optimizer of its own")

    def test_a_callback_that_holds_more_than_values(self):
        """A callback with a function inside."""
        from transformers import EarlyStoppingCallback

        trainer = little.trainer()
        callback = EarlyStoppingCallback()
        callback.when = print
        trainer.add_callback(callback)
        self.refused(trainer, r"the callback EarlyStoppingCallback\.when is a builtin_function_or_method")

    def test_a_token_it_would_need(self):
        """Pushing with a token given by hand; set afterwards, as building such a trainer asks the hub."""
        trainer = little.trainer()
        trainer.args.push_to_hub, trainer.args.hub_token = True, "hf_" + "a1B2c3D4" * 4
        self.refused(trainer, "hub_token is not written to disk")

    def test_a_stream(self):
        """Rows without an end."""
        trainer = little.trainer()
        trainer.train_dataset = trainer.train_dataset.to_iterable_dataset()
        self.refused(trainer, "The train rows are a IterableDataset")
