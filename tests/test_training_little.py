"""How a run saves, stops, holds and goes on, on a model small enough to have every way: bit by bit, and by the clock."""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
import time

import pytest

from nbkit import atomic, training
from nbkit.errors import RunError, StorageError
from nbkit.training import checkpoint, manifest
from tests import little
from tests.waiting import until

pytestmark = [pytest.mark.train, pytest.mark.usefixtures("own_runs")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 8 steps that nothing disturbed: its losses and weights."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("whole")
        patch.chdir(place)
        patch.setenv("NBKIT_RUNS", str(place / "runs"))
        run = training.start(little.trainer(lora=True, eval_strategy="steps", eval_steps=4)).wait(120)
    return little.losses(run), little.weights(run)


def again(**arguments):
    """The trainer of `whole`, once more."""
    return little.trainer(lora=True, eval_strategy="steps", eval_steps=4, **arguments)


class TestCheckpoints:
    def test_are_private_whole_and_without_arguments(self, monkeypatch):
        """Folders 0700, files 0600, a manifest of what the run was, no pickle, and no planted token anywhere."""
        token = "hf_" + "a1B2c3D4" * 4
        monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2 + "01234567")
        run = training.start(little.trainer(hub_token=token)).wait(120)
        made = run.path / "checkpoints" / "checkpoint-8"
        assert "" == manifest.wrong(made)
        kept = manifest.read(made)
        assert (8, 64, {"per_device": 4, "accumulation": 1, "world": 1}) == (
            kept["step"],
            kept["data"]["rows"],
            kept["batch"],
        )
        assert {"versions", "seeds", "threads", "device", "files"} <= set(kept)
        for path in [run.path / "checkpoints", made, *made.rglob("*")]:
            assert (0o700 if path.is_dir() else 0o600) == stat.S_IMODE(path.stat().st_mode), path
        assert [] == list(run.path.rglob("training_args.bin"))
        secrets = (token.encode(), os.environ["WANDB_API_KEY"].encode())
        files = [path for path in run.path.rglob("*") if path.is_file()]
        assert [] == [path for path in files if any(secret in path.read_bytes() for secret in secrets)]

    def test_the_token_serves_and_is_never_pickled(self, tmp_path):
        """After a run, plain save_model writes training_args.bin without the token, which is still there to push with."""
        import copy

        token = "hf_" + "a1B2c3D4" * 4
        trainer = little.trainer(hub_token=token, max_steps=1)
        training.start(trainer).wait(60)
        trainer.save_model(str(tmp_path / "out"))
        assert token.encode() not in (tmp_path / "out" / "training_args.bin").read_bytes()
        assert (token, token) == (trainer.args.hub_token, copy.deepcopy(trainer.args).hub_token)

    def test_the_best_is_never_rotated_away(self):
        """save_total_limit=1, the first evaluation the best: it stays beside the newest, and is named where it stands."""
        trainer = little.trainer(
            save_total_limit=1, eval_strategy="steps", eval_steps=2, metric_for_best_model="loss", learning_rate=0.5
        )
        evaluate = trainer.evaluate
        values = iter([1.0, 2.0, 3.0, 4.0])

        def worse(**options):
            return {**evaluate(**options), "eval_loss": next(values)}

        trainer.evaluate = worse
        run = training.start(trainer).wait(120)
        assert ["checkpoint-8", "checkpoint-2"] == [p.name for p in manifest.checkpoints(run.path / "checkpoints")]
        state = json.loads((run.path / "checkpoints" / "checkpoint-8" / "trainer_state.json").read_text())
        assert str(run.path / "checkpoints" / "checkpoint-2") == state["best_model_checkpoint"]

    def test_older_ones_stay_when_the_new_one_reads_back_wrong(self, tmp_path):
        """A flipped bit between the save and the rotation: nothing is deleted, and the run says so."""
        trainer = little.trainer(save_total_limit=1)

        def flip(path):
            if path.name == "checkpoint-4":
                file = path / "optimizer.pt"
                file.write_bytes(file.read_bytes()[:-1] + b"\x01")

        trainer.args.output_dir = str(tmp_path / "out")
        with checkpoint.safely(trainer, flip), pytest.raises(StorageError, match=r"read back wrong: optimizer\.pt has"):
            trainer.train()
        assert "" == manifest.wrong(tmp_path / "out" / "checkpoint-2")

    def test_what_a_killed_save_left_is_swept_at_the_next_start(self):
        """Staging folders of a process that is gone go; the run says which."""
        run = training.start(little.trainer()).wait(120)
        shutil.rmtree(run.path / "checkpoints" / "checkpoint-8")
        dead = f".part-{atomic._machine()}-99999999-5.checkpoint-8.x"
        (run.path / "checkpoints" / dead).mkdir()
        status = json.loads((run.path / "status.json").read_text())
        (run.path / "status.json").write_text(json.dumps({**status, "state": "failed", "step": 7}))
        run = training.start(little.trainer(), resume="auto").wait(120)
        assert [dead] == next(event["swept"] for event in run.events() if event["event"] == "resumed")
        assert not (run.path / "checkpoints" / dead).exists()

    def test_a_full_disk_is_seen_before_the_save(self, monkeypatch):
        """The size of the last checkpoint is what the next one needs; without room the earlier ones stay."""
        trainer = little.trainer()
        usage = shutil.disk_usage
        saved = []
        monkeypatch.setattr(
            checkpoint.shutil, "disk_usage",
            lambda path: usage(path)._replace(free=64 * 2**20 + 1000) if list(trainer_root(trainer)) else usage(path),
        )  # fmt: skip
        run = training.start(trainer)
        with pytest.raises(RunError, match=r"A checkpoint needs 0\.06 GiB in .* are free"):
            run.wait(120)
        saved = manifest.checkpoints(run.path / "checkpoints")
        assert ["checkpoint-2"] == [path.name for path in saved]
        assert "" == manifest.wrong(saved[0])


