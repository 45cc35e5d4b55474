"""What `nbkit --help` and `import nbkit` cost, in CPU time, against a bare `import click`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from bench import CannotRunError, Line, Outcome

ROUNDS = 15
# Help is click, our declarations and the printing: half as much again as click alone is room for those, not for more.
GOAL = 1.5


def cpu_s(command: list[str]) -> float:
    """User and system seconds of one run of `command`, with its output thrown away.

    Raises: CannotRunError if it fails.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.stderr:
        process.stderr.close()
    if process.returncode:
        raise CannotRunError(f"{' '.join(command)} failed: {said.decode(errors='replace').strip()[-300:]}")
    return usage.ru_utime + usage.ru_stime


def in_turn(ours: list[str], peer: list[str], rounds: int = ROUNDS) -> tuple[list[float], list[float]]:
    """CPU seconds of both commands, measured A B A B after one round that only warms the file cache."""
    cpu_s(ours), cpu_s(peer)
    pairs = [(cpu_s(ours), cpu_s(peer)) for _ in range(rounds)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def run() -> Outcome:
    """Measure both against `import click`, in this environment.

    Raises: CannotRunError where nbkit is not installed.
    """
    nbkit = Path(sys.executable).with_name("nbkit")
    if not nbkit.exists():
        raise CannotRunError(f"no {nbkit}; run it as: make bench BENCH=startup")
    peer = [sys.executable, "-c", "import click"]
    lines = []
    for title, ours in (
        ("nbkit --help", [str(nbkit), "--help"]),
        ("import nbkit", [sys.executable, "-c", "import nbkit"]),
    ):
        mine, theirs = in_turn(ours, peer)
        ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
        lines.append(
            Line(title, "import click", ratios, GOAL, 1000 * median(mine), 1000 * median(theirs), unit="ms CPU")
        )
    return Outcome(f"Start-up, {ROUNDS} rounds in turn, Python {sys.version.split()[0]}", lines)
