"""A run is a directory: what is written there can be read by anyone, at any moment."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from nbkit.errors import RunError
from nbkit.training import devices, manifest
from nbkit.training.record import Recorder, new_path
from nbkit.training.run import Run, headline, latest, runs


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of runs."""
    monkeypatch.setenv("NBKIT_RUNS", str(tmp_path))
    return tmp_path


class TestRecorder:
    def test_rows_and_status_are_read_back(self, folder):
        """What is recorded is what a Run shows."""
        recorder = Recorder(new_path("x"))
        recorder.set("training", step=2, max_steps=4)
        recorder.row(1, {"loss": 1.0})
        recorder.row(2, {"loss": 0.5})
        recorder.flush()
        run = latest()
        assert [1.0, 0.5] == [row["loss"] for row in run.metrics()]
        assert ("training", 2, 4) == (run.status.state, run.status.step, run.status.max_steps)
        assert f"Run({run.id}: training, step 2 of 4)" == repr(run)

    def test_nan_is_written_as_null_and_named(self, folder):
        """metrics.jsonl stays JSON that any program reads."""
        recorder = Recorder(new_path("x"))
        recorder.row(1, {"loss": float("nan"), "lr": 0.1})
        recorder.flush()
        line = (recorder.path / "metrics.jsonl").read_text()
        assert "NaN" not in line
        assert (None, ["loss"]) == (json.loads(line)["loss"], json.loads(line)["nonfinite"])

    def test_secrets_do_not_reach_the_events(self, folder):
        """A token in a message or under a name is hidden."""
        recorder = Recorder(new_path("x"))
        recorder.event("failed", cause="token hf_abcdefghijklmnopqrstuv", hub_token="abc")
        text = (recorder.path / "events.jsonl").read_text()
        assert "hf_abc" not in text
        assert '"hub_token": "***"' in text

    def test_names_do_not_collide(self, folder):
        """Two runs started in one second have two directories, and a name cannot leave the folder."""
        first = Recorder(new_path("../a b"))
        second = Recorder(new_path("../a b"))
        assert first.path != second.path
        assert {folder} == {first.path.parent, second.path.parent}


