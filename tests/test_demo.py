"""The demo: real kernels, real failures, a result that a script can read."""

from __future__ import annotations

import json

import nbformat
import pytest

from nbkit import demo
from nbkit.errors import NbkitError, RunError

pytest.importorskip("nbclient")


def write(folder, name, *cells):
    """A notebook of code cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(notebook, folder / f"{name}.ipynb")


@pytest.fixture
def folders(tmp_path):
    """Notebooks here, results there."""
    (tmp_path / "notebooks").mkdir()
    return tmp_path / "notebooks", tmp_path / "runs" / "demo"


@pytest.mark.train
class TestRunDemo:
    def test_a_folder_without_the_notebooks_is_refused(self, folders):
        """The missing ones are named; usage exit code."""
        with pytest.raises(NbkitError, match="has no 01_hardware_check, 02_data_prep") as caught:
            demo.run_demo(*folders, say=print)
        assert 2 == caught.value.exit_code

    def test_a_failing_cell_is_named_and_the_copy_kept(self, folders):
        """The error carries the cell's own error, and the executed copy shows it."""
        source, out = folders
        write(source, "01_hardware_check", "1 + 1", "raise ValueError('no such disk')")
        for name in demo.NOTEBOOKS[1:]:
            write(source, name, "1")
        with pytest.raises(RunError, match=r"01_hardware_check\.ipynb failed in cell 2: ValueError: no such disk"):
            demo.run_demo(source, out, say=print)
        assert "no such disk" in (out / "01_hardware_check.ipynb").read_text()

    def test_result_is_what_the_evaluation_wrote(self, folders):
        """result.json holds the evaluation of the run that this demo made, not of an older one beside it."""
        source, out = folders
        for name in demo.NOTEBOOKS[:2]:
            write(source, name, "1")
        make = (
            "import json, os, pathlib\n"
            "run = pathlib.Path(os.environ['NBKIT_RUNS']) / 'r1'; run.mkdir(); (run / 'status.json').write_text('{}')"
        )
        keys = ("exact_match", "field_accuracy", "loss")
        found = {"rows": 100} | {f"{who}_{key}": 0.5 for who in ("base", "tuned") for key in keys}
        evaluation = {"sets": {"seen": found, "unseen": found}, "general": None}
        write(source, demo.NOTEBOOKS[2], make)
        write(source, demo.NOTEBOOKS[3], f"import json, os, pathlib\n(pathlib.Path(os.environ['NBKIT_RUNS']) / 'r1' / "
                                         f"'evaluation.json').write_text({json.dumps(json.dumps(evaluation))})")  # fmt: skip
        result = demo.run_demo(source, out, say=print)
        written = json.loads((out / "result.json").read_text())
        assert written == result.as_dict()
        assert 100 == written["unseen"]["rows"]
        assert {"seen", "unseen", "base_loss", "tuned_loss", "seconds", "notebooks", "forgetting"} == set(written)
        assert "exact match" in str(result)
        assert 4 == len(written["notebooks"])
