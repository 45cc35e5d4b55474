"""A forward's speed and CPU, and a thousand connections at once, nbkit against `ssh -L` at its defaults, in turn in one run."""

from __future__ import annotations

import hashlib
import os
import selectors
import socket
import time
from statistics import median
from typing import Any

from bench import CannotRunError, Line, Outcome
from bench._forwards import BULK_BYTES, cpu_s, line, rig, take

ROUNDS = 5
CROWD, CROWD_BYTES = 1000, 8192
# Time of ours over ssh's: 1.3 times as fast is 1/1.3. CPU is a limit of its own; ssh's was 1.75, 1.6 s/GB.
GOAL_TIME, GOAL_CPU = 1 / 1.3, (1.3 / 1.75, 1.6 / 1.6)
GOAL_FIRST_BYTE_S = 0.2  # whatever ssh takes


def down_s(port: int) -> float:
    """Seconds for BULK_BYTES from the host."""
    start = time.perf_counter()
    with line(port, b"d") as sock:
        take(sock, BULK_BYTES)
    return time.perf_counter() - start


def up_s(port: int) -> float:
    """Seconds for BULK_BYTES to the host, until it says that it has them."""
    block = os.urandom(1 << 18)
    start = time.perf_counter()
    with line(port, b"u") as sock:
        for _ in range(BULK_BYTES >> 18):
            sock.sendall(block)
        take(sock, 1)
    return time.perf_counter() - start


def crowd_s(port: int) -> float:
    """Median seconds to the first byte of CROWD connections made at once, each echoing bytes of its own.

    Raises: CannotRunError when one does not get its own bytes back.
    """
    sent: dict[socket.socket, bytes] = {}
    got: dict[socket.socket, Any] = {}
    first: list[float] = []
    with selectors.DefaultSelector() as poll:
        for _ in range(CROWD):
            sock = line(port, b"e")
            content = os.urandom(CROWD_BYTES)
            sock.sendall(content)
            sock.shutdown(socket.SHUT_WR)
            sent[sock], got[sock] = hashlib.sha256(content).digest(), hashlib.sha256()
            poll.register(sock, selectors.EVENT_READ, (sock, time.perf_counter()))
        heard = set()
        while poll.get_map():
            ready = poll.select(30)
            if not ready:
                raise CannotRunError(f"{len(poll.get_map())} of {CROWD} connections say nothing")
            for key, _ in ready:
                sock, asked = key.data
                data = sock.recv(65536)
                if sock not in heard:
                    heard.add(sock)
                    first.append(time.perf_counter() - asked)
                got[sock].update(data)
                if not data:
                    poll.unregister(sock)
                    sock.close()
    wrong = sum(got[sock].digest() != digest for sock, digest in sent.items())
    if wrong:
        raise CannotRunError(f"{wrong} of {CROWD} connections did not get their own bytes back")
    return median(first)


def run() -> Outcome:
    """Measure.

    Raises: CannotRunError without sshd and ssh.
    """
    measures = {"down": down_s, "up": up_s, "crowd": crowd_s}
    seen: dict[tuple[str, str], list[float]] = {}
    with rig() as forwards:
        for turn in range(ROUNDS + 1):
            for what, measure in measures.items():
                for name, (port, pid) in forwards.items():
                    before = cpu_s(pid)
                    value = measure(port)
                    if turn:  # the first only warms
                        seen.setdefault((what, name), []).append(value)
                        seen.setdefault((f"{what} CPU", name), []).append((cpu_s(pid) - before) / (BULK_BYTES / 1e9))
    lines = []
    for what, title, unit, goal in (
        ("down", "forward, down", "s", GOAL_TIME),
        ("up", "forward, up", "s", GOAL_TIME),
        ("down CPU", "forward, down, CPU", "s/GB", GOAL_CPU[0]),
        ("up CPU", "forward, up, CPU", "s/GB", GOAL_CPU[1]),
    ):
        ours, theirs = seen[what, "nbkit"], seen[what, "ssh -L"]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        lines.append(Line(title, "ssh -L", ratios, goal, median(ours), median(theirs), unit))
    first = seen["crowd", "nbkit"]
    title = f"{CROWD} at once, first byte"
    lines.append(
        Line(title, "the limit", [s / GOAL_FIRST_BYTE_S for s in first], 1.0, median(first), GOAL_FIRST_BYTE_S, "s")
    )
    return Outcome(f"Forward on loopback, {BULK_BYTES >> 20} MiB each way, {ROUNDS} rounds in turn", lines)
