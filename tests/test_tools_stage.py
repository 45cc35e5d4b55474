"""A stage of the checks cannot outlive its limit, nor leave processes behind."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.waiting import until
from tools import stage

HERE = Path(__file__).parent
CHILD = (
    "import subprocess, sys, time; p = subprocess.Popen(['sleep', '600'])\n"
    "print(p.pid, file=open(sys.argv[1], 'w'), flush=True); {}"
)


def command(then, note):
    """A stage that starts a child of its own, notes its pid, and goes on with `then`."""
    return [sys.executable, "-X", "faulthandler", "-c", CHILD.format(then), str(note)]


def gone(note):
    """Whether the noted process has ended."""
    pid = int(note.read_text())
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(("then", "code"), [("sys.exit(0)", 0), ("sys.exit(3)", 3)])
def test_the_exit_code_is_the_stages_own(tmp_path, then, code):
    """And a child that it forgot is ended."""
    note = tmp_path / "pid"
    assert code == stage.run(command(then, note), cwd=HERE, limit_s=60)
    until(lambda: gone(note), "the end of its child")


def test_a_stage_that_hangs_is_ended_and_says_where_it_stood(tmp_path, capfd):
    """None for the code, the stack of its threads in the output, its children gone."""
    note = tmp_path / "pid"
    began = time.monotonic()
    assert stage.run(command("time.sleep(600)", note), cwd=HERE, limit_s=3) is None
    assert time.monotonic() - began < 60
    until(lambda: gone(note), "the end of its child")
    assert "Fatal Python error: Aborted" in capfd.readouterr().err


def test_a_stage_beside_is_ended_when_it_is_told_to(tmp_path):
    """Long before its limit; what it said is in its file."""
    note, stop = tmp_path / "pid", threading.Event()
    threading.Timer(3, stop.set).start()
    began = time.monotonic()
    with (tmp_path / "said").open("wb") as output:
        words = command("print('here', flush=True); time.sleep(600)", note)
        assert stage.run(words, cwd=HERE, limit_s=600, output=output, stop=stop) is None
    assert time.monotonic() - began < 60
    until(lambda: gone(note), "the end of its child")
    assert (tmp_path / "said").read_text().startswith("here\n")
