"""Runs that a box carries out on its own: a script and a notebook for them, how one is followed, and how all are ended."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

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


def notebook(*cells: str | tuple[str, str], language: str = "python", minor: int = 5) -> dict[str, Any]:
    """A notebook of code cells, each a source or a source with its tag."""
    made = [
        {
            "cell_type": "code", "id": f"c{number}", "outputs": [], "execution_count": None,
            "metadata": {"tags": [cell[1]]} if isinstance(cell, tuple) else {},
            "source": cell[0] if isinstance(cell, tuple) else cell,
        }
        for number, cell in enumerate(cells)
    ]  # fmt: skip
    return {"nbformat": 4, "nbformat_minor": minor, "metadata": {"kernelspec": {"language": language}}, "cells": made}


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
