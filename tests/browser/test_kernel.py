"""A kernel of a box in the JupyterLab here: what a cell prints and what a click sends while the link is away, and training."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect

from nbkit import remote
from nbkit.remote import jupyter, kernels
from nbkit.training import Run
from tests import sshd
from tests.browser.board import Board, expect_kept
from tools.page import Notebook, wait_for
from tools.page import page as open_page

_COUNT = "import time\nfor number in range(160):\n    print(number, end=' ', flush=True)\n    time.sleep(0.05)"
_BUTTON = """import ipywidgets
from pathlib import Path
button = ipywidgets.Button(description='press')
button.on_click(lambda _: (Path.home() / 'pressed').open('a').write('once '))
button"""


@pytest.fixture
def server(lab, tmp_path, monkeypatch):
    """A box on loopback whose kernel `gpu` can be chosen in the lab."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(lab.folder / "data"))
    with sshd.running(tmp_path / "box") as server:
        with remote.connect("box", config=server.config, python=sys.executable) as box:
            paths = os.pathsep.join(str(path) for path in (Path(remote.__file__).parents[2], Path(__file__).parent))
            kernels.add(box, name="gpu", config=server.config, env={"PYTHONPATH": paths})
        try:
            yield server
        finally:
            lab.end_kernels()
            kernels.unregister(name="gpu")
            with remote.connect("box", config=server.config, python=sys.executable) as box:
                jupyter.stop(box)


def test_nothing_is_lost_in_the_page(lab, chrome, server):
    """All numbers of a counter stand in the output after three cuts, in order; a button pressed during a cut is heard once."""
    with open_page(chrome) as page:
        book = Notebook(lab, page, "remote/count", [_COUNT, _BUTTON], kernel="gpu").open().run_all()
        for number in (15, 60, 100):
            wait_for(lambda at=number: f" {at} " in book.output(0).inner_text(), f"number {number}", 60)
            server.cut()
        wait_for(lambda: "159" in book.output(0).inner_text().split(), "the last number", 60)
        assert [str(number) for number in range(160)] == book.output(0).inner_text().split()
        button = page.locator("button", has_text="press")
        button.wait_for()
        server.cut()
        button.click()
        pressed = server.folder / "pressed"
        wait_for(lambda: pressed.exists() and pressed.read_text(), "the click to reach the kernel", 60)
        assert "once " == pressed.read_text()


def test_training_there_is_watched_and_stopped_from_here(lab, chrome, server):
    """The dashboard of a trainer in that kernel is live, after a cut too; a Stop pressed while the link is away is heard once
    it is back; adapter and run stay on the box, the result in the notebook, which is saved here.
    """
    with open_page(chrome) as page:
        quiet = "%%capture\nimport nbkit, steps\ntrainer = steps.trainer(max_steps=100_000)"  # it shows progress bars
        cells = [quiet, "run = nbkit.start(trainer)"]
        book = Notebook(lab, page, "remote/train", cells, kernel="gpu").open().run_all()
        board = Board(book)
        board.expect_state("training", timeout_s=90)
        rows = board.expect_rows(10)
        server.cut()
        board.expect_rows(rows + 20)
        server.stop()
        board.click("Stop")
        expect(board.part("note")).to_contain_text("no answer: the kernel is busy, or its link is lost")
        (path,) = server.folder.glob("runs/*")
        assert Run(path).status.active
        server.start()
        expect_kept(book, "stopped")
        assert "stopped" == Run(path).status.state
        assert (path / "adapter" / "adapter_model.safetensors").is_file()
        assert [] == book.runs()


def test_a_killed_kernel_is_explained_below_its_cell(lab, chrome, server):
    """The kernel is killed while a cell prints: what came of that stands below what the cell had printed."""
    with open_page(chrome) as page:
        book = Notebook(lab, page, "remote/killed", [_COUNT], kernel="gpu").open().run_all()
        wait_for(lambda: " 15 " in book.output(0).inner_text(), "number 15", 60)
        with remote.connect("box", config=server.config, python=sys.executable) as box:
            (one,) = jupyter.look(box).kernels
            os.kill(one["pid"], signal.SIGKILL)
        wait_for(lambda: "The kernel was killed at " in book.output(0).inner_text(), "what became of it", 60)
        assert book.output(0).inner_text().startswith("0 1 2 3 ")
        said = book.output(0).inner_text().partition("nbkit kernel logs box -F ")[2]
        assert one["id"][:8] in said


def test_is_chosen_in_notebook_7(lab, chrome, server):
    """Notebook 7, on a kernel of this machine, changes to the one of the box by its dialog; a counter loses nothing in a cut."""
    with open_page(chrome) as page:
        book = Notebook(lab, page, "remote/seven", [_COUNT], view="notebooks").open()
        page.locator(".jp-Toolbar-kernelName").click()
        dialog = page.locator(".jp-Dialog")
        dialog.locator("select").select_option(label="gpu (box)")
        dialog.get_by_role("button", name="Select").click()
        page.locator(".jp-Toolbar-kernelName", has_text="gpu (box)").wait_for()
        book.ready().run_all()
        wait_for(lambda: " 40 " in book.output(0).inner_text(), "number 40", 60)
        server.cut()
        wait_for(lambda: "159" in book.output(0).inner_text().split(), "the last number", 60)
        assert [str(number) for number in range(160)] == book.output(0).inner_text().split()
