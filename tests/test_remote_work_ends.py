"""How a run on a box ended, where it did not do so by itself: what is said, and that nothing of it is left."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from nbkit.remote import connect, work
from nbkit.remote.there import work as there
from nbkit.remote.there.ended import LEAST_S
from tests import memory_limit, works
from tests.waiting import until
from tests.works import finished

box, script, cgroup = works.box, works.script, memory_limit.cgroup

APART = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True)
print("begun", flush=True)
time.sleep(600)
"""
EATS = """
import subprocess, sys, time
time.sleep(float(sys.argv[3]))
print(subprocess.run([sys.executable, "-c", "kept = bytearray(2 << 30)"]).returncode, flush=True)
time.sleep(float(sys.argv[2]))
sys.exit(int(sys.argv[1]))
"""
HEARS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("heard", flush=True)))
print("listens", flush=True)
time.sleep(600)
"""
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"


def test_a_signal_is_named(laptop):
    """Who waits for it and who lists it read which signal it was, and how much memory it had."""
    (laptop.folder / "a.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    code, _, err = laptop.run("run", "a.py", "--on", "box", *laptop.options)
    assert 139 == code
    assert "  Why:   The program crashed at " in err
    assert "(SIGSEGV, signal 11); it had " in err
    assert "exit 139, SIGSEGV" in laptop.run("runs", "--on", "box", *laptop.options)[1]


@pytest.fixture
def small_box(server, cgroup, tmp_path, monkeypatch):
    """A box whose programs may take 400 MiB of memory."""
    monkeypatch.setenv("NBKIT_STATE", str(tmp_path / "state"))
    python = f"echo $$ > {cgroup}/cgroup.procs; {shlex.quote(sys.executable)}"
    with connect("box", config=server.config, python=python) as box:
        yield box


def test_memory_that_ran_out_is_named(small_box, laptop, script):
    """Linux kills it for want of memory: that is what is said, not only a number; in the list, too."""
    ended, _ = finished(work.begin(small_box, script("print(1)\nkept = bytearray(2 << 30)")))
    assert ("failed", 137) == (ended.state, ended.exit_code)
    assert "because memory ran out, the 400 MiB that its cgroup may take; it had " in ended.why
    assert "exit 137, SIGKILL: memory ran out" in laptop.run("runs", "--on", "box", *laptop.options)[1]


RAN_OUT = "Memory ran out there as it ended: Linux killed a process for it."


@pytest.mark.parametrize(
    ("code", "later_s", "first_s", "why"),
    [
        (3, 0, 0, RAN_OUT),
        (3, 0.6 * LEAST_S, 0.7 * LEAST_S, RAN_OUT),  # the count is taken in between
        (3, 2.5 * LEAST_S, 0, ""),
        (0, 0, 0, ""),
    ],
)
def test_memory_that_ran_out_for_a_worker(small_box, script, code, later_s, first_s, why):
    """A process of the program is killed for want of memory: said where the program fails with it, not where it succeeds,
    and not where it fails long after."""
    ended, said = finished(work.begin(small_box, script(EATS), arguments=[str(code), str(later_s), str(first_s)]))
    assert ("-9\n", code, why) == (said, ended.exit_code, ended.why)


def test_what_ended_by_itself_needs_no_words(box, script):
    """An exit code says it; neither does an end that was asked for need any."""
    ended, _ = finished(work.begin(box, script("raise SystemExit(3)")))
    assert (3, "") == (ended.exit_code, ended.why)
    found = work.begin(box, script("import time\nprint(1, flush=True)\ntime.sleep(600)"))
    found.stop()
    assert ("stopped", "") == ((ended := finished(found)[0]).state, ended.why)


def test_what_it_leaves_behind_is_told_and_can_be_ended(laptop):
    """A server that a script started and left: the script is done, the server goes on, which is said, until `nbkit stop`."""
    (laptop.folder / "a.py").write_text(APART.replace("time.sleep(600)", "pass", 1))
    code, _, err = laptop.run("run", "a.py", "--on", "box", *laptop.options, "--", "import time; time.sleep(600)")
    assert 0 == code
    assert "  Note:  1 process that it started goes on there, until: nbkit stop 2" in err
    assert 0 == laptop.run("stop", "a", *laptop.options)[0]
    code, _, err = laptop.run("stop", "a", *laptop.options)
    assert (1, True) == (code, "is not running: done" in err)


def test_stop_ends_what_is_left_while_its_watcher_ends(box, script):
    """The run has just ended, and what watched over it still holds its lock: what is left gets SIGTERM all the same."""
    ended, _ = finished(work.begin(box, script(APART.replace("time.sleep(600)", "pass", 1)), arguments=[HEARS]))
    folder = ended.about["folder"]
    until(lambda: "listens" in Path(folder, "log").read_text())
    with there.hold(folder):
        assert "done" == ended.again().state
        ended.stop()
        until(lambda: not there.marked(folder), "it has not ended", 10)


def test_stop_ends_what_has_a_session_of_its_own(box, script):
    """A launcher's workers, say: with the program they get SIGTERM, and the run has ended when they have."""
    found = work.begin(box, script(APART), arguments=[HEARS])
    until(lambda: "listens" in Path(found.about["folder"], "log").read_text())
    found.stop()
    ended, said = finished(found)
    assert ("stopped", 143) == (ended.state, ended.exit_code)
    assert said.endswith("heard\n")
    assert [] == there.marked(found.about["folder"])


def test_stop_kills_what_does_not_heed(box, script):
    """What ignores SIGTERM is killed half a minute later; until then the run is stopping."""
    found = work.begin(box, script(APART), arguments=[DEAF])
    until(lambda: "deaf" in Path(found.about["folder"], "log").read_text())
    found.stop()
    until(lambda: len(there.marked(found.about["folder"])) == 1, "the program did not end")
    assert "stopping" == found.again().state
    ended, _ = finished(found)
    assert "stopped" == ended.state
    assert [] == there.marked(found.about["folder"])
