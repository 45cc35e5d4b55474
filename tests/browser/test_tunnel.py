"""The JupyterLab of a box in a browser here: a page through `nbkit tunnel`."""

from __future__ import annotations

import sys

import pytest

from nbkit import remote
from nbkit.remote import jupyter
from nbkit.remote.tunnel import tunnel
from tests import sshd
from tools.page import page as open_page
from tools.page import wait_for

_RUN = """async (code) => {
  const manager = window.jupyterapp.serviceManager;
  await manager.ready;
  const kernel = await manager.kernels.startNew({name: 'python3'});
  let said = '';
  const future = kernel.requestExecute({code});
  future.onIOPub = (message) => { if (message.header.msg_type === 'stream') said += message.content.text; };
  await future.done;
  return said;
}"""


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """A tunnel to a box on loopback whose Jupyter was just started."""
    for name in ("NBKIT_STATE", "XDG_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
        (tmp_path / name.lower()).mkdir()
    with sshd.running(tmp_path / "box") as server, \
            remote.connect("box", config=server.config, python=sys.executable) as box:  # fmt: skip
        (server.folder / ".jupyter").mkdir()
        (server.folder / ".jupyter" / "jupyter_lab_config.py").write_text("c.LabApp.expose_app_in_browser = True\n")
        try:
            with tunnel(box) as opened:
                yield opened, server
        finally:
            jupyter.stop(box)


def test_lab_of_a_box_runs_cells(opened, chrome):
    """The printed URL opens the box's JupyterLab, logged in; a kernel there answers, also after the link was cut."""
    through, server = opened
    with open_page(chrome) as page:
        page.goto(through.url, wait_until="domcontentloaded")
        page.locator(".jp-Launcher").wait_for()
        page.wait_for_function("() => Boolean(window.jupyterapp)")
        code = "import os; print('home', os.path.expanduser('~'))"
        assert f"home {server.folder}\n" == page.evaluate(_RUN, code)
        server.cut()
        wait_for(lambda: through.box.session.alive, "the link to come back")
        assert "again\n" == page.evaluate(_RUN, "print('again')")
