"""nbkit tunnel, status and stop, as a person runs them: processes of their own, a real sshd, a real Jupyter."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import pytest

from nbkit import remote, ssh
from nbkit.remote import jupyter
from nbkit.ssh import relays
from nbkit.training.record import Recorder
from tests import jupyter_box, sshd
from tests.waiting import until

NBKIT = [sys.executable, "-m", "nbkit.cli"]


server = jupyter_box.server


@pytest.fixture
def place(tmp_path):
    """Environment of a person with folders of their own."""
    variables = dict(os.environ)
    for name in ("NBKIT_STATE", "XDG_RUNTIME_DIR", "JUPYTER_DATA_DIR", "NBKIT_RUNS"):
        variables[name] = str(tmp_path / name.lower())
        Path(variables[name]).mkdir()
    return variables


def run(place, *words, timeout_s=120):
    """The verb's exit code, stdout and stderr."""
    done = subprocess.run([*NBKIT, *words], env=place, capture_output=True, text=True, timeout=timeout_s, check=False,
                          stdin=subprocess.DEVNULL)  # fmt: skip
    return done.returncode, done.stdout, done.stderr


class Tunnelled:
    """`nbkit tunnel` as a process; the first line of its stdout is there."""

    def __init__(self, place, *words):
        self.process = subprocess.Popen([*NBKIT, "tunnel", *words], env=place, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
        self.first = self.process.stdout.readline().strip()

    def end(self, number=signal.SIGINT):
        """Exit code and stderr after a signal, or without one."""
        if number:
            self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate(timeout=10)


def opens(url):
    """The status of a GET."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.status


@pytest.fixture
def words(server):
    return ["box", "-F", str(server.config), "--python", sys.executable]


class TestTunnel:
    def test_ctrl_c_detaches(self, place, words, server):
        """The URL opens JupyterLab; Ctrl-C ends the tunnel with 130 and says what runs on, how to return, how to end it."""
        with Tunnelled(place, *words) as tunnel:
            assert 200 == opens(tunnel.first)
            code, err = tunnel.end()
        assert 130 == code
        for said in (
            "Detached. Jupyter (pid ",
            "run on, on box",
            f"nbkit tunnel box -F {server.config} --python ",
            f"nbkit stop box -F {server.config}",
        ):
            assert said in err
        with Tunnelled(place, *words) as again:
            assert tunnel.first == again.first
            code, err = again.end(signal.SIGTERM)
        assert 130 == code
        assert "Found Jupyter" in err

    def test_json_keeps_the_token_in_a_file(self, place, words):
        """A script gets the URL, and the token in a file of this user's alone: nothing secret reaches a log."""
        with Tunnelled(place, *words, "--json") as tunnel:
            found = json.loads(tunnel.first)
            token = Path(found["token_file"]).read_text()
            assert "0o600" == oct(Path(found["token_file"]).stat().st_mode & 0o777)
            assert 200 == opens(f"{found['url']}?token={token}")
            assert ["Python 3 (box)"] == found["kernels"]
            code, err = tunnel.end()
        assert 130 == code
        assert token not in tunnel.first + err
        assert not Path(found["token_file"]).exists()

    def test_more_ports_come_with_it(self, place, words):
        """-p brings TensorBoard or the like; a port where nothing listens there does not disturb the rest."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            there, dead = listener.getsockname()[1], sshd.free_port()
            with Tunnelled(place, *words, "-p", str(there), "-p", str(dead), "--json") as tunnel:
                forwards = json.loads(tunnel.first)["forwards"]
                assert [there, dead] == [each["remote"] for each in forwards]
                with socket.create_connection(("127.0.0.1", forwards[0]["local"]), timeout=20) as line:
                    peer, _ = listener.accept()
                    peer.sendall(b"hello")
                    assert b"hello" == line.recv(5)
                    peer.close()
                with socket.create_connection(("127.0.0.1", forwards[1]["local"]), timeout=20) as line:
                    assert b"" == line.recv(1)
                assert 130 == tunnel.end()[0]

    def test_a_key_that_may_only_run_commands(self, place, tmp_path):
        """`restrict` in authorized_keys: no forward is granted; the page opens all the same, -p works, and how is said once."""
        with sshd.running(tmp_path / "s") as fresh, socket.create_server(("127.0.0.1", 0)) as listener:
            keys = fresh.folder / "authorized_keys"
            keys.write_text(f"restrict {keys.read_text()}")
            there, more = listener.getsockname()[1], ["-F", str(fresh.config), "--python", sys.executable]
            with Tunnelled(place, "box", *more, "-p", str(there), "--json") as tunnel:
                found = json.loads(tunnel.first)
                assert 200 == opens(f"{found['url']}?token={Path(found['token_file']).read_text()}")
                with socket.create_connection(("127.0.0.1", found["forwards"][0]["local"]), timeout=20) as line:
                    peer, _ = listener.accept()
                    peer.sendall(b"hello")
                    assert b"hello" == line.recv(5)
                    peer.close()
                code, err = tunnel.end()
            assert (130, 1) == (code, err.count("sshd on box forbids forwards to sockets"))
            with remote.connect("box", config=fresh.config) as box:
                jupyter.stop(box)

    def test_a_taken_port_is_told_before_anything_starts(self, place, tmp_path):
        """A local port that another program has: which, and what to do; nothing runs on the box."""
        with sshd.running(tmp_path / "s") as fresh, socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            more = ["-F", str(fresh.config), "--python", sys.executable]
            for option in (["-p", f"6006:{port}"], ["--port", str(port)]):
                code, _, err = run(place, "tunnel", "box", *more, *option)
                assert 1 == code
                assert f"Port {port} on 127.0.0.1 cannot be taken" in err
                with remote.connect("box", config=fresh.config) as box:
                    assert jupyter.look(box).server is None

    @pytest.mark.parametrize(
        ("more", "code", "said"),
        [
            (["-p", "http"], 2, "is not REMOTE[:LOCAL]"),
            (["-p", ":80"], 2, "has no remote port"),
            (["--port", "0"], 2, "is not in the range"),
            (["--python", f"{sys.executable} -I -S"], 1, "has no jupyter_server.\n  Fix:  nbkit setup nojupyter"),
            (["--python", "/no/python"], 1, "has no Python at '/no/python'"),
        ],
    )
    def test_what_cannot_work_is_named(self, place, tmp_path, more, code, said):
        """Each wrong option and each lack on the box: its cause, its fix, its exit code."""
        with sshd.running(tmp_path / "s") as fresh:
            fresh.write_config(alias="nojupyter")
            found, out, err = run(place, "tunnel", "nojupyter", "-F", str(fresh.config), *more)
            assert (code, "") == (found, out)
            assert said in err

    def test_a_box_that_is_not_there(self, place, tmp_path):
        """A port where nothing listens: exit code 3, and --json says the same."""
        config = tmp_path / "config"
        config.write_text(f"Host gone\n  HostName 127.0.0.1\n  Port {sshd.free_port()}\n")
        code, out, err = run(place, "tunnel", "gone", "-F", str(config), "--json")
        assert (3, 3) == (code, json.loads(out)["exit_code"])
        assert "127.0.0.1" in err


class TestStatusAndStop:
    def test_status_shows_and_stop_ends_it_all(self, place, words):
        """Tunnel, server, kernel and relay are shown; stop ends them and forgets the box."""
        assert (0, "[]") == tuple(x.strip() if isinstance(x, str) else x for x in run(place, "status", "--json")[:2])
        with Tunnelled(place, *words, "--json") as tunnel:
            opened = json.loads(tunnel.first)
            request = urllib.request.Request(opened["url"].replace("/lab", "/api/kernels"), data=b"{}", method="POST")
            request.add_header("Authorization", "token " + Path(opened["token_file"]).read_text())
            urllib.request.urlopen(request, timeout=60).close()
            code, out, _ = run(place, "status", "--json")
            (found,) = json.loads(out)
            assert (0, "box", opened["pid"], 1) == (code, found["host"], found["server"]["pid"], len(found["kernels"]))
            assert [opened["url"]] == [each["address"] for each in found["tunnels"]]
            assert Path(opened["token_file"]).read_text() not in out
            code, out, _ = run(place, "status", "box")
            assert f"tunnel   {opened['url']}" in out
            assert "kernel   python3" in out
            (relay,) = found["relays"]
            clients = relay["clients"]  # this tunnel, and those of tests before that were killed: they are waited for
            assert clients >= 1
            assert f"relay    of {clients} connection{'s' * (clients > 1)}   pid {relay['pid']}" in out

            code, out, err = run(place, "stop", "box")
            assert (0, "") == (code, out)
            for said in (f"Ended server (pid {opened['pid']}) on box.", "Ended kernel", "Ended 1 tunnel here."):
                assert said in err
            code, err = tunnel.end(None)
            assert 0 == code
            assert "Ended by nbkit stop box." in err
        assert "No tunnel is open" in run(place, "status")[2]
        assert [] == list(Path(place["JUPYTER_DATA_DIR"]).glob("kernels/*"))
        until(lambda: not Path(f"/proc/{relay['pid']}/cmdline").exists(), "the relay does not end")
        code, _, err = run(place, "stop", *words)
        assert (0, "Nothing of nbkit ran on box.\n") == (code, err)

    def test_stop_tells_of_a_relay_alone(self, place):
        """What kept connections through breaks is named when it is all that ran, and whether it ends now or with its last."""
        # A short path: its socket stands in the home folder, with what the end of Jupyter clears away.
        with tempfile.TemporaryDirectory(prefix="nbk-") as folder, sshd.running(Path(folder)) as fresh:
            words = ["box", "-F", str(fresh.config), "--python", sys.executable]
            with remote.connect("box", config=fresh.config, python=sys.executable) as box:
                with ssh.Streams(box.session, python=box.python):
                    (relay,) = relays.listed(box.session, python=box.python)
                    until(lambda: relays.listed(box.session, python=box.python)[0]["sessions"], "no connection is seen")
                    said = f"The relay (pid {relay['pid']}) on box ends with the last of its connections: 1.\n"
                    assert (0, "", said) == run(place, "stop", *words)
                until(lambda: not relays.listed(box.session, python=box.python), "the relay does not end")
                assert (0, "", "Nothing of nbkit ran on box.\n") == run(place, "stop", *words)
                ssh.Streams(box.session, python=box.python).close()
                until(
                    lambda: not relays.listed(box.session, python=box.python)[0]["sessions"], "it keeps the connection"
                )
                (relay,) = relays.listed(box.session, python=box.python)
                said = f"Ended relay, which nothing used (pid {relay['pid']}) on box.\n"
                assert (0, "", said) == run(place, "stop", *words)
                until(lambda: not relays.listed(box.session, python=box.python), "the relay does not end")

    def test_status_of_a_box_that_does_not_answer(self, place, tmp_path):
        """A box that is away is shown as such among the others, and asked for by name it is an error."""
        with sshd.running(tmp_path / "s") as fresh:
            with Tunnelled(place, "box", "-F", str(fresh.config), "--python", sys.executable, "--json") as tunnel:
                tunnel.end()
            with remote.connect("box", config=fresh.config) as box:
                jupyter.stop(box)
        code, out, _ = run(place, "status", "--json")
        assert 0 == code
        assert "127.0.0.1" in json.loads(out)[0]["error"]
        assert 3 == run(place, "status", "box")[0]

    def test_stop_asks_which_when_a_run_has_the_name_of_a_host(self, place, words):
        """A name that is a run's and a host's ends neither, and the answer says how to name each; --host names the host."""
        folder = Path(place["NBKIT_RUNS"]) / "box"
        Recorder(folder)
        with Tunnelled(place, *words, "--json") as tunnel:
            tunnel.end()
        code, _, err = run(place, "stop", "box")
        assert 2 == code
        assert "'box' is a host, and a run" in err
        assert f"nbkit stop {folder}" in err
        assert not (folder / "STOP").exists()
        code, _, err = run(place, "stop", "--host", "box")
        assert 0 == code
        assert "Ended server" in err
        assert 0 == run(place, "stop", "box")[0]
        until((folder / "STOP").exists, "the request to stop")
