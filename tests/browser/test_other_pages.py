"""Notebook 7, a second notebook, a kernel that was restarted, and Colab's old kernel: the same view, the same Stop."""

from __future__ import annotations

import json

from nbkit.training import Run
from tests.browser.board import Board
from tools.page import Notebook, wait_for

WATCH = "import nbkit, steps\nrun = nbkit.watch(steps.begin())"


def stop_and_check(board, path):
    """Click Stop; the run's own record says that it stopped, and when."""
    clicked = board.part("stop").evaluate("button => { const now = Date.now(); button.click(); return now; }")
    run = Run(path)
    wait_for(lambda: run.status.state == "stopped", "the run to stop")
    (end,) = [json.loads(x) for x in (path / "events.jsonl").read_text().splitlines() if '"stopped"' in x]
    latency = end["ended"] - clicked / 1000
    print(f"stop: loop ended {latency:.3f} s after the click")
    return latency


def test_notebook_7(notebook):
    """Notebook 7 renders the same widget, and its Stop reaches the kernel."""
    book = notebook(WATCH, view="notebooks").run_all()
    board = Board(book)
    board.expect_rows(20)
    assert board.ink("loss") > 200
    stop_and_check(board, book.runs()[0])


def test_colab_kernel(notebook, colab):
    """ipykernel 6.17.1, ipywidgets 7.7.1, anywidget 0.9.21: live, and stopped within the goal's order."""
    book = notebook(
        "import ipykernel, ipywidgets, anywidget\nprint(ipykernel.__version__, ipywidgets.__version__, anywidget.__version__)",
        WATCH,
        kernel=colab,
    ).run_all()
    board = Board(book)
    board.expect_rows(20)
    assert "6.17.1 7.7.1 0.9.21" == book.output(0).inner_text().strip()
    assert stop_and_check(board, book.runs()[0]) < 5  # goal 0.5 s: python -m bench dashboard


def test_watch_from_a_second_notebook(notebook, lab, page):
    """nbkit.watch() without an argument finds the newest run, of another kernel, and its Stop works from there."""
    first = notebook("import nbkit, steps\nrun = steps.begin()", name="first").run_all()
    wait_for(first.runs, "the run to begin")
    second = Notebook(lab, page, f"{first.folder.name}/second", ["import nbkit\nrun = nbkit.watch()"])
    board = Board(second.open().run_all())
    board.expect_rows(20)
    stop_and_check(board, first.runs()[0])


def test_a_restarted_kernel_finds_a_detached_run(notebook):
    """detach=True: the run outlives its kernel; nbkit.watch() in the new one shows it live, and Stop reaches it."""
    book = notebook("import nbkit, steps\nrun = nbkit.start(steps.trainer(max_steps=100_000), detach=True)").run_all()
    (path,) = wait_for(book.runs, "the run to begin", 90)
    run = Run(path)
    try:
        wait_for(lambda: run.status.step > 3, "the detached run to train", 90)
        book.restart()
        book.replace("import nbkit\nrun = nbkit.watch()").run_all()
        board = Board(book)
        board.expect_rows(5)
        before = run.status.step
        wait_for(lambda: run.status.step > before, "steps after the restart")
        board.click("Stop")
        wait_for(lambda: run.status.state == "stopped", "the run to stop")
    finally:
        if run.status.active:
            run.stop()
            wait_for(lambda: not run.status.active, "the run to end", 30)
    assert (path / "adapter" / "adapter_model.safetensors").is_file()
