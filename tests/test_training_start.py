"""Real training on two real layers in 4 bit: start, stop, resume, and every way to end early."""

from __future__ import annotations

import json
import shutil

import pytest

from nbkit import models, training
from nbkit.errors import ModelError, RunError, StorageError
from nbkit.training import manifest
from nbkit.training.recipe import read_yaml
from nbkit.training.repairs import fp32_adapters, score_trained_tokens_only
from nbkit.training.run import Run
from tests import little, tiny
from tests.waiting import until

pytestmark = [pytest.mark.train, pytest.mark.usefixtures("own_runs")]
TOKEN = "hf_" + "a1B2c3D4" * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two real layers of the embedded model."""
    return tiny.save_two_layers(models.embedded(), tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """A run of 4 steps with a token in its arguments, and whether it was under way when `start` returned."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("finished")
        patch.chdir(place)
        patch.setenv("NBKIT_RUNS", str(place / "runs"))
        run = training.start(tiny.trainer(folder, hub_token=TOKEN), name="t")
        active = run.status.active
        return run.wait(120), active


@pytest.mark.parametrize("trainer", [None, "trainer", {"model": 1}])
def test_what_is_no_trainer_is_refused(trainer):
    """Before anything is begun."""
    with pytest.raises(RunError, match="is no Trainer"):
        training.start(trainer)


@pytest.fixture
def first(finished, tmp_path):
    """A copy of that run in this test's own folder."""
    return Run(shutil.copytree(finished[0].path, tmp_path / "runs" / finished[0].id))


class TestStart:
    def test_returns_at_once_and_records_everything(self, finished):
        """The cell is free while training goes on; afterwards the directory holds the whole run."""
        run, active = finished
        assert active
        assert ("done", 4, 4) == (run.status.state, run.status.step, run.status.max_steps)
        assert [1, 2, 3, 4] == list(little.losses(run))
        assert (run.path / "adapter" / "adapter_model.safetensors").is_file()
        assert [] == list(run.path.rglob("training_args.bin"))
        assert ["started", "saved", "saved", "kept", "done"] == [event["event"] for event in run.events()]
        saved = manifest.checkpoints(run.path / "checkpoints")
        assert ["", ""] == [manifest.wrong(path) for path in saved]

    def test_config_is_what_trl_reads(self, folder, finished):
        """config.yaml goes through TRL's own parser and gives the same arguments."""
        from trl import ModelConfig, ScriptArguments, SFTConfig, TrlParser

        config = finished[0].path / "config.yaml"
        parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig))
        _, args, model = parser.parse_args_and_config(["--config", str(config)])
        assert (4, 1e-3, 2) == (args.max_steps, args.learning_rate, args.per_device_train_batch_size)
        assert (True, "nf4", 4, True) == (model.load_in_4bit, model.bnb_4bit_quant_type, model.lora_r, model.use_peft)
        assert str(folder) == read_yaml(config)["model_name_or_path"]

    def test_no_token_reaches_the_run(self, finished):
        """A hub token in the arguments is in no file of the run."""
        files = [path for path in finished[0].path.rglob("*") if path.is_file()]
        assert len(files) > 10
        assert [] == [path for path in files if TOKEN.encode() in path.read_bytes()]

    def test_a_second_run_in_the_kernel_waits_its_turn(self):
        """Two trainings in one process would fight for the device; a trainer that is only built disturbs none."""
        run = training.start(little.trainer(max_steps=4000, save_strategy="no"))
        until(lambda: run.status.state != "waiting", "the first run to begin")
        with pytest.raises(RunError, match="still active"):
            training.start(little.trainer())
        run.stop()
        run.wait(120)

    def test_a_failure_is_recorded_with_its_cause(self):
        """An exception in the worker reaches wait() with its text."""
        trainer = little.trainer()

        def broken(*_args, **_kwargs):
            raise ValueError("bad batch")

        trainer.compute_loss = broken
        run = training.start(trainer)
        with pytest.raises(RunError, match="failed at step 0: ValueError: bad batch"):
            run.wait(120)
        assert "failed" == training.latest().status.state

    def test_smoke_mode_is_short(self, monkeypatch):
        """NBKIT_SMOKE=1 is read here, so that the notebook is the same file."""
        monkeypatch.setenv("NBKIT_SMOKE", "1")
        run = training.start(little.trainer(max_steps=50, save_strategy="no")).wait(120)
        assert 3 == run.status.max_steps

    def test_runs_that_cannot_be_written_are_refused_at_once(self, tmp_path, monkeypatch):
        """A file in the place of the folder of runs: an error in the cell, not in the worker."""
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("NBKIT_RUNS", str(tmp_path / "file"))
        with pytest.raises(StorageError, match="Could not write"):
            training.start(little.trainer())


