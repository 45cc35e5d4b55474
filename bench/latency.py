"""Small answers through a forward: 4 KiB there and back, nbkit against `ssh -L` at its defaults, in turn in one run."""

from __future__ import annotations

import time
from statistics import median

from bench import Line, Outcome
from bench._forwards import line, rig, take

ROUNDS = 5
PINGS, PING_BYTES = 500, 4096
GOAL_P99_MS, PEERS_P99_MS = 5.0, 43.0


def ping_p99_ms(port: int) -> float:
    """99th percentile of PINGS round trips of 4 KiB."""
    times = []
    with line(port, b"e") as sock:
        for _ in range(PINGS):
            start = time.perf_counter()
            sock.sendall(b"x" * PING_BYTES)
            take(sock, PING_BYTES)
            times.append(1000 * (time.perf_counter() - start))
    return sorted(times)[int(0.99 * PINGS)]


def run() -> Outcome:
    """Measure.

    Raises: CannotRunError without sshd and ssh.
    """
    seen: dict[str, list[float]] = {}
    with rig() as forwards:
        for turn in range(ROUNDS + 1):
            for name, (port, _) in forwards.items():
                value = ping_p99_ms(port)
                if turn:  # the first only warms
                    seen.setdefault(name, []).append(value)
    ours, theirs = seen["nbkit"], seen["ssh -L"]
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Outcome(
        f"Round trips of {PING_BYTES >> 10} KiB on loopback, {PINGS} a round, {ROUNDS} rounds in turn",
        [
            Line(
                "4 KiB there and back, p99",
                "ssh -L",
                ratios,
                GOAL_P99_MS / PEERS_P99_MS,
                median(ours),
                median(theirs),
                "ms",
            )
        ],
    )
