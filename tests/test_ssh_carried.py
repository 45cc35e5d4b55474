"""Streams on a host whose sshd forbids forwards: a command there carries them, against a real sshd, by both engines."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from nbkit.errors import RemoteCommandError
from nbkit.ssh import Streams, carried, connect, forward
from nbkit.ssh.there import carry
from tests import boxes, relaying, sshd
from tests.echoing import WAIT_S, Echo, UnixListener, echoing, talk
from tests.echoing import ours as named
from tests.relaying import ask, both, cutting, relay_of
from tests.waiting import until

engine, folder = boxes.engine, relaying.folder
MIB = 1 << 20
# How a host may forbid it. OpenSSH refuses sockets with the third, too.
WAYS = ["AllowStreamLocalForwarding no", "DisableForwarding yes", "AllowTcpForwarding no", "restrict"]


@contextlib.contextmanager
def forbidding(place: Path, way: str = "DisableForwarding yes"):
    """An sshd that forbids forwards; "restrict" is a word of the key, not of the server."""
    sshd.need("ssh")
    with sshd.running(place, *([] if way == "restrict" else [way])) as own:
        if way == "restrict":
            keys = own.folder / "authorized_keys"
            keys.write_text(f"restrict {keys.read_text()}")
        yield own


def carriers(own: sshd.Sshd) -> list[int]:
    """Pids of our programs on that host, and of the shells around them."""
    home, found = f"HOME={own.folder}".encode(), []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"nbkit-program" in cmdline.read_bytes() and home in (cmdline.parent / "environ").read_bytes().split(
                b"\0"
            ):
                found.append(int(cmdline.parent.name))
    return found


class TestBytes:
    @pytest.mark.parametrize("way", WAYS)
    def test_come_back_whole_however_it_is_forbidden(self, tmp_path, folder, echo, engine, way):
        """To a port and to a socket there, by one command."""
        there, content = folder / "there", os.urandom(300_000)
        with (
            forbidding(tmp_path / "own", way) as own,
            echoing(UnixListener(str(there), Echo)),
            connect("box", config=own.config, ask=None, engine=engine) as session,
            Streams(session, folder=str(folder)) as streams,
            forward(streams, echo) as port,
            forward(streams, str(there)) as path,
        ):
            assert [content, content] == [talk(fwd.local_port, content) for fwd in (port, path)]
            assert session.sockets_refused
            assert carriers(own)
            assert [] == streams.notes

    def test_a_cut_loses_nothing_and_leaves_nothing(self, tmp_path, folder, echo, engine):
        """Ten cuts in the middle of bulk both ways: all arrives, once, in order. A refused way is not tried again."""
        content = os.urandom(40 * MIB)
        with (
            forbidding(tmp_path / "own") as own,
            connect("box", config=own.config, ask=None, engine=engine) as session,
            Streams(session, folder=str(folder)) as streams,
            forward(streams, echo) as fwd,
        ):
            talk(fwd.local_port, b"warm")
            threads, files, there = ours(), len(os.listdir("/proc/self/fd")), len(carriers(own))
            with cutting(own, streams, 10):
                while streams.reconnects < 10:
                    assert [content, content] == both(fwd.local_port, content)
            until(lambda: streams.alive, "the link does not come back")
            until(lambda: not Counter(ours()) - Counter(threads), "threads are left")
            until(lambda: len(os.listdir("/proc/self/fd")) <= files, "descriptors are left")
            until(lambda: len(carriers(own)) <= there, "commands are left there")
            assert ([], {}) == (streams.notes, streams.mux.streams)
            assert 1 == own.log.count("refused streamlocal port forward")
        until(lambda: not carriers(own), "a command is left there")

    def test_what_a_login_shell_prints_is_no_part_of_it(self, tmp_path, folder, echo):
        """Start-up files that print to both outputs, more than a channel takes unread, the last without a line's end."""
        with forbidding(tmp_path / "own") as own:
            for name in (".bashrc", ".zshenv"):
                (own.folder / name).write_text("seq 1 5000; seq 1 700000 >&2; printf 'nbkit-carry-'\n")
            with (
                connect("box", config=own.config, ask=None) as session,
                Streams(session, folder=str(folder)) as streams,
                forward(streams, echo) as fwd,
            ):
                assert session.run(["true"]).stdout
                assert b"quiet" == talk(fwd.local_port, b"quiet")


def ours() -> list[str]:
    """Names of our threads, without the numbers that each new one gets."""
    return sorted(re.sub(r"Thread-\d+", "Thread", name) for name in named())


