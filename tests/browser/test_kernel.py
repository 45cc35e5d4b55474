"""A kernel of a box in the JupyterLab here: what a cell prints and what a click sends while the link is away."""

from __future__ import annotations

import sys

import pytest

from nbkit import remote
from nbkit.remote import jupyter, kernels
from tests import sshd
from tools.page import Notebook, wait_for
from tools.page import page as open_page

_COUNT = "import time\nfor number in range(160):\n    print(number, end=' ', flush=True)\n    time.sleep(0.05)"
_BUTTON = """import ipywidgets
from pathlib import Path
button = ipywidgets.Button(description='press')
button.on_click(lambda _: (Path.home() / 'pressed').open('a').write('once '))
button"""


@pytest.fixture
def server(lab, tmp_path, monkeypatch):
    """A box on loopback whose kernel `gpu` can be chosen in the lab."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(lab.folder / "data"))
    with sshd.running(tmp_path / "box") as server:
        with remote.connect("box", config=server.config, python=sys.executable) as box:
            kernels.add(box, name="gpu", config=server.config)
        try:
            yield server
        finally:
            lab.end_kernels()
            kernels.unregister(name="gpu")
            with remote.connect("box", config=server.config, python=sys.executable) as box:
                jupyter.stop(box)


def test_nothing_is_lost_in_the_page(lab, chrome, server):
    """All numbers of a counter stand in the output after three cuts, in order; a button pressed during a cut is heard once."""
    with open_page(chrome) as page:
        book = Notebook(lab, page, "remote/count", [_COUNT, _BUTTON], kernel="gpu").open().run_all()
        for number in (15, 60, 100):
            wait_for(lambda at=number: f" {at} " in book.output(0).inner_text(), f"number {number}", 60)
            server.cut()
        wait_for(lambda: "159" in book.output(0).inner_text().split(), "the last number", 60)
        assert [str(number) for number in range(160)] == book.output(0).inner_text().split()
        button = page.locator("button", has_text="press")
        button.wait_for()
        server.cut()
        button.click()
        pressed = server.folder / "pressed"
        wait_for(lambda: pressed.exists() and pressed.read_text(), "the click to reach the kernel", 60)
        assert "once " == pressed.read_text()
