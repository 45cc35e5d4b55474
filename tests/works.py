"""Runs that a box carries out on its own: the box, a script and a notebook for them, how one is followed and all are ended.

A module takes the fixtures by naming them: `box, script = works.box, works.script`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from typing import Any

import pytest

from nbkit.remote import connect, work
from nbkit.remote.there.work import marked
from tests.sshd import Sshd

# Counts, as far and with the pauses that its arguments say.
COUNT = """
import sys, time
for number in range(int(sys.argv[1])):
    print("line", number, flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def box(server, tmp_path, monkeypatch):
    """A connection to the server, with this Python there; what is remembered here stays in this test."""
    monkeypatch.setenv("NBKIT_STATE", str(tmp_path / "state"))
    with connect("box", config=server.config, python=shlex.quote(sys.executable)) as box:
        yield box


@pytest.fixture
def script(tmp_path):
    """Write a script into a folder of its own."""
    folder = tmp_path / "here"
    folder.mkdir()

    def write(text, name="train.py"):
        (folder / name).write_text(text)
        return folder / name

    return write


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
