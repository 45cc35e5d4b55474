"""Jupyter on a box: a real sshd on loopback, a real server and kernels behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import psutil
import pytest
import websocket

from nbkit import remote
from nbkit.errors import RemoteCommandError
from nbkit.remote import jupyter, kernels, tunnels
from nbkit.remote.tunnel import tunnel
from tests import jupyter_box
from tests.jupyter_box import running, until_gone
from tests.notebook_client import Client, Kernel
from tests.waiting import until

NOBODY = 65534


pytestmark = pytest.mark.usefixtures("own_folders")


server = jupyter_box.server


@pytest.fixture
def box(server):
    with remote.connect("box", config=server.config, python=sys.executable) as box:
        yield box


@pytest.fixture
def opened(box, server):
    with tunnel(box, config=server.config) as opened:
        yield opened


@pytest.fixture
def client(opened):
    return Client(opened.address, opened.server.token)


class TestServer:
    def test_is_found_again_and_outlives_the_link(self, server, box):
        """A second start finds the first one's server, also over another connection after the first was cut."""
        first = jupyter.start(box)
        server.cut()
        with remote.connect("box", config=server.config, python=sys.executable) as again:
            second = jupyter.start(again)
        assert not second.fresh
        assert (first.pid, first.token, first.remote) == (second.pid, second.token, second.remote)

    def test_opens_no_port(self, box, client):
        """The server has no TCP socket, and a kernel talks over sockets in our folder: nobody on the box can listen in.

        ipykernel itself binds one PULL socket, which takes what its forks print and gives nothing.
        """
        with contextlib.closing(client.kernel()) as kernel:
            kernel.run("1+1")
        found = jupyter.look(box)
        assert [] == psutil.Process(found.server["pid"]).net_connections("tcp")
        about = json.loads((Path(found.server["sock"]).parent / f"kernel-{kernel.id}.json").read_text())
        assert "ipc" == about["transport"]
        ports = {about[name] for name in about if name.endswith("_port")}
        (pid,) = [each["pid"] for each in found.kernels if each["id"] == kernel.id]
        assert set() == ports & {c.laddr.port for c in psutil.Process(pid).net_connections("tcp")}

    def test_root_is_the_home_folder_or_the_one_named(self, server, box):
        """It shows the home folder; asked for another while it runs, it keeps its own and says so."""
        jupyter.start(box)
        found = jupyter.start(box, root="/tmp")
        assert str(server.folder) == found.root
        assert any("keeps its folder" in note for note in found.notes)

    def test_of_an_own_configuration_is_nothing_read(self, server):
        """A configuration that opens the user's own servers to the network does not open ours."""
        (server.folder / ".jupyter").mkdir(exist_ok=True)
        (server.folder / ".jupyter" / "jupyter_server_config.py").write_text(
            "c.ServerApp.ip = '0.0.0.0'\nc.IdentityProvider.token = ''\nc.ServerApp.allow_origin = '*'\n"
        )
        with remote.connect("box", config=server.config, python=sys.executable) as box:
            jupyter.stop(box)
            found = jupyter.start(box)
            assert found.fresh
            assert len(found.token) > 40
            assert [] == psutil.Process(found.pid).net_connections("tcp")

    @pytest.mark.parametrize(
        ("python", "root", "message", "hint"),
        [
            (f"{sys.executable} -I -S", "", "has no jupyter_server", "nbkit setup box"),
            ("OLD", "", "has jupyter_server 2.14.2, which has known security holes", "pip install -U"),
            (sys.executable, "/no/such", "no folder /no/such", "--dir PATH"),
        ],
    )
    def test_what_is_lacking_is_named(self, tmp_path, python, root, message, hint):
        """No Jupyter, one with known holes, and a folder that is not there: each with its fix, and nothing is started."""
        old = tmp_path / "old" / "jupyter_server-2.14.2.dist-info"
        old.mkdir(parents=True)
        (old / "METADATA").write_text("Metadata-Version: 2.1\nName: jupyter_server\nVersion: 2.14.2\n")
        python = f"PYTHONPATH={old.parent} {sys.executable}" if python == "OLD" else python
        with running() as fresh, remote.connect("box", config=fresh.config, python=python) as box:
            with pytest.raises(RemoteCommandError, match=message) as caught:
                jupyter.start(box, root=root)
            assert hint in caught.value.hint
            assert jupyter.look(box).server is None


SCAN = """
import os, sys
token, roots = sys.stdin.buffer.read(), sys.argv[1:]
for name in os.listdir('/proc'):
    if name.isdigit() and int(name) != os.getpid():
        for kind in ('cmdline', 'environ'):
            try:
                if token in open(f'/proc/{name}/{kind}', 'rb').read(): print('/proc', name, kind)
            except OSError: pass
for root in roots:
    for folder, _, files in os.walk(root):
        for file in files:
            try:
                if token in open(os.path.join(folder, file), 'rb').read(): print(folder, file)
            except OSError: pass
"""


