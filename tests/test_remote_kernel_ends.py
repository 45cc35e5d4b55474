"""How a kernel of a box ended, and what a person reads of it: in the notebook, in the log, in `nbkit kernel`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from nbkit import remote
from nbkit.errors import RemoteCommandError
from nbkit.remote import jupyter, kernels
from nbkit.remote.there import ended, listen
from tests import jupyter_box, memory_limit
from tests.chaos.transfer import small_disk
from tests.jupyter_box import NBKIT, kernels_of, serving
from tests.notebook_client import Kernel
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("own_folders", "entry_point")

server, box, cgroup = jupyter_box.server, jupyter_box.box, memory_limit.cgroup

COUNTS = "import time\nfor number in range(100_000):\n    print(number, flush=True)\n    time.sleep(0.02)"
IPYKERNEL = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]


def until_restarting(kernel: Kernel) -> list[dict]:
    """What a page hears until the server tells it that the kernel is started again."""
    heard = []
    while not heard or heard[-1]["content"].get("execution_state") != "restarting":
        heard.append(json.loads(kernel.socket.recv()))
    return heard


def text_of(messages: list[dict], number: str, name: str) -> str:
    """What belongs to the cell that was sent as `number`."""
    return "".join(each["content"]["text"] for each in messages if each["msg_type"] == "stream"
                   and each["parent_header"].get("msg_id") == number and each["content"]["name"] == name)  # fmt: skip


def nbkit(server, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
    line = [*NBKIT, "kernel", verb, "box", *words, "-F", str(server.config), "--python", sys.executable]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=True, stdin=subprocess.DEVNULL)


class TestKilled:
    def test_is_said_below_the_cell(self, server, box, tmp_path):
        """Killed while a cell prints: the cell, the log and `nbkit kernel list` say so; what it printed is in `logs`, also when
        the kernel has been started again."""
        made = kernels.add(box, config=server.config)
        with serving(tmp_path) as (_, client), contextlib.closing(client.kernel(made.name)) as kernel:
            (pid,) = kernels_of(box)
            number = kernel.send(COUNTS)
            heard = kernel.until_printing()
            os.kill(pid, signal.SIGKILL)
            heard += until_restarting(kernel)
            said = text_of(heard, number, "stderr")
            assert "The kernel was killed at " in said
            assert "(SIGKILL, signal 9); it had " in said
            assert f"{kernel.id[:8]}\n" in said.partition(f"nbkit kernel logs box -F {server.config} ")[2]
            printed = text_of(heard, number, "stdout").split()
            assert [str(at) for at in range(len(printed))] == printed
            until(lambda: kernels_of(box), "it is not started again")
            assert [pid] != kernels_of(box)
            assert "The kernel was killed at " in (tmp_path / "server.log").read_text()
            listed = nbkit(server, "list")
            assert "It was started again." in listed.stderr
            logs = nbkit(server, "logs").stdout
            assert [str(at) for at in range(len(printed))] == [one for one in logs.split() if one.isdigit()][
                : len(printed)
            ]
            assert "[The kernel was killed at " in logs

    def test_memory_that_ran_out_is_named(self, server, cgroup, tmp_path):
        """Linux kills it for want of memory: that, and how much it may take, is what is said."""
        python = f"echo $$ > {cgroup}/cgroup.procs; {sys.executable}"
        with remote.connect("box", config=server.config, python=python) as box:
            made = kernels.add(box, config=server.config)
            with serving(tmp_path) as (_, client), contextlib.closing(client.kernel(made.name)) as kernel:
                number = kernel.send(
                    "import time\ntime.sleep(0.5)\nheld = []\nwhile True:\n    held.append(bytearray(b'x' * 10_000_000))"
                )
                said = text_of(until_restarting(kernel), number, "stderr")
                assert "because memory ran out, the 400 MiB that its cgroup may take" in said
            jupyter.stop(box)

    def test_a_notebook_that_is_run_keeps_it(self, server, box):
        """nbclient ends with a dead kernel; the cell's outputs say why, and what it printed can be read afterwards."""
        import nbformat
        from nbclient import NotebookClient
        from nbclient.exceptions import DeadKernelError

        made = kernels.add(box, config=server.config)
        cell = nbformat.v4.new_code_cell(
            "import os, time\nprint('so far', flush=True)\ntime.sleep(1)\nos.kill(os.getpid(), 11)"
        )
        notebook = nbformat.v4.new_notebook(cells=[cell])
        with pytest.raises(DeadKernelError):
            NotebookClient(notebook, kernel_name=made.name, timeout=60).execute()
        said = "".join(each["text"] for each in cell.outputs if each.get("name") == "stderr")
        assert "The kernel crashed at " in said
        assert "(SIGSEGV, signal 11)" in said
        assert [] == kernels_of(box)
        (one,) = jupyter.look(box).ended
        assert "SIGSEGV" in one["text"]
        assert "ended" in nbkit(server, "list").stdout
        logs = nbkit(server, "logs", one["id"][:6]).stdout
        assert "so far" in logs
        with pytest.raises(RemoteCommandError, match=r"Kernel .{8} has ended\. The kernel crashed at .*SIGSEGV"):
            jupyter.find_kernel(box, one["id"])

    def test_an_end_that_was_asked_for_needs_no_words(self, server, box, tmp_path):
        """Restart and shutdown, of a kernel at work: nothing is said, nothing is left."""
        made = kernels.add(box, config=server.config)
        with serving(tmp_path) as (_, client), contextlib.closing(client.kernel(made.name)) as kernel:
            (pid,) = kernels_of(box)
            kernel.send("import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)")
            time.sleep(0.5)
            assert 200 == client.call("POST", f"/api/kernels/{kernel.id}/restart")[0]
            until(lambda: kernels_of(box) not in ([], [pid]), "it is not started again")
            assert "" == nbkit(server, "list").stderr
            assert 204 == client.call("DELETE", f"/api/kernels/{kernel.id}")[0]
            assert ([], []) == (jupyter.look(box).ended, kernels_of(box))
        for word in ("killed", "crashed", "ended by itself"):
            assert word not in (tmp_path / "server.log").read_text()


