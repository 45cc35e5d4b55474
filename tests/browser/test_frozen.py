"""After the run the notebook holds a picture that needs no widget, no kernel and no nbkit."""

from __future__ import annotations

from board import Board
from playwright.sync_api import expect

from tools.page import wait_for

WATCH = "import nbkit, steps\nrun = nbkit.watch(steps.begin(total=60, every_s=0.02))"
WIDGET = "application/vnd.jupyter.widget-view+json"


def test_the_saved_notebook_shows_the_result(notebook, lab):
    """Saved, kernel gone, opened anew: no widget in the file, an SVG of at most 25 kB, visible in the page."""
    book = notebook(WATCH).run_all()
    picture = book.outputs.locator("svg[role=img], img[src^='data:image/svg']").first
    expect(picture).to_be_visible()
    wait_for(lambda: Board(book).root.count() == 0, "the widget to be replaced")
    book.save()
    lab.end_kernels()
    bundles = [output["data"] for output in book.saved().cells[0].outputs if "data" in output]
    assert not any(WIDGET in bundle for bundle in bundles)
    assert "widgets" not in book.saved().metadata
    (html,) = [bundle["text/html"] for bundle in bundles if "text/html" in bundle]
    assert "<svg" in html
    assert len(html.encode()) <= 25_000
    assert not any("<script src" in html or "http://" in line for line in html.split("xmlns")[:1])
    assert all("0x" not in bundle["text/plain"] for bundle in bundles)
    book.open()
    expect(picture).to_be_visible()
    expect(book.outputs.get_by_text("done").first).to_be_visible()
    assert book.page.get_by_text("Error displaying widget").count() == 0
