"""dashboard.js in a real Chromium, without Jupyter: what it draws, what it says, and what it sends back."""

from __future__ import annotations

import asyncio
import json
import math

import pytest

pytest.importorskip("playwright", reason="needs playwright: make setup")

from nbkit.widgets.dashboard import Dashboard
from nbkit.widgets.feed import Feed
from nbkit.widgets.head import number
from nbkit.widgets.plot import log_ticks, tick_label, ticks
from tests.recorded import recorded
from tests.test_widgets_head import NUMBERS
from tools.page import chromium, executable

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(120),
    pytest.mark.skipif(executable() is None, reason="needs Chromium: apt install chromium"),
]
# A model as anywidget hands it over, with its two ends in reach: deliver() is the kernel, sent what the kernel would get.
PAGE = """<!doctype html><meta charset=utf-8><style>body{margin:0;background:%(back)s}%(css)s</style>
<body data-jp-theme-light=%(light)s style="--jp-ui-font-color1:%(ink)s;--jp-layout-color1:%(back)s"><div id=out></div>
<script type=module>
  const state = {history: %(history)s}, heard = new Set();
  window.sent = [];
  window.model = {get: (key) => state[key], on: (_, f) => heard.add(f), off: (_, f) => heard.delete(f),
                  send: (message) => sent.push(message)};
  window.deliver = (message) => heard.forEach((f) => f(message));
  window.module = await import(URL.createObjectURL(new Blob([%(esm)s], {type: "text/javascript"})));
  const widget = module.default();
  widget.initialize({model});
  window.end = widget.render({model, el: document.getElementById("out")});
  window.ready = true;
</script>"""
STATES = ["waiting", "training", "evaluating", "paused", "stalled", "done", "stopped", "failed"]
# How many pixels of the first canvas have about this colour.
PIXELS = """([r, g, b]) => {
  const c = document.querySelector("canvas"), d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
  const far = (i) => Math.abs(d[i] - r) + Math.abs(d[i + 1] - g) + Math.abs(d[i + 2] - b);
  let found = 0;
  for (let i = 0; i < d.length; i += 4) found += far(i) < 12 && d[i + 3] > 200;
  return found;
}"""
RESULT = {
    "n": 8,
    "frozen": {"model_id": "mine", "data": {"text/html": "<b>the result</b>", "text/plain": "result"}},
}
# A notebook as JupyterLab's widget manager reaches it: text, a cell that shows the widget twice, another's widget.
NOTEBOOK = """() => {
  const view = (model_id) => ({data: {"application/vnd.jupyter.widget-view+json": {model_id}}});
  const outputs = (list) => ({length: list.length, get: (i) => list[i], set: (i, value) => { list[i] = value; }, list});
  const cells = [{}, {outputs: outputs([{}, view("mine"), view("mine")])}, {outputs: outputs([view("another")])}];
  window.cells = cells;
  model.widget_manager = {context: {model: {cells}}};
}"""


@pytest.fixture(scope="module")
def chrome():
    """One browser for the module; the thread's event loop ends with it."""
    with chromium() as browser:
        yield browser
    assert asyncio._get_running_loop() is None


@pytest.fixture
def show(chrome, tmp_path):
    """Open a page with the dashboard of a run: show(state="training", dark=False, width=900)."""
    pages = []

    def open_page(*, dark=False, width=900, run=None, **how):
        feed = Feed(run or recorded(tmp_path, **{"state": "training", "total": 90, **how}))
        feed.poll()
        colours = {"back": "#111111", "ink": "#eeeeee"} if dark else {"back": "#ffffff", "ink": "#111111"}
        texts = {
            "history": {"history": feed.snapshot(), "n": 7},
            "esm": Dashboard._esm,
            "light": "false" if dark else "true",
        }
        texts = {key: json.dumps(value).replace("</", "<\\/") for key, value in texts.items()}
        page = chrome.new_page(viewport={"width": width, "height": 700})
        pages.append(page)
        page.set_default_timeout(20_000)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.clock.install()
        page.set_content(PAGE % {**colours, **texts, "css": Dashboard._css})
        page.wait_for_function("window.ready")
        page.clock.run_for(100)
        return page

    yield open_page
    errors = [error for page in pages for error in page.errors]
    for page in pages:
        page.close()
    assert [] == errors


