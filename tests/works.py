"""Runs that a box carries out on its own: a script for them, how one is followed to its end, and ending them all."""

from __future__ import annotations

import contextlib
import os
import signal

from nbkit.remote import work
from nbkit.remote.there.work import marked
from tests.sshd import Sshd

# Counts, as far and with the pauses that its arguments say.
COUNT = """
import sys, time
for number in range(int(sys.argv[1])):
    print("line", number, flush=True)
    time.sleep(float(sys.argv[2]))
"""


def finished(found: work.Work) -> tuple[work.Work, str]:
    """The run when it has ended, and what it printed."""
    said: list[bytes] = []
    return found.follow(said.append), b"".join(said).decode()


def end_all(server: Sshd) -> None:
    """End every process of every run on the server."""
    for folder in (server.folder / ".local/state/nbkit/work").glob("*"):
        for pid in marked(str(folder)):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
