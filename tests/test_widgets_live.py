"""Views in a real IPython kernel: what reaches the front end, and what a click does; and plain text elsewhere."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from nbkit.training import Run
from nbkit.widgets.live import watch
from tests.recorded import recorded

pytest.importorskip("ipykernel", reason="needs ipykernel: make setup")

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
        mine = [message for message in self.messages if _of(message, asked)]
        assert [] == [message["content"]["evalue"] for message in mine if _kind(message) == "error"]
        return mine

    def ended(self, asked):
        """Wait for a cell to end."""
        self.until(lambda m: _of(m, asked) and m["content"].get("execution_state") == "idle", "the cell's end")

    def say(self, comm, content, **header):
        """A message from the page of a widget, as its front end sends it."""
        data = {"method": "custom", "content": content} if "kind" in content else content
        message = self.client.session.msg("comm_msg", {"comm_id": comm, "data": data})
        message["header"].update(header)
        self.client.shell_channel.send(message)

    def told(self, comm):
        """What a widget told its page so far."""
        return [
            m["content"]["data"] for m in self.messages if _kind(m) == "comm_msg" and m["content"]["comm_id"] == comm
        ]


def _kind(message):
    return message["header"]["msg_type"]


def _of(message, asked):
    return message["parent_header"].get("msg_id") == asked


def _shown(messages):
    """The data of what a cell displayed."""
    return [message["content"]["data"] for message in messages if _kind(message) == "display_data"]


def _drawn(message):
    return _kind(message) == "update_display_data" and "<svg" in message["content"]["data"].get("text/html", "")


def _frozen(message):
    return _kind(message) == "update_display_data" and "data:image/svg+xml" in message["content"]["data"].get(
        "text/html", ""
    )


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """One kernel for the module, on sockets of its own folder; it ends with the module."""
    from jupyter_client.manager import KernelManager

    folder = tmp_path_factory.mktemp("kernel")
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


@pytest.fixture
def widget(kernel):
    """Start a run of 2,000 steps and watch it: its widget's comm; the run is stopped afterwards."""
    kernel.watched = kernel.run("run = begin(2000)\nnbkit.watch(run)")
    yield _shown(kernel.watched)[0][VIEW]["model_id"]
    kernel.run("run.status.active and run.stop()")
    kernel.run("run.wait(30)")


class TestDashboard:
    def test_one_widget_and_nothing_else(self, kernel, widget):
        """The cell shows the view; the run as its last line does not show a second time."""
        assert [VIEW, "text/plain"] == sorted(*_shown(kernel.watched))
        assert [] == [message for message in kernel.watched if _kind(message) == "execute_result"]
        opens = [message["content"] for message in kernel.messages if _kind(message) == "comm_open"]
        state = next(content["data"]["state"] for content in opens if content["comm_id"] == widget)
        assert "export default" in state["_esm"]
        assert re.fullmatch(r"\d{8}-\d{6}-steps(-\d+)?", state["history"]["history"]["run"])

    def test_deltas_are_small_and_a_page_that_connects_gets_all(self, kernel, widget):
        """Refreshes carry what is new, in well under 1 kB; `ready` and a request for the state give the whole."""
        kernel.until(lambda m: len(kernel.told(widget)) > 8, "eight refreshes")
        deltas = [
            each["content"] for each in kernel.told(widget) if each["method"] == "custom" and "rows" in each["content"]
        ]
        assert max(len(json.dumps(delta)) for delta in deltas[1:]) < 800
        kernel.say(widget, {"kind": "ready", "n": 0})
        whole = kernel.until(lambda m: "history" in _custom(m, widget), "the whole")
        kernel.say(widget, {"method": "request_state"})
        state = kernel.until(lambda m: "history" in _state(m, widget), "the state")
        counts = [len(found["history"]["rows"]) for found in (_custom(whole, widget), _state(state, widget)["history"])]
        assert counts == sorted(counts)
        assert counts[0] > 8

    def test_a_click_is_heard_while_a_cell_waits(self, kernel, widget):
        """Stop ends the run although run.wait() blocks the kernel; then a picture takes the widget's place, on every page."""
        info = kernel.client.kernel_info(reply=True, timeout=LIMIT_S)
        if "kernel subshells" not in info["content"].get("supported_features", []):
            pytest.skip("this ipykernel has no subshells")
        request = kernel.client.session.msg("create_subshell_request", {})
        kernel.client.control_channel.send(request)
        subshell = kernel.client.get_control_msg(timeout=LIMIT_S)["content"]["subshell_id"]
        waiting = kernel.send("run.wait(20)")
        kernel.until(lambda m: _of(m, waiting) and _kind(m) == "execute_input", "the waiting cell")
        kernel.say(widget, {"kind": "stop"}, subshell_id=subshell)
        kernel.until(lambda m: "stop" == _custom(m, widget).get("ack"), "the answer to the click")
        kernel.ended(waiting)
        assert [] == [m["content"]["evalue"] for m in kernel.messages if _of(m, waiting) and _kind(m) == "error"]
        frozen = _custom(kernel.until(lambda m: "frozen" in _custom(m, widget), "the picture for pages"), widget)
        result = frozen["frozen"]["data"]
        assert (widget, {"text/html", "text/plain"}) == (frozen["frozen"]["model_id"], set(result))
        assert "stopped" in result["text/plain"]
        kernel.until(lambda m: _frozen(m) and result == m["content"]["data"], "the same in the output")
        kernel.say(widget, {"method": "request_state"})  # a page that opens later
        late = kernel.until(lambda m: "frozen" in _state(m, widget).get("history", {}), "the picture for a late page")
        assert frozen == _state(late, widget)["history"]

    def test_a_run_that_ended_says_so_to_a_late_click(self, kernel):
        """The page gets the sentence that the command line would print."""
        code = (
            "from nbkit.widgets.dashboard import Dashboard\nfrom nbkit.widgets.feed import Feed\nd = Dashboard(Feed(r))"
        )
        kernel.run(f"r = begin(2); r.wait(30)\n{code}")
        comm = kernel.run("print(d.model_id, end='')")
        name = next(m["content"]["text"] for m in comm if _kind(m) == "stream")
        kernel.say(name, {"kind": "pause"})
        answer = _custom(kernel.until(lambda m: "error" in _custom(m, name), "the refusal"), name)
        assert "is not running: done at step 2." in answer["error"]

    def test_a_front_end_without_widgets_gets_pictures(self, kernel):
        """When no page answers although the kernel is idle, the output becomes a picture that is kept up to date."""
        shown = _shown(
            kernel.run("import nbkit.widgets.live as live; live._UNSEEN_S = 0.5\nrun = begin(2000)\nnbkit.watch(run)")
        )
        assert VIEW in shown[0]
        why = "pictures: no widget answered from this page; NBKIT_DISPLAY=widget, html or text overrides"
        kernel.until(lambda m: _drawn(m) and why in m["content"]["data"]["text/html"], "a picture that says why")
        kernel.run("live._UNSEEN_S = 15.0; run.stop(); run.wait(30)")
        kernel.until(lambda m: _frozen(m) and "stopped" in m["content"]["data"]["text/plain"], "the last picture")


