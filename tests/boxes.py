"""What tests of nbkit.ssh and nbkit.remote need of the server that `tests/conftest.py` runs: sessions and a connection.

A module takes the fixtures by naming them: `engine, session = boxes.engine, boxes.session`.
"""

from __future__ import annotations

import pytest

from nbkit import remote, ssh


@pytest.fixture(scope="module", params=["paramiko", "ssh"])
def engine(request):
    """What carries a session: every test that asks for it runs over both."""
    return request.param


@pytest.fixture
def session(box, engine):
    """A session of the test's own; `box` is the server here."""
    with ssh.connect("box", config=box.config, ask=None, engine=engine) as session:
        yield session


@pytest.fixture(scope="module")
def box(server):
    """A connection to the server with the Python that it starts by itself, for tests that leave it whole."""
    with remote.connect("box", config=server.config) as box:
        yield box
