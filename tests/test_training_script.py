"""A run in a script, from outside: signals that end it well, and a limit of memory that it comes up against.

The scripts are forks of one process that has loaded torch; each is killed with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.train,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork and /proc (Linux)"),
]
ROOT = Path(__file__).resolve().parent.parent

SCRIPTS = """
import json, os, resource, signal, sys, threading, time
from pathlib import Path
from tests.chaos import train
train.warm()
from tests import little
from nbkit import training
from nbkit.training.run import runs

def script(root, wait):
    os.environ["NBKIT_RUNS"] = str(root)
    made = little.trainer(max_steps=4000, save_strategy="no")
    if not wait:
        slow = made.training_step
        def twice(*args, **options):
            time.sleep(1.0 if made.state.global_step >= 3 else 0)
            return slow(*args, **options)
        made.training_step = twice
    run = training.start(made)
    if wait:
        run.wait()
    while True: time.sleep(0.1)  # a script that goes on

def ended(root, wait):
    # As a script ends: Python waits for the thread, then leaves.
    os.environ["NBKIT_RUNS"] = str(root)
    run = training.start(little.trainer(max_steps=4000, save_strategy="no"))
    threading._shutdown()

ROWS = 4677  # three times a prime: what is tried next is a third of it

def bytes_of(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(key)))

def made(batch, accumulation):
    found = little.trainer(
        given=little.model(attention_dropout=0.0), per_device_train_batch_size=batch, save_strategy="no",
        gradient_accumulation_steps=accumulation, max_steps=2,
    )
    found.train_dataset = little.rows(ROWS)
    return found

def limited(root):
    # A third of the rows shows how much room that takes; all rows at once get three quarters more of it.
    os.environ["NBKIT_RUNS"] = str(root)
    small, before = made(ROWS // 3, 3), bytes_of("VmSize")
    expected = little.losses(training.start(small).wait(60))
    peak = bytes_of("VmPeak")
    large = made(ROWS, 1)
    resource.setrlimit(resource.RLIMIT_AS, (peak + (peak - before) * 3 // 4,) * 2)
    run = training.start(large).wait(60)
    resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)
    memory = [event for event in run.events() if event["event"] == "memory"]
    found = {"expected": expected, "losses": little.losses(run), "memory": memory}
    (root / "found.json").write_text(json.dumps(found))

found = {}
for name, numbers, function, wait in (
    ("interrupt", [signal.SIGINT], script, True),
    ("terminate", [signal.SIGTERM], ended, False),
    ("twice", [signal.SIGINT, signal.SIGINT], script, False),
):
    root = Path(sys.argv[1]) / name
    root.mkdir()
    pid = train.child(function, root, wait=wait)
    until = time.monotonic() + 45
    while time.monotonic() < until and not any(run.status.step >= 3 for run in runs(root)):
        time.sleep(0.02)
    for number in numbers:
        os.kill(pid, number)
        time.sleep(0.2)
    code = train.end(pid, 45)
    run = runs(root)[0]
    found[name] = [code, run.status.state, run.adapter.is_dir(), len(list(run.path.glob("checkpoints/checkpoint-*")))]

root = Path(sys.argv[1]) / "limited"
root.mkdir()
code = train.end(train.child(limited, root), 100)
found["limited"] = json.loads((root / "found.json").read_text()) if code == 0 else {"code": code}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What became of the scripts."""
    places = [str(ROOT), *filter(None, sys.path)]
    # Each arena of glibc takes 64 MiB of address space, needed or not, and the limit counts address space.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    folder = tmp_path_factory.mktemp("scripts")
    command = [sys.executable, "-c", SCRIPTS, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert 0 == done.returncode, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


class TestSignals:
    """In a script they end the run well."""

    def test_an_interrupt_in_wait_saves_and_ends_with_130(self, found):
        """SIGINT finishes the step, saves a checkpoint, and keeps the result."""
        assert [130, "stopped", True, 1] == found["interrupt"]

    def test_a_termination_after_the_last_line_saves_and_ends_with_143(self, found):
        """SIGTERM, when Python only waits for the run's thread any more."""
        assert [143, "stopped", True, 1] == found["terminate"]

    def test_a_second_one_leaves_at_once(self, found):
        """Without waiting for a step; nothing is kept."""
        assert [130, "failed", False] == found["twice"][:3]


def test_a_limit_of_memory_makes_the_batch_smaller_on_a_cpu(found):
    """RLIMIT_AS without room for all rows of a step: the run goes on by thirds, with the losses of such a run."""
    (event,) = found["limited"]["memory"]
    assert "4677 x 1 to 1559 x 3" in event["batch"]
    assert found["limited"]["expected"] == pytest.approx(found["limited"]["losses"], rel=1e-4)
