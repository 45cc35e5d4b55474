"""A run on a box in a notebook here: begun in a shell, its dashboard in a cell, through a lost link to its result."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests import sshd
from tests.browser.board import Board, expect_kept
from tests.works import end_all
from tools.page import Notebook
from tools.page import page as open_page

TRAIN = """from nbkit.training.record import Recorder, new_path
from steps import write
recorder = Recorder(new_path("train"))
write(recorder, 20_000, 0.05)
recorder.close()
"""


@pytest.fixture
def server(tmp_path):
    """A box on loopback."""
    with sshd.running(tmp_path / "box") as server:
        try:
            yield server
        finally:
            end_all(server)


@pytest.fixture
def laptop(tmp_path):
    """Where nbkit remembers here what it began, for the shell and for the notebook's kernel."""
    return {"NBKIT_STATE": str(tmp_path / "state"), "NBKIT_CACHE": str(tmp_path / "cache")}


@pytest.fixture
def begun(server, laptop, tmp_path):
    """The id of a run on the box whose steps cost nothing, 20 of them a second, begun from a shell."""
    (tmp_path / "train.py").write_text(TRAIN)
    words = ["run", "train.py", "--on", "box", "--detach", "--with", str(Path(__file__).parent / "steps.py"),
             "-F", str(server.config), "--python", shlex.quote(sys.executable)]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "nbkit.cli", *words], cwd=tmp_path, env={**os.environ, **laptop}, timeout=90,
        check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    return done.stderr.split(" runs on box as ")[1].split(".\n")[0]


@pytest.fixture
def book(lab, chrome, laptop, begun):
    """A notebook that watches it, by the line that `nbkit run` printed."""
    cells = [f"import os, nbkit\nos.environ.update({laptop!r})", f'run = nbkit.watch("{begun}")']
    with open_page(chrome) as page:
        lab.forget()
        yield Notebook(lab, page, "remote/watch", cells).open().run_all()
        lab.end_kernels()


def test_live_through_a_lost_link_and_stopped_from_here(book, server, begun, laptop):
    """The page says that the link is lost, a click of then reaches the box when it is back, no step is missing. Stop ends the
    run on the box; the result stays in the saved notebook, with the line that fetches it.
    """
    board = Board(book)
    board.expect_state("training")
    board.expect_rows(20)
    assert board.ink("loss") > 200
    assert board.part("run").inner_text().startswith(f"{steps(server, begun).name} on box · ")
    server.stop()
    expect(board.part("note")).to_have_text("the link to box is lost, connecting again")
    board.click("Pause")
    expect(board.part("note")).to_have_text("the link to box is lost, connecting again; then it is asked to pause")
    held = board.rows()
    server.start()
    board.expect_state("paused")
    assert (steps(server, begun) / "PAUSE").exists()
    step = int(board.part("step").inner_text().split()[1].partition("/")[0])
    assert held < step == board.expect_rows(step)
    board.click("Resume")
    board.expect_state("training")
    board.expect_rows(step + 10)
    board.click("Stop")
    bundles = expect_kept(book, "stopped")
    assert '"stopped"' in (steps(server, begun) / "status.json").read_text()
    (copy,) = Path(laptop["NBKIT_CACHE"]).glob("mirrors/*/*/*/metrics.jsonl")
    assert (steps(server, begun) / "metrics.jsonl").read_bytes() == copy.read_bytes()
    assert any(f"nbkit pull {begun} --on box" in bundle.get("text/plain", "") for bundle in bundles)


def steps(server, begun):
    """The run's directory on the box."""
    (path,) = (server.folder / ".local/state/nbkit/work" / begun / "runs").iterdir()
    return path
