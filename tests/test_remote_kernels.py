"""Kernels of a box in a Jupyter here: a real sshd on loopback, a real Jupyter server, real kernels behind both."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager

from bench import nothing_lost
from nbkit import remote
from nbkit.errors import NbkitError, RemoteCommandError
from nbkit.remote import jupyter, kernels, status
from tests import jupyter_box
from tests.jupyter_box import NBKIT, kernels_of, serving, until_gone
from tests.notebook_client import Kernel
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("own_folders", "entry_point")

server, box = jupyter_box.server, jupyter_box.box


class TestAdd:
    def test_can_be_chosen_by_its_name(self, server, box):
        """It runs the box's Python in its folder, is listed with its name there, and ends when it is shut down."""
        (server.folder / "work").mkdir()
        made = kernels.add(box, folder="~/work", env={"CUDA_VISIBLE_DEVICES": "3"}, config=server.config)
        assert ("nbkit-box", f"Python {sys.version_info[0]}.{sys.version_info[1]} (box)") == (made.name, made.shown)
        assert [made] == kernels.listed()
        picture = KernelSpecManager().get_all_specs()[made.name]["resource_dir"] + "/logo-svg.svg"
        assert "<svg " in Path(picture).read_text()
        asyncio.run(self.use(server, box, made))
        assert [] == jupyter.look(box).kernels

    async def use(self, server, box, made):
        from jupyter_client.manager import start_new_async_kernel

        manager, client = await start_new_async_kernel(kernel_name=made.name, startup_timeout=60)
        try:
            found = {}
            await client.execute_interactive(
                "import os; print(os.getcwd(), os.environ['CUDA_VISIBLE_DEVICES'])", timeout=60,
                output_hook=lambda message: found.update(message["content"]),
            )  # fmt: skip
            assert f"{server.folder}/work 3" == found["text"].strip()
            (there,) = jupyter.look(box).kernels
            assert made.shown == there["of"]
            assert abs(time.time() - there["since"]) < 60
        finally:
            client.stop_channels()
            await manager.shutdown_kernel()

    def test_stays_when_the_box_is_stopped_or_a_tunnel_registers(self, server, box):
        """`nbkit stop` and a tunnel's kernels leave alone what a person added."""
        kernels.add(box, config=server.config)
        specs = {"python3": {"spec": {"argv": ["python"], "display_name": "Python", "language": "python"}}}
        kernels.register("box", specs, config=str(server.config))
        kernels.register("box", {})
        kernels.register("box", specs, config=str(server.config))
        assert ["add", "tunnel"] == sorted(each.by for each in kernels.listed())
        assert 1 == status.stop("box", config=str(server.config)).kernels
        assert ["nbkit-box"] == [each.name for each in kernels.listed()]

    def test_refuses_what_could_not_work(self, server, box, tmp_path):
        """A name that Jupyter does not take or that another has; a Python without ipykernel."""
        with pytest.raises(RemoteCommandError, match="There is no folder"):
            kernels.add(box, folder="/no/such")
        with pytest.raises(NbkitError, match="cannot be a kernel's name"):
            kernels.add(box, name="two words")
        other = Path(os.environ["JUPYTER_DATA_DIR"]) / "kernels" / "mine"
        other.mkdir(parents=True)
        (other / "kernel.json").write_text("{}")
        with pytest.raises(NbkitError, match="a kernel 'mine' already, not of nbkit's"):
            kernels.add(box, name="mine")
        assert "{}" == (other / "kernel.json").read_text()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
        bare = tmp_path / "bare" / "bin" / "python"
        with remote.connect("box", config=server.config, python=str(bare)) as without, \
                pytest.raises(RemoteCommandError, match="has no ipykernel") as caught:  # fmt: skip
            kernels.add(without)
        assert "-m pip install ipykernel" in caught.value.hint
        assert [] == kernels.listed()


