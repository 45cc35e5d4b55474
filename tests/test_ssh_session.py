"""A session on a real sshd, over both engines: commands, deadlines, cuts."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest

from nbkit.errors import RemoteCommandError, UnreachableError
from nbkit.ssh import TooLateError, connect
from tests import boxes
from tests.waiting import until

engine = boxes.engine


@pytest.fixture(scope="module")
def session(box, engine):
    """A session on it, for tests that leave it whole."""
    with connect("box", config=box.config, ask=None, engine=engine) as session:
        yield session


class TestRun:
    def test_words_arrive_as_they_are(self, session):
        """Quotes, spaces, newlines, dollars and globs are not touched by the shell there."""
        words = ["a b", "'", '"', "$HOME", "*", "new\nline", "`id`", "", "ü", "-n"]
        result = session.run([sys.executable, "-c", "import sys; print(sys.argv[1:])", *words])
        assert (0, str(words)) == (result.status, result.text)

    def test_status_and_both_outputs(self, session, engine):
        """As a local subprocess gives them; a signal is 128 and its number, which ssh does not pass on."""
        result = session.run("echo out; echo err >&2; exit 7")
        assert (7, b"out\n", b"err\n") == (result.status, result.stdout, result.stderr)
        assert (137 if engine == "paramiko" else 255) == session.run("kill -9 $$").status

    def test_input_goes_in_whole(self, session):
        """A megabyte through cat, more than a pipe holds, comes back equal."""
        content = os.urandom(1 << 20)
        assert content == session.run(["cat"], input=content).stdout

    def test_output_is_bounded(self, session):
        """A command that does not stop talking is stopped."""
        with pytest.raises(RemoteCommandError, match="more than 100000 bytes"):
            session.run(["cat", "/dev/zero"], limit=100_000)
        assert "ok" == session.run(["echo", "ok"]).text

    def test_a_deadline_holds(self, session):
        """A command that does not end is given up in time, and the session lives."""
        start = time.monotonic()
        with pytest.raises(RemoteCommandError, match=r"did not end within 0\.5 s"):
            session.run(["sleep", "60"], timeout_s=0.5)
        assert time.monotonic() - start < 15
        assert "ok" == session.run(["echo", "ok"]).text

    def test_the_input_is_in_no_argument_list(self, session):
        """What goes in by stdin is seen by no `ps` on either side."""
        secret = "s3cr3t-" + os.urandom(8).hex()
        found = session.run(
            "cat >/dev/null; cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '", input=secret.encode()
        )
        assert secret not in found.text
        assert b"" != found.stdout


class TestStart:
    def test_streams_both_ways(self, session):
        """What is written comes back through `cat`, more than any window, while both sides run; the status is its own."""
        content = os.urandom(9_000_000)
        with session.start("cat; echo done >&2; exit 3") as process:
            writer = threading.Thread(target=lambda: (process.write(content), process.close_stdin()), daemon=True)
            writer.start()
            back, into = bytearray(), bytearray(100_000)
            while n := process.readinto(into, 30):
                back += into[:n]
            writer.join(timeout=30)
            assert (content, 3, b"done\n") == (bytes(back), process.wait(30), process.stderr)

    def test_waits_have_an_end(self, session):
        """Nothing said, nothing taken, not ended: each is told by its cause, and the command goes on."""
        with session.start("sleep 60") as process:
            with pytest.raises(TooLateError, match=r"said nothing within 0\.2 s"):
                process.read(10, 0.2)
            with pytest.raises(TooLateError, match=r"took no more input within 0\.2 s"):
                process.write(b"x" * 20_000_000, 0.2)
            with pytest.raises(TooLateError, match=r"did not end within 0\.2 s"):
                process.wait(0.2)

    def test_input_for_a_command_that_has_ended(self, session):
        """Writing to it is an error, not a silence."""
        with session.start("exit 0") as process:
            assert (b"", 0) == (process.read(10, 30), process.wait(30))
            with pytest.raises(RemoteCommandError, match="reads no more input"):  # soon: sshd has yet to say so
                until(lambda: process.write(b"x", 30), "an error")

    def test_the_end_of_the_link_is_no_end_of_output(self, box, engine):
        """A cut raises: half an output is never taken for the whole."""
        with (
            connect("box", config=box.config, ask=None, engine=engine) as session,
            session.start("echo half; read go; kill -9 $PPID; sleep 60") as process,
        ):
            assert b"half\n" == process.read(100, 30)
            process.write(b"now\n")
            with pytest.raises(UnreachableError, match="broke while"):
                process.read(100, 30)
            with pytest.raises(UnreachableError, match="broke while"):
                process.wait(30)

    def test_an_unread_output_is_bounded(self, box):
        """A command that nobody reads is held up by the window, not kept in memory."""
        with connect("box", config=box.config, ask=None) as session, session.start(["cat", "/dev/zero"]) as process:
            until(lambda: process._kept, "output")
            time.sleep(1)  # to take more, if it did
            assert len(process._kept) <= 64 << 20
            assert "ok" == session.run(["echo", "ok"]).text


class TestSession:
    def test_facts(self, session, engine):
        """What carries it is on record; of our own connection also AES-GCM, strict key exchange and the login."""
        facts = session.facts
        assert {"paramiko": "paramiko", "ssh": "the system's ssh"}[engine] == facts["carrier"]
        if engine == "paramiko":
            assert "aes128-gcm@openssh.com" == facts["cipher"]
            assert facts["strict_kex"]
            assert ["publickey id_ed25519"] == facts["login"]

    def test_round_trip_is_measured(self, session):
        """A want-reply request, answered."""
        assert 0 < session.round_trip() < 5

    def test_close_is_idempotent_and_leaves_no_thread(self, box, engine):
        """After close nothing of ours runs, and the session says so."""
        before = set(threading.enumerate())
        with connect("box", config=box.config, ask=None, engine=engine) as session:
            assert session.alive
        session.close()
        assert not session.alive
        until(lambda: not set(threading.enumerate()) - before, "the end of the session's threads")
        with pytest.raises(UnreachableError, match="it was closed"):
            session.run(["true"])

    def test_a_silent_peer_is_seen_within_twelve_seconds(self, box, engine):
        """A server that is stopped, with its socket open, is given up: stock paramiko waits for ever."""
        import signal

        with connect("box", config=box.config, ask=None, engine=engine) as session:
            mine = int(session.run("echo $PPID").text)
            os.kill(mine, signal.SIGSTOP)
            try:
                start = time.monotonic()
                until(lambda: not session.alive, "the silence to be seen")
                seen = time.monotonic() - start
            finally:
                os.kill(mine, signal.SIGKILL)
            assert seen < 13
            with pytest.raises(UnreachableError, match=r"no answer for 1[01] s|Timeout, server .* not responding"):
                session.run(["true"])

    def test_a_cut_in_a_command_is_said(self, box, engine):
        """The server goes away while a command runs: the cause, at once, and exit code 3."""
        with connect("box", config=box.config, ask=None, engine=engine) as session:
            mine = session.run("echo $PPID").text
            with pytest.raises(UnreachableError, match="broke while") as caught:
                session.run(f"kill -9 {mine}; sleep 60", timeout_s=30)
            assert 3 == caught.value.exit_code
