"""The dashboard shows a run while it goes on."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.board import Board
from tests.browser.steps import row

WATCH = "import nbkit, steps\nrun = nbkit.watch(steps.begin())"


def test_draws_curves_and_facts(notebook):
    """State, step and values are text; the panels that have data are drawn; rows arrive without a touch."""
    board = Board(notebook(WATCH).run_all())
    board.expect_state("training")
    first = board.expect_rows(10)
    board.expect_rows(first + 20)
    assert "true" == board.book.page.locator("body").get_attribute("data-jp-theme-light")
    expect(board.part("step")).to_contain_text("/2000")
    expect(board.part("value-loss")).to_contain_text("train 2.")
    assert all(board.ink(panel) > 200 for panel in ("loss", "rate", "gradient", "speed"))


def test_hover_reads_a_step(notebook):
    """Pointing at the middle of a curve gives the step and the loss there, as the row on disk has them."""
    board = Board(notebook("import nbkit, steps\nrun = nbkit.watch(steps.begin(every_s=0.01))").run_all())
    board.expect_rows(150)
    board.click("Pause")
    board.expect_state("paused")
    label = board.part("panel-loss").locator(".nbkit-label small")
    board.part("panel-loss").locator("canvas").hover()
    expect(label).to_contain_text("at step ")
    step = int(label.inner_text().split()[-1])
    assert 0.3 * board.rows() < step < 0.7 * board.rows()
    shown = float(board.part("value-loss").inner_text().split()[-1])
    assert abs(row(step, 2000)["loss"] - shown) < 0.01
