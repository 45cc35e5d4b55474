"""A JupyterLab for the session, a Chromium for each module, a page and fresh settings for each test.

Chromium closes with its module: Playwright keeps an event loop in this thread while it is open, and tests of other
modules call asyncio.run. Everything that waits has a limit, and a test has one for all of it: see `_limit`.
"""

from __future__ import annotations

import asyncio
import faulthandler
import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LIMIT_S = 180
# When even that does not end a test: the process ends here, and server, kernels and Chromium end with it.
HARD_LIMIT_S = 300
COLAB = pytest.StashKey["Path | str"]()  # its Python, or why there is none


def missing() -> str:
    """Why no browser test can run here; empty when they can."""
    for module in ("playwright", "jupyterlab", "notebook"):
        if importlib.util.find_spec(module) is None:
            return f"needs {module}: make setup"
    from tools.page import executable

    return "" if executable() else "needs Chromium: apt install chromium (or NBKIT_CHROMIUM=/path/to/it)"


def pytest_collection_modifyitems(items):
    """Mark, limit, and skip with the reason where there is no browser."""
    reason = missing()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.timeout(LIMIT_S, method="signal"))
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish(session):
    """Make Colab's environment before the first test: it may take longer than a test should."""
    if not missing() and any("colab" in getattr(item, "fixturenames", ()) for item in session.items):
        from tools import overlay

        try:
            session.config.stash[COLAB] = overlay.python("colab")
        except overlay.CannotMakeError as error:
            session.config.stash[COLAB] = str(error).splitlines()[0]


@pytest.fixture(autouse=True)
def _limit():
    """The signal of pytest-timeout is not seen while C code waits; this is."""
    faulthandler.dump_traceback_later(HARD_LIMIT_S, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """The server; kernel `nbkit` is this Python."""
    from tools.lab import lab as serve

    with serve(tmp_path_factory.mktemp("lab"), [HERE]) as server:
        yield server


@pytest.fixture
def colab(lab, request):
    """The name of a kernel with Colab's versions; skips where they cannot be installed."""
    python = request.config.stash[COLAB]
    if isinstance(python, str):
        pytest.skip(f"needs an index of packages for requirements/colab.txt: {python}")
    return lab.add_colab_kernel(python)


@pytest.fixture(scope="module")
def chrome():
    """The browser; this thread's event loop ends with it."""
    from playwright.sync_api import expect

    from tools.page import chromium

    expect.set_options(timeout=60_000)
    with chromium() as browser:
        yield browser
    assert asyncio._get_running_loop() is None


@pytest.fixture
def page(lab, chrome):
    """A page on settings that no other test has touched, and no kernel that another test left."""
    from tools.page import page as open_page

    lab.forget()
    with open_page(chrome) as fresh:
        yield fresh
    lab.end_kernels()


@pytest.fixture
def notebook(lab, page, request):
    """Make and open a notebook of this test's own: notebook(cell, cell, ..., kernel=, view=, name=)."""
    from tools.page import Notebook

    def make(*cells, name="book", **how):
        return Notebook(lab, page, f"{request.node.name}/{name}", cells, **how).open()

    return make
