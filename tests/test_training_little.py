"""Every way a run can end, hold or go on, on a model small enough to have them all: bit by bit, and by the clock."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import threading
import time

import pytest

from nbkit import atomic, training
from nbkit.errors import RunError, StorageError
from nbkit.training import checkpoint, manifest, oom
from nbkit.training.run import Run
from tests import little
from tests.waiting import until

pytestmark = [pytest.mark.train, pytest.mark.usefixtures("own_runs")]


def events(run):
    """The names of what happened, in order."""
    return [event["event"] for event in run.events()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 8 steps that nothing disturbed: its losses and weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NBKIT_RUNS", str(tmp_path_factory.mktemp("whole")))
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
        trainer = again()
        run = training.start(trainer)
        run.pause()
        until(lambda: run.status.state == "paused")
        held = run.status.step
        assert "" == manifest.wrong(run.path / "checkpoints" / f"checkpoint-{held}")
        assert run.pausing
        time.sleep(0.3)
        assert (held, "paused") == (run.status.step, run.status.state)
        run.unpause()
        run.wait(60)
        assert whole == (little.losses(run), little.weights(run))
        assert [name for name in events(run) if "pause" in name] == ["paused", "unpaused"]

    def test_a_paused_run_can_be_stopped(self):
        """Stop ends it where it holds; the checkpoint of that step is not saved a second time."""
        run = training.start(little.trainer(max_steps=400, save_strategy="no"))
        run.pause()
        until(lambda: run.status.state == "paused")
        run.stop()
        run.wait(60)
        assert ["started", "saved", "paused", "stopping", "kept", "stopped"] == events(run)


class TestNotFinite:
    def test_a_nan_inside_an_accumulated_step_changes_no_weight(self):
        """The second of two micro-batches of step 3 is nan: the weights are those of step 2, and so is the checkpoint."""
        import torch

        trainer = little.trainer(gradient_accumulation_steps=2, save_steps=1)
        plain, seen = trainer.compute_loss, []

        def poisoned(*args, **options):
            seen.append(1)
            return plain(*args, **options) * (float("nan") if len(seen) == 6 else 1.0)

        trainer.compute_loss = poisoned
        run = training.start(trainer)
        with pytest.raises(RunError, match="loss became nan at step 3"):
            run.wait(60)
        last = manifest.newest(run.path / "checkpoints")[0]
        from safetensors.torch import load_file

        saved = load_file(last / "model.safetensors")
        assert "checkpoint-2" == last.name
        assert all(
            torch.equal(saved[name], value) for name, value in trainer.model.state_dict().items() if name in saved
        )
        assert (None, ["loss"]) == (
            run.metrics()[-1]["loss"],
            [k for k in run.metrics()[-1]["nonfinite"] if k == "loss"],
        )

    def test_a_gradient_that_is_not_finite_ends_the_run(self):
        """The loss is fine, a gradient is not."""
        trainer = little.trainer(save_steps=1)
        weight = next(iter(trainer.model.parameters()))
        weight.register_hook(lambda grad: grad * float("inf") if trainer.state.global_step == 2 else grad)
        run = training.start(trainer)
        with pytest.raises(RunError, match=r"grad_norm became (nan|inf) at step 3"):
            run.wait(60)
        assert "checkpoint-2" == manifest.newest(run.path / "checkpoints")[0].name

    def test_weights_that_overflowed_are_not_saved(self):
        """Finite gradients and a mad learning rate: the save is refused, the earlier checkpoint stays."""
        import torch

        trainer = little.trainer(save_steps=1)
        run_step = trainer.training_step

        def broken(*args, **options):
            loss = run_step(*args, **options)
            if trainer.state.global_step == 2:
                with torch.no_grad():
                    trainer.model.lm_head.weight[0, 0] = float("inf")
            return loss

        trainer.training_step = broken
        run = training.start(trainer)
        with pytest.raises(RunError, match=r"weights are not finite"):
            run.wait(60)
        assert "checkpoint-2" == manifest.newest(run.path / "checkpoints")[0].name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The losses of 8 steps without dropout, with memory enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NBKIT_RUNS", str(tmp_path_factory.mktemp("undisturbed")))
        trainer = little.trainer(given=little.model(attention_dropout=0.0), save_strategy="no")
        return little.losses(training.start(trainer).wait(60))


class TestOutOfMemory:
    @pytest.mark.parametrize("at", [0, 3])
    def test_goes_on_once_with_half_the_batch(self, undisturbed, at):
        """Torch's own error for more than 2 rows, from the start or in mid-run: same rows a step, nearly the same loss."""
        import torch

        trainer = little.trainer(given=little.model(attention_dropout=0.0), save_strategy="no")
        plain = trainer.compute_loss

        def hungry(model, inputs, **options):
            if len(inputs["input_ids"]) > 2 and trainer.state.global_step >= at:
                torch.empty(2**60)  # RuntimeError: DefaultCPUAllocator: can't allocate memory
            return plain(model, inputs, **options)

        trainer.compute_loss = hungry
        run = training.start(trainer).wait(60)
        event = next(event for event in run.events() if event["event"] == "memory")
        assert "4 x 1 to 2 x 2" in event["batch"]
        assert ("checkpoint-3" if at else "the beginning") == event["goes_on_from"]
        assert undisturbed == pytest.approx(little.losses(run), rel=1e-4)
        assert (4, 1) == (trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps)

    def test_a_second_time_fails_with_what_to_do(self):
        """Half is still too much: the error says so, and what to change."""
        import torch

        trainer = little.trainer()
        trainer.compute_loss = lambda *args, **options: torch.empty(2**60)
        run = training.start(trainer)
        with pytest.raises(RunError, match=r"Out of memory again with half the batch: (.|\n)*shorten max_length"):
            run.wait(60)

    @pytest.mark.parametrize(
        ("batch", "accumulation", "smaller"),
        [(4, 1, (2, 2)), (3, 2, (1, 6)), (6, 1, (3, 2)), (5, 1, (1, 5)), (1, 8, None)],
    )
    def test_the_effective_batch_stays(self, batch, accumulation, smaller):
        """Half at most, and the product as it was."""
        assert smaller == oom.smaller(batch, accumulation)


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
        little.stopped_at(little.trainer(), 3, name="t")
        with pytest.raises(RunError, match=r"is unfinished (.|\n)*learning_rate: 0\.01, now 0\.02(.|\n)*resume=None"):
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


