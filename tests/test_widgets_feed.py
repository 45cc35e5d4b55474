"""A run as its views see it: read as it grows, told in small messages."""

from __future__ import annotations

import json
import time

import pytest

from nbkit.training import Run
from nbkit.training.record import Recorder
from nbkit.widgets.feed import Feed
from tests.recorded import ANSWERS, recorded, row


@pytest.fixture
def recorder(tmp_path):
    """A run under way, in this process."""
    recorder = Recorder(tmp_path / "20260101-000000-a")
    recorder.set("training", max_steps=900)
    yield recorder
    recorder.close()


def polled(run):
    """A feed that has read all there is."""
    feed = Feed(run)
    feed.poll()
    return feed


class TestPoll:
    def test_only_what_is_new_is_told(self, recorder):
        """A second look tells the second row, a third nothing."""
        feed = Feed(Run(recorder.path))
        for step in (1, 2):
            recorder.row(step, row(step))
            recorder.flush()
            assert [step] == [told.step for told in feed.poll().rows]
        assert {} == feed.poll().message()

    def test_a_message_of_one_step_is_small(self, recorder):
        """Two steps, a reading of the machine and the header's changes are at most 360 bytes: 1 kB with the envelope."""
        feed = Feed(Run(recorder.path))
        for step in range(1, 50):
            recorder.row(step, row(step))
        recorder.system({"cpu_percent": 187.3, "rss_gib": 1.523, "ram_gib": 24.0})
        recorder.set("training", step=49)
        feed.poll()
        for step in (50, 51):
            recorder.row(step, row(step))
        recorder.system({"cpu_percent": 187.3, "rss_gib": 1.533, "ram_gib": 24.0})
        recorder.set("training", step=51)
        message = json.dumps(feed.poll().message())
        assert 80 < len(message) <= 360, message

    def test_a_look_costs_little(self, recorder):
        """Following a run with 5,000 steps behind it costs a small part of a millisecond of CPU; 10 ms are allowed."""
        path = recorder.path / "metrics.jsonl"
        recorder.row(1, row(1))
        recorder.flush()
        path.write_text("".join(json.dumps({"step": s, "time": s, **row(s)}) + "\n" for s in range(1, 5001)))
        feed = polled(Run(recorder.path))
        before = time.thread_time()
        for step in range(5001, 5101):
            with path.open("a") as file:
                file.write(json.dumps({"step": step, "time": step, **row(step)}) + "\n")
            assert 1 == len(feed.poll().rows)
        assert (time.thread_time() - before) / 100 < 0.010

    def test_a_resumed_run_takes_back_its_steps(self, recorder):
        """Steps written again replace the earlier ones, and the message says from where."""
        feed = Feed(Run(recorder.path))
        for step in (1, 2, 3, 4):
            recorder.row(step, row(step))
        recorder.flush()
        feed.poll()
        for step in (3, 4, 5):
            recorder.row(step, row(step, loss=9.0))
        recorder.flush()
        message = feed.poll().message()
        assert (3, [3, 4, 5]) == (message["back"], [told[0] for told in message["rows"]])
        assert [1, 2, 3, 4, 5] == [told.step for told in feed.series.rows]

    def test_states_are_told_as_they_change(self, recorder):
        """Each state word reaches the view, with what the run is doing."""
        feed = polled(Run(recorder.path))
        for state in ("evaluating", "paused", "training", "stopped"):
            recorder.set(state, step=3)
            assert state == feed.poll().head["state"]
        assert not feed.status.active

    def test_a_process_that_is_gone_is_noticed(self, recorder):
        """Nobody writes `failed` for a killed process; the view sees it within a second or so, with the way on."""
        path = recorder.path / "status.json"
        recorder.close()
        path.write_text(json.dumps({**json.loads(path.read_text()), "process_started": 1.0}))
        feed = polled(Run(recorder.path))
        assert ("failed", True) == (feed.head.state, 'resume="auto"' in feed.head.hint)

    def test_a_view_survives_a_run_that_is_removed(self, tmp_path):
        """What was read stays."""
        import shutil

        run = recorded(tmp_path)
        feed = polled(run)
        shutil.rmtree(run.path)
        assert {} == feed.poll().message()
        assert 60 == len(feed.series.rows)


class TestMachine:
    def test_no_gpu_is_a_labelled_gap(self, tmp_path):
        """Without a GPU the process's memory and CPU are shown, and why there is no GPU."""
        feed = polled(recorded(tmp_path))
        assert {"gpu": False, "total": 24.0, "reason": "no NVIDIA driver"} == feed.machine
        assert ("1.5/24", 1.5, 192.0) == (feed.head.memory, feed.peak_gib, feed.loads[-1].percent)

    def test_a_gpu_is_shown_where_there_is_one(self, tmp_path):
        """Used and total memory of the card; utilisation in percent."""
        feed = polled(recorded(tmp_path, gpu=True))
        assert {"gpu": True, "total": 24.0, "reason": ""} == feed.machine
        assert ("11.4/24", 90.0) == (feed.head.memory, feed.loads[-1].percent)


class TestSamples:
    def test_differences_to_the_evaluation_before_are_marked(self, tmp_path):
        """The first answer stands as it is; of the second, new and gone words are marked."""
        first, second = polled(recorded(tmp_path)).samples
        assert [("=", ANSWERS[0])] == first.segments
        assert {"=", "+", "-"} == {kind for kind, _ in second.segments}
        assert ANSWERS[1] == "".join(text for kind, text in second.segments if kind != "-")

    def test_odd_lines_are_left_out(self, tmp_path):
        """A prompt may be a list of messages; a line without a text is no sample."""
        run = recorded(tmp_path, steps=1, total=1)
        prompt = [{"role": "system", "content": "x"}, {"role": "user", "content": "Hello?"}]
        lines = [
            {"step": 1, "index": 0, "prompt": prompt, "text": "Hi"},
            {"step": 1, "index": 1, "prompt": "p"},
            {"step": "1"},
        ]
        (run.path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "[1]\n{broken\n")
        assert ["Hello?"] == [sample.prompt for sample in polled(run).samples]


def test_a_snapshot_holds_everything_and_is_json(tmp_path):
    """A page that connects needs one message."""
    whole = json.loads(json.dumps(polled(recorded(tmp_path)).snapshot()))
    assert ("20260101-000000-a", 60, 2, 3, 2) == (
        whole["run"],
        *(len(whole[key]) for key in ("rows", "evals", "loads", "samples")),
    )
    assert ("done", "no NVIDIA driver") == (whole["head"]["state"], whole["machine"]["reason"])
