"""Streams over a relay, against a real sshd: whole through every break, and each failure said plainly."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from nbkit.errors import RemoteCommandError, UnreachableError
from nbkit.ssh import Streams, connect, forward
from nbkit.ssh.forward import PortTakenError
from tests import boxes, relaying
from tests.chaos.streams import run as soak
from tests.chaos.streams import through
from tests.chaos.transfer import small_disk
from tests.delay_proxy import delayed
from tests.echoing import WAIT_S, Echo, Listener, UnixListener, echoing, talk
from tests.echoing import ours as named
from tests.relaying import ask, both, cutting, relay_of
from tests.sshd import free_port, running
from tests.waiting import until

MIB = 1 << 20


engine, session = boxes.engine, boxes.session
folder = relaying.folder


def ours() -> list[str]:
    """Names of our threads, without the numbers that each new one gets."""
    return sorted(re.sub(r"Thread-\d+", "Thread", name) for name in named())


def ended(pid: int) -> bool:
    """True when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


class Source(Echo):
    """Sends as much as a line asks for, and then closes; counts what it got rid of."""

    sent = 0

    def handle(self):
        left = int(self.request.makefile("rb").readline())
        block = os.urandom(1 << 16)
        with contextlib.suppress(OSError):
            while left:
                n = self.request.send(block[: min(left, len(block))])
                type(self).sent += n
                left -= n


@pytest.fixture
def source():
    """Port of a source of bytes."""
    Source.sent = 0
    with echoing(Listener(("127.0.0.1", 0), Source)) as server:
        yield server.server_address[1]


class TestBytes:
    @pytest.mark.parametrize("size", [0, 1, 300_000, 9_000_000])
    def test_come_back_whole(self, session, folder, echo, size):
        """Both ways at once, more than a window, ends in order."""
        content = os.urandom(size)
        with Streams(session, folder=str(folder)) as streams, forward(streams, echo) as fwd:
            assert content == talk(fwd.local_port, content)

    def test_sockets_at_both_ends(self, session, folder):
        """A Unix socket here reaches one there; it is this user's alone, and gone afterwards."""
        here, there = folder / "here", folder / "there"
        with (
            echoing(UnixListener(str(there), Echo)),
            Streams(session, folder=str(folder)) as streams,
            forward(streams, str(there), str(here)),
            socket.socket(socket.AF_UNIX) as line,
        ):
            assert 0o600 == stat.S_IMODE(here.stat().st_mode)
            with pytest.raises(PortTakenError, match="No socket can be made"):
                forward(streams, str(there), str(here))
            line.settimeout(WAIT_S)
            line.connect(str(here))
            line.sendall(b"by file")
            line.shutdown(socket.SHUT_WR)
            assert b"by file" == line.makefile("rb").read()
        assert not here.exists()

    def test_two_hundred_at_once(self, session, folder, echo):
        """Each gets its own bytes back."""
        with (
            Streams(session, folder=str(folder)) as streams,
            forward(streams, echo) as fwd,
            contextlib.ExitStack() as stack,
        ):
            lines = [stack.enter_context(socket.create_connection(("127.0.0.1", fwd.local_port), timeout=WAIT_S))
                     for _ in range(200)]  # fmt: skip
            sent = [os.urandom(8192) for _ in lines]
            for line, content in zip(lines, sent, strict=True):
                line.sendall(content)
                line.shutdown(socket.SHUT_WR)
            assert sent == [line.makefile("rb").read() for line in lines]
            until(lambda: not streams.mux.streams, "streams are left")

    def test_a_slow_reader_holds_up_its_source_alone(self, session, folder, source, echo):
        """What nobody reads here is not read there; others go on."""
        with (
            Streams(session, folder=str(folder)) as streams,
            forward(streams, source) as slow,
            forward(streams, echo) as quick,
            socket.create_connection(("127.0.0.1", slow.local_port), timeout=WAIT_S) as line,
        ):
            line.sendall(b"100000000\n")
            until(lambda: Source.sent > MIB, "nothing comes")
            before = -1
            while Source.sent > before:
                before = Source.sent
                assert b"quick" == talk(quick.local_port, b"quick")
                time.sleep(0.3)
            assert Source.sent < 40_000_000
            assert 100_000_000 == sum(map(len, iter(lambda: line.recv(MIB), b"")))

    def test_nothing_listens_there(self, session, folder):
        """The connection is closed, the host's word is kept, other streams live."""
        with Streams(session, folder=str(folder)) as streams:
            with forward(streams, free_port()) as fwd:
                assert b"" == talk(fwd.local_port, b"x")
                assert "refused" in fwd.failed.lower()
            with forward(streams, "/no/such/socket") as fwd:
                assert b"" == talk(fwd.local_port, b"x")
                assert "No such file" in fwd.failed
            assert streams.alive


