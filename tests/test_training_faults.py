"""What a run does about faults: nan, memory that is short, mirrors that break, a full disk; on the same small model."""

from __future__ import annotations

import sys
import threading

import pytest

from nbkit import atomic, training
from nbkit.errors import RunError, StorageError
from nbkit.training import manifest, oom
from tests import little
from tests.waiting import until

pytestmark = [pytest.mark.train, pytest.mark.usefixtures("own_runs")]


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
        place = tmp_path_factory.mktemp("undisturbed")
        patch.chdir(place)
        patch.setenv("NBKIT_RUNS", str(place / "runs"))
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
