"""A run in a terminal: what is drawn, what is streamed, and what an interrupt says."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from nbkit.training import Run
from nbkit.training.record import Recorder
from nbkit.widgets.feed import Feed
from nbkit.widgets.terminal import PLAIN_BLOCKS, Stream, screen, sparkline
from tests.recorded import recorded, row

WATCH = [sys.executable, "-m", "nbkit.cli", "watch"]


def shown(run, **how):
    """The lines of a run's screen."""
    feed = Feed(run)
    feed.poll()
    return screen(feed, **how)


class TestScreen:
    def test_header_bar_and_curves(self, tmp_path):
        """The same facts as in the browser, with curves that fall as the loss does."""
        lines = shown(recorded(tmp_path, steps=30, state="stopped"), width=80)
        assert lines[0].startswith("■ stopped  step 30/60 · loss 0.897 · 4,000 tok/s · 1.5/24 GiB")
        assert "━" * 37 + "─" * 37 + "  50%" == lines[1]
        assert lines[2].startswith("loss           ██")
        assert "▁" in lines[2]
        assert "eval 0.997" in lines[2]
        assert [] == [line for line in lines if len(line) > 80]

    def test_ascii_for_a_terminal_that_has_no_more(self, tmp_path):
        """Every character can be encoded; nothing is lost but looks."""
        lines = shown(recorded(tmp_path), width=60, plain=True, samples=True)
        "\n".join(lines).encode("ascii")
        assert "* done" == lines[0][:6]

    def test_colour_only_where_it_is_asked_for(self, tmp_path):
        """NO_COLOR and files get none."""
        run = recorded(tmp_path)
        assert "\x1b[32m✓ done\x1b[0m" in shown(run, colour=True)[0]
        assert "\x1b" not in "".join(shown(run))

    def test_samples_and_causes(self, tmp_path):
        """The last answers on request; cause and fix are wrapped, not cut."""
        cause = "CUDA ran out of memory while it was computing the gradients of a long row of the training data"
        lines = shown(
            recorded(tmp_path, state="failed", cause=cause, hint="use a shorter max_length"), width=60, samples=True
        )
        assert ["> Where is my <order>?", "  I can help with <b>that</b>."] == lines[-2:]
        assert f"cause: {cause}" == " ".join(" ".join(line.split()) for line in lines[6:8])
        assert "fix: use a shorter max_length" in lines


@pytest.mark.parametrize(
    ("values", "expected"), [([1, 2, 3, 4, 5, 6, 7, 8], "▁▂▃▄▅▆▇█"), ([5, 5], "▁▁"), ([None, 3.0, None], "▁"), ([], "")]
)
def test_sparkline(values, expected):
    """From the lowest to the highest; gaps are left out."""
    assert expected == sparkline(values, 20)


def test_a_spike_survives_a_narrow_sparkline():
    """Of a thousand values the one that is high is seen."""
    curve = sparkline([9.0 if i == 500 else 1.0 for i in range(1000)], 20, PLAIN_BLOCKS)
    assert len(curve) <= 20
    assert PLAIN_BLOCKS[-1] in curve


class TestStream:
    def test_rows_readings_samples_and_states(self, tmp_path):
        """Each object says its kind; a change of state is told once; nothing comes after the end."""
        recorder = Recorder(tmp_path / "20260101-000000-a")
        recorder.set("training", max_steps=9)
        stream = Stream(Run(recorder.path))
        recorder.row(1, row(1))
        recorder.row(1, {"eval_loss": 0.7})
        recorder.system({"rss_gib": 1.5})
        recorder.flush()
        assert ["state", "row", "eval", "system"] == [told["kind"] for told in stream.read()]
        recorder.sample(2, 0, "a", "b")
        recorder.set("stopped", step=2)
        told = list(stream.read())
        assert ["sample", "state"] == [each["kind"] for each in told]
        assert ("stopped", 2, False) == (told[-1]["state"], told[-1]["step"], stream.active)


class TestCommand:
    def test_a_pipe_gets_json_lines_until_the_run_ends(self, tmp_path):
        """A script reads rows as they come, and the command ends with the run."""
        recorder = Recorder(tmp_path / "20260101-000000-a")
        recorder.set("training", max_steps=2)
        environment = {**os.environ, "NBKIT_RUNS": str(tmp_path)}
        with subprocess.Popen([*WATCH, "--json"], env=environment, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert "training" == json.loads(process.stdout.readline())["state"]
                recorder.row(1, row(1))
                assert 1 == json.loads(process.stdout.readline())["step"]
                recorder.set("done", step=2)
                rest = [json.loads(line) for line in process.communicate(timeout=30)[0].splitlines()]
            finally:
                process.kill()
        assert (0, "done") == (process.returncode, rest[-1]["state"])

    def test_an_interrupt_in_a_terminal_says_what_goes_on(self, tmp_path):
        """A few lines are redrawn; Ctrl-C leaves the run alone and says how to stop it."""
        recorder = Recorder(tmp_path / "20260101-000000-a")
        recorder.set("training", max_steps=900)
        for step in range(1, 20):
            recorder.row(step, row(step))
        recorder.flush()
        main, side = pty.openpty()
        environment = {**os.environ, "NBKIT_RUNS": str(tmp_path), "PYTHONIOENCODING": "utf-8", "COLUMNS": "90"}
        process = subprocess.Popen(WATCH, env=environment, stdin=side, stdout=side, stderr=side, start_new_session=True)
        os.close(side)
        try:
            text = _read_until(main, "\x1b[J", times=2)
            process.send_signal(signal.SIGINT)
            text += _read_until(main, "nbkit stop 20260101-000000-a")
            assert 130 == process.wait(30)
        finally:
            process.kill()
            process.wait(10)
            os.close(main)
        assert "● training" in text
        assert "goes on. Stop it with:" in text
        recorder.close()


def _read_until(handle, wanted, times=1, timeout_s=40.0):
    """What a terminal shows until `wanted` was there `times` times."""
    import select

    text, deadline = b"", time.monotonic() + timeout_s
    while text.decode(errors="replace").count(wanted) < times:
        if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise AssertionError(f"waited {timeout_s:g} s for {wanted!r} in {text.decode(errors='replace')!r}")
        text += os.read(handle, 4096)
    return text.decode(errors="replace")