class TestBreaks:
    def test_a_cut_does_not_end_a_connection(self, box, session, folder, echo):
        """Fifteen cuts in the middle of bytes both ways: all arrive, once, in order; nothing is left over."""
        content = os.urandom(60 * MIB)
        with Streams(session, folder=str(folder)) as streams, forward(streams, echo) as fwd:
            talk(fwd.local_port, b"warm")
            threads, files, there = ours(), len(os.listdir("/proc/self/fd")), ask(relay_of(folder), "look")["files"]
            with cutting(box, streams, 15):
                while streams.reconnects < 15:
                    assert [content, content] == both(fwd.local_port, content)
            until(lambda: streams.alive, "the link does not come back")
            until(lambda: not Counter(ours()) - Counter(threads), "threads are left")
            until(lambda: len(os.listdir("/proc/self/fd")) <= files, "descriptors are left")
            until(lambda: ask(relay_of(folder), "look")["files"] <= there, "descriptors are left there")
            assert ([], {}) == (streams.notes, streams.mux.streams)

    @pytest.mark.parametrize("engine", ["paramiko", "ssh"])
    def test_a_half_open_link_is_noticed_and_left(self, box, folder, echo, engine, tmp_path):
        """A link that swallows everything without a word: seen within 12 s, and what was sent into it arrives by the next."""
        with delayed(box.port, 0.0) as proxy:
            config = through(box, proxy.port, tmp_path)
            with (
                connect("box", config=config, ask=None, engine=engine) as session,
                Streams(session, folder=str(folder)) as streams,
                forward(streams, echo) as fwd,
                socket.create_connection(("127.0.0.1", fwd.local_port), timeout=WAIT_S) as line,
            ):
                line.sendall(b"before")
                assert b"before" == line.recv(100)
                proxy.swallow()
                sent = time.monotonic()
                line.sendall(b"into the void")
                assert b"into the void" == line.recv(100)
                assert time.monotonic() - sent < 15
                assert 1 == streams.reconnects

    def test_a_new_connection_waits_for_the_link(self, tmp_path, folder, echo):
        """While the server is away an open connection stays, a new one waits; both are served when it is back."""
        with (
            running(tmp_path / "own") as own,
            connect("box", config=own.config, ask=None) as session,
            Streams(session, folder=str(folder)) as streams,
            forward(streams, echo, wait_s=WAIT_S) as fwd,
            socket.create_connection(("127.0.0.1", fwd.local_port), timeout=WAIT_S) as old,
        ):
            old.sendall(b"x")
            assert b"x" == old.recv(1)
            own.stop()
            until(lambda: not streams.alive, "the loss is not noticed")
            with pytest.raises(UnreachableError):
                streams.reach(echo, lambda _: None, None)  # type: ignore[arg-type]
            old.sendall(b"old")
            with socket.create_connection(("127.0.0.1", fwd.local_port), timeout=WAIT_S) as new:
                new.sendall(b"new")
                own.start()
                assert (b"old", b"new") == (old.recv(100), new.recv(100))


class TestStorm:
    @pytest.mark.parametrize(("engine", "forbids"), [("paramiko", False), ("ssh", False), ("paramiko", True)])
    def test_bulk_and_lines_through_cuts_and_stalls(self, tmp_path, engine, forbids):
        """Cuts, resets, refusals and stalls of either way, by a fixed seed: equal sha256, each line in its turn, no growth.

        `python -m bench streams` has the whole.
        """
        tally = soak(tmp_path, seed=3, cuts=7, stalls=3, seconds=9.0, least=4, engine=engine, forbids=forbids)
        assert tally.sound, str(tally)
        assert tally.cuts + tally.stalls > 3
        for first, last in (tally.here, tally.there):
            assert all(last[key] <= first[key] for key in ("threads", "files")), str(tally)


