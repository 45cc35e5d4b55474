"""A forward's speed, CPU and small answers, nbkit against `ssh -L` at its defaults, in turn in one run."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from bench import CannotRunError, Line, Outcome

ROUNDS = 5
BULK_BYTES = 128 * 1024 * 1024
PINGS = 500
# Time of ours over ssh's: 1.3 times as fast is 1/1.3.
GOAL_TIME, GOAL_PING_P99_MS, GOAL_CPU_S = 1 / 1.3, 5.0, (1.3, 1.6)


def _server(port: list[int], ready: threading.Event) -> None:
    """One connection at a time: a command byte, then: d send BULK_BYTES, u take them and say ok, e echo."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port.append(listener.getsockname()[1])
        ready.set()
        block = os.urandom(1 << 18)
        while True:
            sock, _ = listener.accept()
            with sock, contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                what = sock.recv(1)
                if what == b"d":
                    for _ in range(BULK_BYTES >> 18):
                        sock.sendall(block)
                elif what == b"u":
                    _take(sock, BULK_BYTES)
                    sock.sendall(b"k")
                elif what == b"e":
                    while data := sock.recv(1 << 16):
                        sock.sendall(data)


def _take(sock: socket.socket, n: int) -> None:
    while n:
        got = len(sock.recv(min(n, 1 << 18)))
        if not got:
            raise CannotRunError("the connection ended early")
        n -= got


def _line(port: int, what: bytes) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=120)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(what)
    return sock


def down_s(port: int) -> float:
    """Seconds for BULK_BYTES from the host."""
    start = time.perf_counter()
    with _line(port, b"d") as sock:
        _take(sock, BULK_BYTES)
    return time.perf_counter() - start


def up_s(port: int) -> float:
    """Seconds for BULK_BYTES to the host, until it says that it has them."""
    block = os.urandom(1 << 18)
    start = time.perf_counter()
    with _line(port, b"u") as sock:
        for _ in range(BULK_BYTES >> 18):
            sock.sendall(block)
        _take(sock, 1)
    return time.perf_counter() - start


def ping_p99_ms(port: int) -> float:
    """99th percentile of PINGS round trips of 4 KiB."""
    times = []
    with _line(port, b"e") as sock:
        for _ in range(PINGS):
            start = time.perf_counter()
            sock.sendall(b"x" * 4096)
            _take(sock, 4096)
            times.append(1000 * (time.perf_counter() - start))
    return sorted(times)[int(0.99 * PINGS)]


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _ready(port: int, process: subprocess.Popen[bytes] | None = None) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process is not None and process.poll() is not None:
            break
        time.sleep(0.05)
    raise CannotRunError(f"nothing came up on port {port}")


@contextlib.contextmanager
def _forwards(target: int, config: Path) -> Iterator[dict[str, tuple[int, int]]]:
    """Local port and process of each forwarder, each in a process of its own."""
    from tests.sshd import free_port

    found, processes = {}, []
    try:
        for name in ("nbkit", "ssh -L"):
            port = free_port()
            command = (
                [sys.executable, "-m", "nbkit.cli", "forward", "box", "-F", str(config), "-p", f"{target}:{port}"]
                if name == "nbkit"
                else ["ssh", "-F", str(config), "-N", "-L", f"127.0.0.1:{port}:127.0.0.1:{target}", "box"]
            )
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            processes.append(process)
            _ready(port, process)
            found[name] = (port, process.pid)
        yield found
    finally:
        for process in processes:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=10)


def run() -> Outcome:
    """Measure.

    Raises: CannotRunError without sshd and ssh.
    """
    from tests.sshd import SSHD, running

    if not SSHD or not shutil.which("ssh"):
        raise CannotRunError("sshd or ssh is absent: apt install openssh-server openssh-client")
    ports: list[int] = []
    ready = threading.Event()
    threading.Thread(target=_server, args=(ports, ready), daemon=True).start()
    ready.wait(10)
    measures = {"down": down_s, "up": up_s, "ping": ping_p99_ms}
    seen: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "box") as box, \
            _forwards(ports[0], box.config) as forwards:  # fmt: skip
        for turn in range(ROUNDS + 1):
            for what, measure in measures.items():
                for name, (port, pid) in forwards.items():
                    before = _cpu_s(pid)
                    value = measure(port)
                    if turn:  # the first only warms
                        seen.setdefault((what, name), []).append(value)
                        seen.setdefault((f"{what} CPU", name), []).append((_cpu_s(pid) - before) / (BULK_BYTES / 1e9))
    lines = []
    for what, title, unit, goal in (
        ("down", "forward, down", "s", GOAL_TIME),
        ("up", "forward, up", "s", GOAL_TIME),
        ("down CPU", "forward, down, CPU", "s/GB", GOAL_CPU_S[0] / 1.75),
        ("up CPU", "forward, up, CPU", "s/GB", GOAL_CPU_S[1] / 1.6),
        ("ping", "4 KiB there and back, p99", "ms", GOAL_PING_P99_MS / 43),
    ):
        ours, theirs = seen[what, "nbkit"], seen[what, "ssh -L"]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        lines.append(Line(title, "ssh -L", ratios, goal, median(ours), median(theirs), unit))
    size = BULK_BYTES >> 20
    return Outcome(f"Forward on loopback, {size} MiB each way, {PINGS} pings, {ROUNDS} rounds in turn", lines)