class TestStopAndResume:
    def test_a_stopped_run_resumes_bit_exactly(self, folder, finished):
        """Stopped, resumed in a fresh trainer, dropout on: every loss and every weight as if nothing had happened."""
        run = little.stopped_at(tiny.trainer(folder), 3, name="cut")
        assert ("stopped", 3) == (run.status.state, run.status.step)
        again = training.start(tiny.trainer(folder), resume="auto").wait(120)
        assert run.path == again.path
        assert ("done", 3) == (again.status.state, again.status.resumed_from)
        assert little.losses(finished[0]) == little.losses(again)
        assert little.weights(finished[0]) == little.weights(again)

    def test_a_finished_run_is_returned_as_it_is(self, folder, first):
        """Plain Trainer would train one step more each time."""
        trainer = tiny.trainer(folder)
        again = training.start(trainer, resume="auto")
        assert any(bool(p.any()) for name, p in trainer.model.named_parameters() if "lora_B" in name)
        assert (first.id, "done", 4) == (again.id, again.status.state, len(little.losses(again)))

    def test_another_recipe_is_not_resumed(self, folder, first):
        """auto starts anew; a named run is refused with the difference."""
        trainer = tiny.trainer(folder, learning_rate=5e-4)
        with pytest.raises(RunError, match=r"learning_rate: 0\.001, now 0\.0005"):
            training.start(trainer, resume=first)
        with pytest.raises(RunError, match="training rows"):
            training.start(tiny.trainer(folder, rows=32), resume=first)
        other = training.start(trainer, resume="auto")
        assert first.path != other.path
        other.stop()
        other.wait(120)


class TestGuards:
    def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(self, folder):
        """Trainer would log 0.0 and go on with dead weights."""
        trainer = tiny.trainer(folder, max_steps=20, save_steps=1)
        plain = trainer.compute_loss

        def poisoned(*args, **kwargs):
            loss = plain(*args, **kwargs)
            return loss * float("nan") if trainer.state.global_step == 2 else loss

        trainer.compute_loss = poisoned
        run = training.start(trainer)
        with pytest.raises(RunError, match=r"became nan at step 3; the weights of that step were not saved"):
            run.wait(120)
        assert "checkpoint-2" == manifest.newest(run.path / "checkpoints")[0].name
        assert not run.adapter.exists()

    def test_an_evaluated_model_is_refused(self, folder):
        """Not prepared and evaluated first: on a CPU that repacks weights the gradients would be wrong."""
        if not models.self_test("cpu").trap:
            pytest.skip("this CPU does not repack 4-bit weights (no AVX512-BF16)")
        trainer = tiny.trainer(folder, prepare=False)
        trainer.evaluate()
        with pytest.raises(ModelError, match="were repacked"):
            training.start(trainer)


