"""What the tests of streams share: a folder for their relay, a word with it, breaks of the link."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.echoing import WAIT_S, talk
from tests.waiting import until


@pytest.fixture
def folder():
    """Where the relay of a test lives; a short path. Removing it ends the relay."""
    path = Path("/tmp") / f"nbkit-test-{os.getpid()}-{os.urandom(3).hex()}"
    path.mkdir(mode=0o700)
    yield path
    for socket_file in path.glob("relay-*.sock"):
        ask(socket_file, "end")

    def removed():
        with contextlib.suppress(FileNotFoundError):  # the relay removes its own meanwhile
            shutil.rmtree(path)
        return not path.exists()

    until(removed, "the relay's folder does not go")


def ask(path: Path, do: str):
    """What the relay at `path` says of itself; None when there is none."""
    from nbkit.ssh.there import start

    return start.ask(str(path), {"do": do})


def relay_of(folder: Path) -> Path:
    (found,) = folder.glob("relay-*.sock")
    return found


@contextlib.contextmanager
def cutting(box, streams, times: int):
    """Cut the link so often, a fifth of a second after it has come back."""
    over = threading.Event()

    def cut():
        while not over.wait(0.2) and streams.reconnects < times:
            seen = streams.reconnects
            if streams.alive:
                box.cut()
                until(lambda seen=seen: streams.reconnects > seen or over.is_set(), "the link does not come back")

    thread = threading.Thread(target=cut, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=WAIT_S)


def both(port: int, content: bytes) -> list[bytes]:
    """What two connections at once get back."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda _: talk(port, content), range(2)))
