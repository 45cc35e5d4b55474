"""A run in a saved notebook: small, self-contained, and readable again."""

from __future__ import annotations

import base64
import json
import re
from html import unescape

import bleach
import pytest

from nbkit.widgets.feed import Feed
from nbkit.widgets.frozen import MOST_BYTES, Frozen, records_in, svg
from nbkit.widgets.summary import Record, record
from tests.recorded import recorded

CONFIG = """model_name_or_path: /home/ana/models/smol
output_dir: /home/ana/runs/x
learning_rate: 0.0002
hub_token: hf_abcdefghijklmnopqrstuv
"""
# What GitHub lets through of a notebook's HTML, as its published sanitiser (github/html-pipeline) does: no svg, no style.
GITHUB_TAGS = [
    "b",
    "br",
    "del",
    "details",
    "div",
    "img",
    "ins",
    "p",
    "summary",
    "table",
    "caption",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
]


def polled(run):
    """A feed that has read all there is."""
    feed = Feed(run)
    feed.poll()
    return feed


def image(html):
    """The SVG inside the image's address."""
    return base64.b64decode(re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', html)[1]).decode()


class TestSize:
    @pytest.mark.parametrize(("steps", "gpu"), [(3, False), (3000, True)])
    def test_it_stays_under_25_kb(self, tmp_path, steps, gpu):
        """As it stands in the notebook, in base64, however long the run was and with a recipe of 60 keys."""
        config = "".join(f"some_setting_number_{index}: {index / 7}\n" for index in range(60))
        run = recorded(tmp_path, steps=steps, total=steps, gpu=gpu, config=config)
        drawn = svg(polled(run))
        assert 4000 < len(base64.b64encode(drawn.encode())) <= MOST_BYTES == 25_000

    def test_a_long_run_uses_the_room(self, tmp_path):
        """A curve of few points would be a poor picture: at least eighty rows are kept."""
        html = Frozen(polled(recorded(tmp_path, steps=3000, total=3000)))._repr_html_()
        assert len(records_in(html)[0].rows["step"]) >= 80


class TestHtml:
    def test_github_leaves_picture_and_table(self, tmp_path):
        """Of the output, GitHub keeps the image with its data and the table's text; no script, no style, no svg is needed."""
        html = Frozen(polled(recorded(tmp_path)))._repr_html_()
        left = bleach.clean(
            html, tags=GITHUB_TAGS, attributes={"img": ["src", "alt", "width"]}, protocols=["data"], strip=True
        )
        assert image(html) == image(left)
        text = unescape(re.sub(r"<[^>]+>", "\n", left))
        assert {"done", "60 of 60", "2.445 → 0.5843", "1.5 GiB"} <= set(text.split("\n"))

    def test_samples_are_text(self, tmp_path):
        """What a model says cannot become markup; differences are marked with tags that GitHub keeps."""
        html = Frozen(polled(recorded(tmp_path)))._repr_html_()
        assert "<b>Where is my &lt;order&gt;?</b>" in html
        assert "<del>that. </del><ins>&lt;b&gt;that&lt;/b&gt;.</ins>" in html

    def test_no_folder_of_the_machine_and_no_secret_is_kept(self, tmp_path):
        """Neither in the table nor in the recipe inside the picture."""
        run = recorded(tmp_path / "runs", config=CONFIG)
        (run.path / "adapter").mkdir()
        html = Frozen(polled(run))._repr_html_()
        both = html + image(html)
        assert [] == [word for word in ("/home", str(tmp_path), "hf_abc") if word in both]
        assert "runs/20260101-000000-a/adapter" in html
        assert {"model_name_or_path": "smol", "learning_rate": 0.0002, "hub_token": "***"} == records_in(html)[0].recipe

    def test_its_text_is_the_table(self, tmp_path):
        """A viewer without HTML shows the facts, and nbval compares no addresses."""
        lines = repr(Frozen(polled(recorded(tmp_path)))).splitlines()
        assert "run              20260101-000000-a" == lines[0]
        assert "best             0.6843 at step 60" in lines

    def test_a_failure_says_why_and_what_to_do(self, tmp_path):
        """Cause and fix stand in the table."""
        run = recorded(
            tmp_path, steps=7, state="failed", cause="loss became nan at step 7", hint="lower the learning rate"
        )
        text = repr(Frozen(polled(run)))
        assert "cause          loss became nan at step 7" in text
        assert "fix            lower the learning rate" in text


class TestRecord:
    def test_comes_back_as_it_went_in(self, tmp_path):
        """Rows, evaluations, results and recipe, through the picture and back."""
        feed = polled(recorded(tmp_path, config=CONFIG, gpu=True))
        assert [record(feed, 160)] == records_in(Frozen(feed)._repr_html_())

    def test_nothing_in_other_outputs(self):
        """A picture of somebody else's is no run."""
        other = base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>").decode()
        assert [] == records_in(f'<img src="data:image/svg+xml;base64,{other}"><p>text</p>')

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"nbkit": 99}, "version 99"),
            ({"rows": {}}, "KeyError"),
            ({"evals": 3}, "TypeError"),
            ({"rows": None}, "TypeError"),
        ],
    )
    def test_a_damaged_record_is_said(self, tmp_path, change, reason):
        """Not taken for a run with nothing in it."""
        value = json.loads(record(polled(recorded(tmp_path))).dumps())
        with pytest.raises(ValueError, match=reason):
            Record.loads(json.dumps({**value, **change}))