def part(page, name):
    """The text of one part of the dashboard."""
    return page.locator(f"[data-nbkit={name}]").inner_text()


def deliver(page, message):
    """What the kernel would send; then the next frame."""
    page.evaluate("(message) => deliver(message)", message)
    page.clock.run_for(100)


class TestNumbers:
    def test_numbers_and_ticks_read_as_in_the_picture(self, show):
        """The canvas and the static picture take the same decisions."""
        page = show()
        values = [value for value, _ in NUMBERS if value is not None and math.isfinite(value)]
        assert [number(value) for value in values] == page.evaluate(
            "(values) => values.map((v) => module.number(v))", values
        )
        scales = [(0, 2e-4, 3), (0, 1, 5), (0, 22_000, 3), (2.1, 2.4, 3), (0.31, 2.2, 3), (0, 1.5e-5, 4)]
        mine = [[tick_label(v, found[1] - found[0]) for v in found] for found in (ticks(*scale) for scale in scales)]
        its = "(all) => all.map((s) => { const t = module.ticks(...s); return t.map((v) => module.tickLabel(v, t[1] - t[0])); })"
        assert mine == page.evaluate(its, scales)
        bounds = [(0.9, 3.0), (1e-3, 1e3), (1.6, 2.4)]
        assert [pytest.approx(log_ticks(*pair)) for pair in bounds] == page.evaluate(
            "(all) => all.map((p) => module.logTicks(...p))", bounds
        )


class TestStore:
    def test_repeated_and_late_messages_do_no_harm(self, show):
        """A row whose step is there is dropped, a message that was seen as well, and a new one is taken."""
        page = show()
        head = {"state": "training", "step": 61}
        old = {"n": 7, "rows": [[61, 1, 9, 9, 9, 9, 9]]}
        for message in (old, {"n": 8, "rows": [[60, 1, 9, 9, 9, 9, 9], [61, 15, 0.5, 0.5, 1e-4, 1, 9]], "head": head}):
            deliver(page, message)
        assert "61" == page.locator("[data-nbkit=dashboard]").get_attribute("data-rows")
        assert "step 61/90" == part(page, "step")

    def test_a_gap_asks_for_the_whole(self, show):
        """When a message was missed, all of it is asked for, once; the answer replaces what was there."""
        page = show()
        for n in (9, 11):
            deliver(page, {"n": n, "rows": []})
        assert [{"kind": "ready", "n": 7}, {"kind": "ready", "n": -1}] == page.evaluate("sent")
        deliver(
            page,
            {
                "n": 12,
                "history": {
                    "run": "r",
                    "rows": [[1, 0, 2, 2, 0.1, 1, 5]],
                    "head": {"state": "training", "step": 1, "steps": 9},
                },
            },
        )
        assert ("1", "step 1/9") == (
            page.locator("[data-nbkit=dashboard]").get_attribute("data-rows"),
            part(page, "step"),
        )

    def test_a_resumed_run_takes_rows_back(self, show):
        """Steps from `back` on are replaced."""
        page = show()
        deliver(page, {"n": 8, "back": 31, "rows": [[31, 16, 0.5, 0.5, 1e-4, 1, 9]]})
        assert "31" == page.locator("[data-nbkit=dashboard]").get_attribute("data-rows")

    def test_a_long_run_stays_bounded_and_keeps_its_spike(self, show):
        """After 9,000 rows at most 4,000 are held; the high one is among them."""
        page = show()
        kept = page.evaluate("""() => {
          const store = new module.Store();
          for (let step = 1; step <= 9000; step++) store.take({n: step, rows: [[step, step, step === 777 ? 50 : 1, 1, 0, 1, 1]]});
          return [store.rows.length, Math.max(...store.rows.map((row) => row[2])), store.rows.at(-1)[0]];
        }""")
        assert (True, 50, 9000) == (kept[0] <= 4000, kept[1], kept[2])


