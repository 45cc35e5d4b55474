"""Forwards against a real sshd: bytes whole, the port never given up, no stranger let through."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path

import pytest

from nbkit.errors import HostKeyError, NbkitError
from nbkit.ssh import Streams, connect, forward, peers
from nbkit.ssh.forward import PortTakenError
from tests import boxes
from tests.echoing import WAIT_S, Echo, UnixListener, echoing, ours, talk
from tests.sshd import free_port, running
from tests.waiting import until

engine, session = boxes.engine, boxes.session


class TestBytes:
    @pytest.mark.parametrize("size", [0, 1, 32_704, 32_705, 9_000_000])
    def test_come_back_whole(self, session, echo, size):
        """Both ways at once, more than a channel window, ends in order."""
        content = os.urandom(size)
        with forward(session, echo) as fwd:
            assert content == talk(fwd.local_port, content)

    def test_a_unix_socket_is_reached(self, session, tmp_path):
        """direct-streamlocal: what listens on a socket file there, on a port here."""
        path = Path("/tmp") / f"nbkit-{os.getpid()}-{os.urandom(3).hex()}.sock"
        try:
            with echoing(UnixListener(str(path), Echo)), forward(session, str(path)) as fwd:
                assert b"by file" == talk(fwd.local_port, b"by file")
        finally:
            path.unlink(missing_ok=True)

    def test_three_hundred_at_once(self, session, echo):
        """Each gets its own bytes back, by sha256."""
        with forward(session, echo) as fwd, contextlib.ExitStack() as stack:
            lines = [stack.enter_context(socket.create_connection(("127.0.0.1", fwd.local_port), timeout=WAIT_S))
                     for _ in range(300)]  # fmt: skip
            sent = [os.urandom(8192) for _ in lines]
            for line, content in zip(lines, sent, strict=True):
                line.sendall(content)
                line.shutdown(socket.SHUT_WR)
            back = [b"".join(iter(lambda line=line: line.recv(8192), b"")) for line in lines]
        assert [hashlib.sha256(c).digest() for c in sent] == [hashlib.sha256(c).digest() for c in back]

    def test_a_slow_reader_holds_up_no_other(self, session, echo):
        """A connection that is not read keeps a bounded amount; others, and the session, go on."""
        with (
            forward(session, echo) as fwd,
            socket.create_connection(("127.0.0.1", fwd.local_port), timeout=WAIT_S) as slow,
        ):
            slow.setblocking(False)
            block, sent = os.urandom(1 << 16), 0
            idle = time.monotonic()
            while time.monotonic() - idle < 1.0 and sent < 200_000_000:
                try:
                    sent += slow.send(block)
                    idle = time.monotonic()
                except BlockingIOError:
                    time.sleep(0.01)
            assert sent < 100_000_000
            assert b"quick" == talk(fwd.local_port, b"quick")
            slow.setblocking(True)
            slow.settimeout(WAIT_S)
            slow.shutdown(socket.SHUT_WR)
            got = 0
            while data := slow.recv(1 << 16):
                got += len(data)
            assert sent == got

    def test_new_keys_under_load(self, box, echo, monkeypatch):
        """Channels open and close while keys are exchanged each 300 kB: stock paramiko stops for 30 s and dies."""
        from nbkit.ssh.wire import Wire

        monkeypatch.setattr(Wire, "REKEY_BYTES", 300_000)
        content = os.urandom(4_000_000)
        with connect("box", config=box.config, ask=None) as session, forward(session, echo) as fwd:
            failures: list[int] = []

            def churn():
                failures.extend(i for i in range(15) if talk(fwd.local_port, b"x" * 2000) != b"x" * 2000)

            threads = [threading.Thread(target=churn, daemon=True) for _ in range(3)]
            for thread in threads:
                thread.start()
            assert content == talk(fwd.local_port, content)
            for thread in threads:
                thread.join(timeout=WAIT_S)
            assert [] == failures
            assert session.alive
            assert session.engine.packetizer._in_bytes < 2_000_000

    def test_small_answers_do_not_wait(self, session, echo):
        """4 KiB round trips: the held command keeps sshd before 10.1 from waiting 40 ms for an acknowledgement."""
        with (
            forward(session, echo) as fwd,
            socket.create_connection(("127.0.0.1", fwd.local_port), timeout=WAIT_S) as line,
        ):
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            times = []
            for _ in range(200):
                start = time.perf_counter()
                line.sendall(b"x" * 4096)
                left = 4096
                while left:
                    left -= len(line.recv(left))
                times.append(time.perf_counter() - start)
        assert sorted(times)[100] < 0.035


class TestLink:
    def test_a_cut_keeps_the_port_and_new_connections_wait(self, box, session, echo):
        """The listener stays bound; a connection made while the link is away is served when it is back."""
        with forward(session, echo) as fwd:
            for _ in range(3):
                assert b"before" == talk(fwd.local_port, b"before")
                gone = session.engine
                box.cut()
                until(lambda gone=gone: not gone.active, "the cut is not noticed")
                assert b"after" == talk(fwd.local_port, b"after")
            assert session.alive

    def test_the_port_is_held_while_the_server_is_away(self, tmp_path, echo, engine):
        """Nobody else can take the local port; the connection that waits is served when sshd is back."""
        with running(tmp_path / "own") as box, connect("box", config=box.config, ask=None, engine=engine) as session, \
                forward(session, echo, wait_s=WAIT_S) as fwd:  # fmt: skip
            box.stop()
            until(lambda: not session.alive, "the loss is not noticed")
            with socket.create_connection(("127.0.0.1", fwd.local_port), timeout=WAIT_S) as line:
                for _ in range(20):
                    with socket.socket() as squatter, pytest.raises(OSError, match="in use"):
                        squatter.bind(("127.0.0.1", fwd.local_port))
                line.sendall(b"patience")
                box.start()
                assert b"patience" == line.recv(100)

    def test_waiting_has_an_end(self, tmp_path, echo, engine):
        """A connection that waited as long as it may is closed, and the cause is on record."""
        with running(tmp_path / "own") as box, connect("box", config=box.config, ask=None, engine=engine) as session, \
                forward(session, echo, wait_s=0.3) as fwd:  # fmt: skip
            box.stop()
            until(lambda: not session.alive, "the loss is not noticed")
            assert b"" == talk(fwd.local_port, b"x")
            assert "lost" in fwd.failed

    def test_a_changed_key_ends_it_for_good(self, tmp_path, echo, engine):
        """A server that comes back with another key is not connected to, and not tried again."""
        with running(tmp_path / "own", kinds=("ed25519", "ecdsa")) as box, \
                connect("box", config=box.config, ask=None, engine=engine) as session, forward(session, echo) as fwd:  # fmt: skip
            box.stop()
            box.host_keys = box.host_keys[1:]
            box.start()
            until(lambda: session.error is not None, "the change is not noticed")
            assert isinstance(session.error, HostKeyError)
            assert b"" == talk(fwd.local_port, b"x")
            assert not fwd.alive
            tries = box.log.count("Connection from")
            time.sleep(1.0)
            assert tries == box.log.count("Connection from")
            with pytest.raises(HostKeyError, match="CHANGED"):
                session.run(["true"])

    def test_nothing_listens_there(self, session):
        """The connection is closed, the host's word is kept, the session lives."""
        with forward(session, free_port()) as fwd:
            assert b"" == talk(fwd.local_port, b"x")
            until(lambda: "refused" in fwd.failed.lower(), "the host's word is not kept")
        assert session.alive


