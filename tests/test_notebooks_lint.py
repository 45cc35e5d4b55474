"""The notebooks as committed keep the rules, and each rule fires on a notebook that breaks it."""

from __future__ import annotations

import json
import re
import sys
import types

import pytest

from tools import api_drift, notebook_rules, notebook_runs, notebooks
from tools.notebook_rules import NOTEBOOKS, badge_line, install_cell

COMMITTED = sorted(NOTEBOOKS.glob("*.ipynb"))
WITHOUT_DRIFT = tuple(rule for rule in notebook_rules.RULES if rule is not notebook_rules.drift)
NAME = "nbkit"


def code(source, *tags, outputs=(), count=None, **metadata):
    """A code cell as it is stored."""
    metadata = {**metadata, **({"tags": list(tags)} if tags else {})}
    return {
        "cell_type": "code",
        "execution_count": count,
        "id": "",
        "metadata": metadata,
        "outputs": list(outputs),
        "source": source,
    }


def notebook(*cells, name="01_good.ipynb", **metadata):
    """A notebook that keeps every rule, with `cells` at its end; ids are given by position."""
    title = {"cell_type": "markdown", "id": "", "metadata": {}, "source": f"{badge_line(name)}\n# Title"}
    everything = [title, code(install_cell(), "install"), code("STEPS = 4  # optimizer steps", "parameters"), *cells]
    for index, cell in enumerate(everything):
        cell["id"] = f"cell-{index}"
    return {
        "cells": everything,
        "metadata": {"kernelspec": notebook_runs.KERNEL, "language_info": {"name": "python"}, **metadata},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def stream(text, name="stdout"):
    """An output that was printed."""
    return {"output_type": "stream", "name": name, "text": text}


def findings(folder, content, rules=WITHOUT_DRIFT):
    """What the rules say of `content`, one string a finding."""
    path = folder / "01_good.ipynb"
    path.write_text(json.dumps(content))
    return [str(finding) for finding in notebook_rules.check(path, rules)]


class TestCommitted:
    def test_the_four_are_there(self):
        """The notebooks that the README names exist, so the tests below have something to read."""
        assert ["01", "02", "03", "04"] == [path.name[:2] for path in COMMITTED][:4]

    @pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
    def test_keeps_the_rules(self, path):
        """A committed notebook is current, short-celled, safe, and stored as `make render` stores it."""
        assert [] == [str(finding) for finding in notebook_rules.check(path, WITHOUT_DRIFT)]

    @pytest.mark.train
    @pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
    def test_gives_no_unknown_keyword(self, path):
        """Every argument that a cell gives to TRL, PEFT or transformers exists in the installed release."""
        assert [] == [str(finding) for finding in notebook_rules.check(path, (notebook_rules.drift,))]


class TestRules:
    def test_a_good_notebook_passes(self, tmp_path):
        """The notebook that the other tests spoil has no finding of its own."""
        good = notebook(code("print(STEPS)", outputs=[stream("4 steps, runs/a/metrics.jsonl, n/a, 1/2\n")]))
        assert [] == findings(tmp_path, good)

    @pytest.mark.parametrize(
        ("cell", "expected"),
        [
            (code("LR = 1e-4"), "LR is assigned outside the cell tagged `parameters`"),
            (code("for SEED in range(3):\n    pass"), "SEED is assigned outside the cell tagged `parameters`"),
            (code("x = 1\n" * 16), "the cell has 16 lines of code; at most 15: split it, or move code to nbkit"),
            (
                code("x = 1\n" * 16, "long-ok"),
                "the cell has 16 lines of code; at most 15: split it, or move code to nbkit",
            ),
            (code("import os\nos.environ['NBKIT_SMOKE']"), "smoke mode is read by the library, not by cells"),
            (code("x", outputs=[stream("warning", "stderr")]), "an output is stderr; run: make render"),
            (code("x", outputs=[stream("/home/ana/run")]), "an output names a path of a machine: /home/ana/run"),
            (code("x", outputs=[stream("in /tmp/a1/b")]), "an output names a path of a machine: /tmp/a1/b"),
            (code("x", outputs=[stream("y" * 100_000)]), "an output has 100 kB; at most 100"),
            (
                code("x", outputs=[{"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}]),
                "an output is a traceback (ValueError)",
            ),
            (
                code(
                    "x",
                    outputs=[{"output_type": "display_data", "data": {notebook_runs.WIDGET_VIEW: {}}, "metadata": {}}],
                ),
                "an output is a live widget, which a reader cannot see; show its static form",
            ),
            (code("x", collapsed=True), "the cell's metadata holds collapsed; only tags belong there"),
            (
                code(f"%pip install {NAME}"),
                f"`pip install {NAME}` installs an unrelated package; the distribution is nbkit-llm",
            ),
            (code("f(trust_remote_code=True)"), "line 1: trust_remote_code=True runs code from the hub"),
            (code("def f(:"), "line 1 is not Python: invalid syntax"),
        ],
    )
    def test_a_bad_cell_is_named(self, tmp_path, cell, expected):
        """Each rule about cells names the notebook, the cell and what is wrong."""
        assert [f"01_good.ipynb:cell 4: {expected}"] == findings(tmp_path, notebook(cell))

    def test_a_stale_badge_and_install_cell_are_named(self, tmp_path):
        """A badge or an install cell of another version is found."""
        content = notebook()
        content["cells"][0]["source"] = badge_line("02_other.ipynb") + "\n# Title"
        content["cells"][1]["source"] = install_cell().replace("@v", "@v9")
        assert [
            "01_good.ipynb:cell 1: the badge is not the one of this version; run: python -m tools.notebooks badges",
            "01_good.ipynb:cell 2: the install cell is not the one of this version; run: python -m tools.notebooks badges",
        ] == findings(tmp_path, content)

    @pytest.mark.parametrize("count", [0, 2])
    def test_one_cell_holds_the_parameters(self, tmp_path, count):
        """No parameters cell, or more than one, is a finding of the whole notebook."""
        content = notebook(code("BATCH = 2", "parameters"))
        if not count:
            for cell in content["cells"][2:]:
                cell.update(metadata={}, source="x = 1")
        expected = f"01_good.ipynb: one code cell must carry the tag `parameters`; {count} do"
        assert [expected] == findings(tmp_path, content)

    def test_ids_are_there_and_differ(self, tmp_path):
        """A cell without an id, and one with another cell's id, are found."""
        content = notebook(code("x = 1"), code("x = 2"))
        content["cells"][3]["id"] = "cell-0"
        del content["cells"][4]["id"]
        assert [
            "01_good.ipynb:cell 4: the cell's id 'cell-0' is taken by an earlier cell",
            "01_good.ipynb:cell 5: the cell has no id; open and save the notebook in JupyterLab",
        ] == findings(tmp_path, content)

    def test_an_old_format_is_refused(self, tmp_path):
        """nbformat 4.4 has no cell ids at all, so the format itself is the finding."""
        expected = "01_good.ipynb: the format is older than 4.5, which has no cell ids; save it in JupyterLab"
        assert [expected] == findings(tmp_path, {**notebook(), "nbformat_minor": 4})

    @pytest.mark.parametrize("counts", [(1, 2, 4), (2, 1, 3), (1, None, 2)])
    def test_execution_counts_tell_of_one_whole_run(self, tmp_path, counts):
        """Counts with gaps, out of order or partly absent show that the outputs are not of one run."""
        content = notebook()
        content["cells"].append({**code("x"), "id": "last"})
        for cell, count in zip(content["cells"][1:], counts, strict=True):
            cell["execution_count"] = count
        expected = f"01_good.ipynb: execution counts are {list(counts)}; either 1 to 3 in order, or none at all"
        assert [expected] == findings(tmp_path, content)

    def test_other_metadata_is_named(self, tmp_path):
        """Widget state, or what an editor adds to the notebook, is found."""
        expected = "the notebook's metadata holds widgets; only kernelspec and language_info belong there"
        assert [f"01_good.ipynb: {expected}"] == findings(tmp_path, notebook(widgets={}))


@pytest.mark.train
class TestDrift:
    @pytest.mark.parametrize(
        ("source", "expected"),
        [
            ("SFTConfig(max_length=8, packing=True)", []),
            (
                "trl.SFTConfig(max_seq_length=8)",
                ["SFTConfig takes no argument 'max_seq_length'", "did you mean max_length?"],
            ),
            ("LoraConfig(rank=8)", ["LoraConfig takes no argument 'rank'", "in peft "]),
            ("BitsAndBytesConfig(load_in_4bit=True, load_in_5bit=True)", ["takes no argument 'load_in_5bit'"]),
            ("SFTTrainer(model=m, tokenizer=t)", ["SFTTrainer takes no argument 'tokenizer' in trl "]),
            ("AutoModelForCausalLM.from_pretrained(x, dtype=d, quantization_config=q, device_map='auto')", []),
            ("AutoModelForSequenceClassification.from_pretrained(x, num_labels=5)", []),
            ("AutoModelForCausalLM.from_pretrained(x, load_in_4bit=True)", ["takes no argument 'load_in_4bit'"]),
            ("AutoTokenizer.from_pretrained(x, revision='main', use_fast=True)", []),
            ("AutoTokenizer.from_pretrained(x, slow=True)", ["AutoTokenizer.from_pretrained takes no argument 'slow'"]),
            ("PeftModel.from_pretrained(m, x, is_trainable=True)", []),
            ("AutoNothing.from_pretrained(x, dtype=1)", ["neither transformers, peft nor trl has AutoNothing"]),
        ],
    )
    def test_an_unknown_keyword_is_named(self, source, expected):
        """A keyword that the installed release does not take is named with the release and the closest present one."""
        import ast

        found = " ".join(text for _, text in api_drift.unknown_keywords(ast.parse(source)))
        assert bool(expected) == bool(found), found
        assert all(part in found for part in expected), found


class TestBadges:
    def test_placeholders_are_rendered_and_stay(self, tmp_path):
        """`badges` fills both places from pyproject.toml, keeps the title, and changes nothing the second time."""
        content = notebook()
        content["cells"][0]["source"] = "<!-- badge -->\n# Title\ntext"
        content["cells"][1]["source"] = ""
        path = tmp_path / "01_good.ipynb"
        path.write_text(json.dumps(content))
        assert notebooks.render_badges(path)
        assert not notebooks.render_badges(path)
        cells = json.loads(path.read_text())["cells"]
        assert f"{badge_line('01_good.ipynb')}\n# Title\ntext" == "".join(cells[0]["source"])
        assert [] == findings(tmp_path, json.loads(path.read_text()))

    def test_a_notebook_without_a_place_is_refused(self, tmp_path):
        """A first markdown cell that begins with its title is an error, not a line lost."""
        content = notebook()
        content["cells"][0]["source"] = "# Title"
        path = tmp_path / "01_good.ipynb"
        path.write_text(json.dumps(content))
        with pytest.raises(SystemExit, match="must begin with a line `<!-- badge -->`"):
            notebooks.render_badges(path)

    def test_the_install_cell_does_nothing_here_and_pins_torch_on_colab(self, monkeypatch):
        """In IPython the cell is idle; where google.colab is loaded it installs this version and leaves torch alone."""
        from importlib.metadata import version

        from IPython.core.interactiveshell import InteractiveShell

        installed = []
        shell = InteractiveShell.instance()
        try:
            shell.register_magic_function(installed.append, magic_name="pip")
            shell.run_cell(install_cell()).raise_error()
            assert [] == installed
            monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
            # The torch of a core-only environment is absent; any installed package shows the same.
            shell.run_cell(install_cell().replace("version('torch')", "version('pytest')")).raise_error()
        finally:
            InteractiveShell.clear_instance()
        url, ours = notebook_rules.project()
        assert [f'install -q "torch=={version("pytest")}" "nbkit-llm[train] @ git+{url}@v{ours}"'] == installed


class TestRuns:
    """Real kernels, small notebooks."""

    def test_smoke_runs_copies_in_smoke_mode_and_tells_who_failed(self, tmp_path, capfd):
        """Cells see smoke mode and what an earlier notebook left; the notebooks' own folder stays as it was."""
        writes = "import os\nassert os.environ['NBKIT_SMOKE'] == '1'\nopen('left', 'w').close()"
        good, bad = tmp_path / "01_good.ipynb", tmp_path / "02_bad.ipynb"
        good.write_text(json.dumps(notebook(code(writes))))
        bad.write_text(json.dumps(notebook(code("open('left').close()"), code("raise ValueError"))))
        assert 1 == notebook_runs.smoke([good, bad])
        said = capfd.readouterr().out
        assert re.search(r"01_good.ipynb +3 cells passed, 0 failed", said), said
        assert re.search(r"02_bad.ipynb +3 cells passed, 1 failed", said), said
        assert [bad, good] == sorted(tmp_path.iterdir(), reverse=True)

    @pytest.mark.parametrize(("there", "names"), [(True, ["04_", "05_"]), (False, ["04_"])])
    def test_smoke_of_all_leaves_out_what_needs_sshd(self, tmp_path, monkeypatch, capsys, there, names):
        """Without sshd the practice box's notebook is skipped, and said to be."""
        for name in ("04_eval.ipynb", "05_remote_gpu.ipynb"):
            (tmp_path / name).write_text("{}")
        ran = []
        monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
        monkeypatch.setattr(notebooks.system, "found", lambda program: there)
        monkeypatch.setattr(notebook_runs, "smoke", lambda paths, report: ran.extend(path.name[:3] for path in paths))
        notebooks.main(["smoke"])
        assert names == ran
        assert there != ("05 is skipped: sshd is not installed" in capsys.readouterr().out)

    def test_render_stores_what_may_be_committed(self, tmp_path):
        """Outputs are stored without stderr, paths or editor metadata, and then keep every rule."""
        cell = "import os, sys\nprint('warn', file=sys.stderr)\nprint(os.getcwd() + '/runs', sys.prefix)\nSTEPS"
        path = tmp_path / "01_good.ipynb"
        path.write_text(json.dumps(notebook(code(cell, collapsed=True), widgets={"state": {}})))
        assert 0 == notebook_runs.render([path])
        stored = json.loads(path.read_text())
        printed, value = stored["cells"][3]["outputs"]
        assert "runs .venv\n" == "".join(printed["text"])
        assert "4" == "".join(value["data"]["text/plain"])
        assert [] == findings(tmp_path, stored)

    def test_render_keeps_a_notebook_that_fails(self, tmp_path, capsys):
        """A notebook whose cell raises is not rewritten, and the error is shown."""
        path = tmp_path / "01_good.ipynb"
        before = json.dumps(notebook(code("raise ValueError('no such row')")))
        path.write_text(before)
        assert 1 == notebook_runs.render([path])
        assert before == path.read_text()
        assert "no such row" in capsys.readouterr().err
