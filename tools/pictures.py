"""The README's pictures of the dashboard, taken of a real run in JupyterLab: `python -m tools.pictures`.

Trains two layers of the embedded model on support tickets for a few minutes, and takes the picture near the end, in the
light and in the dark theme. Needs the train extra and Chromium.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tools.guards import ROOT
from tools.lab import lab
from tools.page import Notebook, chromium, page, wait_for

FOLDER = ROOT / "docs" / "pictures"
STEPS, AT = 70, 60
CELL = f"""\
import tiny, nbkit
from nbkit import models
folder = tiny.save_two_layers(models.embedded(), "two-layers")
trainer = tiny.trainer(folder, rows=256, max_steps={STEPS}, eval_strategy="steps", eval_steps=10, save_strategy="no")
run = nbkit.start(trainer, name="tickets")"""


def main() -> None:
    """Write both pictures."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    place = tempfile.TemporaryDirectory(prefix="nbkit-pictures-", ignore_cleanup_errors=True)
    with place, lab(Path(place.name), [ROOT / "tests"]) as server, chromium() as browser, page(browser) as fresh:
        book = Notebook(server, fresh, "pictures/book", [CELL]).open().run_all()
        board = book.outputs.locator("[data-nbkit=dashboard]")
        wait_for(lambda: board.count() and int(board.get_attribute("data-rows") or 0) >= AT, "the run", 1200)
        board.screenshot(path=FOLDER / "dashboard-light.png")
        book.command("apputils:change-theme", "{theme: 'JupyterLab Dark'}")
        fresh.wait_for_function("() => document.body.dataset.jpThemeLight === 'false'")
        fresh.wait_for_timeout(2000)
        board.screenshot(path=FOLDER / "dashboard-dark.png")
        server.end_kernels()


if __name__ == "__main__":
    main()
