"""Colours follow the theme; a narrow page cuts nothing off."""

from __future__ import annotations

from tests.browser.board import Board
from tools.page import wait_for

WATCH = "import nbkit, steps\nrun = nbkit.watch(steps.begin())"
_LUMINANCE = """(element, property) => {
  const [r, g, b] = getComputedStyle(element)[property].match(/[\\d.]+/g).map(Number);
  return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
}"""
# The mean brightness of the drawn pixels that have no colour: gridlines, numbers at the axes.
_AXES = """canvas => {
  const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  let sum = 0, count = 0;
  for (let i = 0; i < data.length; i += 4) {
    const [r, g, b, a] = data.slice(i, i + 4);
    if (a > 60 && Math.max(r, g, b) - Math.min(r, g, b) < 12) { sum += (r + g + b) / 3; count++; }
  }
  return count ? sum / count / 255 : -1;
}"""


def test_dark_theme(notebook):
    """Text and axes are dark on a light page and light on a dark one, while the run goes on."""
    board = Board(notebook(WATCH).run_all())
    board.expect_rows(20)
    axes = board.part("panel-loss").locator("canvas")
    assert board.root.evaluate(_LUMINANCE, "color") < 0.5
    assert 0 <= axes.evaluate(_AXES) < 0.5
    board.book.command("apputils:change-theme", "{theme: 'JupyterLab Dark'}")
    wait_for(lambda: board.root.evaluate(_LUMINANCE, "color") > 0.5, "light text on the dark theme")
    wait_for(lambda: axes.evaluate(_AXES) > 0.5, "light axes on the dark theme")


def test_narrow_page(notebook):
    """At 480 pixels nothing is wider than its cell, and the buttons can be pressed."""
    book = notebook(WATCH)
    book.page.set_viewport_size({"width": 480, "height": 900})
    board = Board(book.run_all())
    board.expect_rows(20)
    assert board.root.evaluate("e => e.scrollWidth <= e.clientWidth + 1")
    box, page = board.root.bounding_box(), board.book.page.viewport_size
    assert box["x"] + box["width"] <= page["width"]
    assert board.part("panel-rate").bounding_box()["width"] > 0.8 * box["width"]  # one below the other
    board.click("Log scale")
    assert "true" == board.part("scale").get_attribute("aria-pressed")
