"""The quick form of tests/chaos: kills, full disks and tampered checkpoints, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.train
def test_no_fault_loses_a_run_or_changes_it_silently():
    """6 kills, 2 full disks, 6 damages: every resume works, loses one interval at most and ends bit by bit the same."""
    command = [
        sys.executable, "-m", "tests.chaos.checkpoints", "--kills", "6", "--disk", "2", "--tamper", "6", "--peer", "0",
        "--seed", "20261130", "--json",
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert 0 == done.returncode, done.stdout[-3000:] + done.stderr[-3000:]
    rows = {row["fault"]: row for row in json.loads(done.stdout)}
    assert [6, 6] == [rows["kill -9, half inside a save"]["tried"], rows["newest checkpoint tampered with"]["tried"]]
    assert rows["disk full"]["tried"] in {0, 2}  # 0: no right to mount a small disk
    for row in rows.values():
        assert (0, 0, row["tried"]) == (row["unusable"], row["silently different"], row["bit-exact"])
        assert row["most steps lost"] <= 2
