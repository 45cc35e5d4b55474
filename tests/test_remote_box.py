"""A box: a real sshd on loopback, and the Python behind it."""

from __future__ import annotations

import pytest

from nbkit import remote
from nbkit.errors import RemoteCommandError
from nbkit.remote import box as boxes
from tests import sshd


@pytest.fixture(autouse=True)
def _own_state(tmp_path, monkeypatch):
    """What is remembered of boxes stays in this test."""
    monkeypatch.setenv("NBKIT_STATE", str(tmp_path / "state"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with sshd.running(tmp_path_factory.mktemp("sshd")) as running:
        yield running


class TestConnect:
    def test_runs_programs_by_text(self, server):
        """A box runs a program's text in its python3 and hands back the answer."""
        with remote.connect("box", config=server.config) as box:
            source = "import json, sys\nprint(json.dumps({'twice': 2 * REQUEST['n'], 'major': sys.version_info[0]}))"
            assert {"twice": 42, "major": 3} == box.call(source, {"n": 21})
            assert "alive" in repr(box)
        assert "lost" in repr(box)

    def test_remembers_the_python(self, server):
        """A remembered Python is used by every later connection, one that is given goes before it."""
        with remote.connect("box", config=server.config) as box:
            assert "python3" == box.python
            boxes.remember(box.session.route, "/no/such/python")
        with remote.connect("box", config=server.config) as box:
            assert "/no/such/python" == box.python
            with pytest.raises(RemoteCommandError, match="has no Python at '/no/such/python'"):
                box.call("print({})")
        with remote.connect("box", config=server.config, python="python3") as box:
            assert "python3" == box.python
