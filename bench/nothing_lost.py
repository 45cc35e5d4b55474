"""Lines printed by a remote kernel through cuts and stalls: how many arrive, with nbkit, sshpyk and a forwarded Jupyter.

    python -m bench nothing_lost              ten minutes; --runs 1 is the quick form, one minute

A cell prints 20 lines a second. Meanwhile the network between is cut (1 to 20 s), stalled (the same), or swallows what is
open for ever; at each fault a request is sent that adds a line to a file. Every tool has an sshd, a proxy and a kernel of its
own, and the same faults at the same moments, from one seed. A forwarded server is what people do without a tool: `ssh -L`
with keepalives, started again when it ends, and a page that connects again with the same session as JupyterLab does.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench import CannotRunError, Figures, Goal
from nbkit.display import Table

PER_S = 20
MINUTES = 10
SEED = 20261130
KINDS = {"nbkit": "nbkit kernel", "sshpyk": "sshpyk 1.25", "jupyter": "Jupyter Server by ssh -L"}
_AFTER_S = 90.0  # for what is still to come when the last fault is over
_END_S = 40.0


@dataclass(frozen=True)
class Fault:
    """At `at_s` from the start, `words` for the proxy."""

    at_s: float
    words: str


def faults(seconds: float, seed: int = SEED) -> list[Fault]:
    """Two cuts and one stall for each 20 s, at random moments, none within the first or the last tenth.

    Of five stalls two hold up both ways, two one, and one swallows what is open; of four cuts one is a reset without a pause.
    """
    dice = random.Random(seed)
    count = max(5, round(seconds / 20))
    longest = min(20.0, seconds / 8)
    moments = sorted(dice.uniform(0.1, 0.9) * seconds for _ in range(count))
    made = []
    for number, moment in enumerate(moments):
        length = f"{dice.uniform(1.0, longest):.1f}"
        if number % 3 == 2:
            words = ("stall both", "stall up", "swallow", "stall down", "stall both")[number // 3 % 5]
            made.append(Fault(moment, words if words == "swallow" else f"{words} {length}"))
        else:
            made.append(Fault(moment, "reset" if number % 4 == 3 else f"refuse {length}"))
    return made


def run(runs: int = MINUTES) -> Figures:
    """Run all tools at once for so many minutes.

    Raises: CannotRunError without sshd, or where a tool does not start.
    """
    peer = peers_python()
    seconds = 60.0 * runs
    planned = faults(seconds)
    with tempfile.TemporaryDirectory(prefix="nbk-", ignore_cleanup_errors=True) as scratch, ExitStack() as stack:
        workers = {
            kind: stack.enter_context(
                worker(kind, peer if kind == "sshpyk" else Path(sys.executable), Path(scratch), seconds)
            )
            for kind in KINDS
        }
        threads = [threading.Thread(target=make_faults, args=(one, planned)) for one in workers.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = {kind: result(one) for kind, one in workers.items()}
    return _figures(found, planned, seconds)


def peers_python() -> Path:
    """The Python that has sshpyk.

    Raises: CannotRunError without it, or without sshd.
    """
    from tests.sshd import SSHD
    from tools import overlay

    if not SSHD:
        raise CannotRunError("sshd is absent: apt install openssh-server")
    try:
        return overlay.python("bench-kernels")
    except overlay.CannotMakeError as error:
        raise CannotRunError(str(error)) from error


@dataclass
class Worker:
    """A tool at work, and the proxy in its way."""

    process: subprocess.Popen[str]
    fault: Callable[[str], None]
    folder: Path


@contextmanager
def worker(kind: str, python: Path, scratch: Path, seconds: float) -> Iterator[Worker]:
    """A tool, ready, with an sshd and a proxy of its own.

    Raises: CannotRunError when it does not start.
    """
    from tests.chaos.streams import through
    from tests.delay_proxy import faulty
    from tests.sshd import running

    folder = scratch / kind
    folder.mkdir()
    with running(folder / "box") as box, faulty(box.port) as (port, fault):
        command = [str(python), "-m", "bench._nothing_lost", kind, str(through(box, port, folder)), str(folder),
                   str(round(seconds * PER_S)), str(PER_S), str(seconds + _AFTER_S)]  # fmt: skip
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                said = (folder / "log").read_text(errors="replace")[-1500:]
                raise CannotRunError(f"{KINDS[kind]} did not start: {said}")
            yield Worker(process, fault, folder)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)  # it ends its kernel
        finally:
            process.kill()
            process.communicate()


def make_faults(worker: Worker, planned: list[Fault]) -> None:
    """Make the faults, each when it is due, or when the one before is over; ask for one request at the start of each."""
    stdin = worker.process.stdin
    assert stdin is not None
    began = time.monotonic()
    stdin.write("go\n")
    stdin.flush()
    for number, one in enumerate(planned):
        time.sleep(max(0.0, began + one.at_s - time.monotonic()))
        at_work = threading.Thread(target=worker.fault, args=(one.words,))
        at_work.start()
        time.sleep(0.3)
        if worker.process.poll() is None:
            stdin.write(f"ask {number}\n")
            stdin.flush()
        at_work.join()


def result(worker: Worker) -> dict[str, Any]:
    """What the worker counted, beside what the kernel wrote into its file."""
    assert worker.process.stdout is not None
    line = worker.process.stdout.readline()
    told: dict[str, Any] = json.loads(line) if line else {"lines": [], "error": "it ended"}
    written = worker.folder / "asked"
    told["ran"] = written.read_text().split() if written.exists() else []
    return told


def _figures(found: dict[str, dict[str, Any]], planned: list[Fault], seconds: float) -> Figures:
    wanted = [str(number) for number in range(round(seconds * PER_S))]
    requests = [str(number) for number in range(len(planned))]
    rows, records = [], []
    for kind, told in found.items():
        lines = told["lines"]
        numbers = [int(line) for line in lines if line.isdigit()]
        lost, doubled = len(set(wanted) - set(lines)), len(lines) - len(set(lines))
        order = sum(later < earlier for earlier, later in pairwise(numbers))
        once = sum(told["ran"].count(one) == 1 for one in requests)
        twice = sum(told["ran"].count(one) > 1 for one in requests)
        rows.append(
            [KINDS[kind], len(wanted), lost, doubled, order, f"{once} of {len(requests)}", twice, told["error"]]
        )
        records.append({"tool": kind, "lines": len(wanted), "lost": lost, "doubled": doubled, "out of order": order,
                        "requests": len(requests), "ran once": once, "ran twice": twice, "error": told["error"]})  # fmt: skip
    ours = records[0]
    kinds = [one.words.split()[0] for one in planned]
    title = (
        f"{seconds:.0f} s, {PER_S} lines a second, seed {SEED}: {kinds.count('refuse')} cuts and {kinds.count('reset')} resets, "
        f"{kinds.count('stall')} stalls, {kinds.count('swallow')} swallowed, away for "
        f"{sum(float(one.words.split()[-1]) for one in planned if one.words[-1].isdigit()):.0f} s in all"
    )
    head = ("tool", "lines", "lost", "twice", "out of order", "requests run once", "twice", "at the end")
    goals = [
        Goal("nbkit: lines lost, doubled or out of order",
             (ours["lost"] + ours["doubled"] + ours["out of order"]) / len(wanted), 0.0),
        Goal("nbkit: requests not run exactly once", (len(requests) - ours["ran once"]) / len(requests), 0.0),
    ]  # fmt: skip
    return Figures(title, [Table(head, rows)], goals, records)
