"""The static picture: small, without a script, true to the run."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET

import pytest

from nbkit.training import Run
from nbkit.training.record import Recorder
from nbkit.widgets.feed import Feed
from nbkit.widgets.picture import picture
from nbkit.widgets.plot import Box, Line, chart, log_ticks, spaced, tick_label, ticks
from tests.recorded import recorded, row

SVG = "{http://www.w3.org/2000/svg}"


def drawn(run, **how):
    """The parsed picture of a run."""
    feed = Feed(run)
    feed.poll()
    return ET.fromstring(picture(feed, inline=False, **how))


class TestPicture:
    def test_says_what_the_header_says(self, tmp_path):
        """State and facts as text, and as the label that a screen reader reads."""
        svg = drawn(recorded(tmp_path, steps=30, state="stopped"))
        words = " ".join(svg.itertext())
        assert all(
            part in words for part in ("stopped", "step 30/60", "no NVIDIA driver", "learning rate", "eval 0.997")
        )
        assert svg.get("aria-label").startswith("20260101-000000-a: stopped · step 30/60 · loss 0.897")

    @pytest.mark.parametrize("inline", [True, False])
    def test_a_name_cannot_inject_markup(self, tmp_path, inline):
        """The run's name and its cause are text, in the page and in the file."""
        run = recorded(
            tmp_path, name="20260101-<script>alert(1)<", steps=2, state="failed", cause='"><img src=x onerror=y>'
        )
        feed = Feed(run)
        feed.poll()
        found = picture(feed, inline=inline)
        ET.fromstring(found)
        assert "<script" not in found
        assert "<img" not in found

    def test_says_what_it_is_at(self, tmp_path):
        """What the state word does not say stands below it, once: as text, not only for a screen reader."""
        recorder = Recorder(tmp_path / "a")
        recorder.set("waiting", doing="loading the model")
        shown = [each.text for each in drawn(Run(recorder.path)).iter(f"{SVG}text") if each.text]
        assert 1 == sum("loading the model" in text for text in shown)

    def test_a_run_without_a_row_draws(self, tmp_path):
        """Before the first step every chart says that there is nothing."""
        recorder = Recorder(tmp_path / "20260101-000000-new")
        assert 6 == " ".join(drawn(Run(recorder.path)).itertext()).count("nothing recorded")
        recorder.close()

    @pytest.mark.parametrize("values", [[0.0, 0.0], [1.0, 1.0], [1e-9, 1e9], [-3.0, 5.0], [None, 1.0]])
    def test_odd_values_draw(self, tmp_path, values):
        """Constant, zero, negative, extreme and absent losses give finite coordinates."""
        recorder = Recorder(tmp_path / "20260101-000000-odd")
        for step, value in enumerate(values, 1):
            recorder.row(step, row(step, loss=value))
        recorder.set("done", step=2, max_steps=2)
        for path in drawn(Run(recorder.path)).iter(f"{SVG}path"):
            assert all(math.isfinite(float(text)) for text in re.findall(r"-?[\d.]+(?:e-?\d+)?", path.get("d")))
            assert "nan" not in path.get("d")

    def test_a_loss_that_falls_far_is_on_a_logarithmic_scale(self, tmp_path):
        """From a ratio of fifty on; it says so."""
        recorder = Recorder(tmp_path / "20260101-000000-far")
        for step in range(1, 50):
            recorder.row(step, row(step, loss=10 * 0.8**step))
        recorder.set("done", step=50, max_steps=50)
        assert "loss, log scale" in " ".join(drawn(Run(recorder.path)).itertext())

    def test_standing_alone_it_follows_the_reader_and_in_a_page_the_notebook(self, tmp_path):
        """As an image there is no page whose theme could be asked; in a page the reader's own setting must not win."""
        feed = Feed(recorded(tmp_path))
        feed.poll()
        alone, inline = picture(feed, inline=False), picture(feed, inline=True)
        assert ("prefers-color-scheme:dark" in alone, "data-jp-theme-light=false" in alone) == (True, False)
        assert ("prefers-color-scheme:dark" in inline, "data-jp-theme-light=false" in inline) == (False, True)

    def test_its_rules_reach_nothing_else_in_a_page(self, tmp_path):
        """Every selector of the style sheet is confined to the picture."""
        feed = Feed(recorded(tmp_path))
        feed.poll()
        sheet = re.search(r"<style>(.*?)</style>", picture(feed, inline=True))[1]
        selectors = [part for rule in re.findall(r"([^{}]+)\{", sheet) for part in rule.split(",")]
        assert len(selectors) > 20
        assert [] == [part for part in selectors if ".nbkit-picture" not in part]


