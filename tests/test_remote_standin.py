"""A kernel of a box for a front end that runs a kernel spec's argv, as VS Code does: a real sshd, real ZeroMQ sockets."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from nbkit import remote
from nbkit.remote import jupyter, kernels
from tests import jupyter_box

pytestmark = pytest.mark.usefixtures("own_folders")
PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
PARENT = (sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])")
COUNT = "import time\nfor number in range(60):\n    print(number, flush=True)\n    time.sleep(0.05)"


server, box = jupyter_box.server, jupyter_box.box


@contextlib.contextmanager
def started(made, tmp_path, *before):
    """What VS Code does: free ports and a key into a file, the spec's argv with that file, a client when the ports answer."""
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in PORTS]
        for each in taken:
            each.bind(("127.0.0.1", 0))
        told = {name: each.getsockname()[1] for name, each in zip(PORTS, taken, strict=True)}
    told |= {"ip": "127.0.0.1", "transport": "tcp", "key": "a key of ours", "signature_scheme": "hmac-sha256"}
    file = tmp_path / "kernel-v2.json"
    file.write_text(json.dumps(told))
    argv = [word.replace("{connection_file}", str(file)) for word in kernels.read_spec(made.name)["argv"]]
    process = subprocess.Popen(
        [*before, *argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    client = BlockingKernelClient()
    client.load_connection_info({**told, "key": told["key"].encode()})
    end = time.monotonic() + 60
    while process.poll() is None and not all(answers(told[name]) for name in PORTS[:2]):
        assert time.monotonic() < end
        time.sleep(0.2)
    client.start_channels()
    try:
        yield process, client
    finally:
        client.stop_channels()
        process.kill()
        process.communicate()


def answers(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def said(client, code, printed=lambda: None):
    """What running `code` printed, and the reply; `printed` is called when it prints."""
    texts = []

    def heard(message):
        if message["msg_type"] == "stream":
            texts.append(message["content"]["text"])
            printed()

    reply = client.execute_interactive(code, timeout=60, output_hook=heard)
    return "".join(texts), reply["content"]


class TestStandIn:
    def test_is_on_the_box_and_ends_when_told(self, server, box, tmp_path):
        """Code runs there, output outlives a cut, an interrupt reaches it, SIGTERM ends it and leaves nothing."""
        made = kernels.add(box, folder=str(server.folder), env={"PLACE": "there"}, config=server.config)
        with started(made, tmp_path) as (process, client):
            client.wait_for_ready(timeout=60)
            assert f"{server.folder} there\n" == said(client, "import os; print(os.getcwd(), os.environ['PLACE'])")[0]
            (one,) = jupyter.look(box).kernels
            assert made.shown == one["of"]
            client.execute("pass")
            number = client.execute(COUNT)
            time.sleep(1)
            server.cut()
            lines = []
            while len(lines) < 60:
                message = client.get_iopub_msg(timeout=30)
                if message["msg_type"] == "stream" and message["parent_header"]["msg_id"] == number:
                    lines += message["content"]["text"].split()
            assert [str(each) for each in range(60)] == lines
            code, interrupt = "print('at work', flush=True)\ntime.sleep(60)", lambda: process.send_signal(signal.SIGINT)
            printed, reply = said(client, code, interrupt)
            assert ("at work\n", "KeyboardInterrupt") == (printed, reply["ename"])
            assert "on\n" == said(client, "print('on')")[0]
            process.send_signal(signal.SIGTERM)
            assert 0 == process.wait(60)
        with remote.connect("box", config=server.config, python=sys.executable) as again:
            found = jupyter.look(again)
        assert ([], []) == (found.kernels, found.ended)

    def test_ends_with_the_kernel_and_says_why(self, server, box, tmp_path):
        """A kernel that was killed there ends it, with what became of it on stderr."""
        made = kernels.add(box, config=server.config)
        with started(made, tmp_path) as (process, client):
            client.wait_for_ready(timeout=60)
            (one,) = jupyter.look(box).kernels
            os.kill(one["pid"], signal.SIGKILL)
            _, err = process.communicate(timeout=30)
        assert 0 != process.returncode
        assert "The kernel was killed" in err

    @pytest.mark.parametrize("on_close", ["leave", "end"])
    def test_a_front_end_that_is_killed(self, server, box, tmp_path, on_close):
        """The kernel stays there, or ends, as `--on-close` says; nothing is left here."""
        made = kernels.add(box, on_close=on_close, config=server.config)
        with started(made, tmp_path, *PARENT) as (process, client):
            client.wait_for_ready(timeout=60)
            (child,) = psutil.Process(process.pid).children()
            process.kill()
            child.wait(60)
        assert (on_close == "leave") == bool(jupyter.look(box).kernels)

    def test_what_keeps_it_from_starting_is_on_stderr(self, server, box, tmp_path):
        """A box that is away, a kernel that runs already: said in words, with what to do."""
        made = kernels.add(box, config=server.config)
        with started(made, tmp_path) as (_, client):
            client.wait_for_ready(timeout=60)
            attached = kernels.attach(box, config=server.config)
            with started(attached, tmp_path) as (process, _):
                assert "existing Jupyter server" in process.communicate(timeout=30)[1]
        server.stop()
        try:
            with started(made, tmp_path) as (process, _):
                assert "cannot be reached" in process.communicate(timeout=60)[1]
                assert 3 == process.returncode
        finally:
            server.start()
