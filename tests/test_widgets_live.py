"""Views in a real IPython kernel: what reaches the front end, and what a click does; and plain text elsewhere."""

from __future__ import annotations

import json
import re

import pytest

from nbkit.training import Run
from nbkit.widgets.live import watch
from tests.recorded import recorded
from tests.widget_kernel import LIMIT_S, VIEW, custom_in, is_drawn, is_frozen, is_of, kind_of, shown_by, state_in

pytest.importorskip("ipykernel", reason="needs ipykernel: make setup")


@pytest.fixture
def widget(kernel):
    """Start a run of 2,000 steps and watch it: its widget's comm; the run is stopped afterwards."""
    kernel.watched = kernel.run("run = begin(2000)\nnbkit.watch(run)")
    yield shown_by(kernel.watched)[0][VIEW]["model_id"]
    kernel.run("run.status.active and run.stop()")
    kernel.run("run.wait(30)")


class TestDashboard:
    def test_one_widget_and_nothing_else(self, kernel, widget):
        """The cell shows the view; the run as its last line does not show a second time."""
        assert [VIEW, "text/plain"] == sorted(*shown_by(kernel.watched))
        assert [] == [message for message in kernel.watched if kind_of(message) == "execute_result"]
        opens = [message["content"] for message in kernel.messages if kind_of(message) == "comm_open"]
        state = next(content["data"]["state"] for content in opens if content["comm_id"] == widget)
        assert "export default" in state["_esm"]
        assert re.fullmatch(r"\d{8}-\d{6}-steps(-\d+)?", state["history"]["history"]["run"])

    def test_deltas_are_small_and_a_page_that_connects_gets_all(self, kernel, widget):
        """Refreshes carry what is new, in well under 1 kB where they are not late; `ready` and a request for the state give
        the whole."""
        kernel.until(lambda m: len(kernel.told(widget)) > 8, "eight refreshes")
        deltas = [
            each["content"] for each in kernel.told(widget) if each["method"] == "custom" and "rows" in each["content"]
        ]
        # Four steps a refresh; one that comes late brings those that waited for it.
        assert max(len(json.dumps(delta)) / max(1.0, len(delta["rows"]) / 8) for delta in deltas[1:]) < 800
        kernel.say(widget, {"kind": "ready", "n": 0})
        whole = kernel.until(lambda m: "history" in custom_in(m, widget), "the whole")
        kernel.say(widget, {"method": "request_state"})
        state = kernel.until(lambda m: "history" in state_in(m, widget), "the state")
        counts = [
            len(found["history"]["rows"]) for found in (custom_in(whole, widget), state_in(state, widget)["history"])
        ]
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
        waiting = kernel.send("run.wait(60)")
        kernel.until(lambda m: is_of(m, waiting) and kind_of(m) == "execute_input", "the waiting cell")
        kernel.say(widget, {"kind": "stop"}, subshell_id=subshell)
        kernel.until(lambda m: "stop" == custom_in(m, widget).get("ack"), "the answer to the click")
        kernel.ended(waiting)
        assert [] == [m["content"]["evalue"] for m in kernel.messages if is_of(m, waiting) and kind_of(m) == "error"]
        frozen = custom_in(kernel.until(lambda m: "frozen" in custom_in(m, widget), "the picture for pages"), widget)
        result = frozen["frozen"]["data"]
        assert (widget, {"text/html", "text/plain"}) == (frozen["frozen"]["model_id"], set(result))
        assert "stopped" in result["text/plain"]
        kernel.until(lambda m: is_frozen(m) and result == m["content"]["data"], "the same in the output")
        kernel.say(widget, {"method": "request_state"})  # a page that opens later
        late = kernel.until(lambda m: "frozen" in state_in(m, widget).get("history", {}), "the picture for a late page")
        assert frozen == state_in(late, widget)["history"]

    def test_a_run_that_ended_says_so_to_a_late_click(self, kernel):
        """The page gets the sentence that the command line would print."""
        code = (
            "from nbkit.widgets.dashboard import Dashboard\nfrom nbkit.widgets.feed import Feed\nd = Dashboard(Feed(r))"
        )
        kernel.run(f"r = begin(2); r.wait(30)\n{code}")
        comm = kernel.run("print(d.model_id, end='')")
        name = next(m["content"]["text"] for m in comm if kind_of(m) == "stream")
        kernel.say(name, {"kind": "pause"})
        answer = custom_in(kernel.until(lambda m: "error" in custom_in(m, name), "the refusal"), name)
        assert "is not running: done at step 2." in answer["error"]

    def test_a_front_end_without_widgets_gets_pictures(self, kernel):
        """When no page answers although the kernel is idle, the output becomes a picture that is kept up to date."""
        shown = shown_by(
            kernel.run("import nbkit.widgets.live as live; live._UNSEEN_S = 0.5\nrun = begin(2000)\nnbkit.watch(run)")
        )
        assert VIEW in shown[0]
        why = "pictures: no widget answered from this page; NBKIT_DISPLAY=widget, html or text overrides"
        kernel.until(lambda m: is_drawn(m) and why in m["content"]["data"]["text/html"], "a picture that says why")
        kernel.run("live._UNSEEN_S = 15.0; run.stop(); run.wait(30)")
        kernel.until(lambda m: is_frozen(m) and "stopped" in m["content"]["data"]["text/plain"], "the last picture")


class TestPictures:
    def test_html_mode_updates_one_output_and_freezes_it(self, kernel):
        """NBKIT_DISPLAY=html needs no widget manager."""
        before = len(kernel.messages)
        shown = shown_by(
            kernel.run("import os; os.environ['NBKIT_DISPLAY'] = 'html'\nrun = begin(2000)\nnbkit.watch(run)")
        )
        assert (1, True, False) == (len(shown), "<svg" in shown[0]["text/html"], VIEW in shown[0])
        run = re.search(r"<title>([\w-]+): ", shown[0]["text/html"])[1]
        note = "pictures, no widget: NBKIT_DISPLAY=html; NBKIT_DISPLAY=widget, html or text overrides"
        assert f"{run} · {note}" in shown[0]["text/html"]
        kernel.until(lambda m: is_drawn(m) and run in m["content"]["data"]["text/html"], "a picture of later")
        kernel.run("run.stop()")
        kernel.until(lambda m: is_frozen(m) and run in m["content"]["data"]["text/plain"], "the last picture")
        updates = [m for m in kernel.messages[before:] if kind_of(m) == "update_display_data"]
        assert len(updates) >= 2
        kernel.run("del os.environ['NBKIT_DISPLAY']")

    def test_an_ended_run_is_shown_frozen_at_once(self, kernel):
        """Watching again after a reload or a restart puts the result back."""
        shown = shown_by(kernel.run("r = begin(3); r.wait(30)\nnbkit.watch()"))
        assert (1, True) == (len(shown), "data:image/svg+xml" in shown[0]["text/html"])
        assert "state          done" in shown[0]["text/plain"]

    def test_ci_gets_text(self, kernel):
        """nbval and nbclient compare the first value of an output: there is none that changes."""
        messages = kernel.run(
            "import os; os.environ['CI'] = '1'\nr = begin(3); r.wait(30)\nnbkit.watch(r); del os.environ['CI']"
        )
        assert [] == shown_by(messages)
        text = "".join(m["content"]["text"] for m in messages if kind_of(m) == "stream")
        assert re.search(r"-steps(-\d+)?: done · step 3/3 · loss 2\.\d+", text)
        assert text.endswith("as text: CI is set; NBKIT_DISPLAY=widget, html or text overrides\n")


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
