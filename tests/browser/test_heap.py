"""A dashboard that is watched for hours does not eat the browser."""

from __future__ import annotations

from tests.browser.board import Board
from tools.page import Gauge

REFRESHES, WARM = 1500, 300


def test_heap_over_1500_refreshes(notebook):
    """Less than 1 MB more JavaScript heap after 1,500 refreshes, collected before it is read; the rows themselves are 0.2 MB."""
    book = notebook(f"import steps\nsteps.fast({REFRESHES + WARM}, per_s=75)").run_all()
    board = Board(book)
    board.expect_rows(WARM)
    book.page.wait_for_timeout(2000)  # JupyterLab frees what its start needed; that would hide a leak
    gauge = Gauge(book.page)
    before, seen = gauge.heap_mb(), board.rows()
    board.expect_rows(REFRESHES + WARM, timeout_s=100)
    grown = (gauge.heap_mb() - before) * REFRESHES / (board.rows() - seen)
    print(f"heap: {grown:+.2f} MB over {REFRESHES} refreshes")
    assert grown < 1