def trainer_root(trainer):
    """Its checkpoints so far."""
    return manifest.checkpoints(checkpoint.Path(trainer.args.output_dir))


class TestStop:
    def test_in_the_middle_of_an_evaluation(self, whole):
        """A long evaluation is broken off; the checkpoint is valid, and the resumed run is the undisturbed one."""
        trainer = again(per_device_eval_batch_size=1)  # 16 steps of evaluation
        step = trainer.prediction_step
        evaluating, seen = threading.Event(), []

        def slow(*args, **options):
            seen.append(evaluating.set())
            time.sleep(1.0)
            return step(*args, **options)

        trainer.prediction_step = slow
        run = training.start(trainer)
        assert evaluating.wait(60)
        run.stop()
        assert "stopped" == run.wait(60).status.state
        assert (4, True) == (run.status.step, len(seen) < 16)
        done = training.start(again(per_device_eval_batch_size=1), resume="auto").wait(120)
        assert (run.path, "done") == (done.path, done.status.state)
        assert whole == (little.losses(done), little.weights(done))

    def test_while_samples_are_generated(self):
        """A long answer is broken off too."""
        trainer = little.trainer(eval_strategy="steps", eval_steps=2, max_steps=400)
        trainer.processing_class = little.tokenizer()

        def endless(module, _inputs, logits):
            if not module.training and logits.shape[1] == 1:  # a token of an answer, not an evaluation
                time.sleep(0.1)
                logits[..., 2] = -1e9
            return logits

        trainer.model.lm_head.register_forward_hook(endless)
        run = training.start(trainer, samples=["w3 w4"], sample_tokens=10_000)
        until(lambda: run.status.doing == "answering the samples")
        run.stop()
        run.wait(60)  # the whole answer would take 1,000 s
        assert ("stopped", []) == (run.status.state, run.samples())

    def test_of_a_limit_of_one_keeps_what_to_go_on_from(self):
        """Trainer deletes the last checkpoint at the end of a run with save_total_limit=1 and a better one before it."""
        options = {"save_total_limit": 1, "metric_for_best_model": "loss", "greater_is_better": True}
        run = little.stopped_at(again(**options), 7)
        last = manifest.checkpoints(run.path / "checkpoints")[0]
        assert ("checkpoint-7", "") == (last.name, manifest.wrong(last))

    def test_leaves_the_trainer_as_it_was(self):
        """Our callbacks and methods are gone after the run, so that evaluating in the notebook is only that."""
        trainer = little.trainer(save_total_limit=2, max_steps=2)
        before = (list(trainer.callback_handler.callbacks), set(vars(trainer)) & {"_evaluate", "_save_checkpoint"})
        run = training.start(trainer).wait(60)
        trainer.evaluate()
        assert "done" == run.status.state
        assert before == (
            list(trainer.callback_handler.callbacks),
            set(vars(trainer)) & {"_evaluate", "_save_checkpoint"},
        )
        assert 2 == trainer.args.save_total_limit


class TestPause:
    def test_holds_after_the_step_and_goes_on_bit_exactly(self, whole):
        """Paused, looked at, let go: the losses and weights of a run that was never paused."""
        trainer, asked = again(), threading.Event()
        plain = trainer.training_step
        trainer.training_step = lambda *args, **options: plain(*args, **options) if asked.wait(60) else None
        run = training.start(trainer)
        run.pause()
        asked.set()  # it is not over before that
        until(lambda: run.status.state == "paused")
        held = run.status.step
        assert "" == manifest.wrong(run.path / "checkpoints" / f"checkpoint-{held}")
        assert run.pausing
        time.sleep(0.3)
        assert (held, "paused") == (run.status.step, run.status.state)
        run.unpause()
        run.wait(60)
        assert whole == (little.losses(run), little.weights(run))
        assert [name for name in little.events(run) if "pause" in name] == ["paused", "unpaused"]

    def test_a_paused_run_can_be_stopped(self):
        """Stop ends it where it holds; the checkpoint of that step is not saved a second time."""
        run = training.start(little.trainer(max_steps=400, save_strategy="no"))
        run.pause()
        until(lambda: run.status.state == "paused")
        run.stop()
        run.wait(60)
        assert ["started", "saved", "paused", "stopping", "kept", "stopped"] == little.events(run)


