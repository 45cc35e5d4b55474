"""Real steps beside their prediction: kept by device, method and versions, and used by the next prediction there."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nbkit.errors import NbkitError
from nbkit.memory import calibration

SEEN = calibration.Calibration("RTX 4090", "trl.SFTTrainer, full", "a model", 10.0, 9.8, 10.6, {"torch": "2"}, 1.0)


@pytest.fixture(autouse=True)
def _state(tmp_path, monkeypatch):
    monkeypatch.setenv("NBKIT_STATE", str(tmp_path / "state"))


def trainer(folder, **arguments):
    """A transformers Trainer of a Llama of two layers, with eight rows of 96 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    model = LlamaForCausalLM(
        LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=8,
                    num_key_value_heads=2, vocab_size=2048, max_position_embeddings=512, dtype="float32")
    )  # fmt: skip
    args = TrainingArguments(
        output_dir=str(folder), use_cpu=True, optim="adamw_torch", report_to=[], per_device_train_batch_size=4,
        max_steps=2, save_strategy="no", seed=7, **arguments,
    )  # fmt: skip
    rows = [{"input_ids": [one + 1] * 96, "labels": [one + 1] * 96} for one in range(8)]
    return Trainer(model=model, args=args, train_dataset=rows)


class TestRecords:
    def test_only_the_same_device_method_and_versions_count(self):
        """A record of another card, method or library version says nothing about this one."""
        calibration.path().parent.mkdir(parents=True)
        others = [replace(SEEN, device="T4"), replace(SEEN, method="other"), replace(SEEN, versions={"torch": "1"})]
        calibration.path().write_text(json.dumps([vars(one) for one in (SEEN, *others)]))
        assert (SEEN,) == calibration.earlier(SEEN.device, SEEN.method, SEEN.versions)

    def test_the_bar_is_the_largest_difference_and_a_margin(self):
        """2 % below and 5 % above, seen: 6 % either way."""
        assert 0.05 + calibration.MARGIN == pytest.approx(calibration.bar([SEEN, replace(SEEN, measured_gib=10.5)]))

    @pytest.mark.parametrize("text", ["", "{", "[1]", '[{"device": "cpu"}]'])
    def test_a_damaged_file_is_no_file(self, text):
        """What cannot be read is measured again, not trusted and not raised."""
        calibration.path().parent.mkdir(parents=True)
        calibration.path().write_text(text)
        assert () == calibration.earlier(SEEN.device, SEEN.method, SEEN.versions)

    def test_a_card_is_named_as_the_catalogue_does(self):
        """The driver's name and the user's are one device; a GPU that is neither named nor here has no records."""
        pytest.importorskip("torch")
        assert "RTX 4090" == calibration.device("NVIDIA GeForce RTX 4090", True)
        assert "Some GPU 9" == calibration.device("Some GPU 9", True)
        assert "cpu" == calibration.device(None, False)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
class TestRealSteps:
    @pytest.fixture(autouse=True)
    def _needs_torch(self):
        pytest.importorskip("transformers")

    def test_two_real_steps_narrow_the_next_prediction(self, tmp_path):
        """The difference on this CPU is within 15 %, it is kept, and the next prediction says so and rests on it."""
        from nbkit.memory import predict

        one = trainer(tmp_path)
        before = predict(one, seq=96)
        found = calibration.calibrate(one)
        after = predict(one, seq=96)
        assert found.ratio == pytest.approx(1, abs=0.15)
        assert ("cpu", "transformers.Trainer, full") == (found.device, found.method)
        assert not any("measured on cpu" in note for note in before.notes)
        assert any("1 measured on cpu before" in note for note in after.notes)
        assert after.allocated_gib == before.allocated_gib
        share = abs(found.ratio - 1) + calibration.MARGIN
        assert after.allocated_gib * (1 - share) + 0.5 == pytest.approx(after.low_gib, abs=1e-3)

    def test_a_run_records_it_and_trains_as_without(self, tmp_path, monkeypatch):
        """`start(calibrate=True)` writes a memory event; every loss is that of a run that did not measure."""
        from transformers import set_seed

        from nbkit import training

        losses = []
        for measures in (False, True):
            monkeypatch.setenv("NBKIT_RUNS", str(tmp_path / f"runs-{measures}"))
            set_seed(7)
            run = training.start(trainer(tmp_path / "out"), calibrate=measures)
            run.wait()
            losses.append([row["loss"] for row in run.metrics() if "loss" in row])
            events = [one for one in run.events() if one["event"] == "memory"]
            assert int(measures) == len(events)
        assert events[0]["measured_gib"] > 0
        assert events[0]["ratio"] == pytest.approx(1, abs=0.15)
        assert "times as much" in events[0]["calibration"]
        assert losses[0] == losses[1]
        assert losses[0]

    def test_what_cannot_be_measured_does_not_end_the_run(self, tmp_path, monkeypatch):
        """A trainer whose step cannot be predicted trains all the same, and the event says why."""
        from nbkit import training
        from nbkit.training import worker

        monkeypatch.setenv("NBKIT_RUNS", str(tmp_path / "runs"))

        def refuses(_):
            raise NbkitError("no such step")

        monkeypatch.setattr(worker, "calibrate", refuses)
        run = training.start(trainer(tmp_path / "out"), calibrate=True)
        run.wait()
        events = [one for one in run.events() if one["event"] == "memory"]
        assert "not measured: NbkitError: no such step" in events[0]["calibration"]
        assert "done" == run.status.state