class TestPort:
    def test_it_is_bound_to_the_loopback_only(self, session, echo):
        """Nothing listens on any other address."""
        with forward(session, echo) as fwd:
            rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            bound = [row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{fwd.local_port:04X}")]
            assert [f"0100007F:{fwd.local_port:04X}"] == bound

    def test_a_taken_port_is_said(self, session, echo):
        """By number, with the way out; the other's listener is left alone."""
        with (
            socket.create_server(("127.0.0.1", 0)) as other,
            pytest.raises(PortTakenError, match="cannot be taken") as caught,
        ):
            forward(session, echo, other.getsockname()[1])
        assert "leave the port out" in caught.value.hint

    @pytest.mark.parametrize("remote", [0, 65536, -1, "relative", "/a\0b"])
    def test_what_cannot_be_reached_is_a_usage_error(self, session, remote):
        """Ports and paths are checked before a listener is bound."""
        with pytest.raises(NbkitError) as caught:
            forward(session, remote)
        assert 2 == caught.value.exit_code

    def test_close_is_idempotent_and_leaves_nothing(self, session, echo):
        """No thread, no descriptor, no listener; open connections end."""
        threads, files = ours(), len(os.listdir("/proc/self/fd"))
        fwd = forward(session, echo)
        with socket.create_connection(("127.0.0.1", fwd.local_port), timeout=WAIT_S) as line:
            line.sendall(b"x")
            assert b"x" == line.recv(1)
            fwd.close()
            fwd.close()
            assert b"" == line.recv(1)
        until(lambda: not Counter(ours()) - Counter(threads), "threads are left")
        until(lambda: len(os.listdir("/proc/self/fd")) <= files, "descriptors are left")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", fwd.local_port), timeout=WAIT_S).close()

    @pytest.mark.parametrize("over", ["session", "streams"])
    def test_one_that_is_over_for_good_costs_nothing_more(self, tmp_path, echo, over):
        """Whoever keeps knocking, as ZeroMQ does each tenth of a second, is turned away; the error does not grow with that."""
        with running(tmp_path / "box") as box, connect("box", config=box.config, ask=None) as session:
            carrier = session if over == "session" else Streams(session, python=sys.executable)
            with contextlib.closing(carrier), forward(carrier, echo) as fwd:
                (box.folder / "authorized_keys").write_text("")
                box.cut()
                until(lambda: carrier.error, "the login is not refused")
                for _ in range(20):
                    with socket.create_connection(("127.0.0.1", fwd.local_port), timeout=WAIT_S) as line:
                        assert b"" == line.recv(1)
                assert len(list(traceback.walk_tb(carrier.error.__traceback__))) < 10

    @pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root, to become another user")
    def test_another_user_of_this_machine_is_refused(self, session, echo):
        """A connection of another uid is closed before a byte passes; with any_user it would be served."""
        bash = "exec 3<>/dev/tcp/127.0.0.1/{}; printf hello >&3; timeout 5 head -c5 <&3"

        def stranger(port):
            return subprocess.run(["bash", "-c", bash.format(port)], user=65534, group=65534, extra_groups=[], cwd="/",
                                  capture_output=True, check=False, timeout=WAIT_S).stdout  # fmt: skip

        with forward(session, echo) as fwd:
            assert b"" == stranger(fwd.local_port)
            assert 1 == fwd.refused
            assert b"mine" == talk(fwd.local_port, b"mine")
        with forward(session, echo, any_user=True) as fwd:
            assert b"hello" == stranger(fwd.local_port)

    @pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root, to become another user")
    def test_a_stranger_that_hangs_up_at_once_is_refused_too(self, session, echo):
        """A socket its owner has closed shows uid 0 in the kernel's table: root must not take it for its own."""
        with forward(session, echo) as fwd:
            subprocess.run(["bash", "-c", f"for i in 1 2 3 4 5; do printf secret >/dev/tcp/127.0.0.1/{fwd.local_port}; done"],
                           user=65534, group=65534, extra_groups=[], cwd="/", check=False, timeout=WAIT_S)  # fmt: skip
            until(lambda: fwd.refused == 5, "not all were refused")

    @pytest.mark.skipif(not peers.can_tell(), reason="needs Linux, which tells who owns a socket")
    @pytest.mark.parametrize("asks", [peers.ours, lambda found, _: peers._in_table(found)], ids=["netlink", "table"])
    def test_a_socket_that_is_closed_is_nobodys(self, asks):
        """An open connection of ours counts as ours, by either way of asking; once it is closed it does not."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            with socket.create_connection(listener.getsockname()):
                connection, peer = listener.accept()
                assert {peer} == asks([peer, ("127.0.0.1", 1)], listener.getsockname())
            with connection:
                assert set() == asks([peer], listener.getsockname())


class TestCommandLine:
    def test_forward_until_interrupted(self, box, echo):
        """`nbkit forward` prints the port as JSON, serves it, and ends by Ctrl-C with 130 and no traceback."""
        import json
        import signal

        process = subprocess.Popen([sys.executable, "-m", "nbkit.cli", "forward", "box", "-p", str(echo), "-F", str(box.config),
                                    "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                                   text=True)  # fmt: skip
        try:
            said = json.loads(process.stdout.readline())
            assert b"hi" == talk(said["forwards"][0]["port"], b"hi")
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=WAIT_S)
            assert (130, False) == (process.returncode, "Traceback" in errors)
        finally:
            process.kill()
            process.wait(timeout=10)

    def test_why_a_connection_fails_is_said(self, tmp_path, echo):
        """A port where nothing listens, and a server that forbids forwards: each cause once, and what does without them."""
        import json
        import signal

        dead, heard = free_port(), {}
        for option in ("DisableForwarding no", "DisableForwarding yes"):
            with running(tmp_path / option.split()[1], option) as own:
                words = ["forward", "box", "-p", str(dead), "-p", str(echo), "-F", str(own.config), "--json"]
                with subprocess.Popen([sys.executable, "-m", "nbkit.cli", *words], stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:  # fmt: skip
                    try:
                        rows = json.loads(process.stdout.readline())["forwards"]
                        for _ in range(2):
                            assert b"" == talk(rows[0]["port"], b"x")
                        heard[option] = process.stderr.readline()
                        talk(rows[1]["port"], b"x")
                        time.sleep(1.5)  # what is said again and again would be by then
                    finally:
                        process.send_signal(signal.SIGINT)
                        heard[option] += process.communicate(timeout=WAIT_S)[1]
        assert 1 == heard["DisableForwarding no"].count("Note: ")
        assert f"Note: No connection to {dead} there: Connection refused.\n" in heard["DisableForwarding no"]
        assert f"No connection to {dead} there: open failed. Where sshd" in heard["DisableForwarding yes"]
        assert f"nbkit tunnel box -F {own.config} -p {dead} " in heard["DisableForwarding yes"]

    def test_trust_and_hosts(self, box, tmp_path):
        """An unknown host: `hosts --try` says so, `trust` shows it with exit code 4 and then trusts it."""
        from click.testing import CliRunner

        from nbkit.cli import main

        config = box.write_config(path=tmp_path / "config", known=tmp_path / "kh")

        def run(*words):
            return CliRunner().invoke(main, [*words, "-F", str(config)])

        assert "no: is not known" in run("hosts", "--try").output
        shown = run("trust", "box")
        assert 4 == shown.exit_code
        assert 0 == run("trust", "box", shown.output.split()[2]).exit_code
        assert "yes, " in run("hosts", "--try").output
        assert 2 == run("trust", "-oProxyCommand=x").exit_code
        refused = run("forward", "127.0.0.1:1", "-p", "80")
        assert (3, True) == (refused.exit_code, "Connection refused" in refused.output)
