"""A notebook in a page of Chromium, driven by Playwright: open, run, read, click, with waits that all end.

Playwright's synchronous interface keeps an event loop in the thread that uses it: code that calls asyncio.run there
fails while a `chromium()` is open, and only then.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Browser, CDPSession, Locator, Page, sync_playwright

from tools.lab import TOKEN, Lab

READY_S = 90.0  # a page with its kernel: 3 to 6 s when nothing else runs
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
          "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip
# The page shows "idle" before its kernel is connected, and a command sent then is dropped without a word.
_READY = """() => {
  const context = window.jupyterapp?.shell?.currentWidget?.sessionContext, session = context?.session;
  return !!(context?.isReady && session?.kernel?.connectionStatus === 'connected' && session.kernel.status === 'idle');
}"""


def executable() -> str | None:
    """The system's Chromium, or the one that NBKIT_CHROMIUM names; None without one."""
    return os.environ.get("NBKIT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium without a profile."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), headless=True, args=_FLAGS, timeout=60_000)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def page(browser: Browser, *, width: int = 1100, height: int = 900) -> Iterator[Page]:
    """An empty page, without cookies of others; no wait on it is longer than 60 s unless it says so."""
    context = browser.new_context(viewport={"width": width, "height": height})
    context.set_default_timeout(60_000)
    context.set_default_navigation_timeout(READY_S * 1000)
    try:
        yield context.new_page()
    finally:
        context.close()


class Notebook:
    """A notebook file of `lab`, and the page that shows it.

    Args:
        name: Its path under the lab's root, without the suffix; runs go into `runs` beside it.
        cells: Source of each code cell.
        kernel: The name of its kernel.
        view: `doc` for JupyterLab, `notebooks` for Notebook 7.
    """

    def __init__(
        self, lab: Lab, page: Page, name: str, cells: Sequence[str], *, kernel: str = "nbkit", view: str = "doc"
    ) -> None:
        self.page, self.path = page, lab.root / f"{name}.ipynb"
        self.folder = self.path.parent
        self.folder.mkdir(parents=True, exist_ok=True)
        spec = {"name": kernel, "display_name": kernel, "language": "python"}
        fresh = nbformat.v4.new_notebook(metadata={"kernelspec": spec})
        fresh.cells = [nbformat.v4.new_code_cell(source) for source in cells]
        nbformat.write(fresh, self.path)
        where = {"doc": "doc/tree", "notebooks": "notebooks"}[view]
        self.url = f"{lab.url}/{where}/{name}.ipynb?token={TOKEN}"

    def open(self) -> Notebook:
        """Show it, and wait until its kernel takes commands."""
        self.page.goto(self.url, wait_until="domcontentloaded")
        return self.ready()

    def ready(self) -> Notebook:
        """Wait until the kernel is connected and idle."""
        self.page.wait_for_function(_READY, timeout=READY_S * 1000)
        return self

    def reload(self) -> Notebook:
        """As F5 does; the notebook must have been saved, or there is no output to come back to."""
        self.page.reload(wait_until="domcontentloaded")
        return self

    def command(self, name: str, arguments: str = "{}") -> None:
        """Run one of JupyterLab's commands; not waited for: its result cannot be handed over (the page would hang)."""
        self.page.evaluate(f"() => {{ window.jupyterapp.commands.execute('{name}', {arguments}); }}")

    def run_all(self) -> Notebook:
        """Run every cell; returns at once."""
        self.command("notebook:run-all-cells")
        return self

    def save(self) -> Notebook:
        """Save, and wait until the file is written, to its end."""
        before = self.path.stat().st_mtime_ns
        self.command("docmanager:save")
        wait_for(lambda: self.path.stat().st_mtime_ns != before and self._is_whole(), "the notebook to be saved")
        return self

    def _is_whole(self) -> bool:
        try:
            json.loads(self.path.read_bytes())
        except ValueError:  # it is being written
            return False
        return True

    def restart(self) -> Notebook:
        """Restart the kernel without asking, and wait for it."""
        self.page.evaluate(
            "() => { window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()"
            ".then(() => { window.restarted = true; }); }"
        )
        self.page.wait_for_function("() => window.restarted === true", timeout=READY_S * 1000)
        return self.ready()

    def replace(self, source: str) -> Notebook:
        """Give the first cell another source."""
        self.page.evaluate(
            "source => { window.jupyterapp.shell.currentWidget.content.widgets[0].model.sharedModel.setSource(source); }",
            source,
        )
        return self

    @property
    def outputs(self) -> Locator:
        """All outputs, and nothing of the cells' sources."""
        return self.page.locator(".jp-OutputArea")

    def output(self, cell: int = 0) -> Locator:
        """The outputs of one cell."""
        return self.page.locator(".jp-Cell").nth(cell).locator(".jp-OutputArea")

    def saved(self) -> Any:
        """The file as it is on disk."""
        return nbformat.read(self.path, as_version=4)

    def runs(self) -> list[Path]:
        """The run directories beside the notebook, oldest first."""
        return sorted(path.parent for path in self.folder.glob("runs/*/status.json"))


def wait_for(holds: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Poll until `holds()` is true and return it; AssertionError naming `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = holds()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.05)


class Gauge:
    """What the page costs: its JavaScript heap after a collection, and the time its main thread worked."""

    def __init__(self, page: Page) -> None:
        self._cdp: CDPSession = page.context.new_cdp_session(page)
        self._cdp.send("Performance.enable")
        self._cdp.send("HeapProfiler.enable")

    def heap_mb(self) -> float:
        """Used heap in MB (10^6 bytes), garbage collected first."""
        for _ in range(3):  # what one collection frees may hold more
            self._cdp.send("HeapProfiler.collectGarbage")
        return self._metrics()["JSHeapUsedSize"] / 1e6

    def task_s(self) -> float:
        """Seconds the main thread has worked since the page was made."""
        return self._metrics()["TaskDuration"]

    def _metrics(self) -> dict[str, float]:
        return {each["name"]: each["value"] for each in self._cdp.send("Performance.getMetrics")["metrics"]}