class TestForbidden:
    def test_a_kernel_where_sshd_forbids_forwards(self):
        """It starts, computes, and goes on through a cut: a command there carries its five sockets."""
        with jupyter_box.running("DisableForwarding yes") as fresh:
            with remote.connect("box", config=fresh.config, python=sys.executable) as box:
                made = kernels.add(box, config=fresh.config)
            assert ["2\n", "4\n"] == asyncio.run(self.use(fresh, made))

    async def use(self, fresh, made):
        from jupyter_client.manager import start_new_async_kernel

        manager, client = await start_new_async_kernel(kernel_name=made.name, startup_timeout=60)
        said = []
        try:
            for code in ("print(1+1)", "print(2+2)"):
                await client.execute_interactive(
                    code, timeout=60, output_hook=lambda message: said.append(message["content"].get("text", ""))
                )
                await asyncio.to_thread(fresh.cut)
        finally:
            client.stop_channels()
            await manager.shutdown_kernel()
        return [text for text in said if text]


class TestBlind:
    def test_a_jupyter_without_nbkit_is_named(self, server, tmp_path, monkeypatch):
        """The one that a shell starts, also through a link to it; not where nbkit is beside it."""
        real, link = tmp_path / "lab" / "jupyter-lab", tmp_path / "bin" / "jupyter-lab"
        for path in (real, link):
            path.parent.mkdir()
        real.write_text("#!/bin/sh\n")
        real.chmod(0o755)
        link.symlink_to(real)
        monkeypatch.setenv("PATH", f"{link.parent}:{os.environ['PATH']}")
        words = [*NBKIT, "kernel", "add", "box", "-F", str(server.config), "--python", sys.executable]
        for there in (False, True):
            if there:
                (real.parent / "nbkit").touch()
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=60, check=True, stdin=subprocess.DEVNULL
            )
            assert there != (f"Note: {link} is of an environment without nbkit" in done.stderr)
            assert there != (f"{sys.executable} -m jupyter lab" in done.stderr)


class TestCuts:
    def test_no_line_is_lost_or_doubled(self, server):
        """20 lines a second through three cuts, one of them while what was missed is sent again: each line once, in order; a
        request sent during a cut runs once."""
        with remote.connect("box", config=server.config, python=sys.executable) as box:
            made = kernels.add(box, config=server.config)
        asyncio.run(self.through_cuts(server, made.name))
        with remote.connect("box", config=server.config, python=sys.executable) as box:
            assert [] == kernels_of(box)

    async def through_cuts(self, server, name):
        from jupyter_client.manager import start_new_async_kernel

        manager, client = await start_new_async_kernel(kernel_name=name, startup_timeout=60)
        said = []
        try:
            code = "import time\nfor number in range(120):\n    print(number, flush=True)\n    time.sleep(0.05)"
            task = asyncio.create_task(client.execute_interactive(
                code, timeout=120, allow_stdin=False,
                output_hook=lambda message: said.append(message["content"].get("text", "")),
            ))  # fmt: skip
            for pause in (1.0, 1.5, 0.3):
                await asyncio.sleep(pause)
                await asyncio.to_thread(server.cut)
            client.execute("counted = globals().get('counted', 0) + 1")
            reply = await task
            assert "ok" == reply["content"]["status"]
            assert [str(number) for number in range(120)] == "".join(said).split()
            said.clear()
            await client.execute_interactive(
                "print(counted)",
                timeout=60,
                output_hook=lambda message: said.append(message["content"].get("text", "")),
            )
            assert "1" == "".join(said).strip()
        finally:
            client.stop_channels()
            await manager.shutdown_kernel()

    def test_a_minute_of_faults(self, tmp_path):
        """The quick form of `python -m bench nothing_lost`, nbkit alone: cuts, a reset and a stall, in a process of its own."""
        planned = nothing_lost.faults(60)
        assert {"refuse", "reset", "stall"} == {one.words.split()[0] for one in planned}
        with nothing_lost.worker("nbkit", Path(sys.executable), tmp_path, 60) as worker:
            nothing_lost.make_faults(worker, planned)
            told = nothing_lost.result(worker)
        assert [str(number) for number in range(60 * nothing_lost.PER_S)] == told["lines"]
        assert [str(number) for number in range(len(planned))] == sorted(told["ran"])
        assert "" == told["error"]

    def test_an_interrupt_waits_for_the_link(self, server):
        """Stop is pressed while the link is away: the cell is interrupted when it is back."""
        with remote.connect("box", config=server.config, python=sys.executable) as box:
            made = kernels.add(box, config=server.config)
        asyncio.run(self.interrupted(server, made.name))

    async def interrupted(self, server, name):
        from jupyter_client.manager import start_new_async_kernel

        manager, client = await start_new_async_kernel(kernel_name=name, startup_timeout=60)
        try:
            at_work = asyncio.Event()
            task = asyncio.create_task(
                client.execute_interactive(
                    "import time\nprint('at work', flush=True)\ntime.sleep(90)", timeout=80,
                    output_hook=lambda message: message["msg_type"] == "stream" and at_work.set(),
                )
            )  # fmt: skip
            await asyncio.wait_for(at_work.wait(), 60)
            await asyncio.to_thread(server.cut)
            await manager.interrupt_kernel()
            assert "KeyboardInterrupt" == (await task)["content"]["ename"]
        finally:
            client.stop_channels()
            await manager.shutdown_kernel()


