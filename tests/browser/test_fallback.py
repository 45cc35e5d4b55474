"""Where no widget can be shown: HTML that is updated in place, and lines of text."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.board import Board

WATCH = """
import os
os.environ["NBKIT_DISPLAY"] = "{mode}"
import nbkit, steps
run = nbkit.watch(steps.begin(total=100))
"""


def test_html(notebook):
    """NBKIT_DISPLAY=html: a curve that grows and ends as the result, without any widget."""
    book = notebook(WATCH.format(mode="html")).run_all()
    expect(book.outputs.locator("svg.nbkit-picture")).to_be_visible()
    expect(book.outputs.locator("img[src^='data:image/svg']")).to_be_visible()
    assert 0 == Board(book).root.count()
    assert 0 == book.outputs.locator(".jupyter-widgets, .jp-OutputArea-output[data-mime-type*=widget]").count()


def test_text(notebook):
    """NBKIT_DISPLAY=text: a line that names the run and where it stands."""
    book = notebook(WATCH.format(mode="text")).run_all()
    expect(book.outputs.get_by_text("-steps").first).to_be_visible()
    # JupyterLab's own icon beside an output is an svg, too.
    assert 0 == Board(book).root.count() + book.outputs.locator("svg.nbkit-picture, img").count()
