"""Cut, stall and restart the way to a box while it works: what of its output and of its training run is lost here.

python -m tests.chaos.work [--lines 3600] [--faults 20] [--seed N] [--json]

A script on a real sshd prints 20 lines a second and writes a row of a training run with each; its log and a mirror of its
run are followed here. At random moments connections are killed, frozen for longer than a dead link takes to be noticed, or
the server is away for some seconds. At the end every line and every row must be here, once, in order.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import shlex
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from nbkit.remote import connect, mirror, work
from tests import sshd

EVERY_S = 0.05
STALL_S, AWAY_S = 14.0, 5.0
SCRIPT = """
import sys, time
from nbkit.training.record import Recorder, new_path
recorder, total = Recorder(new_path("chaos")), int(sys.argv[1])
recorder.set("training", max_steps=total)
for step in range(1, total + 1):
    print("line", step, flush=True)
    recorder.row(step, {"loss": 1.0 / step})
    recorder.step(step)
    time.sleep(float(sys.argv[2]))
recorder.set("done", step=total)
recorder.close()
"""


def fault(server: sshd.Sshd, kind: str) -> None:
    """Do one."""
    if kind == "away":
        server.stop()
        time.sleep(AWAY_S)
        server.start()
    elif kind == "stall":
        frozen = server.children()
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in frozen:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(STALL_S if number == signal.SIGSTOP else 0)
    else:
        server.cut()


def counted(found: list[int], total: int) -> dict[str, int]:
    """What is missing, what is there twice, what is out of order."""
    return {"lost": len(set(range(1, total + 1)) - set(found)), "doubled": len(found) - len(set(found)),
            "out of order": sum(b < a for a, b in itertools.pairwise(found))}  # fmt: skip


def chaos(lines: int, faults: int, seed: int) -> dict[str, object]:
    """All of it, in folders that go away again."""
    numbers = random.Random(seed)
    kinds = [numbers.choice(["cut", "cut", "cut", "stall", "away"]) for _ in range(faults)]
    with tempfile.TemporaryDirectory() as folder, sshd.running(Path(folder) / "sshd") as server:
        os.environ |= {"NBKIT_STATE": f"{folder}/state", "NBKIT_CACHE": f"{folder}/cache"}
        script = Path(folder, "chaos.py")
        script.write_text(SCRIPT)
        with connect("box", config=server.config, python=shlex.quote(sys.executable)) as box:
            found = work.begin(box, script, arguments=[str(lines), str(EVERY_S)])
            said: list[bytes] = []
            lost: list[str] = []
            following = threading.Thread(target=lambda: found.follow(said.append, say=lost.append))
            following.start()
            run = mirror.watch(box, found.id)
            pause = lines * EVERY_S / (faults + 1)
            for kind in kinds:
                time.sleep(pause * numbers.uniform(0.2, 1.0))
                fault(server, kind)
            following.join()
            while run.status.active:
                time.sleep(0.2)
            ended = found.again()
        heard = [int(line.split()[1]) for line in b"".join(said).decode().splitlines()]
        rows = [int(row["step"]) for row in map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())]
        return {"seed": seed, "lines": lines, "faults": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
                "links lost": sum("is lost" in line for line in lost), "log": counted(heard, lines),
                "rows": counted(rows, lines), "ended": ended.state}  # fmt: skip


def main() -> int:
    """0 when nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=3600)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    told = chaos(options.lines, options.faults, options.seed)
    print(json.dumps(told, indent=2) if options.json else "\n".join(f"{key}: {value}" for key, value in told.items()))
    return 0 if not any((*told["log"].values(), *told["rows"].values())) else 1  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