class TestHead:
    def test_facts_and_machine(self, show):
        """The header of a run in mid-course, and the gap where a GPU would be."""
        page = show()
        facts = [part(page, name) for name in ("state", "step", "loss", "speed", "memory", "eta")]
        assert ["training", "step 60/90", "loss 0.584", "4,000 tok/s", "1.5/24 GiB"] == facts[:5]
        assert facts[5] in {"ETA 00:07", "ETA 00:08"}
        assert "20260101-000000-a · live widget · no NVIDIA driver" == part(page, "run")
        assert "RAM" in part(page, "panel-memory")

    def test_each_state_has_its_word_its_shape_and_its_colour(self, show):
        """None is told by colour alone; an ended run has nothing to stop, a failed one says why."""
        page = show()
        stop, alert, shapes = page.get_by_role("button", name="Stop"), page.get_by_role("alert"), set()
        for n, state in enumerate(STATES, 8):
            deliver(page, {"n": n, "head": {"state": state, "cause": "why" if state == "failed" else ""}})
            shapes.add(page.locator(".nbkit-state path").get_attribute("d"))
            assert state == part(page, "state")
            assert (state not in {"done", "stopped", "failed"}, state == "failed") == (
                stop.is_visible(),
                alert.is_visible(),
            )
        assert 8 == len(shapes)


class TestButtons:
    def test_stop_says_what_happens(self, show):
        """One click sends one word, the button waits, and the kernel's answer is shown until the run has ended."""
        page = show()
        stop = page.get_by_role("button", name="Stop")
        stop.click()
        assert {"kind": "stop"} == page.evaluate("sent.at(-1)")
        assert ("stopping after this step…", True) == (part(page, "note"), stop.is_disabled())
        deliver(page, {"ack": "stop"})
        page.clock.run_for(5000)
        assert "stopping after this step: a checkpoint and the adapter are saved" == part(page, "note")
        deliver(page, {"n": 8, "head": {"state": "stopped"}})
        assert ("stopped", "") == (part(page, "state"), part(page, "note"))

    def test_a_busy_kernel_is_said_with_the_other_ways(self, show):
        """Without an answer in two seconds the page says what to do instead, and not before."""
        page = show()
        page.get_by_role("button", name="Stop").click()
        page.clock.run_for(1500)
        assert "stopping after this step…" == part(page, "note")
        page.clock.run_for(1000)
        expected = (
            "no answer: the kernel is busy, or its link is lost. Use its interrupt button, "
            "or nbkit stop 20260101-000000-a in a terminal there"
        )
        assert expected == part(page, "note")

    def test_pause_becomes_resume(self, show):
        """The button names what it does next."""
        page = show()
        page.get_by_role("button", name="Pause").click()
        deliver(page, {"ack": "pause"})
        deliver(page, {"n": 8, "head": {"state": "paused"}})
        page.get_by_role("button", name="Resume").click()
        assert ["pause", "resume"] == [message["kind"] for message in page.evaluate("sent.slice(1)")]

    def test_a_refusal_is_shown(self, show):
        """The kernel's own words; the button can be tried again."""
        page = show()
        page.get_by_role("button", name="Stop").click()
        deliver(page, {"ack": "stop", "error": "The disk is full."})
        assert ("The disk is full.", False) == (
            part(page, "note"),
            page.get_by_role("button", name="Stop").is_disabled(),
        )

    def test_silence_is_said(self, show):
        """A kernel that restarted says nothing more: the page says so, and takes it back with the next word."""
        page = show()
        page.clock.run_for(30_000)
        assert "no word from the kernel" in part(page, "note")
        deliver(page, {"n": 7})
        assert "" == part(page, "note")