class TestEnded:
    def test_ends_that_nobody_saw(self, server, box):
        """Whatever watched over it was killed with it, or the machine was restarted: each is told apart."""
        start = jupyter.start_kernel(box, "1111-2222", IPYKERNEL, {}, "key", "one")
        (keeper,) = [one for one in psutil.process_iter(["cmdline"]) if start["base"] in (one.info["cmdline"] or ())]
        keeper.kill()
        os.kill(start["pid"], signal.SIGKILL)
        assert "Its end was not seen" in jupyter.kernel_end(box, "1111-2222", start["pid"])["text"]
        about = Path(start["base"] + ".json")
        about.write_text(about.read_text().replace(ended.boot(), "another"))
        assert "Its machine was restarted" in jupyter.kernel_end(box, "1111-2222", start["pid"])["text"]
        jupyter.forget_kernel(box, "1111-2222")
        assert "Nothing is left of it" in jupyter.kernel_end(box, "1111-2222", start["pid"])["text"]

    def test_a_kernel_goes_on_without_what_watches_over_it(self, server, box):
        """The keeper is killed: the kernel is none the worse."""
        start = jupyter.start_kernel(box, "1111-2222", IPYKERNEL, {}, "key", "one")
        (keeper,) = [one for one in psutil.process_iter(["cmdline"]) if start["base"] in (one.info["cmdline"] or ())]
        keeper.kill()
        keeper.wait(10)
        time.sleep(0.5)
        assert [start["pid"]] == kernels_of(box)

    @pytest.mark.parametrize(
        ("status", "ooms", "most", "said"),
        [
            (3, 0, None, "ended by itself at .*, with exit status 3"),
            (
                -9,
                1,
                4 << 30,
                r"killed .* because memory ran out, the 4\.0 GiB that its cgroup may take; it had 2\.0 GiB",
            ),
            (-9, 1, None, "because memory ran out, the machine's memory"),
            (-9, 0, None, "Linux had not run out of memory"),
            (-9, None, None, "Whether memory ran out, this machine does not tell"),
            (-15, 1, None, r"killed at .* \(SIGTERM, signal 15\); it had 2\.0 GiB at most\.$"),
            (-6, 0, None, r"crashed at .* \(SIGABRT, signal 6\)"),
        ],
    )
    def test_words(self, status, ooms, most, said):
        """Each end in plain words."""
        import re

        assert re.search(said, ended.words(status, 2 << 30, ooms, most))