class TestMirrors:
    def test_one_that_breaks_or_hangs_is_left_alone(self):
        """A reporting callback raises, another blocks at its first row: all steps are done, and the run says it."""
        from transformers import TrainerCallback

        release = threading.Event()

        class BrokenCallback(TrainerCallback):
            def on_train_begin(self, args, state, control, **_):
                raise ConnectionError("no network")

        class SlowCallback(TrainerCallback):
            def on_log(self, args, state, control, **_):
                release.wait(60)

        trainer = little.trainer(save_strategy="no")
        for kind in (BrokenCallback, SlowCallback):
            kind.__module__ = "transformers.integrations.test"
            trainer.add_callback(kind)
        run = training.start(trainer)
        until(lambda: run.status.step >= 8)
        release.set()
        run.wait(60)
        off = {event["name"]: event["off"] for event in run.events() if event["event"] == "mirror"}
        assert {"broken": "ConnectionError: no network"} == off

    def test_trackio_writes_its_local_database(self, tmp_path, monkeypatch):
        """Without a login and with a Space set: it stays local, says so, holds the run's rows, and calls nobody."""
        import socket

        pytest.importorskip("trackio")
        monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/space")
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
        for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
            monkeypatch.delitem(sys.modules, name)  # it reads its folder when it is imported
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        called = []
        connect = socket.socket.connect

        def local_only(self, address, *rest):
            if self.family != socket.AF_UNIX and address[0] not in {"127.0.0.1", "::1", "localhost"}:
                called.append(address)
                raise OSError("no network in this test")
            return connect(self, address, *rest)

        monkeypatch.setattr(socket.socket, "connect", local_only)
        run = training.start(little.trainer(report_to=["trackio"], project="p", run_name="r", save_strategy="no")).wait(
            120
        )
        said = [event for event in run.events() if event["event"] in {"trackio", "mirror"}]
        assert ["no login for the Space someone/space: hf auth login"] == [event.get("why") for event in said]
        from trackio.sqlite_storage import SQLiteStorage

        rows = SQLiteStorage.get_logs("p", "r")
        assert 8 == sum("train/loss" in row for row in rows)
        assert [] == called


def test_status_of_a_run_whose_disk_filled_is_told(monkeypatch):
    """The end could not be written down; the kernel that trains knows it all the same."""
    run = training.start(little.trainer(max_steps=400))
    until(lambda: run.status.step >= 1)
    real = atomic.write_json

    def full(path, *args, **options):
        if path.name == "status.json":
            raise StorageError("The disk is full")
        return real(path, *args, **options)

    monkeypatch.setattr(atomic, "write_json", full)
    run.stop()
    with pytest.raises(RunError, match="The disk is full"):
        run.wait(60)
    assert isinstance(run, Run)
