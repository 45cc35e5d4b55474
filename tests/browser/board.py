"""The dashboard as a reader of the page sees it. Looked for in outputs alone: the cell's source holds the same words."""

from __future__ import annotations

from playwright.sync_api import expect

from tools.page import wait_for

WIDGET = "application/vnd.jupyter.widget-view+json"
PICTURE = "img[src^='data:image/svg']"

# How many pixels of a canvas are not empty.
_INK = """canvas => {
  const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  let ink = 0;
  for (let i = 3; i < data.length; i += 4) ink += data[i] > 0;
  return ink;
}"""


class Board:
    """The one dashboard of a notebook."""

    def __init__(self, book):
        self.book = book
        self.root = book.outputs.locator("[data-nbkit=dashboard]")

    def part(self, name):
        """One named piece: state, step, loss, stop, pause, scale, panel-loss, value-loss, ..."""
        return self.root.locator(f"[data-nbkit={name}]")

    def expect_state(self, word, timeout_s=60):
        """Wait until the state word is `word`."""
        expect(self.part("state")).to_have_text(word, timeout=timeout_s * 1000)

    def click(self, name):
        """Press a button by what it says."""
        self.root.get_by_role("button", name=name, exact=True).click()

    def rows(self):
        """How many steps the page holds."""
        return int(self.root.get_attribute("data-rows") or 0)

    def expect_rows(self, least, timeout_s=60):
        """Wait until the page holds `least` steps; returns how many it holds."""
        wait_for(lambda: self.rows() >= least, f"{least} steps in the page", timeout_s)
        return self.rows()

    def ink(self, panel):
        """How many pixels of a panel's canvas are drawn on."""
        return self.part(f"panel-{panel}").locator("canvas").evaluate(_INK)


def expect_kept(book, state):
    """Wait until the result stands where the widget was, save, and return the bundles of the file: none is a widget's."""
    expect(book.outputs.locator(PICTURE)).to_be_visible()
    expect(book.outputs.get_by_role("cell", name=state)).to_be_visible()
    wait_for(lambda: Board(book).root.count() == 0, "the widget to be replaced")
    book.save()
    saved = book.saved()
    assert "widgets" not in saved.metadata
    bundles = [output["data"] for cell in saved.cells for output in cell.outputs if "data" in output]
    assert not any(WIDGET in bundle for bundle in bundles)
    assert 1 == sum("data:image/svg" in bundle.get("text/html", "") for bundle in bundles)
    return bundles
