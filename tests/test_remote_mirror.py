"""Training runs on a box, watched here: their files grow here as they do there, and what is asked here is done there."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from nbkit.errors import RemoteCommandError, RunError, UnreachableError
from nbkit.remote import connect, lasting, mirror, work
from nbkit.widgets.feed import Feed
from nbkit.widgets.live import watch
from nbkit.widgets.summary import summary
from tests import works
from tests.waiting import until
from tests.widget_kernel import VIEW, custom_in, is_frozen, shown_by
from tests.works import finished

# A run of nbkit whose steps cost nothing: as many as its arguments say, or until a file is there, where they name one.
STEPS = """
import itertools, os, sys, time
from nbkit.training.record import Recorder, new_path
recorder = Recorder(new_path("steps"))
total, every_s = int(sys.argv[1]), float(sys.argv[2])
recorder.set("training", max_steps=total)
for step in itertools.count(1):
    if recorder.stop_asked:
        break
    recorder.row(step, {"loss": 3 / step, "learning_rate": 2e-4, "num_tokens": 1000.0 * step})
    recorder.system({"cpu_percent": 50.0, "rss_gib": 1.0, "ram_gib": 4.0})
    recorder.step(step)
    time.sleep(every_s)
    if os.path.exists(sys.argv[3]) if len(sys.argv) > 3 else step == total:
        break
recorder.set("stopped" if recorder.stop_asked else "done", step=step)
recorder.close()
"""


box = works.box


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NBKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def trains(box, tmp_path):
    """Begin a run there: so many steps, so many seconds each; or until a file is there."""

    def begin(steps, every_s, *until_there):
        (tmp_path / "steps.py").write_text(STEPS)
        return work.begin(box, tmp_path / "steps.py", arguments=[str(steps), str(every_s), *map(str, until_there)])

    return begin


def there(found, run):
    """The run's directory on the box."""
    return Path(found.about["folder"], "runs", run.id)


def same(found, run):
    """Whether every file here is what it is there."""
    names = ["status.json", "metrics.jsonl", "system.jsonl"]
    return [(run.path / name).read_bytes() for name in names] == [
        (there(found, run) / name).read_bytes() for name in names
    ]


def ended(run):
    run._mirror.join(120)
    return run.status


