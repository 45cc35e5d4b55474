"""Streams where sshd forbids forwards: a command there that carries them, against the socket it stands in for, both engines."""

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

ROUNDS, ECHOES = 5, 500
GOAL_TIME = 2.0  # of the socket's


def round_trip_s(port: int) -> float:
    """Seconds for 64 bytes and back."""
    with line(port, b"e") as sock:
        start = time.perf_counter()
        for _ in range(ECHOES):
            sock.sendall(b"x" * 64)
            take(sock, 64)
        return (time.perf_counter() - start) / ECHOES


@contextlib.contextmanager
def _both(folder: Path, engine: str) -> Iterator[dict[str, int]]:
    """The local ports of forwards over streams to one server: by a command, and by the socket."""
    from nbkit.ssh import Streams, connect, forward
    from tests import sshd

    server = subprocess.Popen([sys.executable, "-m", "bench._forwards"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        target = int(server.stdout.readline())
        with contextlib.ExitStack() as stack:
            ports = {}
            for name, option in (("command", "DisableForwarding yes"), ("socket", "DisableForwarding no")):
                box = stack.enter_context(sshd.running(folder / name, option))
                session = stack.enter_context(connect("box", config=box.config, ask=None, engine=engine))
                streams = stack.enter_context(Streams(session, folder=str(folder / f"relay-{name}")))
                if session.sockets_refused != (name == "command"):
                    raise CannotRunError(f"the line of {name} goes another way")
                ports[name] = stack.enter_context(forward(streams, target)).local_port
            yield ports
    finally:
        server.kill()
        server.communicate()


def run() -> Outcome:
    """Measure.

    Raises: CannotRunError without sshd.
    """
    from tests.sshd import SSHD

    if not SSHD:
        raise CannotRunError("sshd is absent: apt install openssh-server")
    lines = []
    for engine in ("paramiko", "ssh"):
        with tempfile.TemporaryDirectory(prefix="bench-") as folder, _both(Path(folder), engine) as ports:
            for title, measure in (("bulk, down", down_s), ("bulk, up", up_s), ("round trip of 64 B", round_trip_s)):
                seen: dict[str, list[float]] = {name: [] for name in ports}
                for turn in range(ROUNDS + 1):
                    for name, port in ports.items():
                        value = measure(port)
                        if turn:  # the first only warms
                            seen[name].append(value)
                ratios = [a / b for a, b in zip(seen["command"], seen["socket"], strict=True)]
                ours, theirs = median(seen["command"]), median(seen["socket"])
                lines.append(Line(f"{title}, {engine}", "by the socket", ratios, GOAL_TIME, ours, theirs, "s"))
    return Outcome(f"Streams by a command on loopback, {BULK_BYTES >> 20} MiB, {ROUNDS} rounds in turn", lines)
