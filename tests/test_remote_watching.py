"""A folder kept in step with one here: a real sshd on loopback, `nbkit sync --watch` as a process."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise

import psutil
import pytest

from nbkit.remote.watching import LOOK_S, seen
from tests import sshd
from tests.waiting import until


@pytest.fixture
def server(tmp_path):
    with sshd.running(tmp_path / "box") as server:
        yield server


def text(path):
    """What stands in the file; empty without one."""
    return path.read_text() if path.exists() else ""


@contextlib.contextmanager
def syncing(server, here, there):
    """`nbkit sync --watch --delete`, as a process."""
    words = [sys.executable, "-m", "nbkit.cli", "sync", str(here), f"box:{there}", "--watch", "--delete", "-F",
             str(server.config)]  # fmt: skip
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    limit = threading.Timer(90, process.kill)  # who waits for a word of it fails then
    limit.start()
    try:
        yield process
    finally:
        limit.cancel()
        process.kill()
        process.communicate()


def until_said(process, what):
    """The lines of a sync until one has `what`: only then it is over."""
    said: list[str] = []
    while not said or what not in said[-1]:
        said.append(process.stdout.readline())
        assert said[-1], "".join(said)
    return said


@pytest.mark.usefixtures("own_folders")
def test_changes_arrive_also_after_a_cut(server, tmp_path):
    """New, changed and removed files are there soon after; one that was changed while the link was cut, too. Ctrl-C ends it."""
    here, there = tmp_path / "project", server.folder / "project"
    (here / "src").mkdir(parents=True)
    (here / "src" / "a.py").write_text("1")
    with syncing(server, here, there) as process:
        said = until_said(process, ", 1 B in")
        assert "1" == text(there / "src" / "a.py")
        (here / "b.txt").write_text("new")
        said += until_said(process, ", 3 B in")
        assert "new" == text(there / "b.txt")
        server.cut()
        (here / "src" / "a.py").write_text("22")
        said += until_said(process, ", 2 B in")
        assert "22" == text(there / "src" / "a.py")
        (here / "b.txt").unlink()
        said += until_said(process, "1 deleted")
        assert not (there / "b.txt").exists()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (130, "") == (process.returncode, out), err
    assert sum(", 1 B in" in line or ", 3 B in" in line or ", 2 B in" in line for line in said) == 3, said
    assert err.startswith(f"Watching {here}; Ctrl-C ends.\n")


@pytest.mark.usefixtures("own_folders")
def test_a_folder_that_never_rests_is_kept_in_step(server, tmp_path):
    """A log that something writes all the time holds nothing up: other changes arrive, and so does what it has got by then."""
    here, there = tmp_path / "project", server.folder / "project"
    here.mkdir()
    (here / "a.py").write_text("1")
    over = threading.Event()

    def write():
        with (here / "train.log").open("a") as log:
            while not over.wait(0.05):
                log.write("another line\n")
                log.flush()

    with syncing(server, here, there):
        until(lambda: text(there / "a.py") == "1", "the first sync")
        writer = threading.Thread(target=write)
        writer.start()
        try:
            (here / "a.py").write_text("22")
            until(lambda: text(there / "a.py") == "22", "a change beside a log that grows")
            had = len(text(there / "train.log"))
            until(lambda: len(text(there / "train.log")) > had, "what the log has got since")
        finally:
            over.set()
            writer.join()
        until(lambda: text(there / "train.log") == text(here / "train.log"), "the whole log")


@pytest.mark.usefixtures("own_folders")
def test_says_once_what_stays_as_it_is(server, tmp_path):
    """What is left out each time is told the first time; what is in the way goes with --delete."""
    here, there = tmp_path / "project", server.folder / "project2"
    here.mkdir()
    (here / "out").symlink_to("/mnt/large")
    with syncing(server, here, there) as process:
        for number in ("1", "22"):
            (here / "a").write_text(number)
            until(lambda number=number: text(there / "a") == number, "a change")
        (there / "sub").write_text("in the way of a folder, which --delete mends")
        (here / "sub").mkdir()
        (here / "sub" / "file").write_text("file")
        until_said(process, ", 4 B in")
        assert "file" == text(there / "sub" / "file")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    note = "note: out is a link out of the tree, to /mnt/large: left out; --links follow sends what it leads to"
    assert [f"Watching {here}; Ctrl-C ends.", note] == err.splitlines()


@pytest.mark.usefixtures("own_folders")
def test_a_failure_is_said_once_and_tried_again(server, tmp_path):
    """What the box refuses stays refused: that is said once, tried anew without a change here, and said anew when it is back."""
    here, there = tmp_path / "project", server.folder / "project3"
    here.mkdir()
    (here / "a").write_text("1")
    with syncing(server, here, there) as process:
        until_said(process, ", 1 B in")
        heard = [process.stderr.readline()]
        for number in ("22", "4444"):
            shutil.rmtree(there)
            there.write_text("in the way of the folder itself")
            (here / "a").write_text(number)
            heard += [process.stderr.readline(), process.stderr.readline()]
            (here / "a").write_text(f"{number}+")
            time.sleep(LOOK_S + 1.5)  # it is tried by then, and fails again
            there.unlink()
            until(lambda number=number: text(there / "a") == f"{number}+", "it is not tried again")
            until_said(process, f", {len(number) + 1} B in")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert "" == err
    said = [line.rstrip().partition(": ")[2] for line in heard[1::2]]
    assert [f"{there} is a file, not a folder. It is tried again."] * 2 == said
    assert ["  Fix:  name a folder, or move it aside\n"] * 2 == heard[2::2]


@pytest.mark.usefixtures("own_folders")
def test_a_first_failure_ends_it(server, tmp_path):
    """Nothing was ever in step: it is most likely mistyped."""
    (tmp_path / "project").mkdir()
    (server.folder / "file").write_text("in the way")
    with syncing(server, tmp_path / "project", server.folder / "file") as process:
        _, err = process.communicate(timeout=30)
    assert 1 == process.returncode
    assert "file is a file, not a folder" in err


@pytest.mark.usefixtures("own_folders")
@pytest.mark.parametrize("changed", [False, True])
def test_a_server_that_is_away(tmp_path, changed):
    """It is waited for at rest; one that comes back with another key ends it."""
    here = tmp_path / "project"
    here.mkdir()
    (here / "a").write_text("1")
    with sshd.running(tmp_path / "own", kinds=("ed25519", "ecdsa")) as server:
        there = server.folder / "project"
        with syncing(server, here, there) as process:
            until(lambda: text(there / "a") == "1", "the first sync")
            server.stop()
            (here / "a").write_text("22")
            assert "Watching" in process.stderr.readline()
            assert "It is tried again." in process.stderr.readline()
            assert "  Fix:  " in process.stderr.readline()
            before = sum(psutil.Process(process.pid).cpu_times()[:2])
            time.sleep(2)
            assert sum(psutil.Process(process.pid).cpu_times()[:2]) - before < 0.7, "it does not sleep"
            server.host_keys = server.host_keys[changed:]
            server.start()
            if changed:
                _, err = process.communicate(timeout=60)
                assert (4, True) == (process.returncode, "CHANGED" in err)
            else:
                until(lambda: text(there / "a") == "22", "it is not tried again")


def test_goes_from_here_to_a_box(tmp_path):
    """The other way, or without writing, there is nothing to watch; a folder that is not there is an error at once."""
    for more in (["box:project", str(tmp_path)], [str(tmp_path), "box:project", "--dry-run"]):
        words = [sys.executable, "-m", "nbkit.cli", "sync", *more, "--watch"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)
        assert 2 == done.returncode
        assert "--watch goes from here to HOST:PATH" in done.stderr


def test_sees_what_changes(tmp_path):
    """Content, mode, names and links; an unreadable or vanished folder is no error."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("1")
    states = [seen(str(tmp_path))]
    for change in (
        lambda: (tmp_path / "a" / "b").write_text("23"),
        lambda: (tmp_path / "a" / "b").chmod(0o700),
        lambda: (tmp_path / "c").symlink_to("a"),
        lambda: (tmp_path / "a" / "b").rename(tmp_path / "a" / "d"),
    ):
        change()
        states.append(seen(str(tmp_path)))
    assert all(before != after for before, after in pairwise(states))
    assert {} == seen(str(tmp_path / "none"))
