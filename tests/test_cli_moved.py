"""What a person sees of files that move: places as they are typed, a line of progress that fits, names that are no text."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import sys
import termios
import time

import click
import pytest

from nbkit.cli import _moved
from nbkit.cli._base import patience
from nbkit.cli._moved import Meter, fitted, time_text
from nbkit.cli.files import _place
from nbkit.remote import Progress
from nbkit.ssh.text import plain

MB = 10**6


class TestPlaces:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("box:", ("box", "")),
            ("ana@box:a b", ("ana@box", "a b")),
            ("ana@box:2222:a", ("ana@box:2222", "a")),
            ("box:2222:", ("box:2222", "")),
            ("box:2222", ("box", "2222")),
            ("box:./2222:a", ("box", "./2222:a")),
            ("box:a\nb", ("box", "a\nb")),
            ("[::1]:a", ("[::1]", "a")),
            ("ana@[::1]:a", ("ana@[::1]", "a")),
            ("ana@[::1]:22:a", ("ana@[::1]:22", "a")),
            ("ssh://ana@box:22/a", ("ssh://ana@box:22", "a")),
        ],
    )
    def test_are_host_and_path(self, text, expected):
        """A port stands between the two, as everywhere else; an IPv6 address in brackets, with a user or without."""
        assert expected == _place(text)

    @pytest.mark.parametrize("text", ["", ":a", "a", "./a:b", "ssh:///a"])
    def test_are_not_guessed(self, text):
        """What has no host is refused."""
        with pytest.raises(click.BadParameter, match="is not HOST:PATH"):
            _place(text)


class TestMeter:
    @contextlib.contextmanager
    def terminal(self, monkeypatch):
        """A narrow terminal that stderr is while the block lasts; what is shown on it."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
        with (
            os.fdopen(ours, "rb", buffering=0) as shown,
            os.fdopen(theirs, "w") as stderr,
            monkeypatch.context() as patched,
        ):
            patched.setattr(sys, "stderr", stderr)
            yield lambda: shown.read(10_000).decode()

    def test_never_takes_a_second_row(self, monkeypatch):
        """What does not fit is left out: a line that wraps would stay, one for each step."""
        with self.terminal(monkeypatch) as shown:
            Meter().tell(Progress(5 * MB, 90_000 * MB, "a/" * 50, 2.0))
            line = shown().rpartition("\x1b[K")[2]
        assert line.startswith("  0 %  5.0 MB of 90.00 GB")
        assert len(line) == 59

    def test_says_what_takes_so_long(self, monkeypatch):
        """While many files are looked at nothing moves yet; after a while that is said, and taken away."""
        monkeypatch.setattr(_moved, "_PATIENCE_S", 0.0)
        with self.terminal(monkeypatch) as shown:
            meter = Meter()
            meter.begin()
            assert "Looking at what there is" in shown()
            meter.end()
            assert "\r\x1b[K" == shown()

    def test_where_something_moves_nothing_is_said_of_looking(self, monkeypatch):
        """It would stand there in place of how far it is."""
        monkeypatch.setattr(_moved, "_PATIENCE_S", 0.2)
        with self.terminal(monkeypatch) as shown:
            meter = Meter()
            meter.begin()
            meter.tell(Progress(5 * MB, 90_000 * MB, "a", 2.0))
            time.sleep(0.5)
            meter.end()
            assert "Looking" not in shown()

    def test_speed_is_that_of_lately(self, capsys, monkeypatch):
        """What was there already goes by in a moment: it says nothing about the rest. At first no time is told."""
        monkeypatch.setattr(_moved, "_LINE_S", 0.0)
        meter = Meter()
        for done, seconds in ((1, 0.01), (9000 * MB, 1.5), (9010 * MB, 12.0), (9020 * MB, 13.0)):
            meter.tell(Progress(done, 10_000 * MB, "a", seconds))
        first, _, _, last = capsys.readouterr().err.splitlines()
        assert "  0 %  1 B of 10.00 GB" == first
        assert " 90 %  9.02 GB of 10.00 GB  10.0 MB/s  1:38 min left" == last

    @pytest.mark.parametrize(
        ("seconds", "expected"), [(0.2, "0 s"), (59.7, "1:00 min"), (125, "2:05 min"), (11400, "3:10 h")]
    )
    def test_time(self, seconds, expected):
        """As a clock shows it."""
        assert expected == time_text(seconds)

    def test_wide_characters(self):
        """They take two columns each."""
        assert "\u6587" * 4 == fitted("\u6587" * 9, 10)

    @pytest.mark.parametrize("after_s", [0.0, 0.3])
    def test_what_is_waited_for(self, monkeypatch, after_s):
        """Is said where it takes long, and only then."""
        with self.terminal(monkeypatch) as shown:
            with patience("Starting", after_s):
                assert after_s or shown() == "Starting ...\r\n"
            time.sleep(2 * after_s)
            print("the end", file=sys.stderr, flush=True)
            assert "the end\r\n" == shown()

    def test_nobody_is_told_where_there_is_no_terminal(self, capsys):
        """A script's stderr has errors and notes."""
        with patience("Starting", 0.0):
            time.sleep(0.2)
        assert "" == capsys.readouterr().err


def test_bytes_that_are_no_text():
    """A name of another encoding is shown by its bytes, not by what Python makes of them."""
    assert r"caf\xe9" == plain(b"caf\xe9".decode("utf-8", "surrogateescape"))