class TestLeave:
    def test_a_server_that_ends_leaves_it_and_it_is_returned_to(self, server, box, tmp_path):
        """Ctrl-C on JupyterLab leaves the kernel, and none of this machine's; `attach` returns to its variables, also after
        kill -9; a restart gives a fresh one, and shutting it down ends it and takes the way back to it away."""
        added = kernels.add(box, config=server.config)
        with serving(tmp_path) as (process, client):
            with contextlib.closing(client.kernel()) as kernel:
                local = int(kernel.run("import os; os.getpid()"))
            with contextlib.closing(client.kernel(added.name)) as kernel:
                kernel.run("kept = 41")
            (pid,) = kernels_of(box)
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            until_gone(local)
            assert "runs on, on box. Return to it: nbkit kernel attach box" in (tmp_path / "server.log").read_text()
        assert [pid] == kernels_of(box)
        assert [] == list(Path(os.environ["JUPYTER_RUNTIME_DIR"]).glob("kernel-*.json"))
        for ending in (signal.SIGKILL, None):
            back = kernels.attach(box, config=server.config)
            with serving(tmp_path) as (process, client):
                status, found = client.call("POST", "/api/kernels", {"name": back.name})
                assert 201 == status
                with contextlib.closing(Kernel(client, found["id"])) as kernel:
                    assert "42" == kernel.run("kept + 1")
                assert [pid] == kernels_of(box)
                if ending:
                    process.send_signal(ending)
                    process.wait(60)
                    continue
                status, _ = client.call("POST", f"/api/kernels/{found['id']}/restart")
                assert 200 == status
                with contextlib.closing(Kernel(client, found["id"])) as kernel:
                    assert "False" == kernel.run("'kept' in globals()")
                assert 1 == len(kernels_of(box))
                assert pid not in kernels_of(box)
                status, _ = client.call("DELETE", f"/api/kernels/{found['id']}")
                assert 204 == status
                assert [] == kernels_of(box)
                assert [added.name] == [each.name for each in kernels.listed()]

    def test_what_it_said_meanwhile_is_kept(self, server, box, tmp_path):
        """A cell that prints goes on when JupyterLab is killed; all of it is there afterwards, and goes with the kernel."""
        added = kernels.add(box, config=server.config)
        code = "import time\nfor number in range(100):\n    print(number, flush=True)\n    time.sleep(0.05)\n1/0"
        with serving(tmp_path) as (process, client):
            with contextlib.closing(client.kernel(added.name)) as kernel:
                kernel.send(code)
                kernel.until_printing()
            process.kill()
            process.wait(60)
        one = kernels.find(box)["id"]
        until(lambda: any(each["type"] == "error" for each in jupyter.said(box, one)), "the cell does not end")
        said = [each for each in jupyter.said(box, one) if each["request"]]
        assert code == next(each["content"]["code"] for each in said if each["type"] == "execute_input")
        text = "".join(each["content"]["text"] for each in said if each["type"] == "stream")
        assert [str(number) for number in range(100)] == text.split()
        told = "".join(kernels.told(said))
        assert told.startswith("> import time\n  for number in range(100):\n")
        assert "ZeroDivisionError" in told
        back = kernels.attach(box, config=server.config)
        with serving(tmp_path) as (_, client), contextlib.closing(client.kernel(back.name)) as kernel:
            assert "99" == kernel.run("number")
        kept = server.folder.rglob(f"kernel-{one}.said")
        assert ["0o600"] == [oct(path.stat().st_mode & 0o777) for path in kept]
        done = jupyter.stop(box)
        assert ["kernel"] == [each["what"] for each in done.ended]
        assert [] == done.rest
        until(
            lambda: (
                not any(f"kernel-{one}" in " ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))
            ),
            "a process is left",
        )

    def test_goes_with_the_server_where_it_is_told_to(self, server, box, tmp_path):
        """on_close="end": nothing is left on the box."""
        added = kernels.add(box, on_close="end", config=server.config)
        with serving(tmp_path) as (process, client):
            client.kernel(added.name).close()
            assert 1 == len(kernels_of(box))
            process.terminate()
            process.wait(60)
        assert [] == kernels_of(box)

    def test_is_not_started_again_while_the_server_ends(self, server, box, tmp_path, caplog):
        """However long that takes: nothing looks after it any more."""
        added = kernels.add(box, config=server.config)

        async def end():
            pool = AsyncMappingKernelManager(connection_dir=str(tmp_path))
            await pool.start_kernel(kernel_name=added.name)
            before = kernels_of(box)
            await pool.shutdown_all()
            await asyncio.sleep(4)  # the restarter looks each 3 s
            return before

        with caplog.at_level("INFO"):
            assert asyncio.run(end()) == kernels_of(box) != []
        assert "runs on, on box" in caplog.text
        assert "restarting kernel" not in caplog.text

    def test_there_must_be_one_to_return_to(self, server, box):
        """None and several are told apart, the several by name; an id that ended meanwhile is an error, not a new kernel."""
        with pytest.raises(RemoteCommandError, match=r"^No kernel on box\.\n"):
            kernels.attach(box)
        argv = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        for number in (1, 2):
            jupyter.start_kernel(box, f"{number}111-2222", argv, {}, "key", f"number {number}")
        with pytest.raises(RemoteCommandError, match=r"2 kernels on box; there are: .*number 1.*number 2"):
            kernels.attach(box)
        with pytest.raises(RemoteCommandError, match=r"^No kernel on box whose id begins with 3; there are: "):
            kernels.attach(box, "3")
        back = kernels.attach(box, "2", config=server.config)
        assert ("2111-2222", "attach") == (back.running, back.by)
        assert back.shown.startswith("number 2, running since ")
        jupyter.stop(box)
        with pytest.raises(RemoteCommandError, match="Kernel 2111-222 has ended"):
            asyncio.run(self.start(back.name))

    async def start(self, name):
        from jupyter_client.manager import AsyncKernelManager

        await AsyncKernelManager(kernel_name=name).start_kernel()


class TestRefused:
    def test_an_interrupt_connects_anew(self, tmp_path):
        """A login that is refused, a certificate that has expired, say, is told in the log and to who asks for something; the
        kernel goes on there, and when that is mended, an interrupt or a restart is enough."""
        with jupyter_box.running() as server, serving(tmp_path) as (_, client):
            with remote.connect("box", config=server.config, python=sys.executable) as box:
                made = kernels.add(box, config=server.config)
            log, let_in = tmp_path / "server.log", server.folder / "authorized_keys"
            with contextlib.closing(client.kernel(made.name)) as kernel:
                kernel.run("kept = 1")
                keys = let_in.read_text()
                let_in.write_text("")
                server.cut()
                until(lambda: "The connection to box is over: " in log.read_text(), "the log says nothing")
                assert "The kernel goes on there. When that is mended, interrupt it or restart it" in log.read_text()
                assert 500 == client.call("POST", f"/api/kernels/{kernel.id}/interrupt")[0]
                assert "refused us" in log.read_text()
                let_in.write_text(keys)
                assert 204 == client.call("POST", f"/api/kernels/{kernel.id}/interrupt")[0]
                assert "1" == kernel.run("kept")
                let_in.write_text("")
                server.cut()
                until(lambda: log.read_text().count("The connection to box is over: ") == 2, "the log says nothing")
                let_in.write_text(keys)
                assert 200 == client.call("POST", f"/api/kernels/{kernel.id}/restart")[0]
                with contextlib.closing(Kernel(client, kernel.id)) as again:
                    assert "False" == again.run("'kept' in globals()")
                server.cut()
                until(lambda: "The link to box is back." in log.read_text(), "the log does not say that it is back")
                assert "The link to box is lost; it is made again, and the kernel goes on." in log.read_text()
                assert 204 == client.call("DELETE", f"/api/kernels/{kernel.id}")[0]


class TestVerbs:
    def run(self, *words):
        done = subprocess.run([*NBKIT, "kernel", *words], capture_output=True, text=True, timeout=120, check=False,
                              stdin=subprocess.DEVNULL)  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    def test_a_notebook_runs_on_the_box_by_nbval(self, server, box, tmp_path):
        """add, nbval with that kernel, list, rm: each says what it did."""
        where = ("-F", str(server.config), "--python", sys.executable)
        code, out, err = self.run("add", "box", "--name", "gpu", *where)
        assert (0, "gpu\n") == (code, out)
        assert "gpu (box): choose it in JupyterLab" in err
        assert "without nbkit" not in err
        import nbformat

        cell = nbformat.v4.new_code_cell("import os\nos.path.expanduser('~')", execution_count=1)
        said = nbformat.v4.new_output("execute_result", {"text/plain": repr(str(server.folder))}, execution_count=1)
        cell.outputs = [said]
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "home.ipynb")
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval", "--nbval-kernel-name", "gpu",
                 "--rootdir", str(tmp_path), str(tmp_path / "home.ipynb")]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True, timeout=180, check=False, cwd=tmp_path)
        assert "1 passed" in done.stdout, done.stdout + done.stderr
        assert [] == kernels_of(box)
        code, out, _ = self.run("list")
        assert "gpu (box)" in out
        code, out, _ = self.run("list", "--json")
        assert [("gpu", "box", "leave", "add")] == [
            (each["name"], each["host"], each["on_close"], each["by"]) for each in json.loads(out)
        ]
        started = jupyter.start_kernel(
            box, "1111-2222", ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"], {}, "k"
        )
        code, out, _ = self.run("list", "box", *where)
        assert "1111-222" in out
        assert f" {started['pid']} " in out  # to be pasted behind `kill`: a number, not a quantity
        code, out, err = self.run("attach", "box", "1111", *where, "--json")
        assert "1111-2222" == json.loads(out)["running"]
        code, _, err = self.run("rm", "box")
        assert (0, "Removed box: 2 kernels.\n") == (code, err)
        assert [1] == [self.run("rm", "box")[0]]
        assert 0 == self.run("list")[0]
