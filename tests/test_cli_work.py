"""nbkit run, runs, attach, logs and stop, as a person types them: processes of their own, a real sshd."""

from __future__ import annotations

import json
import signal

import pytest

from nbkit.cli._remote import Shown
from tests import sshd
from tests.laptop import Laptop
from tests.works import COUNT


@pytest.fixture
def laptop(laptop):
    """With a script that counts."""
    (laptop.folder / "count.py").write_text(COUNT)
    return laptop


def test_run_prints_and_ends_as_the_script_does(laptop):
    """What it prints is on stdout, the talk on stderr, its exit code is ours."""
    (laptop.folder / "a.py").write_text("import sys\nprint('hello')\nsys.exit(9)")
    code, out, err = laptop.run("run", "a.py", "--on", "box", *laptop.options)
    assert (9, "hello\n") == (code, out)
    for text in ("a.py runs on box as ", "a.py failed (exit code 9) after 0:0", "nbkit pull "):
        assert text in err


def test_interrupt_detaches_and_attach_returns(laptop, tmp_path, server):
    """Ctrl-C leaves it running and says how to come back; `attach` has all of it, from another machine too."""
    process = laptop.popen("run", "count.py", "--on", "box", *laptop.options, "--", "60", "0.1")
    assert "line 0\n" == process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert 130 == process.returncode
    assert "Detached. count.py goes on, on box.\n  Back:  nbkit attach 2" in err
    every = "".join(f"line {number}\n" for number in range(60))
    assert (0, every) == laptop.run("attach")[:2]
    other = Laptop(tmp_path / "other", server)
    assert (0, every) == other.run("logs", "count", "--on", "box", *other.options)[:2]
    assert "This machine began no run on a box." in other.run("logs")[2]


def test_killed_here_it_goes_on_there(laptop):
    """kill -9 of our process is as a closed laptop: the run goes on, and nothing of its output is lost."""
    process = laptop.popen("run", "count.py", "--on", "box", *laptop.options, "--", "30", "0.1")
    process.stdout.readline()
    process.kill()
    process.communicate(timeout=30)
    assert (0, "".join(f"line {number}\n" for number in range(30))) == laptop.run("attach")[:2]


def test_detach_runs_and_stop(laptop):
    """--detach returns at once; `runs --on` lists it; `stop` ends it by its id alone; the talk is not on stdout."""
    code, out, _ = laptop.run("run", "count.py", "--on", "box", "-d", "--json", *laptop.options, "--", "9999", "0.1")
    told = json.loads(out)
    assert (0, "running", "box") == (code, told["state"], told["on"])
    assert told["id"] in laptop.run("runs", "--on", "box", *laptop.options)[1]
    code, out, err = laptop.run("stop", told["id"])
    assert (0, "") == (code, out)
    assert f"Asked {told['id']} on box to stop (SIGTERM)" in err
    assert 143 == laptop.run("attach", told["id"])[0]
    listed = json.loads(laptop.run("runs", "--on", "box", "--json", *laptop.options)[1])
    assert "stopped" == next(one["state"] for one in listed if one["id"] == told["id"])
    assert 1 == laptop.run("stop", told["id"])[0]
    code, out, err = laptop.run("runs", "--on", "box", "--remove", told["id"], "--json", *laptop.options)
    assert (0, f"Deleted {told['id']} on box.\n") == (code, err)
    assert told["id"] not in out


def test_status_shows_it_and_stop_of_the_host_leaves_it(laptop):
    """`status HOST` lists what is at work; `stop HOST` ends Jupyter, not this, and says how this ends."""
    told = json.loads(
        laptop.run("run", "count.py", "--on", "box", "-d", "--json", *laptop.options, "--", "9999", "0.1")[1]
    )
    assert f"  run      {told['id']}   running\n" in laptop.run("status", "box", *laptop.options)[1]
    assert [told["id"]] == [
        one["id"] for one in json.loads(laptop.run("status", "box", "--json", *laptop.options)[1])[0]["runs"]
    ]
    err = laptop.run("stop", "box", *laptop.options)[2]
    assert f"It ends with: nbkit stop {told['id']}\n" in err
    assert "No Jupyter and no kernel of nbkit ran on box.\n" in err
    assert 0 == laptop.run("stop", told["id"])[0]


def test_wrong_use(laptop):
    """No such file is 2, before anything is dialled; a host that is off is 3; -F without a host is 2."""
    assert 2 == laptop.run("run", "absent.py", "--on", "nowhere.invalid")[0]
    assert 2 == laptop.run("run", "count.py")[0]
    assert 3 == laptop.run("run", "count.py", "--on", f"127.0.0.1:{sshd.free_port()}")[0]
    assert 2 == laptop.run("runs", *laptop.options)[0]
    assert 2 == laptop.run("stop", "x", "--host", "--on", "box")[0]


class TestShown:
    def test_a_file_gets_the_last_state_of_a_line(self):
        """Colours and control characters go, a progress bar becomes its last state, characters may come in pieces."""
        shown = Shown(terminal=False)
        data = "\x1b[31mré\x1b[0md\n 10%\r 50%\r100%\n\x07end".encode()
        text = "".join(shown.text(data[at : at + 1]) for at in range(len(data))) + shown.text(b"", last=True)
        assert "réd\n100%\n\\x07end" == text

    def test_a_line_without_end_is_no_burden(self):
        """A progress bar that is drawn a million times, and a line of many MB, are not gathered without limit."""
        shown = Shown(terminal=False)
        assert "" == "".join(shown.text(b"\r%d %%" % step) for step in range(100_000))
        assert 20 > len(shown._held)
        long = shown.text(b"x" * (3 << 20))
        assert 3 << 20 <= len(long)
        assert "y\n" == shown.text(b"y\n")

    def test_a_terminal_gets_it_at_once(self):
        """What is no whole line yet is shown, and may be drawn anew; an escape sequence in two pieces goes."""
        shown = Shown(terminal=True)
        assert ["1", "\r2", "x", "", "y"] == [shown.text(piece) for piece in (b"1", b"\r2", b"x\x1b[3", b"1m", b"y")]

    def test_our_own_lines_stand_alone(self):
        """That the link is lost is not said behind a progress bar, nor after an empty line."""
        shown = Shown(terminal=True)
        shown.text(b"\r 20%")
        assert ["\nlost", "back"] == [shown.own("lost"), shown.own("back")]
        shown.text(b"\r 21%")
        shown.text(b"\n")
        assert "lost" == shown.own("lost")