class TestSecrets:
    @pytest.fixture
    def scan(self):
        """Where another user of the machine finds a text that comes over stdin: in /proc, or below a folder."""
        if os.getuid() != 0:
            pytest.skip("needs root, to look as another user")

        def look(text, *roots):
            done = subprocess.run(["python3", "-c", SCAN, *map(str, roots)], user=NOBODY, group=NOBODY, extra_groups=[],
                                  input=text, capture_output=True, text=True, check=True, cwd="/", timeout=60)  # fmt: skip
            return done.stdout.splitlines()

        return look

    def test_nobody_else_finds_the_token(self, scan, monkeypatch):
        """With umask 000 on both sides, another user finds the token in no argv, environment, log or file."""
        here = Path(tempfile.mkdtemp(prefix="nbk-here-"))
        here.chmod(0o755)
        for name in ("NBKIT_STATE", "XDG_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
            (here / name).mkdir()
            monkeypatch.setenv(name, str(here / name))
        before = os.umask(0)
        try:
            with running() as fresh, \
                    remote.connect("box", config=fresh.config, python=f"umask 000; {sys.executable}") as box, \
                    tunnel(box) as opened:  # fmt: skip
                token = opened.server.token
                with contextlib.closing(Client(opened.address, token).kernel()) as kernel:
                    kernel.run("1+1")
                assert token == Path(opened.token_file).read_text()
                assert token not in (Path(opened.server.remote).parent / "server.log").read_text()
                assert [] == scan(token, fresh.folder, here)
                (fresh.folder / "planted").write_text(token)
                with subprocess.Popen([sys.executable, "-c", "input()", token], stdin=subprocess.PIPE) as loud:
                    assert [f"/proc {loud.pid} cmdline", f"{fresh.folder} planted"] == scan(token, fresh.folder, here)
                    loud.kill()
        finally:
            os.umask(before)
            shutil.rmtree(here)

    def test_nobody_else_reaches_the_server_or_a_kernel(self, server, box, scan):
        """Another user can open neither the server's socket nor a kernel's."""
        del scan
        found = jupyter.start(box)
        code = f"import socket\nsocket.socket(socket.AF_UNIX).connect({found.remote!r})"
        done = subprocess.run(["python3", "-c", code], user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True,
                              text=True, check=False, cwd="/", timeout=60)  # fmt: skip
        assert "PermissionError" in done.stderr
        assert "0o700" == oct(Path(found.remote).parent.stat().st_mode & 0o777)


class TestTunnel:
    def test_answers_what_vs_code_asks(self, client, opened):
        """Version without a token; the rest with it, in the header or the query, and nothing without or with a wrong one."""
        assert 200 == client.call("GET", "/api", headers={})[0]
        for path in ("/api/status", "/api/kernelspecs", "/api/kernels", "/api/sessions", "/api/contents"):
            assert 200 == client.call("GET", path)[0]
            assert 200 == client.call("GET", f"{path}?token={client.token}", headers={})[0]
            assert 403 == client.call("GET", path, headers={})[0]
            assert 403 == client.call("GET", f"{path}?token=wrong", headers={})[0]
        body = {"path": "a.ipynb", "type": "notebook", "name": "a", "kernel": {"name": "python3"}}
        status, session = client.call("POST", "/api/sessions", body)
        assert 201 == status
        assert 403 == client.call("POST", "/api/sessions", body, headers={})[0]
        assert 204 == client.call("DELETE", f"/api/sessions/{session['id']}")[0]
        assert opened.url == f"{opened.address}?token={client.token}"

    def test_other_names_are_refused(self, client):
        """A page that makes its own name point here (DNS rebinding) is refused."""
        assert 403 == client.call("GET", "/api/status", headers={"Host": "evil.example"})[0]

    def test_kernels_outlive_it(self, server, client, box):
        """What a kernel holds is there after the tunnel was cut and opened again, at the same address."""
        kernel = client.kernel()
        kernel.run("kept = 41")
        kernel.close()
        server.cut()
        with remote.connect("box", config=server.config, python=sys.executable) as again, tunnel(again) as second, \
                contextlib.closing(Kernel(Client(second.address, client.token), kernel.id)) as back:  # fmt: skip
            assert "42" == back.run("kept + 1")

    def test_a_page_does_not_notice_a_cut(self, server, opened, client, tmp_path):
        """One websocket, three cuts while a cell prints: each line comes, once, in its turn, and nothing is said of it."""
        with contextlib.closing(client.kernel()) as kernel:
            enough = tmp_path / "enough"

            def cut():
                for number in range(3):
                    time.sleep(0.8)
                    server.cut()
                    until(lambda number=number: opened.streams.reconnects > number, "the link does not come back")
                enough.touch()

            cutter = threading.Thread(target=cut, daemon=True)
            cutter.start()
            said = kernel.run(
                "import os, time\ni = 0\n"
                f"while i < 60 or not os.path.exists({str(enough)!r}):\n"
                "    print(i, flush=True)\n    i += 1\n    time.sleep(0.05)\nprint(i)"
            )
            cutter.join()
            lines = [int(line) for line in said.split()]
            assert list(range(lines[-1] + 1)) == lines
            assert lines[-1] >= 60
            assert opened.streams.reconnects >= 3
            assert "42" == kernel.run("41 + 1")
        assert [] == opened.news()

    def test_a_lost_relay_is_said(self, server, box, opened, client):
        """Its connections end, which is told once; new ones work."""
        with contextlib.closing(client.kernel()) as kernel:
            server.end_relays()
            with pytest.raises((OSError, websocket.WebSocketException)):
                kernel.run("1")
        assert 200 == client.call("GET", "/api/status")[0]
        (note,) = opened.news()
        assert "has lost its relay" in note
        assert [] == opened.news()

    def test_comes_back_to_its_port(self, server, box):
        """The next tunnel has the port of the one before, so that an open page finds it again; a taken one is passed over."""
        with tunnel(box) as first, tunnel(box) as beside:
            address = first.address
            assert address != beside.address
        with tunnel(box, port=int(address.split(":")[2].split("/")[0])) as second:
            assert address == second.address
        with tunnel(box) as third:
            assert address == third.address

    def test_is_listed_while_it_is_open(self, box):
        """Other processes see it, its token file is this user's alone, and both go with it."""
        with tunnel(box) as opened:
            (listed,) = tunnels.opened("box")
            assert (os.getpid(), opened.address) == (listed.pid, listed.address)
            assert "0o600" == oct(Path(listed.token_file).stat().st_mode & 0o777)
            assert not opened.ended
            assert 1 == tunnels.close("box")
            assert opened.ended
        assert [] == tunnels.opened()
        assert not Path(listed.token_file).exists()

    def test_a_dead_ones_entry_is_cleared_away(self, tmp_path):
        """What a killed process left is not shown, and its token does not stay."""
        code = (
            "import os, time\nfrom nbkit.remote import tunnels\npath = str(tunnels.token_path())\n"
            "with tunnels.listed(tunnels.Opened('box', os.getpid(), 'http://x', path, 0.0), 'secret'):\n"
            "    print(path, flush=True); time.sleep(60)"
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        path = Path(process.stdout.readline().strip())
        assert 1 == len(tunnels.opened())
        process.kill()
        process.wait(10)
        process.stdout.close()
        assert path.exists()
        assert [] == tunnels.opened()
        assert not path.exists()


class TestForbidden:
    @pytest.mark.parametrize("option", ["AllowStreamLocalForwarding no", "DisableForwarding yes"])
    def test_a_command_carries_it_where_sshd_forbids_forwards(self, option):
        """The server still listens on a socket, the page and its kernels work, outlive a cut, and a note says how."""
        with running(option) as fresh, \
                remote.connect("box", config=fresh.config, python=sys.executable) as box, tunnel(box) as opened:  # fmt: skip
            (note,) = [note for note in opened.notes if "forbids forwards" in note]
            assert note.startswith("sshd on box forbids forwards to sockets: a command there carries")
            assert opened.as_dict()["resumes"]
            with contextlib.closing(Client(opened.address, opened.server.token).kernel()) as kernel:
                assert "2" == kernel.run("1+1")
                fresh.cut()
                assert "4" == kernel.run("2+2")
            assert [] == psutil.Process(opened.server.pid).net_connections("tcp")

    def test_where_no_relay_can_be_either_it_is_said(self):
        """Without relay and forwards the error names the setting, and the server that was tried is ended."""
        with running("DisableForwarding yes") as fresh, \
                remote.connect("box", config=fresh.config, python=sys.executable) as box:  # fmt: skip
            no_relay(fresh)
            with pytest.raises(RemoteCommandError, match="sshd on box does not forward to the socket") as caught:
                tunnel(box)
            assert "AllowStreamLocalForwarding yes" in caught.value.hint
            assert jupyter.look(box).server is None

    def test_forwards_are_plain_where_no_relay_can_be(self):
        """It works, and a note says what that means."""
        with running() as fresh, remote.connect("box", config=fresh.config, python=sys.executable) as box:
            no_relay(fresh)
            with tunnel(box) as opened:
                (note,) = [note for note in opened.notes if "relay" in note]
                assert note.startswith("Open connections will end when the link breaks, for no relay runs on box")
                assert not opened.as_dict()["resumes"]
                with contextlib.closing(Client(opened.address, opened.server.token).kernel()) as kernel:
                    assert "2" == kernel.run("1+1")


def no_relay(fresh):
    """Make the start of a relay fail there."""
    place = fresh.folder / ".nbkit" / "run" / platform.node()
    (place / "relay.lock").mkdir(parents=True, mode=0o700)


class TestStop:
    def test_ends_all_of_ours_and_nothing_else(self, server):
        """Server, its kernels and orphans end; what a notebook started by itself, and other people's kernels, go on."""
        others = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)", "kernel-other.json"])
        try:
            with remote.connect("box", config=server.config, python=sys.executable) as box, tunnel(box) as opened:
                kernel = Client(opened.address, opened.server.token).kernel()
                code = "import subprocess\nprint(subprocess.Popen(['sleep', '121'], start_new_session=True).pid)"
                left = int(kernel.run(code))
                kernel.close()
                argv = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
                orphan = jupyter.start_kernel(box, str(uuid.uuid4()), argv, {}, "key")["pid"]
                os.kill(opened.server.pid, signal.SIGKILL)
                until_gone(opened.server.pid)
                assert orphan in [each["pid"] for each in jupyter.look(box).kernels]
                done = jupyter.stop(box)
                assert orphan in [each["pid"] for each in done.ended]
                until_gone(orphan)
                assert left in {each["pid"] for each in done.rest}
                assert psutil.pid_exists(left)
                assert others.poll() is None
                assert not Path(opened.server.remote).exists()
                assert ([], []) == (jupyter.stop(box).ended, jupyter.look(box).kernels)
                os.kill(left, signal.SIGKILL)
        finally:
            others.kill()
            others.wait(10)


class TestKernels:
    def test_a_boxes_kernel_works_here(self, server, box, opened, entry_point):
        """Chosen by name like a local kernel, it runs on the box, is interrupted, restarted, survives a cut and ends."""
        assert ["Python 3 (box)"] == opened.kernels
        asyncio.run(self.use(server, box))

    async def use(self, server, box):
        from jupyter_client.kernelspec import KernelSpecManager
        from jupyter_client.manager import AsyncKernelManager

        (name,) = [name for name in KernelSpecManager().get_all_specs() if name.startswith("nbkit-box")]
        manager = AsyncKernelManager(kernel_name=name)
        await manager.start_kernel()
        client = manager.client()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=60)
            home = await self.value(client, "__import__('os').path.expanduser('~')")
            assert repr(str(server.folder)) == home
            (found,) = [each for each in jupyter.look(box).kernels if each["name"] is None]

            number = client.execute("import time\nprint('at work', flush=True)\ntime.sleep(60)")
            while "stream" != (await client.get_iopub_msg(timeout=60))["msg_type"]:
                pass
            await manager.interrupt_kernel()
            reply = {"parent_header": {}}
            while number != reply["parent_header"].get("msg_id"):
                reply = await client.get_shell_msg(timeout=30)
            assert "KeyboardInterrupt" == reply["content"].get("ename")

            await self.value(client, "kept := 5")
            server.cut()
            await asyncio.sleep(1)
            assert await manager.is_alive()
            assert "6" == await self.value(client, "kept + 1")

            await manager.restart_kernel(now=True)
            await client.wait_for_ready(timeout=60)
            until_gone(found["pid"])
            assert "False" == await self.value(client, "'kept' in globals()")
        finally:
            client.stop_channels()
            await manager.shutdown_kernel()
        assert [] == [each for each in jupyter.look(box).kernels if each["name"] is None]

    async def value(self, client, code):
        """What the last line of `code` is worth."""
        end = time.monotonic() + 60
        while True:  # what is sent during a cut may be lost
            number = client.execute(f"({code})")
            found = ""
            with contextlib.suppress(Exception):
                while True:
                    message = await client.get_iopub_msg(timeout=5)
                    if message["parent_header"].get("msg_id") != number:
                        continue
                    if message["msg_type"] == "execute_result":
                        found = message["content"]["data"]["text/plain"]
                    if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                        return found
            assert time.monotonic() < end

    def test_go_when_they_are_taken_out(self, opened):
        """Registering twice leaves one of each; unregistering leaves none of this box and all of others."""
        specs = {
            "python3": {"spec": {"argv": ["python"], "display_name": "Python", "language": "python", "metadata": {}}}
        }
        kernels.register("other", specs)
        kernels.register("other", specs)
        assert 1 == kernels.unregister("box")
        assert 1 == kernels.unregister("other")
        assert 0 == kernels.unregister("box")