class TestResume:
    def test_a_damaged_checkpoint_is_skipped_and_said(self, whole):
        """The newest has a flipped bit: the one before is taken, and the run ends as the undisturbed one."""
        run = little.stopped_at(again(), 5)
        newest = manifest.checkpoints(run.path / "checkpoints")[0]
        file = newest / "optimizer.pt"
        file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
        done = training.start(again(), resume="auto").wait(120)
        notes = next(event for event in done.events() if event["event"] == "resumed")["notes"]
        assert [f"resume: skipped {newest.name}: optimizer.pt has changed (sha256)"] == notes
        assert whole == (little.losses(done), little.weights(done))

    def test_an_unfinished_run_of_another_recipe_is_not_left_behind(self):
        """auto refuses and names the difference; resume=None starts anew."""
        run = little.stopped_at(little.trainer(), 3, name="t")
        refused = pytest.raises(
            RunError, match=r"is unfinished (.|\n)*learning_rate: 0\.01, now 0\.02(.|\n)*resume=None"
        )
        with refused:
            training.start(little.trainer(learning_rate=0.02), name="t", resume="auto")
        for second in range(60):  # as where both start in one second
            started = time.strftime("%Y%m%d-%H%M%S", time.localtime(time.time() + second))
            (run.path.parent / f"{started}-t").mkdir(exist_ok=True)
        with refused:
            training.start(little.trainer(learning_rate=0.02), name="t", resume="auto")
        assert "done" == training.start(little.trainer(learning_rate=0.02), name="t").wait(60).status.state

    @pytest.mark.parametrize("lora", [True, False])
    def test_a_run_killed_after_its_last_save_does_no_step_more(self, lora):
        """All steps done, the result not kept yet: the resumed run only keeps it (plain Trainer would train a ninth)."""
        options = {"lora": lora, "lr_scheduler_type": "constant", "save_steps": 8}
        run = training.start(little.trainer(**options)).wait(60)
        expected = little.losses(run), little.weights(run)
        shutil.rmtree(run.adapter)
        status = json.loads((run.path / "status.json").read_text())
        (run.path / "status.json").write_text(json.dumps({**status, "state": "failed"}))
        done = training.start(little.trainer(**options), resume="auto").wait(60)
        assert (run.path, "done", 8) == (done.path, done.status.state, done.status.step)
        assert expected == (little.losses(done), little.weights(done))

    @pytest.mark.parametrize("argument", ["ignore_data_skip", "save_only_model"])
    def test_what_breaks_it_is_refused(self, argument):
        """Rows that start over, or an optimizer that is not saved."""
        with pytest.raises(RunError, match=rf"{argument}=True cannot be resumed"):
            training.start(little.trainer(**{argument: True}), resume="auto")

    def test_the_newest_run_is_the_one_resumed_last(self):
        """Not the one with the latest name."""
        first = little.stopped_at(little.trainer(), 7, name="a")
        second = training.start(little.trainer(max_steps=1), name="b").wait(60)
        assert second.path == training.latest().path
        training.start(little.trainer(), resume=first).wait(60)
        assert first.path == training.latest().path


class TestSamples:
    def test_answers_are_noted_and_change_nothing(self, whole):
        """Texts and conversations at each evaluation and at the end; losses and weights are those without them, also of
        a model that draws random numbers as it answers.
        """
        import torch

        trainer = again(save_strategy="no")
        trainer.processing_class = little.tokenizer()
        trainer.model.get_output_embeddings().register_forward_hook(
            lambda module, _inputs, logits: torch.rand(1) * 0 + logits if len(logits) == 1 else logits
        )
        prompts = ["w3 w4 w5", [{"role": "user", "content": "w9 w10"}]]
        run = training.start(trainer, samples=prompts, sample_tokens=5).wait(60)
        assert [(4, 0), (4, 1), (8, 0), (8, 1)] == [(row["step"], row["index"]) for row in run.samples()]
        assert {"w3 w4 w5", "w9 w10"} == {row["prompt"] for row in run.samples()}
        assert all(0 < len(row["text"].split()) <= 5 for row in run.samples())
        assert whole == (little.losses(run), little.weights(run))
        assert all(row.get("loss", 1) is not None for row in run.metrics())

    def test_a_trainer_without_a_tokenizer_is_refused_at_once(self):
        """In the cell, not in the worker."""
        with pytest.raises(RunError, match="samples need a tokenizer"):
            training.start(little.trainer(), samples=["w3"])

    def test_another_kind_of_prompt_is_refused(self):
        """The error shows the two that are understood."""
        trainer = little.trainer()
        trainer.processing_class = little.tokenizer()
        with pytest.raises(RunError, match="a text or a list of messages, not int"):
            training.start(trainer, samples=[3])
