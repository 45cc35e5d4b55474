"""The buttons reach training. What counts is what the run directory holds, not what the page says."""

from __future__ import annotations

import json

from playwright.sync_api import expect

from nbkit.training import Run, manifest
from tests.browser.board import Board
from tools.page import wait_for

TRAIN = "import nbkit, steps\nrun = nbkit.start(steps.trainer())"
WATCH = "import nbkit, steps\nrun = nbkit.watch(steps.begin())"


def events(path):
    """The names of what happened."""
    return [json.loads(line)["event"] for line in (path / "events.jsonl").read_text().splitlines()]


def test_stop_ends_training_and_keeps_the_adapter(notebook):
    """A real Trainer: the click ends it long before its last step, with a valid checkpoint and the adapter."""
    book = notebook(TRAIN).run_all()
    board = Board(book)
    board.expect_state("training", timeout_s=90)
    board.expect_rows(5)
    board.click("Stop")
    run = Run(book.runs()[0])
    wait_for(lambda: not run.status.active, "the run to end")
    assert "stopped" == run.status.state
    expect(book.outputs.get_by_role("cell", name="stopped")).to_be_visible()  # of the picture that stays
    assert 5 <= run.status.step < 3000
    assert (run.path / "adapter" / "adapter_model.safetensors").is_file()
    newest, skipped = manifest.newest(run.path / "checkpoints")
    assert (f"checkpoint-{run.status.step}", []) == (newest.name, list(skipped))
    assert {"stopping", "kept", "stopped"} <= set(events(run.path))


def test_pause_holds_and_resume_goes_on(notebook):
    """Paused, no step is made; resumed, steps go on from there; the button says which of the two it does."""
    book = notebook(WATCH).run_all()
    board = Board(book)
    board.expect_state("training")
    board.expect_rows(5)
    board.click("Pause")
    board.expect_state("paused")
    run = Run(book.runs()[0])
    assert (run.path / "PAUSE").exists()
    held = run.status.step
    board.book.page.wait_for_timeout(700)  # fourteen steps, had it gone on
    assert held == run.status.step
    board.click("Resume")
    board.expect_state("training")
    wait_for(lambda: run.status.step > held, "steps after the pause")
    assert not (run.path / "PAUSE").exists()