class TestChart:
    def test_a_spike_is_drawn(self):
        """Of 100,000 points one is high: it is on the picture, at the top, and the picture is small."""
        line = spaced([(float(x), 50.0 if x == 70_000 else 1.0) for x in range(100_000)], 300)
        path = (
            ET.fromstring(f"<svg>{chart(Box(0, 0, 500, 100), [Line(line, 't')], (0, 1e5))}</svg>")
            .find("path[@class='t']")
            .get("d")
        )
        assert len(path) < 4000
        heights = [float(path[1:].partition("l")[0].split()[1])]
        for move in path.split("l")[1:]:
            heights.append(heights[-1] + float(re.findall(r"-?[\d.]+", move)[1]))
        assert pytest.approx(min(heights), abs=0.2) == 6.0 + 90 * 0.06 / 1.12

    def test_one_odd_speed_flattens_nothing(self):
        """With a cap the others keep their height; the odd one stands at the top, inside its box."""
        line = Line([(float(x), 1000.0 if x == 1 else 1.0) for x in range(50)], "q")
        capped = chart(Box(0, 0, 500, 100), [line], (0, 50), zero=True, cap=3.0)
        path = ET.fromstring(f"<svg>{capped}</svg>").find("path[@class='q']").get("d")
        first = float(re.match(r"M[\d.]+ ([\d.]+)", path)[1])
        rise = float(re.search(r"l[\d.]+(-[\d.]+)", path)[1])
        assert (67.7, 6.0) == (pytest.approx(first, abs=0.1), pytest.approx(first + rise, abs=0.2))

    @pytest.mark.parametrize(
        ("low", "high", "count", "expected"),
        [(0, 2e-4, 3, ["0", "1e-4", "2e-4"]), (0, 1, 5, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
         (0, 5200, 3, ["0", "2,000", "4,000"]), (0, 22000, 3, ["0", "10k", "20k"]), (2.1, 2.4, 3, ["2.1", "2.2", "2.3", "2.4"]),
         (0.31, 2.2, 3, ["1", "2"]), (5, 5, 3, ["5"])],
    )  # fmt: skip
    def test_ticks_are_round_and_read_well(self, low, high, count, expected):
        """A learning rate reads 2e-4, never 0; there are at least two where the scale has room."""
        found = ticks(low, high, count)
        gap = found[1] - found[0] if len(found) > 1 else 1.0
        assert expected == [tick_label(value, gap) for value in found]

    @pytest.mark.parametrize(
        ("low", "high", "expected"),
        [(0.9, 3.0, [1, 2]), (1e-3, 1e3, [1e-3, 1e-2, 0.1, 1, 10, 100, 1000]), (1.6, 2.4, [1.6, 1.8, 2.0, 2.2, 2.4])],
    )
    def test_logarithmic_ticks(self, low, high, expected):
        """1, 2, 5 of a decade; decades when there are many; even steps inside one."""
        assert expected == pytest.approx(log_ticks(low, high))


def test_the_record_is_inside_as_text(tmp_path):
    """What is given as metadata is found again, whatever is in it."""
    text = json.dumps({"a": "<b> & 'c' ]]>"})
    assert text == drawn(recorded(tmp_path), metadata=text).find(f"{SVG}metadata").text