class TestRelay:
    def test_it_is_private_and_outlives_the_connection(self, box, folder):
        """0700 and 0600 whatever the umask; it runs on when the connection has ended, for the next to find it."""
        found = []
        for _ in range(2):
            with connect("box", config=box.config, ask=None) as session, Streams(session, folder=str(folder)):
                found.append(ask(relay_of(folder), "look")["pid"])
                modes = {path.suffix: oct(stat.S_IMODE(path.stat().st_mode)) for path in folder.iterdir()}
        assert found[0] == found[1]
        assert {".sock": "0o600", ".log": "0o600", ".lock": "0o600"} == modes
        assert os.getpgid(found[0]) == found[0]
        assert b"nbkit-relay" in Path(f"/proc/{found[0]}/cmdline").read_bytes()
        until(lambda: not ask(relay_of(folder), "look")["sessions"], "a session is left")

    def test_it_ends_when_idle(self, box, folder):
        """Without a client for as long as it was told; its socket is gone then."""
        limits = {"idle_s": 1.0}
        with (
            connect("box", config=box.config, ask=None) as session,
            Streams(session, folder=str(folder), limits=limits),
        ):
            pid = ask(relay_of(folder), "look")["pid"]
            time.sleep(2.5)
            assert not ended(pid)
        until(lambda: ended(pid), "it does not end")
        assert [] == list(folder.glob("*.sock"))

    def test_when_it_is_killed(self, box, session, folder, echo):
        """Its streams end, and that is said; new ones work, over a new relay."""
        with (
            Streams(session, folder=str(folder)) as streams,
            forward(streams, echo, wait_s=WAIT_S) as fwd,
            socket.create_connection(("127.0.0.1", fwd.local_port), timeout=WAIT_S) as line,
        ):
            line.sendall(b"x")
            assert b"x" == line.recv(1)
            os.kill(ask(relay_of(folder), "look")["pid"], 9)
            assert b"" == line.recv(1)
            assert b"again" == talk(fwd.local_port, b"again")
            (note,) = streams.notes
            assert (
                f"{session.route.asked} has lost its relay (it was ended): 1 open connection ended; new ones work."
                == note
            )

    def test_one_that_hangs_is_waited_for(self, box, folder, echo, monkeypatch):
        """A relay that is stopped is not replaced: its streams go on with it; meanwhile it is said that it does not answer."""
        from nbkit.ssh import program
        from nbkit.ssh import streams as module

        text = program.text_of
        monkeypatch.setattr(module, "_DEAD_S", 2)
        monkeypatch.setattr(module, "_GREET_S", 1.0)
        monkeypatch.setattr(program, "text_of", lambda name: text(name).replace("ANSWER_S = 20.0", "ANSWER_S = 1.0"))
        with (
            connect("box", config=box.config, ask=None) as session,
            Streams(session, folder=str(folder)) as streams,
            forward(streams, echo) as fwd,
            socket.create_connection(("127.0.0.1", fwd.local_port), timeout=WAIT_S) as line,
        ):
            line.sendall(b"x")
            assert b"x" == line.recv(1)
            pid = ask(relay_of(folder), "look")["pid"]
            os.kill(pid, signal.SIGSTOP)
            try:
                line.sendall(b"patience")
                until(lambda: streams.notes, "nothing is said")
                assert "does not answer within 1 s" in streams.notes[0]
            finally:
                os.kill(pid, signal.SIGCONT)
            assert b"patience" == line.recv(100)
            assert 1 == len(streams.notes)

    def test_a_restart_of_the_box_is_called_so(self, box, folder, echo):
        """A relay of another boot does not know us, and the note says why."""
        with (
            connect("box", config=box.config, ask=None) as session,
            Streams(session, folder=str(folder)) as streams,
            forward(streams, echo) as fwd,
            socket.create_connection(("127.0.0.1", fwd.local_port), timeout=WAIT_S) as line,
        ):
            line.sendall(b"x")
            assert b"x" == line.recv(1)
            streams._boot = "another"
            os.kill(ask(relay_of(folder), "look")["pid"], 9)
            assert b"" == line.recv(1)
            assert "was restarted" in streams.notes[0]

    def test_who_stays_away_too_long(self, tmp_path, folder, echo):
        """Is given up by the relay, and told so."""
        with (
            running(tmp_path / "own") as own,
            connect("box", config=own.config, ask=None) as session,
            Streams(session, folder=str(folder), limits={"keep_s": 0.5}) as streams,
            forward(streams, echo) as fwd,
            socket.create_connection(("127.0.0.1", fwd.local_port), timeout=WAIT_S) as line,
        ):
            line.sendall(b"x")
            assert b"x" == line.recv(1)
            own.stop()
            until(lambda: not ask(relay_of(folder), "look")["sessions"], "it is not given up")
            own.start()
            assert b"" == line.recv(1)
            assert "given us up after a long absence" in streams.notes[0]

    def test_two_laptops(self, box, folder, echo):
        """Two clients share a relay and disturb each other in nothing; the end of one is not the end of the other."""
        with contextlib.ExitStack() as stack:
            fwds = []
            for _ in range(2):
                session = stack.enter_context(connect("box", config=box.config, ask=None))
                streams = Streams(session, folder=str(folder))
                fwds.append((streams, forward(streams, echo)))
            assert 2 == len(ask(relay_of(folder), "look")["sessions"])
            line = stack.enter_context(socket.create_connection(("127.0.0.1", fwds[0][1].local_port), timeout=WAIT_S))
            line.sendall(b"x")
            assert b"x" == line.recv(1)
            fwds[1][1].close()
            fwds[1][0].close()
            until(lambda: 1 == len(ask(relay_of(folder), "look")["sessions"]), "the other is not gone")
            line.sendall(b"still")
            assert b"still" == line.recv(100)
            fwds[0][1].close()
            fwds[0][0].close()

    def test_an_old_one_is_replaced_and_its_streams_go_on(self, box, folder, echo, monkeypatch):
        """A relay of another version serves those it has to their end; new clients get the new one."""
        from nbkit.ssh import program

        with (
            connect("box", config=box.config, ask=None) as first,
            connect("box", config=box.config, ask=None) as second,
        ):
            old = Streams(first, folder=str(folder))
            old_fwd = forward(old, echo)
            with socket.create_connection(("127.0.0.1", old_fwd.local_port), timeout=WAIT_S) as line:
                line.sendall(b"x")
                assert b"x" == line.recv(1)
                old_relay = relay_of(folder)
                pid = ask(old_relay, "look")["pid"]
                text = program.text_of
                monkeypatch.setattr(program, "text_of", lambda name: text(name) + "\n# newer")
                with Streams(second, folder=str(folder)) as new, forward(new, echo) as fwd:
                    assert b"new" == talk(fwd.local_port, b"new")
                    assert 2 == len(list(folder.glob("relay-*.sock")))
                    box.cut()
                    line.sendall(b"old")
                    assert b"old" == line.recv(100)
            old_fwd.close()
            old.close()
        until(lambda: ended(pid), "the old relay does not end")
        assert not old_relay.exists()

    @pytest.mark.skipif(not shutil.which("python3.8"), reason="needs python3.8 on PATH")
    def test_it_runs_on_an_old_python(self, box, folder, echo):
        """Python 3.8 at the far end."""
        found = subprocess.run(["python3.8", "-c", "import sys; print(sys.executable)"], capture_output=True, text=True,
                               check=False).stdout.strip()  # fmt: skip
        if not found:
            pytest.skip("python3.8 does not run")
        content = os.urandom(3_000_000)
        with (
            connect("box", config=box.config, ask=None) as session,
            Streams(session, folder=str(folder), python=found) as streams,
            forward(streams, echo) as fwd,
        ):
            assert ask(relay_of(folder), "look")["python"].startswith("3.8.")
            assert content == talk(fwd.local_port, content)
            box.cut()
            assert content == talk(fwd.local_port, content)


