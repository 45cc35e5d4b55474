"""After the run the notebook holds a picture that needs no widget, no kernel and no nbkit."""

from __future__ import annotations

import base64
import re

import nbformat
from playwright.sync_api import expect

from tests.browser.board import PICTURE, expect_kept
from tools.page import Notebook

WATCH = "import nbkit, steps\nrun = nbkit.watch(steps.begin(total=60, every_s=0.02))"
# An image that the browser could not read has no size of its own.
_DRAWN = "image => image.complete && image.naturalWidth > 0"


def test_the_saved_notebook_shows_the_result(notebook, lab, page):
    """Saved, kernel gone, opened anew and untrusted: no widget in the file, an SVG of at most 25 kB, drawn in the page."""
    book = notebook(WATCH).run_all()
    bundles = expect_kept(book, "done")
    lab.end_kernels()
    (html,) = [bundle["text/html"] for bundle in bundles if "text/html" in bundle]
    (encoded,) = re.findall(r"src=[\"']data:image/svg\+xml;base64,([^\"']+)", html)
    svg = base64.b64decode(encoded).decode()
    assert len(svg.encode()) <= 25_000
    assert "http" not in svg.replace("http://www.w3.org/", "")
    assert all("0x" not in bundle["text/plain"] for bundle in bundles)

    saved = book.saved()
    reader = Notebook(lab, page, f"{book.folder.name}/reader", [])
    saved.cells.append(nbformat.v4.new_markdown_cell("changed, so not trusted"))
    nbformat.write(saved, reader.path)
    reader.open()
    image = reader.outputs.locator(PICTURE)
    expect(image).to_be_visible()
    assert image.evaluate(_DRAWN)
    expect(reader.outputs.get_by_text("done").first).to_be_visible()
    assert 0 == reader.page.get_by_text("Error displaying widget").count()