class TestMirror:
    def test_grows_here_as_it_does_there(self, box, trains, tmp_path):
        """A feed of it moves while it runs; at the end every file is the one that is there, for this user alone."""
        found = trains(60, 0.05, tmp_path / "enough")
        run = mirror.watch(box)
        feed = Feed(run)
        seen = [len(feed.poll().rows)]
        until(lambda: seen.append(len(feed.poll().rows)) or len([rows for rows in seen if rows]) > 5)
        assert "training" == run.status.state
        (tmp_path / "enough").touch()
        assert "done" == ended(run).state
        assert list(range(1, run.status.step + 1)) == [row["step"] for row in run.metrics()]
        assert same(found, run)
        assert (0o700, 0o600) == tuple(path.stat().st_mode & 0o777 for path in (run.path, run.path / "metrics.jsonl"))

    def test_cuts_lose_no_row_and_double_none(self, box, server, trains):
        """Three cuts while it trains: each step is here once, in order."""
        found = trains(100, 0.03)
        run = mirror.watch(box, found.id)
        for step in (10, 40, 70):
            until(lambda step=step: run.status.step >= step)
            server.cut()
        assert "done" == ended(run).state
        assert list(range(1, 101)) == [row["step"] for row in run.metrics()]
        assert same(found, run)

    def test_a_link_that_is_away_is_said(self, box, server, trains):
        """While the box cannot be reached the run is shown as it was, with the reason; then it goes on."""
        run = mirror.watch(box, trains(100000, 0.05).id)
        server.stop()
        try:
            until(lambda: "the link to box is lost" in run.status.doing)
            assert run.status.active
        finally:
            server.start()
        step = run.status.step
        until(lambda: not run.status.doing and run.status.step > step)
        run.stop()
        assert "stopped" == ended(run).state

    def test_two_at_once_and_one_that_was_killed(self, box, trains, tmp_path):
        """Several views share one copy; one that a killed process left is gone on with, also after half a line."""
        found = trains(80, 0.05)
        run = mirror.watch(box, found.id)
        copy = Path(tmp_path / "other" / run.path.relative_to(tmp_path / "cache"))
        copy.mkdir(parents=True)
        until(lambda: run.status.step > 10)
        whole = (run.path / "metrics.jsonl").read_bytes()
        (copy / "metrics.jsonl").write_bytes(whole[: len(whole) // 2])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NBKIT_CACHE", str(tmp_path / "other"))
            resumed = mirror.watch(box, found.id)
        again = mirror.watch(box, found.id)
        assert copy == resumed.path
        assert run.path == again.path
        for each in (run, resumed, again):
            assert "done" == ended(each).state
            assert same(found, each)

    def test_stop_and_pause_reach_it(self, box, trains):
        """They are asked for there, and seen here; a run that has ended refuses them."""
        found = trains(100000, 0.05)
        run = mirror.watch(box, found.id)
        run.pause()
        until(lambda: run.pausing)
        assert (there(found, run) / "PAUSE").exists()
        run.unpause()
        until(lambda: not run.pausing)
        assert not (there(found, run) / "PAUSE").exists()
        run.stop()
        assert "stopped" == ended(run).state
        with pytest.raises(RunError, match="is not running: stopped"):
            run.stop()

    def test_what_is_asked_while_the_link_is_away(self, box, server, trains):
        """It is told in order when the link is back, and nobody waits for that; a wish that is refused is an error at once."""
        found = trains(100000, 0.05)
        run = mirror.watch(box, found.id)
        server.stop()
        try:
            until(lambda: run.status.away, 30)
            began = time.monotonic()
            run.pause()
            run.unpause()
            run.stop()
            assert time.monotonic() - began < 10
            assert run.status.doing.endswith("connecting again; then it is asked to pause, go on, stop")
        finally:
            server.start()
        assert "stopped" == ended(run).state
        assert not (there(found, run) / "PAUSE").exists()
        assert "nbkit pull" in repr(summary(Feed(run)))
        with pytest.raises(RemoteCommandError, match="absent"):
            run._mirror.asker.ask("pause", on=True, run="absent")

    def test_what_is_asked_of_a_box_that_is_silent(self, box, server, trains):
        """A link that stands and carries nothing holds nobody up; what was asked is told, and until then said not to be."""
        run = mirror.watch(box, trains(100000, 0.05).id)
        frozen = server.children()
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            run.stop()
            assert time.monotonic() - began < 5
            assert "box does not answer yet; it is asked to stop" == run.status.doing
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
        assert "stopped" == ended(run).state

    def test_a_link_that_does_not_come_back(self, box, server, trains, monkeypatch):
        """The run is shown as not seen any more, with what looks again, and refuses what is asked of it."""
        found = trains(100000, 0.05)
        run = mirror.watch(box, found.id)
        monkeypatch.setattr(lasting, "_BACK_S", 0.5)
        server.stop()
        try:
            until(lambda: run.status.state == "stalled", 30)
            assert f'nbkit.watch("{found.id}", on="box") in a cell looks again' in run.status.doing
            with pytest.raises(UnreachableError):
                run.stop()
        finally:
            server.start()
        with connect("box", config=server.config, python=shlex.quote(sys.executable)) as again:
            work.find(again, found.id).stop(0)

    def test_process_that_is_gone(self, box, trains):
        """A run whose process was killed there has failed, and it is said where and where to look."""
        found = trains(100000, 0.05)
        run = mirror.watch(box, found.id)
        os.kill(run.status.pid, signal.SIGKILL)
        status = ended(run)
        assert "failed" == status.state
        assert f"its process {status.pid} on box is gone" in status.cause
        assert f"nbkit logs {found.id}" in status.hint

    def test_another_clock(self, box, trains):
        """A box whose clock is an hour behind has not stalled; one that is silent for an hour has."""
        run = mirror.watch(box, trains(100000, 0.05).id)
        run.stop()
        ended(run)
        path = run.path / "status.json"
        told = json.loads(path.read_text()) | {"state": "training", "updated": time.time() - 3600}
        path.write_text(json.dumps(told))
        run._mirror.ahead_s = -3600.0
        assert "training" == run.status.state
        run._mirror.ahead_s = 0.0
        assert "stalled" == run.status.state

    def test_nothing_to_watch(self, box, tmp_path):
        """What trains nothing is no run to watch; neither is a box where nothing was begun."""
        (tmp_path / "a.py").write_text("print(1)")
        found, _ = finished(work.begin(box, tmp_path / "a.py"))
        with pytest.raises(RunError, match=f"{found.id} on box trained nothing"):
            mirror.watch(box, found.id)
        with pytest.raises(RemoteCommandError, match="no run 'absent'"):
            mirror.watch(box, "absent")


class TestViews:
    def test_watch_tells_a_script(self, box, trains, capsys):
        """Outside a notebook nbkit.watch(on=...) prints where the run stands, and returns it."""
        found = trains(20, 0.05)
        run = watch(found.id, on=box)
        assert f"{run.id} on box: " in capsys.readouterr().out
        assert "done" == ended(run).state

    def test_watch_finds_what_was_begun_here(self, box, server, trains, capsys, tmp_path, monkeypatch):
        """A name is enough for a run that this machine began, wherever; one that means a run here too is an error."""
        monkeypatch.setenv("NBKIT_RUNS", str(tmp_path / "runs"))
        (tmp_path / "steps.py").write_text(STEPS)
        found = work.begin(box, tmp_path / "steps.py", arguments=["20", "0.05"], config=str(server.config))
        run = watch("steps")
        assert (found.id, "done") == (run.work, ended(run).state)
        assert found.id == watch(found.id, on="box").work
        capsys.readouterr()
        here = tmp_path / "runs" / found.id
        shutil.copytree(run.path, here)
        with pytest.raises(RunError, match=f"{found.id} on box"):
            watch(found.id[:20])
        assert here == watch(here).path
        with pytest.raises(RunError, match="no run 'absent'"):
            watch("absent")

    def test_dashboard_of_a_run_there(self, kernel, server, trains, tmp_path):
        """In a notebook it is the dashboard; its Stop reaches the box; the picture stays when the run has ended."""
        found = trains(100000, 0.05)
        kernel.run(f"import os\nos.environ['NBKIT_CACHE'] = {str(tmp_path / 'cache')!r}")
        kernel.run(f"box = nbkit.connect('box', config={str(server.config)!r}, python={shlex.quote(sys.executable)!r})")
        widget = shown_by(kernel.run(f"far = nbkit.watch({found.id!r}, on=box)"))[0][VIEW]["model_id"]
        kernel.until(lambda m: "rows" in custom_in(m, widget), "rows")
        kernel.say(widget, {"kind": "stop"})
        kernel.until(lambda m: "stop" == custom_in(m, widget).get("ack"), "the answer to the click")
        kernel.until(lambda m: is_frozen(m) and "stopped" in m["content"]["data"]["text/plain"], "the picture")
        assert "stopped" == finished(found)[0].about["runs"][0]["state"]
        kernel.run("box.close()")


class TestCommands:
    def test_watch_pause_and_stop_on(self, laptop):
        """The verbs of a run take --on, and know by itself a run that was begun here."""
        (laptop.folder / "steps.py").write_text(STEPS)
        laptop.run("run", "steps.py", "--on", "box", "-d", *laptop.options, "--", "100000", "0.05")
        watching = laptop.popen("watch", "steps", "--json")
        first = json.loads(watching.stdout.readline())
        assert ("state", "training") == (first["kind"], first["state"])
        assert "to pause after its step" in laptop.run("pause", "--on", "box", *laptop.options)[2]
        assert "goes on" in laptop.run("unpause", "steps")[2]
        assert f"{first['run']} saves first, SIGTERM after 120 s" in laptop.run("stop", "steps")[2]
        lines = [json.loads(line) for line in watching.stdout]
        assert (0, "stopped") == (watching.wait(30), lines[-1]["state"])
        watching.communicate()
        steps = [line["step"] for line in lines if line["kind"] == "row"]
        assert list(range(1, len(steps) + 1)) == steps

    def test_watch_interrupted(self, laptop):
        """Ctrl-C leaves the run alone and says how to stop it; -F without a host is wrong usage."""
        (laptop.folder / "steps.py").write_text(STEPS)
        laptop.run("run", "steps.py", "--on", "box", "-d", *laptop.options, "--", "100000", "0.05")
        watching = laptop.popen("watch", "--on", "box", *laptop.options)
        assert "training" in watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate(timeout=30)
        assert 130 == watching.returncode
        (named,) = err.rpartition("Stop it with: nbkit stop ")[2].split()
        assert 0 == laptop.run("pause", named, "--on", "box")[0]  # as a notebook shows it, where the run was begun
        assert 0 == laptop.run("stop", named)[0]
        assert 2 == laptop.run("watch", *laptop.options)[0]