class TestRun:
    def test_half_a_line_is_left_out(self, folder):
        """A reader never meets a line that is still being written."""
        recorder = Recorder(new_path("x"))
        recorder.row(1, {"loss": 1.0})
        recorder.flush()
        with (recorder.path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 2, "lo')
        assert 1 == len(latest().metrics())

    def test_a_killed_process_is_noticed(self, folder):
        """The status says `training`; the process is gone; the run shows as failed, with the way on."""
        code = (
            "import os, signal; from nbkit.training.record import Recorder, new_path\n"
            "r = Recorder(new_path('x')); r.set('training', step=3, max_steps=9); os.kill(os.getpid(), signal.SIGKILL)"
        )
        subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
        status = latest().status
        assert "failed" == status.state
        assert "is gone (killed, out of memory, or the kernel was restarted)" in status.cause
        assert 'resume="auto"' in status.hint
        with pytest.raises(RunError, match=r"failed at step 3: its process \d+ is gone"):
            latest().wait()

    def test_stop_of_an_ended_run_is_refused(self, folder):
        """Asking a finished run to stop is a mistake worth a sentence."""
        Recorder(new_path("x")).set("done", step=4)
        with pytest.raises(RunError, match="is not running: done at step 4"):
            latest().stop()

    def test_silence_is_called_stalled(self, folder):
        """No row for far longer than a step takes."""
        recorder = Recorder(new_path("x"))
        recorder.set("training", step=1, max_steps=9)
        recorder.row(1, {"loss": 1.0})
        recorder.flush()
        path = recorder.path / "status.json"
        recorded = json.loads(path.read_text())
        path.write_text(json.dumps({**recorded, "updated": time.time() - 3600}))
        assert "stalled" == latest().status.state

    def test_a_folder_that_is_no_run_is_refused(self, tmp_path):
        """The error says what is missing."""
        with pytest.raises(RunError, match=r"is not a run: it has no status\.json"):
            Run(tmp_path)


class TestDevices:
    def test_a_run_on_the_same_device_is_named(self, folder):
        """A second run on one GPU hears of the first; not one on another GPU, nor one beside runs that have ended."""
        first = Recorder(folder / "a")
        first.event("started", device="GPU-1", notes=[])
        first.set("training", step=1, max_steps=9)
        assert [] == devices.notes("GPU-2", folder / "b", detach=False)
        assert [] == devices.notes("GPU-1", folder / "a", detach=False)
        (folder / "damaged").mkdir()
        (folder / "damaged" / "status.json").write_text("{")
        found = devices.notes("GPU-1", folder / "b", detach=False)
        assert 1 == len(found)
        assert found[0].startswith("device: a trains on GPU-1 too (training, process ")
        assert found[0].endswith("memory may run out, and both will be slower; to end it well: nbkit stop a")
        first.set("done")
        assert [] == devices.notes("GPU-1", folder / "b", detach=False)

    def test_a_detached_run_says_that_the_kernel_keeps_its_model(self, folder):
        """On a GPU, with the lines that free it; a CPU has room."""
        (note,) = devices.notes("GPU-1", folder / "a", detach=True)
        assert "keeps its own copy of the model" in note
        assert "del trainer, model" in note
        assert "torch.cuda.empty_cache()" in note
        assert [] == devices.notes("cpu", folder / "a", detach=True)


class TestLatest:
    @pytest.mark.parametrize("text", ["{}", "", "[1]", '{"state": "trai'])
    def test_a_damaged_status_does_not_hide_the_others(self, folder, text):
        """It is listed as failed, with the reason."""
        Recorder(folder / "20260101-000000-good").set("done", step=4)
        (folder / "20260102-000000-bad").mkdir()
        (folder / "20260102-000000-bad" / "status.json").write_text(text)
        states = {run.id: run.status for run in runs()}
        assert "done" == states["20260101-000000-good"].state
        assert "failed" == states["20260102-000000-bad"].state
        assert "status.json is damaged" in states["20260102-000000-bad"].cause

    def test_newest_first_and_by_prefix(self, folder):
        """Without a name the newest; the start of an id is enough; an ambiguous one is refused."""
        for name in ("20260101-000000-a", "20260102-000000-b"):
            Recorder(folder / name)
        assert ["20260102-000000-b", "20260101-000000-a"] == [run.id for run in runs()]
        assert "20260102-000000-b" == latest().id
        assert "20260101-000000-a" == latest("20260101").id
        with pytest.raises(RunError, match="fits 2 runs"):
            latest("2026")

    def test_none_names_the_folder(self, folder):
        """An empty folder is named, so that a wrong NBKIT_RUNS is seen."""
        with pytest.raises(RunError, match=f"There is no run in {folder}"):
            latest()


def test_headline_has_speed_and_time_left(folder):
    """Tokens a second and ETA come from the rows' own times."""
    recorder = Recorder(new_path("x"))
    recorder.set("training", step=3, max_steps=13)
    rows = [{"step": s, "time": 100.0 + 2 * s, "loss": 1 / s, "num_tokens": 300.0 * s} for s in (1, 2, 3)]
    assert "training · step 3/13 · loss 0.3333 · 150 tok/s · ETA 00:20" == headline(recorder.status, rows)


def reseeded(file):
    """A manifest that is whole JSON and says another step."""
    file.write_text(json.dumps({**json.loads(file.read_text()), "step": 4}))


class TestCheckpoint:
    @pytest.fixture
    def saved(self, tmp_path):
        """Two small checkpoints that verify."""
        for step in (2, 10):
            folder = tmp_path / f"checkpoint-{step}"
            folder.mkdir()
            (folder / "optimizer.pt").write_bytes(b"o" * 100)
            manifest.write(folder, step)
        return tmp_path

    def test_newest_is_by_number(self, saved):
        """checkpoint-10 is newer than checkpoint-2."""
        assert (saved / "checkpoint-10", []) == manifest.newest(saved)

    @pytest.mark.parametrize(
        ("damage", "reason"),
        [
            (lambda f: (f / "optimizer.pt").unlink(), "optimizer.pt is missing"),
            (lambda f: (f / "optimizer.pt").write_bytes(b"o" * 99), "optimizer.pt has 99 bytes, not 100"),
            (lambda f: (f / "optimizer.pt").write_bytes(b"x" + b"o" * 99), "optimizer.pt has changed (sha256)"),
            (lambda f: (f / "MANIFEST.json").unlink(), "no MANIFEST.json"),
            (lambda f: (f / "MANIFEST.json").write_text("{"), "MANIFEST.json is damaged"),
            (lambda f: reseeded(f / "MANIFEST.json"), "MANIFEST.json has changed (sha256)"),
        ],
    )
    def test_a_damaged_one_is_skipped_with_its_reason(self, saved, damage, reason):
        """Missing, cut, changed: the next older one is taken and the reason said."""
        damage(saved / "checkpoint-10")
        found, skipped = manifest.newest(saved)
        assert saved / "checkpoint-2" == found
        assert reason in skipped[0]
