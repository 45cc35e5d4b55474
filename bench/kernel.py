"""A remote kernel's `1+1` and a 100 MB array out of it, nbkit against sshpyk in turn, on loopback and 50 ms away.

Each tool is a process with an sshd and a kernel of its own; rounds alternate. The raw forward is a socket of nbkit's own
`forward`, from which as many bytes are read; they and the array are made beforehand. A kernel of this machine shows what
Jupyter itself takes for both.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from bench import CannotRunError, Figures, Goal
from bench.nothing_lost import KINDS, peers_python
from nbkit.display import Table

ROUNDS, AWAY_S = 5, 0.05
TOOLS = ("nbkit", "sshpyk", "here")
# The goals: of sshpyk's time, of a round trip 50 ms away, of the raw forward's time.
RATIO, AWAY_MS, ARRAY = 1.5, 60.0, 2.0


def run() -> Figures:
    """Measure in turn.

    Raises: CannotRunError without sshd, or where a tool does not start.
    """
    peer = peers_python()
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="nbk-", ignore_cleanup_errors=True) as scratch, ExitStack() as stack:
        workers = {}
        for kind in TOOLS:
            for away in (0.0,) if kind == "here" else (0.0, AWAY_S):
                folder = Path(scratch) / f"{kind}{away:g}"
                name = kind + (", 50 ms away" if away else "")
                workers[name] = stack.enter_context(
                    _worker(kind, peer if kind == "sshpyk" else Path(sys.executable), folder, away)
                )
        for _ in range(ROUNDS):
            for name, process in workers.items():
                for what, value in _ask(process, name, "away" not in name).items():
                    found.setdefault(name, {}).setdefault(what, []).append(value)
    return _figures(found)


@contextmanager
def _worker(kind: str, python: Path, folder: Path, away_s: float) -> Iterator[subprocess.Popen[str]]:
    from tests.chaos.streams import through
    from tests.delay_proxy import faulty
    from tests.sshd import running

    folder.mkdir()
    with running(folder / "box") as box, faulty(box.port, away_s / 2) as (port, _):
        command = [str(python), "-m", "bench._kernel", kind, str(through(box, port, folder) if away_s else box.config),
                   str(folder)]  # fmt: skip
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                said = (folder / "log").read_text(errors="replace")[-1500:]
                raise CannotRunError(f"{KINDS.get(kind, kind)} did not start: {said}")
            yield process
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)
        finally:
            process.kill()
            process.wait()


def _ask(process: subprocess.Popen[str], name: str, array: bool) -> dict[str, float]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("all\n" if array else "ping\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise CannotRunError(f"{name} ended")
    told: dict[str, float] = json.loads(line)
    return told


def _figures(found: dict[str, dict[str, list[float]]]) -> Figures:
    rows = [[name, what, median(values), min(values), max(values)] for name, told in found.items()
            for what, values in told.items()]  # fmt: skip
    shown = [[name, what, *(round(value, 2) for value in values)] for name, what, *values in rows]
    ratios = [ours / theirs for ours, theirs in zip(found["nbkit"]["1+1, ms"], found["sshpyk"]["1+1, ms"], strict=True)]
    raw = [array / forward for array, forward in
           zip(found["nbkit"]["100 MB array, s"], found["nbkit"]["raw forward, s"], strict=True)]  # fmt: skip
    away = median(found["nbkit, 50 ms away"]["1+1, ms"])
    records: list[dict[str, Any]] = [{"tool": name, **told} for name, told in found.items()]
    return Figures(
        f"{ROUNDS} rounds in turn; a round is the median of 30 `1+1`",
        [Table(["tool", "what", "median", "least", "most"], shown)],
        [
            Goal("1+1, of 1.5 times sshpyk's time", median(ratios) / RATIO, 1.0),
            Goal(f"1+1 50 ms away, of {AWAY_MS:g} ms", away / AWAY_MS, 1.0),
            Goal("100 MB array, of twice the raw forward's time", median(raw) / ARRAY, 1.0),
        ],
        records,
    )