class TestRelay:
    def test_one_that_was_killed_is_said_and_replaced(self, tmp_path, folder, echo, engine):
        """Its streams end; new ones work, over a new relay and another command."""
        with (
            forbidding(tmp_path / "own") as own,
            connect("box", config=own.config, ask=None, engine=engine) as session,
            Streams(session, folder=str(folder)) as streams,
            forward(streams, echo, wait_s=WAIT_S) as fwd,
            socket.create_connection(("127.0.0.1", fwd.local_port), timeout=WAIT_S) as line,
        ):
            line.sendall(b"x")
            assert b"x" == line.recv(1)
            os.kill(ask(relay_of(folder), "look")["pid"], signal.SIGKILL)
            assert b"" == line.recv(1)
            assert b"again" == talk(fwd.local_port, b"again")
            assert ["has lost its relay"] == [
                said for note in streams.notes for said in re.findall("has lost.*relay", note)
            ]
            assert 1 == len(streams.notes)

    def test_the_end_is_told_to_it(self, tmp_path, folder, engine):
        """No session of ours is left in the relay: the last word gets through, and nobody is waited for."""
        with (
            forbidding(tmp_path / "own") as own,
            connect("box", config=own.config, ask=None, engine=engine) as session,
        ):
            with Streams(session, folder=str(folder)):
                assert 1 == len(ask(relay_of(folder), "look")["sessions"])
            until(lambda: not ask(relay_of(folder), "look")["sessions"], "a session is left")

    def test_a_command_that_fails_is_quoted(self, tmp_path, folder, engine, monkeypatch):
        """Neither way goes: the command's own words, and no word of sockets that sshd refuses."""
        monkeypatch.setattr(carried, "_source", lambda: "raise SystemExit('no such luck')")
        with (
            forbidding(tmp_path / "own") as own,
            connect("box", config=own.config, ask=None, engine=engine) as session,
        ):
            with pytest.raises(RemoteCommandError, match="does not let us reach the relay") as caught:
                Streams(session, folder=str(folder))
            assert "no such luck" in caught.value.message
            assert not session.sockets_refused
            until(lambda: not list(folder.glob("relay-*.sock")), "the relay that nobody reaches is left there")

    @pytest.mark.parametrize(
        ("does", "why"),
        [
            ("seq 1 30000; exec sleep 600", "the login shell there prints, and our program does not begin"),
            ("rm {folder}/relay-*.sock", "/.*/relay-.*sock: No such file or directory"),
            ("exit 3", "the command there ended without a word"),
        ],
    )
    def test_why_it_does_not_begin_is_said(self, tmp_path, folder, engine, does, why):
        """What stands in the way of the command that is to carry them, and of no other."""
        with forbidding(tmp_path / "own") as own:
            for name in (".bashrc", ".zshenv"):
                (own.folder / name).write_text(
                    f'case "$BASH_EXECUTION_STRING$ZSH_EXECUTION_STRING" in *" -S -c "*) {does.format(folder=folder)};; esac\n'
                )
            with (
                connect("box", config=own.config, ask=None, engine=engine) as session,
                pytest.raises(
                    RemoteCommandError, match=rf"does not let us reach the relay that was started there: {why}"
                ),
            ):
                Streams(session, folder=str(folder))


CARRY = """
import sys
from nbkit.ssh.there import carry
carry.main({"path": sys.argv[1]})
"""


@contextlib.contextmanager
def carrying(path: Path):
    """The program on pipes of ours, as sshd starts it."""
    words = [sys.executable, "-c", CARRY, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def accepted(path: Path):
    """The program, and the other end of its connection."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with carrying(path) as process:
            peer, _ = listener.accept()
            with peer:
                yield process, peer


class TestProgram:
    def test_bytes_both_ways_and_a_half_close(self, tmp_path):
        """Any byte, more than all buffers hold; the end of stdin is passed on, and what comes back after it arrives."""
        content = bytes(range(256)) * 40_000
        with echoing(UnixListener(str(tmp_path / "s"), Echo)), carrying(tmp_path / "s") as process:
            out, _ = process.communicate(content, timeout=WAIT_S)
        assert carry.HELLO + content == out
        assert 0 == process.returncode

    def test_a_slow_reader_holds_up_the_other_end(self, tmp_path):
        """What nobody reads is not read there: the socket's sender gets rid of no more than the buffers hold."""
        with accepted(tmp_path / "s") as (process, peer):
            peer.settimeout(1.0)
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < 8 * MIB:
                    sent += peer.send(bytes(MIB))
            assert sent < 8 * MIB
            before = cpu_s(process.pid)
            assert process.poll() is None
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1.0)
            assert cpu_s(process.pid) - before < 0.2, "it does not sleep"

    def test_what_is_said_after_the_end_of_stdin(self, tmp_path):
        """The other end learns of it, may take its time, and is heard; nothing is done meanwhile."""
        with accepted(tmp_path / "s") as (process, peer):
            peer.settimeout(10)
            process.stdin.close()
            assert b"" == peer.recv(1)
            before = cpu_s(process.pid)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1.0)
            assert cpu_s(process.pid) - before < 0.2, "it does not sleep"
            peer.sendall(b"late")
            peer.close()
            assert carry.HELLO + b"late" == process.stdout.read()

    @pytest.mark.parametrize("end", ["both", "stdout", "peer"])
    def test_ends_with_either_end(self, tmp_path, end):
        """When sshd has closed its pipes, when nobody reads any more, when the other end is gone."""
        with accepted(tmp_path / "s") as (process, peer):
            assert carry.HELLO == process.stdout.read(len(carry.HELLO))
            if end == "both":
                process.stdin.close()
            if end == "peer":
                peer.close()
            else:
                process.stdout.close()
            process.wait(WAIT_S)

    def test_no_socket_there(self, tmp_path):
        """Is said, as an object in the last line, in place of the first words."""
        with carrying(tmp_path / "none") as process:
            out, _ = process.communicate(b"unheard", timeout=WAIT_S)
        assert {"error": f"{tmp_path / 'none'}: No such file or directory"} == json.loads(out)


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
