"""Resumable streams: their speed and first byte against a plain forward, and a soak of 200 cuts and 40 stalls (12 minutes)."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from bench import CannotRunError, Line, Outcome
from bench._forwards import BULK_BYTES, line, take
from bench.tunnel import down_s, up_s

ROUNDS = 5
SEED, CUTS, STALLS, SECONDS = 20261130, 200, 40, 600.0
GOAL_TIME = 2.0  # of a plain forward's, for bulk
GOAL_FIRST, DELAY_S = (
    0.65,
    0.025,
)  # of a plain forward's, which asks for a channel first: one round trip in place of two
GOAL_READY_P50_S, GOAL_READY_P99_S, GOAL_NOTICED_S, GOAL_GROWTH_MIB = 0.5, 2.0, 12.0, 32.0


def first_byte_s(port: int) -> float:
    """Seconds from a new connection to the first byte of its answer."""
    start = time.perf_counter()
    with line(port, b"e") as sock:
        sock.sendall(b"x")
        take(sock, 1)
    return time.perf_counter() - start


@contextlib.contextmanager
def _both(folder: Path, delay_s: float) -> Iterator[dict[str, int]]:
    """The local ports of a plain forward and of one over streams, to one server, over one session."""
    from nbkit.ssh import Streams, connect, forward
    from tests import sshd
    from tests.chaos.streams import through
    from tests.delay_proxy import apart

    server = subprocess.Popen([sys.executable, "-m", "bench._forwards"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        target = int(server.stdout.readline())
        with contextlib.ExitStack() as stack:
            box = stack.enter_context(sshd.running(folder / "box"))
            config = box.config
            if delay_s:
                config = through(box, stack.enter_context(apart(box.port, delay_s)), folder)
            session = stack.enter_context(connect("box", config=config, ask=None))
            streams = stack.enter_context(Streams(session, folder=str(folder / "relay")))
            plain, over = (stack.enter_context(forward(carrier, target)) for carrier in (session, streams))
            yield {"streams": over.local_port, "plain": plain.local_port}
    finally:
        server.kill()
        server.communicate()


def _against_plain() -> list[Line]:
    """Bulk and first byte, in turn."""
    lines = []
    for title, measure, delay_s, goal in (
        ("bulk, down", down_s, 0.0, GOAL_TIME),
        ("bulk, up", up_s, 0.0, GOAL_TIME),
        (f"first byte of a new connection, {2 * DELAY_S * 1000:.0f} ms away", first_byte_s, DELAY_S, GOAL_FIRST),
    ):
        seen: dict[str, list[float]] = {"streams": [], "plain": []}
        with tempfile.TemporaryDirectory(prefix="bench-") as folder, _both(Path(folder), delay_s) as ports:
            for turn in range(ROUNDS + 1):
                for name, port in ports.items():
                    value = measure(port)
                    if turn:  # the first only warms
                        seen[name].append(value)
        ratios = [a / b for a, b in zip(seen["streams"], seen["plain"], strict=True)]
        lines.append(Line(title, "plain forward", ratios, goal, median(seen["streams"]), median(seen["plain"]), "s"))
    return lines


def _limit(title: str, value: float, limit: float, unit: str) -> Line:
    return Line(title, "the limit", [value / limit if limit else value], 1.0 if limit else 0.0, value, limit, unit)


def _soak() -> tuple[str, list[Line]]:
    """The whole storm."""
    from tests.chaos.streams import run as soak

    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        tally = soak(Path(folder), seed=SEED, cuts=CUTS, stalls=STALLS, seconds=SECONDS)
    grown = [(last, first) for first, last in (tally.here, tally.there)]
    return str(tally), [
        _limit("lost, doubled, changed or broken", tally.wrong + len(tally.broken), 0.0, ""),
        _limit("ready again, p50", tally.ready(0.5), GOAL_READY_P50_S, "s"),
        _limit("ready again, p99", tally.ready(0.99), GOAL_READY_P99_S, "s"),
        _limit("half-open link noticed and left, at most", max(tally.noticed_s, default=0.0), GOAL_NOTICED_S, "s"),
        _limit("threads more than before, both ends", sum(a["threads"] - b["threads"] for a, b in grown), 0.0, ""),
        _limit("descriptors more than before, both ends", sum(a["files"] - b["files"] for a, b in grown), 0.0, ""),
        _limit(
            "memory more than before, either end", max(a["MiB"] - b["MiB"] for a, b in grown), GOAL_GROWTH_MIB, "MiB"
        ),
    ]


def run() -> Outcome:
    """Measure.

    Raises: CannotRunError without sshd.
    """
    from tests.sshd import SSHD

    if not SSHD:
        raise CannotRunError("sshd is absent: apt install openssh-server")
    lines = _against_plain()
    said, storm = _soak()
    return Outcome(
        f"Streams on loopback, {BULK_BYTES >> 20} MiB each way, {ROUNDS} rounds in turn. {said}", lines + storm
    )
