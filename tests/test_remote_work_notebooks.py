"""Notebooks, recipes and what they leave, on a real sshd: executed there, brought back."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest

from nbkit import models
from nbkit.errors import NbkitError
from nbkit.remote import connect, work
from nbkit.remote.there import notebook as notebook_program
from nbkit.remote.there import work as there
from nbkit.training import Run
from tests import tiny, works
from tests.recorded import recorded
from tests.waiting import until
from tests.works import finished, notebook

box = works.box


def written(folder, *cells, name="a.ipynb"):
    path = folder / name
    path.write_text(json.dumps(notebook(*cells)))
    return path


def outputs(path):
    """The text of each cell's outputs, errors by name."""
    found = []
    for cell in json.loads(Path(path).read_text())["cells"]:
        texts = [
            "".join(out.get("text") or out.get("data", {}).get("text/plain") or out.get("ename"))
            for out in cell["outputs"]
        ]
        found.append("".join(texts))
    return found


class TestNotebook:
    def test_is_executed_there_with_parameters(self, laptop):
        """Values go in after the tagged cell; what cells print and show is on stdout; the executed notebook is here."""
        written(laptop.folder, ("STEPS = 1", "parameters"), "print('steps', STEPS)", "STEPS + 1")
        code, out, err = laptop.run("run", "a.ipynb", "--on", "box", "-p", "STEPS=41", "-p", "STEP=1", *laptop.options)
        assert 0 == code, err
        assert "[3/4] print('steps', STEPS)\nsteps 41\n[4/4] STEPS + 1\n42\n" in out
        assert "Note: unknown parameter 'STEP'; did you mean 'STEPS'?\n" in err
        where = re.search("The executed notebook: (.*)", err)
        assert ["", "", "steps 41\n", "42"] == outputs(laptop.folder / where[1])

    def test_a_cell_that_fails_is_named(self, laptop):
        """Exit code 1, the cell and the error in a line; the notebook comes back with the traceback, the rest not run."""
        written(laptop.folder, "print(1)", "# a remark\ntotal = sum([1, None])", "print('never')")
        code, out, err = laptop.run("run", "a.ipynb", "--on", "box", *laptop.options)
        assert 1 == code
        assert "never" not in out
        assert "  Where: cell 2 (total = sum([1, None])): TypeError: unsupported operand" in err
        where = re.search("The executed notebook: (.*)", err)
        assert ["1\n", "TypeError", ""] == outputs(laptop.folder / where[1])
        assert "cell 2" in laptop.run("runs", "--on", "box", *laptop.options)[1]

    def test_kernel_that_dies(self, box, tmp_path):
        """What was there before the kernel died is in the notebook; the cell is named."""
        path = written(tmp_path, "print(1)", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
        ended, _ = finished(work.begin(box, path))
        assert (1, "failed") == (ended.exit_code, ended.state)
        assert ended.failed_cell.startswith("cell 2 (import os, signal;")
        assert "the kernel died" in ended.failed_cell
        assert "1\n" == outputs(ended.pull_notebook(tmp_path / "back"))[0]

    def test_executor_that_is_killed(self, box, tmp_path):
        """Its kernel ends with it, the folder of its sockets goes, and the file has the cells that were done."""
        found = work.begin(box, written(tmp_path, "print(1)", "import time; time.sleep(600)"))
        until(lambda: (found.again().about["progress"] or {}).get("cell") == 2)
        folder = Path(found.about["folder"])
        place = Path((folder / "place").read_text())
        assert (place / "k.json").exists()
        killed = [
            pid for pid in there.marked(str(folder)) if b"notebook.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        os.kill(killed[0], signal.SIGKILL)
        ended, _ = finished(found)
        assert ("failed", 137) == (ended.state, ended.exit_code)
        until(lambda: not there.marked(str(folder)))
        assert not place.exists()
        assert "1\n" == outputs(folder / "files/a.ipynb")[0]

    def test_the_file_grows_cell_by_cell(self, box, tmp_path):
        """While a cell is at work the file there has the cells before it, and `progress` says where it is."""
        sleeps = "import time; print('at work', flush=True); time.sleep(600)"
        found = work.begin(box, written(tmp_path, "print('first')", sleeps, "print('never')"))
        until(lambda: "at work" in Path(found.about["folder"], "log").read_text().splitlines())
        assert 2 == found.again().about["progress"]["cell"]
        assert "first\n" == outputs(Path(found.about["folder"], "files", "a.ipynb"))[0]
        found.stop()
        ended, _ = finished(found)
        assert ("stopped", 143) == (ended.state, ended.exit_code)
        assert ["first\n", "at work\nKeyboardInterrupt", ""] == outputs(ended.pull_notebook(tmp_path / "back"))
        until(lambda: not there.marked(found.about["folder"]))

    def test_its_kernel_is_private(self, box, tmp_path):
        """Nobody else on the box can listen to the kernel: it talks through sockets in a 0700 folder."""
        path = written(tmp_path, "import json, os\nfrom ipykernel.connect import get_connection_info\n"
                       "told = json.loads(get_connection_info())\n"
                       "print(told['transport'], oct(os.stat(os.path.dirname(told['ip'])).st_mode & 0o777))")  # fmt: skip
        assert "ipc 0o700\n" in finished(work.begin(box, path))[1]

    def test_a_view_that_changes_after_its_cell(self, box, tmp_path):
        """An output that a thread updates later has its last state in the notebook."""
        path = written(tmp_path, "import threading, time\nview = display('old', display_id=True)\n"
                       "threading.Timer(0.5, lambda: view.update('new')).start()", "time.sleep(1.5)")  # fmt: skip
        ended, _ = finished(work.begin(box, path))
        assert ["'new'", ""] == outputs(ended.pull_notebook(tmp_path / "back"))

    def test_waits_for_the_training_it_left(self, box, tmp_path):
        """A notebook whose last cell only starts a training run has not ended before that has."""
        path = written(tmp_path, f"import threading\ndef work():\n    {TRAINS}\nthreading.Thread(target=work).start()")
        ended, said = finished(work.begin(box, path))
        assert "waiting for the training run" in said
        assert ("done", "done") == (ended.state, ended.about["runs"][0]["state"])

    def test_a_training_is_told_in_lines(self, tmp_path):
        """What is a picture in the notebook is a line now and then in the log."""
        run = recorded(tmp_path, steps=40, total=60, state="training")
        assert f"{run.id}: training, step 40 of 60, loss 0." in notebook_program.headline(str(run.path))
        assert "" == notebook_program.headline("")

    def test_a_widget_is_not_told(self):
        """The text of a widget is how it began, a bar at 0 %: it is left out of the log; other outputs are in it."""
        shown = {"text/plain": "  0%| | 0/9", "application/vnd.jupyter.widget-view+json": {}}
        for data, expected in ((shown, ""), ({"text/plain": "42"}, "42\n"), ({"image/png": ""}, "")):
            message = {"msg_type": "display_data", "content": {"data": data}}
            assert expected == notebook_program.spoken(message)

    def test_no_nbclient_there(self, server, box, tmp_path):
        """It is said what is missing and how to install it; nothing is sent."""
        before = len(work.works(box))
        python, needs = (
            f"{shlex.quote(sys.executable)} -S",
            "has no nbclient, nbformat, ipykernel, which a notebook needs",
        )
        with (
            connect("box", config=server.config, python=python) as bare,
            pytest.raises(NbkitError, match=needs) as caught,
        ):
            work.begin(bare, written(tmp_path, "1"))
        assert "nbkit setup box" in caught.value.hint
        assert "-m pip install nbclient nbformat ipykernel" in caught.value.hint
        assert before == len(work.works(box))


TRAINS = """
    import json, os, time
    run = os.path.join(os.environ['NBKIT_RUNS'], '20260101-a')
    os.mkdir(run)
    for step in range(1, 11):
        told = {'state': 'training' if step < 10 else 'done', 'step': step, 'max_steps': 10, 'started': 1.0, 'pid': os.getpid()}
        with open(run + '/part', 'w') as file:
            json.dump(told, file)
        os.replace(run + '/part', run + '/status.json')
        time.sleep(0.3)
"""


class TestPull:
    def test_brings_what_was_written(self, laptop):
        """New and changed files, the log and the training runs come here; what was sent stays there."""
        (laptop.folder / "data").mkdir()
        (laptop.folder / "data/sent.bin").write_bytes(b"s" * 1000)
        (laptop.folder / "data/changed.txt").write_text("old")
        (laptop.folder / "a.py").write_text(
            "from pathlib import Path\nimport os\nPath('data/changed.txt').write_text('newer')\n"
            "Path('out/deep').mkdir(parents=True)\n"
            "Path('out/deep/x').write_text('x')\nrun = Path(os.environ['NBKIT_RUNS'], '20260101-b')\nrun.mkdir()\n"
            "(run / 'status.json').write_text('{\"state\": \"done\", \"started\": 1}')\nprint('said')"
        )
        _, _, err = laptop.run("run", "a.py", "--on", "box", "--with", "data", *laptop.options)
        code, out, err = laptop.run("pull", "a", "--json")
        assert 0 == code, err
        into = laptop.folder / json.loads(out)["into"]
        found = {path.relative_to(into).as_posix(): path.read_text() for path in into.rglob("*") if path.is_file()}
        assert {"data/changed.txt": "newer", "out/deep/x": "x", "log": "said\n"} == found
        assert "20260101-b" in laptop.run("runs")[1]

    def test_wrong_use(self, laptop):
        """A name that is neither a place nor a run, and a missing DST, are usage errors."""
        assert 2 == laptop.run("pull", "absent", ".")[0]
        assert 2 == laptop.run("pull", "box:a")[0]
        assert 2 == laptop.run("pull", "absent", "--on", "box", "--check", *laptop.options)[0]
        assert 1 == laptop.run("pull", "absent", "--on", "box", *laptop.options)[0]


RECIPE = """
model_name_or_path: model
dataset_name: rows.jsonl
use_peft: true
lora_r: 4
lora_target_modules: [all-linear]
max_steps: 100
per_device_train_batch_size: 1
bf16: false
use_cpu: true
max_length: 64
report_to: none
"""


class TestRecipe:
    @pytest.mark.train
    def test_trains_there(self, laptop):
        """Model and rows beside the recipe go along; the run is one of nbkit's, and is pulled with its adapter."""
        tiny.save_two_layers(models.embedded(), laptop.folder / "model")
        row = {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello"}]}
        (laptop.folder / "rows.jsonl").write_text((json.dumps(row) + "\n") * 8)
        (laptop.folder / "recipe.yaml").write_text(RECIPE)
        code, out, err = laptop.run("run", "recipe.yaml", "--on", "box", "-p", "max_steps=3", *laptop.options)
        assert 0 == code, out + err
        laptop.run("pull", "recipe")
        run = Run(next((laptop.folder / "runs").iterdir()))
        assert ("done", 3) == (run.status.state, run.status.step)
        assert (run.adapter / "adapter_model.safetensors").is_file()
        shutil.rmtree(laptop.folder / "model")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (("dataset_name: rows.jsonl", ""), "names no data: the config.yaml of a run does not hold its rows"),
            (("model_name_or_path: model", ""), "names no model"),
            (("dataset_name: rows.jsonl", "dataset_name: ../rows.jsonl"), "does not lie below recipe.yaml's folder"),
            ((RECIPE, "- 1"), "is no recipe"),
            ((RECIPE, "a: ]"), r":1 is no YAML: "),
        ],
    )
    def test_what_is_no_recipe(self, box, tmp_path, change, message):
        """What lacks a model or data is refused before anything is dialled."""
        (tmp_path / "rows.jsonl").touch()
        (tmp_path / "here").mkdir()
        path = tmp_path / "here/recipe.yaml"
        path.write_text(RECIPE.replace(*change))
        with pytest.raises(NbkitError, match=message) as caught:
            work.begin(box, path)
        assert 2 == caught.value.exit_code
