"""A box for Jupyter: an sshd, and nothing of ours left there afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from nbkit import remote
from nbkit.remote import jupyter
from tests import sshd
from tests.notebook_client import Client
from tests.waiting import until

NBKIT = [sys.executable, "-m", "nbkit.cli"]


@contextlib.contextmanager
def running(*options):
    """An sshd whose home folder others may enter, as they may a real one; nothing of ours is left there."""
    folder = Path(tempfile.mkdtemp(prefix="nbk-"))
    folder.chmod(0o755)
    with sshd.running(folder, *options) as server:
        try:
            yield server
        finally:
            with remote.connect("box", config=server.config, python=sys.executable) as box:
                jupyter.stop(box)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def server():
    with running() as server:
        yield server


@pytest.fixture
def box(server):
    with remote.connect("box", config=server.config, python=sys.executable) as box:
        yield box
    with remote.connect("box", config=server.config, python=sys.executable) as box:  # the first may have been cut
        jupyter.stop(box)


def kernels_of(box):
    """Kernels that run on the box without a server of ours, by pid."""
    return [each["pid"] for each in jupyter.look(box).kernels if each["name"] is None]


@contextlib.contextmanager
def serving(folder):
    """A Jupyter server of this machine, as a process; yields it and a client."""
    words = [sys.executable, "-m", "jupyter_server", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0",
             "--IdentityProvider.token=abc", "--no-browser", "--allow-root", f"--ServerApp.root_dir={folder}"]  # fmt: skip
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        info = Path(os.environ["JUPYTER_RUNTIME_DIR"]) / f"jpserver-{process.pid}.json"

        def answers():
            assert process.poll() is None, (folder / "server.log").read_text()
            with contextlib.suppress(OSError, ValueError):  # the file is there before the server listens
                client = Client(f"http://127.0.0.1:{json.loads(info.read_text())['port']}", "abc")
                return client if 200 == client.call("GET", "/api/status")[0] else None

        yield process, until(answers, "the server does not answer")
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def until_gone(pid: int) -> None:
    """Wait until a process has ended; it may be a zombie."""
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, f"{pid} lives")