class TestTwoLaptops:
    def test_restarted_from_one_the_other_goes_on_with_the_new_one(self, server, box, tmp_path):
        """No second kernel is started beside it; and its shutdown is told to the other, which takes it for dead."""
        added = kernels.add(box, config=server.config)
        (tmp_path / "one").mkdir()
        (tmp_path / "two").mkdir()
        with serving(tmp_path / "one") as (_, one), contextlib.closing(one.kernel(added.name)) as kernel:
            kernel.run("kept = 1")
            assert "in use" in nbkit(server, "list").stdout
            attached = nbkit(server, "attach")
            assert "It is in use already: " in attached.stderr
            back = next(each for each in kernels.listed() if each.name == attached.stdout.strip())
            with serving(tmp_path / "two") as (_, two), contextlib.closing(two.kernel(back.name)) as second:
                assert "1" == second.run("kept")
                assert 200 == one.call("POST", f"/api/kernels/{kernel.id}/restart")[0]
                until(
                    lambda: "was restarted from elsewhere" in (tmp_path / "two" / "server.log").read_text(), "not seen"
                )
                (pid,) = kernels_of(box)
                with contextlib.closing(Kernel(two, second.id)) as again:
                    assert "False" == again.run("'kept' in globals()")
                assert [pid] == kernels_of(box)
                assert 204 == one.call("DELETE", f"/api/kernels/{kernel.id}")[0]
                until(lambda: "Nothing is left of it" in (tmp_path / "two" / "server.log").read_text(), "not told")
                until(lambda: [] == two.call("GET", "/api/kernels")[1], "it is not taken for dead")
                assert [] == kernels_of(box)
                assert back.name not in [each.name for each in kernels.listed()]

    def test_shut_down_after_an_error(self, tmp_path):
        """A restart failed because the box was away: shutting the kernel down then ends it all the same where it can be
        reached, and where it cannot, the log says that it runs on."""
        with jupyter_box.running() as server, serving(tmp_path) as (_, client):
            with remote.connect("box", config=server.config, python=sys.executable) as box:
                made = kernels.add(box, config=server.config)
            for back in (True, False):
                with contextlib.closing(client.kernel(made.name)) as kernel:
                    kernel.run("1")
                    server.stop()
                    assert 500 == client.call("POST", f"/api/kernels/{kernel.id}/restart")[0]
                    if back:
                        server.start()
                    assert 204 == client.call("DELETE", f"/api/kernels/{kernel.id}")[0]
                    if not back:
                        said = f"The kernel {kernel.id[:8]} runs on, on box."
                        until(lambda: said in (tmp_path / "server.log").read_text(), "the log says nothing")  # noqa: B023
                        server.start()
                    with remote.connect("box", config=server.config, python=sys.executable) as box:
                        until(lambda: len(kernels_of(box)) == (0 if back else 1), "it has not ended")  # noqa: B023
            assert 1 == (tmp_path / "server.log").read_text().count("cannot be ended: ")

    def test_stop_of_the_box_is_not_undone(self, server, box, tmp_path):
        """`nbkit stop` ends a kernel that a JupyterLab here shows: the page learns that it is dead, and no other is started."""
        made = kernels.add(box, config=server.config)
        with serving(tmp_path) as (_, client), contextlib.closing(client.kernel(made.name)) as kernel:
            kernel.run("1")
            jupyter.stop(box)
            states = []
            while "dead" not in states:
                states.append(json.loads(kernel.socket.recv())["content"].get("execution_state"))
            assert "restarting" not in states
            until(lambda: [] == client.call("GET", "/api/kernels")[1], "it is not taken for dead")
            assert [] == kernels_of(box)

    def test_stop_of_the_box_ends_a_notebook_that_is_run(self, server, box):
        """Where nothing starts kernels again, as in nbclient, the notebook ends as with any dead kernel."""
        import nbformat
        from nbclient import NotebookClient
        from nbclient.exceptions import DeadKernelError

        made = kernels.add(box, config=server.config)
        cell = nbformat.v4.new_code_cell("print('at work', flush=True)\nimport time\ntime.sleep(600)")
        client = NotebookClient(nbformat.v4.new_notebook(cells=[cell]), kernel_name=made.name, timeout=120)
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(client.execute)
            until(lambda: cell.outputs, "the cell does not begin")
            jupyter.stop(box)
            with pytest.raises(DeadKernelError):
                done.result(60)


