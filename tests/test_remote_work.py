"""Runs that a box carries out on its own: a real sshd, real processes, links that are cut."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nbkit.errors import NbkitError, RemoteCommandError
from nbkit.remote import begun, connect, parcel, work
from nbkit.remote.there import work as there
from tests import sshd, works
from tests.waiting import until
from tests.works import COUNT, end_all, finished

box, script = works.box, works.script


class TestScript:
    def test_prints_here_and_its_exit_code_is_the_runs(self, box, script):
        """Arguments arrive as they are; both outputs come here; the exit code is the script's own."""
        path = script("import sys\nprint(sys.argv[1:])\nprint('aloud', file=sys.stderr)\nsys.exit(7)")
        ended, said = finished(work.begin(box, path, arguments=["--lr", "1e-4", "a b"]))
        assert (7, "failed") == (ended.exit_code, ended.state)
        assert "['--lr', '1e-4', 'a b']\naloud\n" == said

    def test_finds_what_was_sent_with_it(self, box, script, tmp_path):
        """What lies below the script's folder keeps its place there, what lies elsewhere comes to lie beside it."""
        path = script("from pathlib import Path\nprint(Path('data/deep/a.txt').read_text(), Path('b.txt').read_text())")
        inside, outside = path.parent / "data/deep/a.txt", tmp_path / "elsewhere/b.txt"
        for file in (inside, outside):
            file.parent.mkdir(parents=True)
            file.write_text(file.stem)
        _, said = finished(work.begin(box, path, needs=[inside.parent.parent, outside]))
        assert "a b\n" == said

    def test_is_this_users_alone(self, box, script):
        """Its folder is 0700, what it prints 0600."""
        ended, _ = finished(work.begin(box, script("print(1)")))
        folder = Path(ended.about["folder"])
        assert (0o700, 0o600) == (folder.stat().st_mode & 0o777, (folder / "log").stat().st_mode & 0o777)

    def test_ended_by_a_signal(self, box, script):
        """A signal is told as a shell tells it."""
        path = script("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
        ended, _ = finished(work.begin(box, path))
        assert (137, "failed") == (ended.exit_code, ended.state)


# Counts, and waits at every hundredth line until a file of its number is there.
HELD = (
    COUNT.replace("import sys", "import os, sys")
    + """
    while number % 100 == 99 and not os.path.exists(os.path.join(sys.argv[3], str(number))):
        time.sleep(0.02)
"""
)


class TestLink:
    def test_cuts_lose_nothing_and_double_nothing(self, box, server, script, tmp_path):
        """Three cuts while it prints: every line is here, once, in order."""
        found = work.begin(box, script(HELD), arguments=["300", "0.01", str(tmp_path)])
        said: list[bytes] = []
        notes: list[str] = []

        def cut():
            for number, share in enumerate((200, 1000, 2000)):
                until(lambda share=share: sum(map(len, said)) > share)
                server.cut()
                until(lambda number=number: sum("is lost" in note for note in notes) > number, "the loss is not said")
                (tmp_path / str(100 * number + 99)).touch()

        cutter = threading.Thread(target=cut)
        cutter.start()
        ended = found.follow(said.append, say=notes.append)
        cutter.join()
        assert "".join(f"line {number}\n" for number in range(300)) == b"".join(said).decode()
        assert "done" == ended.state
        assert 3 == sum("is lost" in note for note in notes)

    def test_goes_on_when_its_connection_is_closed(self, box, server, script, tmp_path):
        """It needs no connection; another one, of another machine, finds it by its file's name and sees all of it."""
        with connect("box", config=server.config, python=shlex.quote(sys.executable)) as other:
            begun_there = work.begin(other, script(HELD, "alone.py"), arguments=["100", "0.01", str(tmp_path)])
        found = work.find(box, "alone")
        assert (begun_there.id, "running") == (found.id, found.state)
        (tmp_path / "99").touch()
        assert "".join(f"line {number}\n" for number in range(100)) == finished(found)[1]

    def test_last_lines(self, box, script):
        """The last lines alone, where they are asked for; more than there are is all."""
        ended, said = finished(work.begin(box, script(COUNT), arguments=["30", "0"]))
        for lines, expected in ((0, ""), (1, "line 29\n"), (2, "line 28\nline 29\n"), (99, said)):
            heard: list[bytes] = []
            ended.follow(heard.append, lines=lines)
            assert expected == b"".join(heard).decode()


class TestStop:
    def test_what_trains_nothing_gets_sigterm_at_once(self, box, script):
        """There is no grace to wait for; children of the program end with it."""
        path = script("import subprocess, sys\nprint(1, flush=True)\nsubprocess.run(['sleep', '600'])")
        found = work.begin(box, path)
        until(lambda: len(there.marked(found.about["folder"])) == 2)
        assert [] == found.stop()
        ended, _ = finished(found)
        assert ("stopped", 143) == (ended.state, ended.exit_code)
        until(lambda: not there.marked(found.about["folder"]))
        with pytest.raises(RemoteCommandError, match="is not running: stopped"):
            ended.stop()

    def test_a_training_run_finishes_first(self, box, script):
        """The training run finds STOP; the program ends by itself, within the grace."""
        found = work.begin(box, script(TRAINS))
        until(lambda: found.again().about["runs"])
        assert ["20260101-a"] == found.stop(60)
        ended, said = finished(found)
        assert ("stopped", 0) == (ended.state, ended.exit_code)
        assert "saved\n" == said
        assert ("stopped", 3) == (ended.about["runs"][0]["state"], ended.about["runs"][0]["step"])

    def test_grace_that_is_over(self, box, script):
        """A training run that does not heed STOP gets SIGTERM when the grace is over."""
        found = work.begin(box, script(TRAINS.replace("'STOP'", "'NEVER'")))
        until(lambda: found.again().about["runs"])
        began = time.monotonic()
        found.stop(1.5)
        ended, _ = finished(found)
        assert ("stopped", 143) == (ended.state, ended.exit_code)
        assert time.monotonic() - began > 1.4
        assert "its process is gone" == ended.about["runs"][0]["cause"]

    def test_watcher_killed(self, box, script):
        """Without its watcher a run still counts as at work, can be stopped, and is told as lost afterwards."""
        found = work.begin(box, script(COUNT), arguments=["100000", "0.05"])
        until(lambda: there.marked(found.about["folder"]))
        watcher = subprocess.run(["pgrep", "-f", f"supervise.py {found.about['folder']}"],
                                 capture_output=True, text=True, check=True)  # fmt: skip
        os.kill(int(watcher.stdout.split()[0]), signal.SIGKILL)
        assert until(lambda: not there.held(found.about["folder"]))
        assert found.again().active
        found.stop()
        ended, _ = finished(found)
        assert ("lost", 1) == (ended.state, ended.exit_code)


def test_a_run_that_fills_the_disk(tmp_path_factory, script):
    """Its end is written down all the same, and that the disk is full is said: it is not taken for killed."""
    with sshd.running(tmp_path_factory.mktemp("small")) as small:
        disk = small.folder / ".local"
        disk.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("a small disk can be mounted by root only")
        try:
            with connect("box", config=small.config, python=shlex.quote(sys.executable)) as box:
                ended, _ = finished(work.begin(box, script("for _ in range(4000):\n    print('x' * 1000)")))
                assert ("failed", True) == (ended.state, ended.about["end"]["full"])
                assert ended.filled.startswith("the disk there is full: ")
                ended.remove()
                ended, _ = finished(work.begin(box, script("print(1)")))
                assert ("done", "") == (ended.state, ended.filled)
        finally:
            end_all(small)
            subprocess.run(["umount", "-l", disk], check=True)


TRAINS = """
import json, os, time
from pathlib import Path
run = Path(os.environ['NBKIT_RUNS'], '20260101-a')
run.mkdir()
def tell(state):
    told = {'state': state, 'step': 3, 'max_steps': 9, 'started': 1.0, 'updated': time.time(), 'pid': os.getpid()}
    (run / 'part').write_text(json.dumps(told))
    (run / 'part').rename(run / 'status.json')
tell('training')
while not (run / 'STOP').exists():
    time.sleep(0.05)
tell('stopped')
print('saved')
"""


# Leaves its training to a process and a session of its own, as nbkit.start(trainer, detach=True) does.
DETACHES = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
run = Path(os.environ['NBKIT_RUNS'], '20260101-d')
if len(sys.argv) == 2:
    subprocess.Popen([sys.executable, __file__, sys.argv[1], 'child'], start_new_session=True)
    while not (run / 'status.json').exists():
        time.sleep(0.05)
    sys.exit()
def tell(state, cause=''):
    told = {'state': state, 'started': 1.0, 'pid': os.getpid(), 'cause': cause}
    (run / 'part').write_text(json.dumps(told))
    (run / 'part').rename(run / 'status.json')
def terminated(*_):
    tell('stopped', 'SIGTERM')
    sys.exit()
signal.signal(signal.SIGTERM, terminated)
(run / 'launch').mkdir(parents=True)
tell('training')
while not (run / sys.argv[1]).exists():
    time.sleep(0.05)
tell('stopped', 'STOP')
"""


class TestDetachedTraining:
    @pytest.mark.parametrize(("heeds", "grace_s", "cause"), [("STOP", 60, "STOP"), ("NEVER", 0.5, "SIGTERM")])
    def test_is_part_of_the_run(self, box, script, heeds, grace_s, cause):
        """A program that left its training to a process of its own is at work until that ends, and ends it when stopped."""
        found = work.begin(box, script(DETACHES), arguments=[heeds])
        until(lambda: len(there.marked(found.about["folder"])) == 1 and found.again().about["runs"])
        time.sleep(1.5)
        assert "running" == found.again().state
        assert ["20260101-d"] == found.stop(grace_s)
        ended, _ = finished(found)
        assert ("stopped", 0, cause) == (ended.state, ended.exit_code, ended.about["runs"][0]["cause"])

    def test_of_another_host(self, tmp_path):
        """A process of another host that shares the home folder is not taken for one that is gone."""
        assert there.lives(str(tmp_path), {"pid": 2**22 - 1, "host": "another-node"})
        assert not there.lives(str(tmp_path), {"pid": 2**22 - 1, "host": there.platform.node()})


class TestNames:
    def test_several_fit(self, box, script):
        """A start that fits two runs names both; a file's name means the newest; none is said."""
        one, other = (finished(work.begin(box, script("print(1)", "twin.py")))[0] for _ in range(2))
        with pytest.raises(RemoteCommandError, match=rf"fits {other.id}, {one.id}"):
            work.find(box, one.id[:6])
        assert other.id == work.find(box, "twin").id == work.find(box).id
        with pytest.raises(RemoteCommandError, match="no run 'absent' of nbkit is there"):
            work.find(box, "absent")
        with pytest.raises(RemoteCommandError, match="no run"):
            work.find(box, "../../../etc")

    def test_listed_the_newest_first(self, box, script):
        """All of them, whoever began them, the newest first."""
        ids = [finished(work.begin(box, script("print(1)")))[0].id for _ in range(2)]
        assert ids[::-1] == [one.id for one in work.works(box)[:2]]

    def test_removed(self, box, script):
        """One that has ended is deleted with all that it left; one that is at work is not."""
        found = work.begin(box, script(COUNT), arguments=["9999", "0.05"])
        with pytest.raises(RemoteCommandError, match="is at work"):
            found.remove()
        found.stop()
        ended, _ = finished(found)
        ended.remove()
        assert not Path(ended.about["folder"]).exists()
        assert ended.id not in [one.id for one in work.works(box)]

    def test_this_machine_remembers_its_own(self, box, script):
        """The host of a run that was begun here is known by its id."""
        ended, _ = finished(work.begin(box, script("print(1)"), config="/some/config"))
        known = begun.find(ended.id[:15])
        assert known is not None
        assert ("box", "/some/config", box.python) == (known.host, known.config, known.python)


class TestBadInput:
    @pytest.mark.parametrize(
        ("name", "more", "message"),
        [
            ("no.py", {}, "There is no file"),
            ("..", {}, "is a folder, not a file to run"),
            ("a.txt", {}, "neither a notebook"),
            ("a.py", {"parameters": {"X": 1}}, "--param is for notebooks and recipes"),
            ("a.py", {"needs": ["absent"]}, "There is no absent to send along"),
            ("a.ipynb", {"arguments": ["x"]}, "A notebook takes no arguments"),
            ("bad.ipynb", {}, "is no notebook"),
        ],
    )
    def test_is_refused_before_anything_is_sent(self, box, tmp_path, name, more, message):
        """What cannot be run is said, and no folder is made for it."""
        for file, text in (
            ("a.txt", ""),
            ("a.py", ""),
            ("a.ipynb", '{"nbformat": 4, "cells": []}'),
            ("bad.ipynb", "{}"),
        ):
            (tmp_path / file).write_text(text)
        before = len(work.works(box))
        with pytest.raises(NbkitError, match=message) as caught:
            work.begin(box, tmp_path / name, **more)
        assert caught.value.exit_code == (1 if name == "bad.ipynb" else 2)
        assert before == len(work.works(box))

    def test_two_things_of_one_place(self, box, tmp_path):
        """Two paths that would come to lie in one place are refused."""
        for folder in ("one", "two"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "x").touch()
        (tmp_path / "here").mkdir()
        (tmp_path / "here/a.py").touch()
        with pytest.raises(NbkitError, match="Two things would become 'x'"):
            work.begin(box, tmp_path / "here/a.py", needs=[tmp_path / "one/x", tmp_path / "two/x"])

    def test_interrupted_while_sending(self, box, server, script, monkeypatch):
        """Nothing is left there of a run that did not begin."""

        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(parcel, "send", interrupt)
        before = sorted(there_names(server))
        with pytest.raises(KeyboardInterrupt):
            work.begin(box, script("print(1)"))
        assert before == sorted(there_names(server))

    def test_interrupted_right_after_it_began(self, box, server, script, monkeypatch):
        """It is said that it goes on, with its name, and this machine knows it."""
        told = []

        def interrupt(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(work, "find", interrupt)
            with pytest.raises(KeyboardInterrupt) as caught:
                work.begin(box, script("print(1)"), say=told.append)
        (name,) = caught.value.args
        assert [f"it goes on, on {box.host}, as {name}: nbkit runs --on {box.named}"] == told
        assert name in there_names(server)
        assert name == begun.find(name).id


def there_names(server):
    folder = server.folder / ".local/state/nbkit/work"
    return [path.name for path in folder.glob("*") if path.name != "code"] if folder.exists() else []


class TestOwnCode:
    def test_goes_along_where_there_is_none(self, server, script, tmp_path, monkeypatch):
        """A Python without nbkit gets this one, once; `import nbkit` works in the run, and in what it starts."""
        monkeypatch.setenv("NBKIT_STATE", str(tmp_path / "state"))
        environment = tmp_path / "env"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
        packages = next(Path(entry) for entry in sys.path if entry.endswith("site-packages"))
        # Everything that is installed here but nbkit: it is found by a .pth file of its own.
        next(environment.glob("lib/python3*/site-packages")).joinpath("others.pth").write_text(f"{packages}\n")
        path = script("import subprocess, sys\ncode = 'import nbkit; print(nbkit.__file__)'\nexec(code)\nsys.stdout.flush()\n"
                      "subprocess.run([sys.executable, '-c', code])")  # fmt: skip
        with connect("box", config=server.config, python=shlex.quote(str(environment / "bin/python"))) as bare:
            places = {line for _ in range(2) for line in finished(work.begin(bare, path))[1].splitlines()}
        assert 1 == len(places)
        assert str(server.folder / ".local/state/nbkit/work/code") in places.pop()

    def test_stays_here_where_it_is_the_same(self, box, script):
        """Where that Python has this version, it is used."""
        _, said = finished(work.begin(box, script("import nbkit\nprint(nbkit.__file__)")))
        assert str(Path(sys.modules["nbkit"].__file__)) == said.strip()
