"""1 GB each way with channels opening and closing through forced rekeys, nbkit against stock paramiko; --runs N (20).

Stock paramiko exchanges keys every 512 MB; when the host closes a channel meanwhile, its thread that reads waits for
itself, and the connection hangs. Here keys are exchanged every 64 MB, 1 GB goes each way at once, and four threads open
a channel, have 1 kB back and see it closed by the host, without a pause. A run is a process of its own; it fails when a
byte is wrong, a channel breaks, or nothing moves for 20 s. nbkit goes through its forward; paramiko's channels are used
as they are.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from bench import CannotRunError, Figures, Goal
from bench._rekeys import CHURNERS
from nbkit.display import Table

BYTES, REKEY_BYTES = 1 << 30, 64 << 20
RUNS = 20
LIMIT_S = 240.0


def run(runs: int = RUNS) -> Figures:
    """Run each tool `runs` times, in turn.

    Raises: CannotRunError without sshd.
    """
    from tests.sshd import SSHD, running

    if not SSHD:
        raise CannotRunError("sshd is absent: apt install openssh-server")
    seen: dict[str, list[dict[str, Any]]] = {"nbkit": [], "paramiko": []}
    server = subprocess.Popen([sys.executable, "-m", "bench._rekeys", "serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        port = server.stdout.readline().strip()
        with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "box") as box:
            for number in range(runs):
                for kind, told in seen.items():
                    told.append({"tool": kind, "run": number, **_one(kind, str(box.config), port)})
                    print(json.dumps(told[-1]), file=sys.stderr, flush=True)
    finally:
        server.kill()
        server.communicate()
    title = (
        f"{BYTES >> 30} GiB each way at once, keys anew every {REKEY_BYTES >> 20} MiB, {CHURNERS} threads of channels"
    )
    records = [one for told in seen.values() for one in told]
    failed = sum(bool(one["error"]) for one in seen["nbkit"])
    return Figures(title, [_table(seen, title)], [Goal("nbkit: runs that failed", failed / runs, 0.0)], records)


def _one(kind: str, config: str, port: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench._rekeys", kind, config, port, str(BYTES), str(REKEY_BYTES)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        found: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    except subprocess.TimeoutExpired:
        return {"error": f"not over after {LIMIT_S:.0f} s", "seconds": LIMIT_S, "rekeys": 0, "channels": 0}
    except ValueError:
        last = done.stderr.strip().rpartition("\n")[2] or f"exit {done.returncode}"
        return {"error": last, "seconds": 0.0, "rekeys": 0, "channels": 0}
    return found


def _table(seen: dict[str, list[dict[str, Any]]], title: str) -> Table:
    rows = []
    for kind, told in seen.items():
        well = [one for one in told if not one["error"]]
        errors = sorted({one["error"] for one in told if one["error"]})
        rows.append(
            [
                kind,
                str(len(told)),
                str(len(told) - len(well)),
                f"{median(one['seconds'] for one in well):.1f}" if well else "",
                f"{median(one['rekeys'] for one in well):.0f}" if well else "",
                f"{median(one['channels'] for one in well):.0f}" if well else "",
                "; ".join(errors)[:120],
            ]
        )
    return Table(["", "runs", "failed", "s a run", "rekeys", "channels", "how they failed"], rows, title)
