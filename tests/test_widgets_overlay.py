"""Several runs beside each other: from directories, from saved notebooks, from pictures."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest
from click.testing import CliRunner

from nbkit.cli import main
from nbkit.errors import RunError
from nbkit.widgets import overlay
from nbkit.widgets.feed import Feed
from nbkit.widgets.frozen import Frozen, svg
from tests.recorded import recorded

DAMAGED = '<metadata id="nbkit-run">{"nbkit":1}</metadata>'
A, B = "20260101-000000-a", "20260102-000000-b"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two runs that differ in two keys of their recipe."""
    monkeypatch.setenv("NBKIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    common = "model_name_or_path: smol\nseed: 1\n"
    recorded(tmp_path / "runs", A, config=f"{common}learning_rate: 0.0002\nlora_r: 8\n", gpu=True)
    recorded(tmp_path / "runs", B, steps=40, state="stopped", config=f"{common}learning_rate: 0.001\nlora_r: 16\n")
    return tmp_path


def polled(path):
    """A feed that has read all there is."""
    from nbkit.training import Run

    feed = Feed(Run(path))
    feed.poll()
    return feed


def notebook(path, *htmls):
    """A saved notebook whose cells show `htmls`, each as a list of lines, as Jupyter writes it."""
    output = {"output_type": "display_data", "metadata": {}}
    cells = [{"cell_type": "markdown", "source": "# x"}]
    cells += [
        {"cell_type": "code", "outputs": [{**output, "data": {"text/html": html.splitlines(keepends=True)}}]}
        for html in htmls
    ]
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


class TestOverlay:
    def test_results_and_what_differs_in_the_recipe(self, folder):
        """Equal keys are counted, not listed; numbers read well."""
        found = overlay(A, folder / "runs" / B)
        lines = {row[0]: row[1:] for row in found.table().rows}
        assert (("done", "stopped"), ("60", "40")) == (lines["state"], lines["step"])
        assert (("2e-4", "1e-3"), ("8", "16")) == (lines["learning_rate"], lines["lora_r"])
        assert "seed" not in lines
        assert "2 other keys of the recipes are the same." in str(found)

    def test_a_notebook_needs_no_run_directory(self, folder):
        """What its frozen outputs hold is enough; a notebook may hold several runs."""
        path = notebook(
            folder / "both.ipynb", *(Frozen(polled(folder / "runs" / name))._repr_html_() for name in (A, B))
        )
        import shutil

        alive = overlay(A, B)
        shutil.rmtree(folder / "runs")
        kept = overlay(path)
        assert (A, B) == kept.names
        assert str(alive) == str(kept)

    def test_a_run_and_its_own_notebook_are_told_apart(self, folder):
        """The same id twice gets the place it is from."""
        path = notebook(folder / "a.ipynb", Frozen(polled(folder / "runs" / A))._repr_html_())
        assert (f"{A} (run)", f"{A} (a.ipynb)") == overlay(A, path).names

    def test_an_svg_of_a_run_is_read(self, folder):
        """The picture alone carries the run."""
        (folder / "a.svg").write_text(svg(polled(folder / "runs" / A)))
        assert 60 == overlay("a.svg", B).records[0].facts["step"]

    def test_the_picture_has_a_line_and_dots_for_each(self, folder):
        """Two lines, and as many dots as there were evaluations; each run in its colour."""
        drawn = ET.fromstring(overlay(A, B).svg())
        classes = [each.get("class") for each in drawn.iter() if each.get("class")]
        assert [1, 1, 2, 1] == [classes.count(name) for name in ("o0", "o1", "o0ed", "o1ed")]

    def test_an_unknown_recipe_is_said_and_not_compared(self, folder):
        """An absent recipe is no recipe of nothing."""
        recorded(folder / "runs", "20260103-000000-c")
        found = overlay(A, B, "20260103")
        assert "The recipe of 20260103-000000-c is not known." in str(found)
        assert {"learning_rate": [0.0002, 0.001, None], "lora_r": [8, 16, None]} == found.differences()


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "content", "message", "fix"),
        [
            ("empty.ipynb", '{"cells": []}', "empty.ipynb holds no finished run.", "nbkit.watch(RUN)"),
            ("broken.ipynb", "<<<<<<< HEAD", "broken.ipynb is not a notebook that can be read: Expecting value", "git diff"),
            ("list.ipynb", "[]", "list.ipynb is not a notebook that can be read", "save it again"),
            ("latin.ipynb", b"\xff\xfe", "latin.ipynb is not a notebook that can be read", "save it again"),
            ("gone.ipynb", None, "There is no file gone.ipynb.", "nbkit runs"),
            ("other.svg", "<svg/>", "other.svg holds no finished run.", "nbkit.watch(RUN)"),
            ("damaged.svg", DAMAGED, "damaged.svg holds a run whose record is damaged", "nbkit.watch(RUN)"),
        ],
    )  # fmt: skip
    def test_a_file_without_a_run_is_said(self, folder, name, content, message, fix):
        """What is wrong with which file, and what to do."""
        if content is not None:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(RunError) as caught:
            overlay(A, name)
        assert message in caught.value.message
        assert fix in caught.value.hint

    def test_one_run_is_not_enough(self, folder):
        """A comparison takes two."""
        with pytest.raises(RunError, match=f"To compare takes two runs; {A} gives 1"):
            overlay(A)


class TestCommand:
    def test_json_is_data_and_the_picture_a_file(self, folder):
        """stdout holds JSON only; where the picture went is said on stderr."""
        result = CliRunner().invoke(main, ["compare", A, B, "--json", "-o", "losses.svg"])
        found = json.loads(result.stdout)
        assert ([A, B], [8, 16]) == ([run["name"] for run in found["runs"]], found["differences"]["lora_r"])
        assert "Wrote losses.svg." in result.stderr
        ET.parse(folder / "losses.svg")

    def test_a_mistake_is_a_message_and_an_exit_code(self, folder):
        """No traceback."""
        result = CliRunner().invoke(main, ["compare", A, "nothing.ipynb"])
        assert (1, "") == (result.exit_code, result.stdout)
        assert "Error: There is no file nothing.ipynb." in result.stderr