class TestTrainedTokensOnly:
    def test_loss_and_gradients_are_those_of_trl(self, folder, monkeypatch):
        """Scoring trained tokens only changes the work, not the result."""
        import torch
        from trl.trainer import utils

        counts = []
        measured = utils._ChunkedLogProbFunction.apply
        monkeypatch.setattr(
            utils._ChunkedLogProbFunction,
            "apply",
            lambda hidden, *rest: counts.append(len(hidden)) or measured(hidden, *rest),
        )
        trainer, other = tiny.trainer(folder), tiny.trainer(folder)
        assert "trained tokens only" in score_trained_tokens_only(trainer)
        assert score_trained_tokens_only(trainer) == "", "once is enough"
        compact, plain = self._gradients(trainer), self._gradients(other)
        assert counts[0] < counts[1], "the other trainer scores every position, as TRL has it"
        assert plain[0] == pytest.approx(compact[0], rel=1e-6)
        assert float(torch.nn.functional.cosine_similarity(plain[1], compact[1], dim=0)) > 0.99999

    def test_a_prediction_knows_it(self, folder):
        """Within 6 % of a real step before and after the mending, from the trainer and from its arguments."""
        from nbkit import Program, data, predict
        from nbkit.data import tickets
        from nbkit.memory import measured_step

        trainer = tiny.trainer(folder, per_device_train_batch_size=8)
        plain, said_plain = measured_step(trainer).allocated_gib, predict(trainer).allocated_gib
        fp32_adapters(trainer)
        score_trained_tokens_only(trainer)
        mended, said_mended = measured_step(trainer).allocated_gib, predict(trainer).allocated_gib
        assert said_plain == pytest.approx(plain, rel=0.02)
        assert said_mended == pytest.approx(mended, rel=0.06)
        assert mended < 0.6 * plain
        rows = list(tickets.generate(train=64, held_out=4)["train"])
        rows = data.Rows(rows, list(range(1, 65)), "tickets")
        counts = data.token_stats(rows, trainer.processing_class, max_length=256)
        args = trainer.args
        by_args = predict(
            str(folder), args, peft_config=trainer.model.peft_config["default"], dataset=counts, dtype="float32",
            quantization_config=trainer.model.config.quantization_config, program=Program.nbkit(args),
        )  # fmt: skip
        assert by_args.allocated_gib == pytest.approx(said_mended, rel=1e-3)

    @staticmethod
    def _gradients(trainer):
        import torch

        fp32_adapters(trainer)
        torch.manual_seed(0)
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.model.train()
        torch.manual_seed(0)
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        return float(loss), torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


def test_wandb_works_offline_without_an_account(tmp_path, monkeypatch):
    """report_to="wandb" leaves an offline run in the directory, and the events say how to send it."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    run = training.start(little.trainer(max_steps=2, save_strategy="no", report_to="wandb")).wait(120)
    assert list((run.path / "wandb").glob("offline-run-*"))
    event = next(event for event in run.events() if event["event"] == "wandb")
    assert event["sync"].startswith("wandb sync ")
    import wandb

    wandb.finish()
    assert json.loads((run.path / "status.json").read_text())["state"] == "done"


def test_a_four_bit_sft_trainer_is_the_same_after_the_way_to_another_process(folder, tmp_path):
    """Written down and built again: 4-bit base by its path, adapter, prepared rows, collator; and the same first loss."""
    import torch

    from nbkit.training import carry, detach, rebuild, repairs, weights, worker
    from nbkit.training.recipe import data_identity

    trainer = tiny.trainer(folder)
    repairs.mend(trainer)
    spec, rows = carry.describe(trainer), carry.datasets(trainer)
    detach._write(trainer, spec, rows, worker.Job(tmp_path, None, data_identity(trainer)))
    launch = carry.folder_of(tmp_path)
    built = rebuild.trainer(rebuild.read(launch), launch, lambda _words: None)
    assert weights.digests(trainer.model) == weights.digests(built.model)
    assert trainer.train_dataset[0] == built.train_dataset[0]
    assert vars(trainer.data_collator) == vars(built.data_collator)
    losses = []
    for each in (trainer, built):
        torch.manual_seed(0)
        batch = next(iter(each.get_train_dataloader()))
        each.model.train()
        torch.manual_seed(0)
        losses.append(float(each.compute_loss(each.model, batch).detach()))
    assert losses[0] == losses[1]
