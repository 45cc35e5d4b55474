"""Runs on a box whose folder somebody deleted while they were at work: found by their processes, and ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nbkit.errors import RemoteCommandError
from nbkit.remote import work
from nbkit.remote.there import work as there
from tests import works
from tests.waiting import until
from tests.works import COUNT

box, script = works.box, works.script

DEAF = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + COUNT


def begun(box, path):
    """A run that prints, its folder deleted; its processes there."""
    found = work.begin(box, path, arguments=["100000", "0.05"])
    until(lambda: Path(found.about["folder"], "log").stat().st_size)
    shutil.rmtree(found.about["folder"])
    return found, there.marked(found.about["folder"])


def test_is_listed_and_ended(box, script):
    """It is at work, which is what the list says, and what happened to it; `stop` ends it, and nothing of it is left."""
    found, pids = begun(box, script(COUNT, "a.b.py"))
    assert pids
    (seen,) = [one for one in work.works(box) if one.id == found.id]
    assert ("running", True, "a.b") == (seen.state, seen.removed, seen.about["file"])
    assert found.id == work.find(box, "a.b").id
    with pytest.raises(RemoteCommandError, match="is at work"):
        seen.remove()
    assert [] == seen.stop()
    until(lambda: not there.marked(found.about["folder"]), "it has not ended")
    assert found.id not in [one.id for one in work.works(box)]


def test_of_another_home_is_not_listed(box, tmp_path):
    """Processes of runs below another root (XDG_STATE_HOME was another then) are none of this one's."""
    folder = tmp_path / "20261130-120000-elsewhere"
    words = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(words, env={there.MARK: str(folder)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert [other.pid] == there.marked(str(folder))
        assert folder.name not in [one.id for one in work.works(box)]
        other.communicate(b"\n")


def test_verbs_say_so(laptop):
    """`logs` and `pull` have nothing to give, and say why; `runs` shows it, `stop` ends it."""
    (laptop.folder / "count.py").write_text(COUNT)
    begun = laptop.run("run", "count.py", "--on", "box", "-d", "--json", *laptop.options, "--", "100000", "0.05")[1]
    runs = json.loads(laptop.run("runs", "--on", "box", "--json", *laptop.options)[1])
    (run,) = [one for one in runs if one["id"] == json.loads(begun)["id"]]
    shutil.rmtree(run["folder"])
    for more in ([], ["--tail", "3"]):
        code, out, err = laptop.run("logs", "count", *more, *laptop.options)
        assert (0, "") == (code, out)
        assert "was deleted there: what it prints is lost. It ends with: nbkit stop 2" in err
    code, _, err = laptop.run("pull", "count", *laptop.options)
    assert (1, True) == (code, "was deleted: what it wrote is gone" in err)
    assert "its folder was deleted there" in laptop.run("runs", "--on", "box", *laptop.options)[1]
    assert 0 == laptop.run("stop", "count", *laptop.options)[0]
    until(lambda: not there.marked(run["folder"]), "it has not ended")


def test_is_killed_when_it_does_not_heed(box, script, monkeypatch):
    """Asked once more, it has no say."""
    found, pids = begun(box, script(DEAF))
    found.stop()
    assert "stopping" == found.again().state
    assert pids == there.marked(found.about["folder"])
    found.stop()
    until(lambda: not there.marked(found.about["folder"]), "it has not ended", 10)


def test_who_is_attached_is_told(box, script):
    """Somebody follows it: its end comes as an error that says what is not known, not as success and not as silence."""
    found = work.begin(box, script(COUNT), arguments=["100000", "0.05"])
    said, heard = [], threading.Event()

    def follow():
        with pytest.raises(RemoteCommandError, match="has ended, and its folder was deleted there") as caught:
            found.follow(lambda _: heard.set())
        said.append(caught.value.hint)

    thread = threading.Thread(target=follow)
    thread.start()
    assert heard.wait(60)
    shutil.rmtree(found.about["folder"])
    for pid in there.marked(found.about["folder"]):
        os.kill(pid, signal.SIGKILL)
    thread.join(60)
    assert [f"nbkit runs --on {box.named}"] == said
