"""push and pull against scp (and rsync, where installed): one file, many small ones, 50 ms away, an older version there.

Each tool starts from nothing, in turn in one run: scp and rsync as commands, nbkit in a running Python (connect, transfer,
close). Files lie in memory where /dev/shm is, so that the disk is not what is measured; nbkit fsyncs, the others do not.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import threading
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
ROUNDS = 7
LIMIT_S = 300
SETTLE_S = 0.2  # what a tool leaves to end, its processes and the server's, is not in the next one's time


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
        if shutil.which("rsync"):
            for title, config in (("an older version there", server.config), ("the same, 50 ms away", far)):
                lines.append(_changed(f"128 MiB, {title}", folder, config))
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
            time.sleep(SETTLE_S)
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


def _changed(title: str, folder: Path, config: Path) -> Line:
    """A file goes up where an older version of it is: a line put before it, 20 places written over, a MiB taken out."""
    old = (folder / "far").read_bytes()
    new = bytearray(b'{"a line": "more"}\n' + old[: 32 << 20] + old[33 << 20 :])
    for place in range(20):
        at = (place + 1) * len(new) // 21
        new[at : at + 9] = b"not as it"
    source, dst = folder / "new", folder / "got"
    source.write_bytes(new)

    def ours() -> None:
        with remote.connect("box", config=config) as box:
            sent.append(remote.push(box, source, str(dst)).sent)

    def theirs() -> None:
        words = ("rsync", "-a", "--stats", "-e", f"ssh -F {config}", str(source), f"box:{dst}")
        said = subprocess.run(
            words, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S
        )
        literal.append(int(re.search(r"Literal data: ([\d,.]+)", said.stdout)[1].replace(",", "").replace(".", "")))  # type: ignore[index]

    sent: list[int] = []
    literal: list[int] = []
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(ROUNDS):
        for tool, taken in zip((ours, theirs), seconds, strict=True):
            dst.write_bytes(old)
            os.utime(dst, (1, 1))
            start = time.perf_counter()
            tool()
            taken.append(time.perf_counter() - start)
            if dst.read_bytes() != new:
                raise CannotRunError(f"{tool.__name__}: the file is not what was sent")
    ratios = [a / b for a, b in zip(*seconds, strict=True)]
    told = f"{title} ({sent[-1] / 1e6:.1f} MB over, rsync {literal[-1] / 1e6:.1f})"
    return Line(told, "rsync", ratios, 1.0, median(seconds[0]), median(seconds[1]), "s")


def _command(*words: str) -> None:
    """Run a peer, for no longer than it takes: subprocess's own limit looks only each 50 ms whether it has ended."""
    with subprocess.Popen(words, stdin=subprocess.DEVNULL) as process:
        limit = threading.Timer(LIMIT_S, process.kill)
        limit.start()
        try:
            status = process.wait()
        finally:
            limit.cancel()
    if status:
        raise CannotRunError(f"{words[0]} ended with {status}")


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