class TestPictures:
    def test_html_mode_updates_one_output_and_freezes_it(self, kernel):
        """NBKIT_DISPLAY=html needs no widget manager."""
        before = len(kernel.messages)
        shown = _shown(kernel.run("import os; os.environ['NBKIT_DISPLAY'] = 'html'\nrun = begin(30)\nnbkit.watch(run)"))
        assert (1, True, False) == (len(shown), "<svg" in shown[0]["text/html"], VIEW in shown[0])
        run = re.search(r"<title>([\w-]+): ", shown[0]["text/html"])[1]
        note = "pictures, no widget: NBKIT_DISPLAY=html; NBKIT_DISPLAY=widget, html or text overrides"
        assert f"{run} · {note}" in shown[0]["text/html"]
        kernel.until(lambda m: _frozen(m) and run in m["content"]["data"]["text/plain"], "the last picture")
        updates = [m for m in kernel.messages[before:] if _kind(m) == "update_display_data"]
        assert len(updates) >= 2
        kernel.run("del os.environ['NBKIT_DISPLAY']")

    def test_an_ended_run_is_shown_frozen_at_once(self, kernel):
        """Watching again after a reload or a restart puts the result back."""
        shown = _shown(kernel.run("r = begin(3); r.wait(30)\nnbkit.watch()"))
        assert (1, True) == (len(shown), "data:image/svg+xml" in shown[0]["text/html"])
        assert "state          done" in shown[0]["text/plain"]

    def test_ci_gets_text(self, kernel):
        """nbval and nbclient compare the first value of an output: there is none that changes."""
        messages = kernel.run(
            "import os; os.environ['CI'] = '1'\nr = begin(3); r.wait(30)\nnbkit.watch(r); del os.environ['CI']"
        )
        assert [] == _shown(messages)
        text = "".join(m["content"]["text"] for m in messages if _kind(m) == "stream")
        assert re.search(r"-steps(-\d+)?: done · step 3/3 · loss 2\.\d+", text)
        assert text.endswith("as text: CI is set; NBKIT_DISPLAY=widget, html or text overrides\n")


def _custom(message, comm):
    """The content of a widget's custom message; empty for any other."""
    if _kind(message) != "comm_msg" or message["content"]["comm_id"] != comm:
        return {}
    data = message["content"]["data"]
    return data["content"] if data["method"] == "custom" else {}


def _state(message, comm):
    """The state in a widget's update; empty for any other."""
    if _kind(message) != "comm_msg" or message["content"]["comm_id"] != comm:
        return {}
    data = message["content"]["data"]
    return data["state"] if data["method"] == "update" else {}


@pytest.mark.parametrize("chosen", ["text", "widget", "html"])
def test_outside_a_notebook_there_is_a_line(tmp_path, monkeypatch, capsys, chosen):
    """A script or plain IPython has no output to draw in, whatever is asked for; `watch` returns the run at once."""
    monkeypatch.setenv("NBKIT_DISPLAY", chosen)
    run = recorded(tmp_path)
    assert run is watch(run)
    assert capsys.readouterr().out.startswith("20260101-000000-a: done · step 60/60 · loss 0.5843")


def test_the_newest_run_is_watched_when_none_is_named(tmp_path, monkeypatch, capsys):
    """After a reload or a restart one needs no id."""
    monkeypatch.setenv("NBKIT_RUNS", str(tmp_path))
    monkeypatch.setenv("NBKIT_DISPLAY", "text")
    for name in ("20260101-000000-a", "20260102-000000-b"):
        recorded(tmp_path, name, steps=2)
    assert Run(tmp_path / "20260102-000000-b").path == watch().path
    assert "20260102-000000-b: done" in capsys.readouterr().out