class TestCharts:
    def test_pointing_reads_values_at_a_step(self, show):
        """In all panels at once; leaving shows the latest again."""
        page = show()
        canvas = page.locator("canvas").first
        latest = part(page, "panel-loss")
        canvas.hover(position={"x": 60, "y": 50})
        page.clock.run_for(100)
        pointed = part(page, "panel-loss")
        assert ("at step" in latest, "at step 3" in pointed) == (False, True)
        assert "train 2.23" in pointed
        page.mouse.move(5, 690)
        page.clock.run_for(100)
        assert latest == part(page, "panel-loss")

    def test_arrow_keys_do_the_same(self, show):
        """Without a mouse: step by step, and Escape leaves."""
        page = show()
        page.get_by_role("group").focus()
        for key in ("Home", "ArrowRight", "ArrowRight"):
            page.keyboard.press(key)
        page.clock.run_for(100)
        assert "at step 3" in part(page, "panel-loss")
        assert "loss by step; step 3: train 2.23" in page.locator("canvas").first.get_attribute("aria-label")
        page.keyboard.press("Escape")
        page.clock.run_for(100)
        assert "at step" not in part(page, "panel-loss")

    @pytest.mark.parametrize("dark", [False, True])
    def test_lines_are_drawn_in_the_theme_s_colours(self, show, dark):
        """The smoothed loss is on the canvas, in the colour of the theme; so is a logarithmic one."""
        page = show(dark=dark)
        light, night = [0x3B, 0x5B, 0xDB], [0x8A, 0xA4, 0xFF]
        assert page.evaluate(PIXELS, night if dark else light) > 150
        assert 0 == page.evaluate(PIXELS, light if dark else night)
        page.get_by_role("button", name="Log scale").click()
        page.clock.run_for(100)
        assert page.evaluate(PIXELS, night if dark else light) > 150

    @pytest.mark.parametrize(("width", "columns"), [(1000, 3), (420, 1)])
    def test_a_narrow_output_has_one_column(self, show, width, columns):
        """And nothing is wider than the output."""
        page = show(width=width)
        tracks = page.evaluate(
            "getComputedStyle(document.querySelector('.nbkit-charts')).gridTemplateColumns.split(' ').length"
        )
        assert (columns, True) == (tracks, page.evaluate("document.documentElement.scrollWidth <= innerWidth"))

    def test_new_rows_move_nothing(self, show):
        """The height stays from the first row to the last: no jump in the notebook."""
        page = show(steps=0, total=900)
        height = "document.querySelector('.nbkit').offsetHeight"
        before = page.evaluate(height)
        for n in range(8, 30):
            head = {
                "state": "training",
                "step": n,
                "loss": f"{n}",
                "speed": "5,020 tok/s",
                "memory": "11.4/24",
                "eta": "07:12",
            }
            news = {"rows": [[n, n, 1 / n, 1 / n, 2e-4, 1, 5020]], "loads": [[n, 50, 4]], "evals": [[n, 1]]}
            page.evaluate("(message) => deliver(message)", {"n": n, **news, "head": head})
        page.clock.run_for(100)
        assert before == page.evaluate(height)


class TestSamples:
    def test_text_stays_text(self, show):
        """Whatever a model says, it is shown as it is and becomes no element; differences are marked."""
        page = show()
        text = page.locator("[data-nbkit=texts]")
        assert ["you ", "that. "] == text.locator("del").all_text_contents()
        assert ["<b>that</b>."] == text.locator("ins").all_text_contents()
        assert 0 == text.locator("b").count()
        assert "at step 60, changes since step 30 marked" == part(page, "compared")

    def test_an_earlier_evaluation_can_be_picked_and_stays(self, show):
        """Until the newest is picked again, new samples do not take the reader away."""
        page = show()
        page.get_by_label("evaluation whose samples are shown").select_option("30")
        assert "I can help you with that." in part(page, "texts")
        deliver(page, {"n": 8, "samples": [{"step": 90, "index": 0, "prompt": "p", "segments": [["=", "newest"]]}]})
        assert "at step 30" == part(page, "compared")
        page.get_by_label("evaluation whose samples are shown").select_option("90")
        assert "newest" in part(page, "texts")


class TestFrozen:
    def test_the_result_takes_the_widget_s_place_in_the_notebook(self, show):
        """In each output that shows this widget, and in no other."""
        page = show()
        page.evaluate(NOTEBOOK)
        deliver(page, RESULT)
        kept = {"output_type": "display_data", "metadata": {}, "data": RESULT["frozen"]["data"]}
        assert [{}, kept, kept] == page.evaluate("cells[1].outputs.list")
        assert "another" in page.evaluate("JSON.stringify(cells[2].outputs.list)")

    def test_where_the_notebook_is_out_of_reach_the_view_shows_it(self, show):
        """With how to keep it; later messages change nothing."""
        page = show()
        deliver(page, RESULT)
        deliver(page, {"n": 9, "head": {"state": "training"}})
        words = page.locator("[data-nbkit=dashboard]").inner_text().split("\n")
        assert ["the result", "Shown by the kernel. To keep it in the notebook: nbkit.watch() in a cell"] == list(
            filter(None, words)
        )


def test_a_view_that_is_closed_leaves_nothing(show):
    """No element and no timer stays behind; later messages do not fail."""
    page = show()
    page.evaluate("end()")
    assert 0 == page.locator("[data-nbkit=dashboard]").count()
    deliver(page, {"n": 8, "head": {"state": "done"}})
    page.clock.run_for(30_000)
