"""A box for Jupyter: an sshd, and nothing of ours left there afterwards."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from pathlib import Path

import psutil

from nbkit import remote
from nbkit.remote import jupyter
from tests import sshd


@contextlib.contextmanager
def running(*options):
    """An sshd whose home folder others may enter, as they may a real one; nothing of ours is left there."""
    folder = Path(tempfile.mkdtemp(prefix="nbk-"))
    folder.chmod(0o755)
    with sshd.running(folder, *options) as server:
        try:
            yield server
        finally:
            with remote.connect("box", config=server.config) as box:
                jupyter.stop(box)
    shutil.rmtree(folder, ignore_errors=True)


def gone(pid: int) -> bool:
    """Wait until a process is gone, or a zombie."""
    end = time.monotonic() + 15
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False
