"""JSON lines: written by a thread, read as they grow, whole whatever happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from nbkit.errors import StorageError
from nbkit.training import lines
from nbkit.training.lines import Lines, Tail, join
from nbkit.training.record import Recorder
from nbkit.training.run import Run
from tests.waiting import until


class TestLines:
    def test_a_torn_line_is_taken_off_before_the_next(self, tmp_path):
        """A killed writer left half a line: what follows is not glued to it."""
        (tmp_path / "a.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
        writer = Lines(tmp_path)
        writer.append("a.jsonl", {"step": 2})
        writer.close()
        assert [1, 2] == [row["step"] for row in lines.read(tmp_path / "a.jsonl")]

    def test_a_file_that_is_one_torn_line_is_emptied(self, tmp_path):
        """Longer than the block it is read by."""
        (tmp_path / "a.jsonl").write_text('{"text": "' + "x" * 200_000)
        writer = Lines(tmp_path)
        writer.append("a.jsonl", {"step": 1})
        writer.close()
        assert [1] == [row["step"] for row in lines.read(tmp_path / "a.jsonl")]

    def test_what_could_not_be_written_is_written_later(self, tmp_path):
        """The folder cannot take the file for a while; no line is lost, none is doubled."""
        writer = Lines(tmp_path)
        (tmp_path / "a.jsonl").mkdir()
        writer.append("a.jsonl", {"step": 1})
        with pytest.raises(StorageError):
            writer.flush()
        writer.append("a.jsonl", {"step": 2})
        writer.try_flush()
        assert "Could not write" in writer.trouble
        (tmp_path / "a.jsonl").rmdir()
        writer.flush()
        assert ([1, 2], "") == ([row["step"] for row in lines.read(tmp_path / "a.jsonl")], writer.trouble)

    def test_many_threads_lose_nothing(self, tmp_path):
        """Four threads append while a fifth flushes."""
        writer = Lines(tmp_path)

        def work(number):
            for step in range(200):
                writer.append("a.jsonl", {"thread": number, "step": step})

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            writer.flush()
        writer.close()
        rows = lines.read(tmp_path / "a.jsonl")
        assert [list(range(200))] * 4 == [[r["step"] for r in rows if r["thread"] == n] for n in range(4)]

    def test_tensors_and_texts_become_numbers_in_the_rows_only(self, tmp_path):
        """numpy's and texts' numbers in the file of rows; words, arrays and the texts of other files as they are."""
        numpy = pytest.importorskip("numpy")
        writer = Lines(tmp_path, numbers="a.jsonl")
        values = {"x": numpy.float32(0.5), "y": "1.5", "z": "words", "v": numpy.array([1, 2])}
        writer.append("a.jsonl", values)
        writer.append("b.jsonl", {"text": "1.5"})
        writer.close()
        row = lines.read(tmp_path / "a.jsonl")[0]
        assert (0.5, 1.5, "words", "[1 2]") == (row["x"], row["y"], row["z"], row["v"])
        assert "1.5" == lines.read(tmp_path / "b.jsonl")[0]["text"]

    def test_a_normal_end_of_the_process_loses_nothing(self, tmp_path):
        """An exception with rows still waiting; after kill -9 all but the last moment is there."""
        code = (
            "import sys, time, os, signal; from pathlib import Path; from nbkit.training.record import Recorder\n"
            "r = Recorder(Path(sys.argv[1]) / 'run')\n"
            "for step in range(50): r.row(step, {'loss': 1.0})\n"
            "if sys.argv[2] == 'kill':\n"
            "    rows = r.path / 'metrics.jsonl'\n"
            "    while not rows.exists() or rows.read_text().count('\\n') < 50: time.sleep(0.05)\n"
            "    r.row(99, {'loss': 1.0}); os.kill(os.getpid(), signal.SIGKILL)\n"
            "raise ValueError\n"
        )
        for how, least in (("raise", 50), ("kill", 50)):
            (tmp_path / how).mkdir()
            done = subprocess.run(
                [sys.executable, "-c", code, str(tmp_path / how), how], check=False, timeout=60, capture_output=True
            )
            assert {"raise": 1, "kill": -signal.SIGKILL}[how] == done.returncode, done.stderr
            assert least <= len(lines.read(tmp_path / how / "run" / "metrics.jsonl"))


class TestTail:
    def test_reads_only_what_is_new(self, tmp_path):
        """Whole lines as they come; half of one waits; the offset is where the next begins."""
        path = tmp_path / "a.jsonl"
        tail = Tail(path)
        assert [] == tail.read()
        path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
        assert [{"a": 1}, {"a": 2}] == tail.read()
        assert (18, []) == (tail.offset, tail.read())
        with path.open("a") as file:
            file.write(": 3}\n")
        assert [{"a": 3}] == Tail(path, tail.offset).read()

    def test_damage_is_left_out(self, tmp_path):
        """A line that is no JSON, or no object, does not hide the others."""
        (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n\xff\xfe{\n[1]\n{"a": 2}\n')
        assert [{"a": 1}, {"a": 2}] == Tail(tmp_path / "a.jsonl").read()

    def test_a_shorter_file_is_read_from_its_start(self, tmp_path):
        """A file that was replaced."""
        path = tmp_path / "a.jsonl"
        path.write_text('{"a": 1}\n{"a": 2}\n')
        tail = Tail(path)
        tail.read()
        path.write_text('{"a": 3}\n')
        assert [{"a": 3}] == tail.read()


def test_steps_done_again_after_a_resume_count_once():
    """Killed at 3, resumed from 1: the later rows of 2 and 3 count; the evaluation of 1 stays."""
    rows = []
    first = [{"step": 1, "loss": 1}, {"step": 1, "eval_loss": 1}, {"step": 2, "loss": 2}, {"step": 3, "loss": 3}]
    join(rows, first)
    join(rows, [{"step": 2, "loss": 20}, {"step": 2, "eval_loss": 2}, {"step": 3, "loss": 30}])
    assert [(1, 1), (1, None), (2, 20), (2, None), (3, 30)] == [(row["step"], row.get("loss")) for row in rows]


class TestRecorder:
    def test_files_are_the_owners_only(self, tmp_path):
        """Samples may be private data: 0600 in a folder of 0700, under any umask."""
        old = os.umask(0)
        try:
            recorder = Recorder(tmp_path / "run")
            recorder.sample(1, 0, "p", "t")
            recorder.system({"cpu_percent": 1.0})
            recorder.row(1, {"loss": 1.0})
            recorder.event("x")
            recorder.set("done")
        finally:
            os.umask(old)
        modes = {path.name: path.stat().st_mode & 0o777 for path in recorder.path.iterdir()}
        names = ["events.jsonl", "metrics.jsonl", "samples.jsonl", "status.json", "system.jsonl"]
        assert dict.fromkeys(names, 0o600) == modes
        assert 0o700 == recorder.path.stat().st_mode & 0o777

    def test_requests_are_seen_and_a_step_reaches_the_status(self, tmp_path):
        """By a thread, within a moment; the recorder's own thread ends with the run."""
        recorder = Recorder(tmp_path / "run")
        recorder.set("training", max_steps=9)
        run = Run(tmp_path / "run")
        recorder.step(3)
        run.pause()
        until(lambda: recorder.pause_asked and run.status.step == 3, "the pause and step 3")
        assert not recorder.stop_asked
        run.unpause()
        run.stop()
        until(lambda: recorder.stop_asked and not recorder.pause_asked, "the stop")
        recorder.set("stopped")
        assert not [thread for thread in threading.enumerate() if thread.name == "record run" and thread.is_alive()]

    def test_an_unknown_key_of_the_status_is_left_out(self, tmp_path):
        """A directory that a later version wrote can be read."""
        Recorder(tmp_path / "run").set("done", step=4)
        file = tmp_path / "run" / "status.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "new": 1}))
        assert ("done", 4) == (Run(tmp_path / "run").status.state, Run(tmp_path / "run").status.step)