class TestSaid:
    def test_of_a_lost_relay(self, server, box, tmp_path):
        """The relay is ended while a cell prints: the log says so; the cell goes on, and all of it is kept."""
        added = kernels.add(box, config=server.config)
        with serving(tmp_path) as (_, client), contextlib.closing(client.kernel(added.name)) as kernel:
            kernel.send("import time\nfor number in range(100):\n    print(number, flush=True)\n    time.sleep(0.03)")
            kernel.until_printing()
            server.end_relays()
            until(lambda: "has lost its relay" in (tmp_path / "server.log").read_text(), "the log says nothing")
            assert "What the kernel prints is kept: nbkit kernel logs box" in (tmp_path / "server.log").read_text()
            until(lambda: "99" in nbkit(server, "logs").stdout.split(), "it has not printed all")
            logs = nbkit(server, "logs").stdout.split()
            assert [str(at) for at in range(100)] == [one for one in logs if one.isdigit()]

    def test_to_a_script_that_hears_no_log(self, server, box):
        """A script that runs a notebook has no log: what happens to the link is on its stderr."""
        added = kernels.add(box, config=server.config)
        code = ("import sys\nfrom jupyter_client.manager import KernelManager\n"
                "manager = KernelManager(kernel_name=sys.argv[1])\nmanager.start_kernel()\nprint(flush=True)\n"
                "input()\nmanager.shutdown_kernel(now=True)\n")  # fmt: skip
        with subprocess.Popen([sys.executable, "-c", code, added.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True) as script:  # fmt: skip
            assert "\n" == script.stdout.readline()
            server.cut()
            assert (
                "nbkit: The link to box is lost; it is made again, and the kernel goes on.\n"
                == script.stderr.readline()
            )
            assert "nbkit: The link to box is back.\n" == script.stderr.readline()
            script.communicate("\n", timeout=60)
        assert 0 == script.returncode

    def test_of_a_python_that_is_gone(self, server, tmp_path):
        """It was there when the kernel was added; now who starts it reads what is missing and where."""
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        with remote.connect("box", config=server.config, python=str(python)) as box:
            made = kernels.add(box, config=server.config)
        python.unlink()
        with serving(tmp_path) as (_, client):
            body = json.dumps({"name": made.name}).encode()
            asked = urllib.request.Request(
                f"{client.base}/api/kernels", body, {"Authorization": f"token {client.token}"}
            )
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(asked)
            said = json.loads(caught.value.read())["message"]
            assert f"has no Python at '{python}'" in said
            assert "--python PATH" in said
        assert "has no Python at" in (tmp_path / "server.log").read_text()

    def test_not_of_what_widgets_send(self, tmp_path):
        """Of arrays that widgets send nothing is even sent to what writes down; of all else, all."""
        import zmq

        with zmq.Context() as context, context.socket(zmq.PUB) as kernel:
            kernel.bind(f"ipc://{tmp_path}/kernel-1-ipc-2")
            ear = listen.Listener(f"{tmp_path}/kernel-1", comms=False)
            topics = (b"comm-1234", b"stream.stdout", b"kernel.1.status", b"common", b"display_data")

            def says():
                for topic in topics:
                    kernel.send(topic)
                return ear.ear.poll(20)

            until(says, "nothing is heard")
            until(lambda: says() and ear.ear.recv() == topics[-1], "not all is heard")
            assert says()
            assert says()
            heard = [ear.ear.recv() for _ in range(8)]
            assert set(topics[1:]) == set(heard)
            ear.ear.close(0)
            ear.context.term()
            os.close(ear.out)

    def test_of_a_full_disk(self, tmp_path):
        """What the kernel says cannot be written down for a while: whole lines before and after, and the gap is told."""
        with small_disk(tmp_path / "disk", 1 << 20) as disk:
            ear = listen.Listener(f"{disk}/kernel-1")
            content = {"name": "stdout", "text": "x" * 5000}
            header = {"msg_type": "stream", "date": "2026-11-30"}
            filler = disk / "filler"
            filler.write_bytes(bytes(512 << 10))
            while not ear.lost:
                ear.keep(listen.line(header, {}, json.dumps(content).encode()))
            filler.unlink()
            ear.keep(listen.line(header, {}, json.dumps(content).encode()))
            lines = [json.loads(line) for line in (disk / "kernel-1.said").read_text().splitlines()]
            assert ["lost", "stream"] == [each["type"] for each in lines[-2:]]
            assert 1 == lines[-2]["count"]
            assert "[1 messages are not kept: the disk there was full]" in "".join(kernels.told(lines))
            ear.ear.close(0)
            os.close(ear.out)
