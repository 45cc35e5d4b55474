"""The plain live view: small, without script, true to the run."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from nbkit.training.record import Recorder
from nbkit.training.run import Run
from nbkit.widgets.live import lines, watch
from nbkit.widgets.picture import curve, picture


@pytest.fixture
def recorder(tmp_path):
    """A run under way."""
    recorder = Recorder(tmp_path / "20260101-000000-<a>")
    recorder.set("training", step=2, max_steps=9)
    return recorder


def rows(count):
    """A curve with one spike."""
    return [{"step": s, "time": float(s), "loss": 50.0 if s == count // 2 else 1 / s} for s in range(1, count + 1)]


def test_a_long_run_stays_small_and_keeps_its_spike():
    """100,000 steps draw in under 25 kB, and the one high value is on the picture."""
    drawn = curve(rows(100_000))
    assert len(drawn) < 25_000
    points = ET.fromstring(drawn).find("polyline").get("points").split()
    assert 8.0 == min(float(point.split(",")[1]) for point in points)


def test_is_well_formed_and_escaped(recorder):
    """The run's name cannot inject markup, and a parser reads the whole."""
    for row in rows(20):
        recorder.row(row["step"], {"loss": row["loss"]})
    recorder.row(20, {"eval_loss": 0.2})
    drawn = picture(Run(recorder.path))
    ET.fromstring(drawn)
    assert "&lt;a&gt;" in drawn
    assert "<circle" in drawn
    assert "<script" not in drawn


def test_nothing_to_draw_is_said():
    """Before the first step there is a sentence, not a broken picture; null losses are skipped."""
    assert "no loss yet" in curve([])
    assert "no loss yet" in curve([{"step": 1, "time": 0.0, "loss": None}])


@pytest.mark.parametrize("values", [[0.0, 0.0], [1.0, 1.0], [1e-9, 1e9]])
def test_odd_values_draw(values):
    """Constant, zero and extreme losses give finite coordinates."""
    drawn = curve([{"step": i, "time": 0.0, "loss": v} for i, v in enumerate(values, 1)])
    for point in [] if "no loss yet" in drawn else ET.fromstring(drawn).find("polyline").get("points").split():
        assert all(math.isfinite(float(part)) for part in point.split(","))


def test_text_mode_says_one_line(recorder, monkeypatch, capsys):
    """Outside a notebook `watch` prints the headline and returns at once."""
    monkeypatch.setenv("NBKIT_DISPLAY", "text")
    watch(Run(recorder.path))
    assert "20260101-000000-<a>: training · step 2/9\n" == capsys.readouterr().out


def test_lines_end_with_the_run(recorder):
    """Following an ended run yields its last line and stops."""
    recorder.set("done", step=9)
    assert ["done · step 9/9"] == list(lines(Run(recorder.path)))
