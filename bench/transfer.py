"""push and pull against scp (and rsync, where installed): one file, many small ones, 50 ms away.

Each tool starts from nothing, in turn in one run: scp and rsync as commands, nbkit in a running Python (connect, transfer,
close). Files lie in memory where /dev/shm is, so that the disk is not what is measured; nbkit fsyncs, the others do not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench import CannotRunError, Line, Outcome
from nbkit import remote
from tests.delay_proxy import apart
from tests.sshd import SSHD, running

BIG_BYTES, FAR_BYTES = 512 << 20, 128 << 20
SMALL_FILES, SMALL_BYTES = 2000, 6500
DELAY_S = 0.025  # each way
ROUNDS = 3


def run() -> Outcome:
    """Every comparison.

    Raises: CannotRunError without sshd and scp.
    """
    if not (SSHD and shutil.which("scp")):
        raise CannotRunError("sshd or scp is absent: apt install openssh-server openssh-client")
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        return _run(Path(folder))


def _run(folder: Path) -> Outcome:
    for name, size in (("big", BIG_BYTES), ("far", FAR_BYTES)):
        (folder / name).write_bytes(os.urandom(size))
    (folder / "many").mkdir()
    for number in range(SMALL_FILES):
        (folder / "many" / str(number)).write_bytes(os.urandom(SMALL_BYTES))
    lines = []
    with running(folder / "sshd", "Subsystem sftp internal-sftp") as server, apart(server.port, DELAY_S) as port:
        far = folder / "far_config"
        server.write_config(path=far)
        far.write_text(far.read_text().replace(f"Port {server.port}", f"Port {port}"))
        with far.open("a") as file:
            file.write(f"  HostKeyAlias [127.0.0.1]:{server.port}\n")
        for title, name, config, up, goal in (
            ("512 MiB, up", "big", server.config, True, 1.0),
            ("512 MiB, down", "big", server.config, False, 1 / 1.4),
            (f"{SMALL_FILES} small files, up", "many", server.config, True, 1 / 1.8),
            (f"{SMALL_FILES} small files, down", "many", server.config, False, 1 / 1.8),
            ("128 MiB 50 ms away, up", "far", far, True, 1 / 2),
            ("128 MiB 50 ms away, down", "far", far, False, 1 / 4),
        ):
            lines += _compare(title, folder / name, folder / "got", config, up, goal)
    return Outcome(f"Transfer on loopback, {ROUNDS} rounds in turn", lines)


def _compare(title: str, source: Path, dst: Path, config: Path, up: bool, goal: float) -> list[Line]:
    there = f"box:{source}", str(dst)
    words = there if not up else (str(source), f"box:{dst}")

    def ours() -> None:
        with remote.connect("box", config=config) as box:
            (remote.push(box, source, str(dst)) if up else remote.pull(box, str(source), dst))

    tools: dict[str, Callable[[], object]] = {
        "nbkit": ours,
        "scp": lambda: _command("scp", "-q", "-r", "-p", "-F", str(config), *words),
    }
    if shutil.which("rsync"):
        tools["rsync"] = lambda: _command("rsync", "-a", "-e", f"ssh -F {config}", *words)
    seconds: dict[str, list[float]] = {name: [] for name in tools}
    for _ in range(ROUNDS):
        for name, tool in tools.items():
            start = time.perf_counter()
            tool()
            seconds[name].append(time.perf_counter() - start)
            _remove(dst)
    return [
        Line(
            title,
            name,
            [a / b for a, b in zip(seconds["nbkit"], taken, strict=True)],
            goal if name == "scp" else 1.0,
            median(seconds["nbkit"]),
            median(taken),
            "s",
        )
        for name, taken in seconds.items()
        if name != "nbkit"
    ]


def _command(*words: str) -> None:
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL, timeout=300)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