KEPT = """
import socket, sys, time
from nbkit.ssh import Streams, connect, forward
with connect("box", config=sys.argv[1], ask=None) as session, Streams(session, folder=sys.argv[2]) as streams:
    with forward(streams, int(sys.argv[3]), keep=True) as fwd:
        line = socket.create_connection(("127.0.0.1", fwd.local_port))
        line.sendall(b"150000000\\n")
        print("ready", flush=True)
        time.sleep(300)
"""


class TestKilled:
    def test_what_was_kept_for_it_is_given_back_to_the_box_by_the_next(
        self, box, folder, source, tmp_path, monkeypatch
    ):
        """kill -9 here leaves a session there, with memory and disk; the next process ends it, and no other's."""
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        words = [sys.executable, "-c", KEPT, str(box.config), str(folder), str(source)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as client:
            assert "ready" == client.stdout.readline().strip()
            until(lambda: ask(relay_of(folder), "look")["spooled"] > 15 * MIB, "nothing is kept")
            client.kill()
        (left,) = ask(relay_of(folder), "look")["sessions"]
        assert left["held"] > 0
        with connect("box", config=box.config, ask=None) as session:
            with Streams(session, folder=str(folder)), Streams(session, folder=str(folder)):
                found = ask(relay_of(folder), "look")
                assert [0, 0] == [each["held"] for each in found["sessions"]]
                assert 0 == found["spooled"]
            assert [] == list(tmp_path.rglob("sessions/*/*"))


class TestSpool:
    def test_what_is_printed_while_we_are_away_is_kept_to_a_limit(self, tmp_path, folder, source):
        """In memory, then on disk; then its source is held up, and we are told when we are back. Nothing is lost."""
        size, limits = 60 * MIB, {"memory": 4 * MIB, "disk": 16 * MIB}
        with (
            running(tmp_path / "own") as own,
            connect("box", config=own.config, ask=None) as session,
            Streams(session, folder=str(folder), limits=limits) as streams,
            forward(streams, source, keep=True) as fwd,
            socket.create_connection(("127.0.0.1", fwd.local_port), timeout=WAIT_S) as line,
        ):
            own.stop()
            until(lambda: not streams.alive, "the loss is not noticed")
            assert 0 == Source.sent
            own.start()
            line.sendall(b"%d\n" % size)
            until(lambda: Source.sent, "it does not start")
            own.stop()
            until(lambda: ask(relay_of(folder), "look")["spooled"] > 15 * MIB, "nothing is kept")
            time.sleep(1.5)
            assert Source.sent < size
            held = ask(relay_of(folder), "look")["sessions"][0]["held"]
            assert held < 6 * MIB
            own.start()
            assert size == sum(map(len, iter(lambda: line.recv(MIB), b"")))
            (note,) = streams.notes
            assert "the limit of 16 MiB on disk is reached" in note
            assert "held up until that has been sent; nothing is lost" in note

    @pytest.mark.skipif(os.getuid() != 0, reason="needs root, to make a small disk")
    def test_a_full_disk(self, tmp_path, folder, source):
        """Holds the source up as the limit does, and is named."""
        size = 120 * MIB  # more than windows and sockets on the way hold
        with (
            small_disk(tmp_path / "disk", 8 * MIB) as disk,
            running(tmp_path / "own") as own,
            connect("box", config=own.config, ask=None) as session,
            Streams(session, folder=str(folder), limits={"memory": 2 * MIB, "spool": str(disk)}) as streams,
            forward(streams, source, keep=True) as fwd,
            socket.create_connection(("127.0.0.1", fwd.local_port), timeout=WAIT_S) as line,
        ):
            line.sendall(b"%d\n" % size)
            until(lambda: Source.sent, "it does not start")
            own.stop()  # what this end would take is not there to be counted on
            until(lambda: shutil.disk_usage(disk).free < MIB, "the disk does not fill")
            time.sleep(1.5)
            assert Source.sent < size
            own.start()
            assert size == sum(map(len, iter(lambda: line.recv(MIB), b"")))
            until(lambda: streams.notes, "nothing is said")
            assert f"{disk}: No space left on device" in streams.notes[0]


class TestEnd:
    def test_with_its_session(self, box, folder, echo):
        """A session that is closed ends the streams on it, and leaves no thread at work."""
        with connect("box", config=box.config, ask=None) as session:
            streams = Streams(session, folder=str(folder))
            with forward(streams, echo) as fwd:
                line = socket.create_connection(("127.0.0.1", fwd.local_port), timeout=WAIT_S)
                line.sendall(b"x")
                assert b"x" == line.recv(1)
                session.close()
                with line:
                    assert b"" == line.recv(1)
                until(lambda: not fwd.alive, "the forward goes on")
            until(lambda: not any("nbkit-ssh-streams" in name for name in ours()), "a thread is left")
            with pytest.raises(UnreachableError, match="was closed"):
                streams.reach(echo, lambda _: None, None)  # type: ignore[arg-type]
            streams.close()
            streams.close()


class TestRefusals:
    def test_no_python_there(self, session, folder):
        """Is said, with what to do; so is one that is too old."""
        with pytest.raises(RemoteCommandError, match="has no Python at '/no/such/python'"):
            Streams(session, folder=str(folder), python="/no/such/python")
        old = folder / "old"
        old.write_text('#!/bin/sh\ncat >/dev/null\nprintf \'{"error": "Python 3.6 is too old"}\'\n')
        old.chmod(0o700)
        with pytest.raises(RemoteCommandError, match="too old"):
            Streams(session, folder=str(folder), python=str(old))

    def test_a_folder_of_somebody_else(self, session, folder):
        """Is not used."""
        with pytest.raises(RemoteCommandError, match="is not a folder of this user's"):
            Streams(session, folder="/dev/null")

    def test_the_start_program_keeps_to_the_wire_format(self):
        """It speaks to a relay without loading the modules that define how."""
        from nbkit.ssh.there import frames, start

        assert (frames.HEAD.format, frames.WELCOME, frames.ASK) == (start._HEAD.format, start._WELCOME, start._ASK)
        assert json.loads(json.dumps({"do": "look"})) == {"do": "look"}
