"""A real IPython kernel for the tests of views: what it sends to the front end, and a front end's clicks."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import tempfile
import time
from pathlib import Path

VIEW = "application/vnd.jupyter.widget-view+json"
# A run whose steps cost nothing, in a thread of the kernel, as a trainer's are.
STEPS = """
import threading, time, nbkit
from nbkit.training import Run
from nbkit.training.record import Recorder, new_path
from tests.recorded import row

def begin(total, every_s=0.05):
    recorder = Recorder(new_path("steps"))
    recorder.set("training", max_steps=total)
    def work():
        step = 0
        while step < total and not recorder.stop_asked:
            step += 1
            recorder.row(step, row(step)); recorder.step(step)
            time.sleep(every_s)
        recorder.set("stopped" if recorder.stop_asked else "done", step=step)
    threading.Thread(target=work, daemon=True).start()
    return Run(recorder.path)
"""
LIMIT_S = 60.0


class Kernel:
    """A kernel and its messages, in the order in which they came; every wait has a limit."""

    def __init__(self, client):
        self.client, self.messages = client, []

    def until(self, wanted, what):
        """The first message, from now on or before, that `wanted` accepts."""
        deadline, seen = time.monotonic() + LIMIT_S, 0
        while True:
            for message in self.messages[seen:]:
                if wanted(message):
                    return message
            seen = len(self.messages)
            try:
                self.messages.append(self.client.get_iopub_msg(timeout=1))
            except queue.Empty:
                assert time.monotonic() < deadline, f"waited {LIMIT_S:g} s for {what}"

    def send(self, code):
        """Ask for a cell to be run; its id."""
        return self.client.execute(code)

    def run(self, code):
        """Run a cell; its messages."""
        asked = self.send(code)
        self.ended(asked)
        mine = [message for message in self.messages if is_of(message, asked)]
        assert [] == [message["content"]["evalue"] for message in mine if kind_of(message) == "error"]
        return mine

    def ended(self, asked):
        """Wait for a cell to end."""
        self.until(lambda m: is_of(m, asked) and m["content"].get("execution_state") == "idle", "the cell's end")

    def say(self, comm, content, **header):
        """A message from the page of a widget, as its front end sends it."""
        data = {"method": "custom", "content": content} if "kind" in content else content
        message = self.client.session.msg("comm_msg", {"comm_id": comm, "data": data})
        message["header"].update(header)
        self.client.shell_channel.send(message)

    def told(self, comm):
        """What a widget told its page so far."""
        return [
            m["content"]["data"] for m in self.messages if kind_of(m) == "comm_msg" and m["content"]["comm_id"] == comm
        ]


def kind_of(message):
    return message["header"]["msg_type"]


def is_of(message, asked):
    return message["parent_header"].get("msg_id") == asked


def shown_by(messages):
    """The data of what a cell displayed."""
    return [message["content"]["data"] for message in messages if kind_of(message) == "display_data"]


def is_drawn(message):
    return kind_of(message) == "update_display_data" and "<svg" in message["content"]["data"].get("text/html", "")


def is_frozen(message):
    return kind_of(message) == "update_display_data" and "data:image/svg+xml" in message["content"]["data"].get(
        "text/html", ""
    )


def custom_in(message, comm):
    """The content of a widget's custom message; empty for any other."""
    if kind_of(message) != "comm_msg" or message["content"]["comm_id"] != comm:
        return {}
    data = message["content"]["data"]
    return data["content"] if data["method"] == "custom" else {}


def state_in(message, comm):
    """The state in a widget's update; empty for any other."""
    if kind_of(message) != "comm_msg" or message["content"]["comm_id"] != comm:
        return {}
    data = message["content"]["data"]
    return data["state"] if data["method"] == "update" else {}


@contextlib.contextmanager
def running(folder):
    """A kernel at work in `folder`, on sockets of a folder of its own."""
    from jupyter_client.manager import KernelManager

    sockets = Path(tempfile.mkdtemp(prefix="nbkit-", dir="/tmp"))  # a socket's path holds about a hundred characters
    dropped = ("CI", "NBKIT_DISPLAY", "NBKIT_RUNS", "PYTEST_CURRENT_TEST")
    environment = {key: value for key, value in os.environ.items() if key not in dropped}
    places = {"connection_file": str(sockets / "kernel.json"), "ip": str(sockets / "kernel")}
    manager = KernelManager(kernel_name="python3", transport="ipc", **places)
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]))
    manager.start_kernel(env={**environment, "NBKIT_RUNS": str(folder / "runs"), "PYTHONPATH": paths}, cwd=str(folder))
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=LIMIT_S)
        made = Kernel(client)
        made.run(STEPS)
        yield made
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()
        shutil.rmtree(sockets, ignore_errors=True)
