"""Faults under resumable streams: cuts, resets, refusals, stalls of one way or both, links that swallow everything.

    python -m tests.chaos.streams --seed 7 --seconds 60

Bulk goes both ways all the while, and numbered lines beside it. Counted: transfers whose sha256 is not the sender's, lines
lost, doubled or out of turn, connections that broke, the time until all was ready again after the network was back, and what
grew at either end.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import hashlib
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbkit.ssh import Forward, Session, Streams, connect, forward
from nbkit.ssh.there import start
from tests import sshd
from tests.delay_proxy import faulty

MIB = 1 << 20
PART = 32 * MIB  # one transfer
_BLOCK = 256 * 1024
_WAIT_S = 120.0
_SWALLOWED = 10  # of so many stalls one is for ever


@dataclass
class Tally:
    """What was seen; times in seconds."""

    cuts: int = 0
    stalls: int = 0
    moved: int = 0
    lines: int = 0
    wrong: int = 0
    broken: list[str] = field(default_factory=list)
    ready_s: list[float] = field(default_factory=list)
    noticed_s: list[float] = field(default_factory=list)
    reconnects: int = 0
    took_s: float = 0.0
    here: list[dict[str, int]] = field(default_factory=list)  # after some faults, and at the end
    there: list[dict[str, int]] = field(default_factory=list)

    def ready(self, share: float) -> float:
        """Ready again: the time that so large a share of the breaks stayed below."""
        return sorted(self.ready_s)[min(len(self.ready_s) - 1, int(share * len(self.ready_s)))] if self.ready_s else 0.0

    @property
    def sound(self) -> bool:
        """True when nothing was lost, doubled, changed or broken."""
        return not self.wrong and not self.broken and self.moved > 0 and self.lines > 0

    def __str__(self) -> str:
        grew = [f"{where} {key} {first[key]} -> {last[key]}" for where, (first, last) in
                (("here", self.here), ("there", self.there)) for key in first]  # fmt: skip
        return (
            f"{self.cuts} cuts, {self.stalls} stalls, {self.moved / 2**30:.2f} GiB, {self.lines} lines, {self.took_s:.0f} s: "
            f"{self.wrong} wrong, {len(self.broken)} broken {self.broken[:3]}; {self.reconnects} reconnects, ready again "
            f"p50 {self.ready(0.5):.2f} s, p99 {self.ready(0.99):.2f} s, at most {max(self.ready_s, default=0):.2f} s; half-open "
            f"noticed after {', '.join(f'{s:.1f}' for s in self.noticed_s) or '-'} s; {'; '.join(grew)}"
        )


# -- the bytes


def blocks(seed: int, size: int) -> Iterator[bytes]:
    """`size` bytes; no block is like another, so that one that is missing, doubled or out of turn changes the sha256."""
    body = random.Random(seed).randbytes(_BLOCK - 8)
    for number in range(size // _BLOCK):
        yield number.to_bytes(8) + body


def serve() -> None:
    """Answer connections: a line `down SEED SIZE`, `up SEED SIZE` or `echo`."""

    def answer(sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as lines, contextlib.suppress(OSError):
            what, *numbers = lines.readline().decode().split()
            if what == "echo":
                while text := lines.readline():
                    sock.sendall(text)
                return
            seed, size = map(int, numbers)
            if what == "down":
                for block in blocks(seed, size):
                    sock.sendall(block)
            else:
                digest = hashlib.sha256()
                while size:
                    data = lines.read1(min(size, _BLOCK))
                    if not data:
                        return
                    digest.update(data)
                    size -= len(data)
                sock.sendall(digest.digest())

    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()


class Soak:
    """Bulk both ways and numbered lines, over one Streams."""

    def __init__(self, fwd: Forward, tally: Tally, seed: int) -> None:
        self.fwd, self.tally, self.seed = fwd, tally, seed
        self.over = threading.Event()
        self._lock = threading.Lock()

    def line(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.fwd.local_port), timeout=_WAIT_S)

    def transfer(self, way: str, seed: int) -> None:
        """One, compared by sha256."""
        expected = hashlib.sha256()
        with self.line() as sock:
            sock.sendall(f"{way} {seed} {PART}\n".encode())
            if way == "up":
                for block in blocks(seed, PART):
                    sock.sendall(block)
                    expected.update(block)
                got = sock.makefile("rb").read()
            else:
                found = hashlib.sha256()
                while data := sock.recv(_BLOCK):
                    found.update(data)
                for block in blocks(seed, PART):
                    expected.update(block)
                got = found.digest()
        with self._lock:
            self.tally.moved += PART
            self.tally.wrong += got != expected.digest()

    def bulk(self, way: str) -> None:
        """Transfers, until it is over."""
        number = 0
        while not self.over.is_set():
            number += 1
            self.transfer(way, self.seed * 1000 + number)

    def talk(self) -> None:
        """Numbered lines, each of which must come back in its turn; they are sent whether those before have come or not."""
        with self.line() as sock, sock.makefile("rb") as lines:
            sock.sendall(b"echo\n")
            sender = threading.Thread(target=self._number, args=(sock,), daemon=True)
            sender.start()
            for expected, text in enumerate(lines):
                self.tally.lines += 1
                self.tally.wrong += int(text) != expected
            sender.join()
            self.tally.wrong += self.tally.lines != self._sent

    def _number(self, sock: socket.socket) -> None:
        self._sent = 0
        while not self.over.wait(0.05):
            sock.sendall(b"%d\n" % self._sent)
            self._sent += 1
        sock.shutdown(socket.SHUT_WR)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """At work during the block."""

        def guarded(work: Callable[..., None], *args: Any) -> None:
            try:
                work(*args)
            except Exception as error:
                self.tally.broken.append(f"{work.__name__}: {error}")

        works: list[tuple[Any, ...]] = [(self.bulk, "up"), (self.bulk, "down"), (self.talk,)]
        threads = [threading.Thread(target=guarded, args=work, daemon=True) for work in works]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.over.set()
            for thread in threads:
                thread.join(timeout=_WAIT_S)
                if thread.is_alive():
                    self.tally.broken.append("a transfer hangs")


# -- the faults


class Faults:
    """Faults by the dice, and how long it takes until all is ready again."""

    def __init__(self, streams: Streams, fault: Callable[[str], None], tally: Tally, seed: int) -> None:
        self.streams, self.fault, self.tally, self.dice = streams, fault, tally, random.Random(seed)

    def cut(self) -> None:
        """The connection ends; sometimes nobody answers for a while."""
        before = self.streams.reconnects
        kind = self.dice.choice(["cut", "cut", "reset", "reset", "refuse"])
        self.fault(f"refuse {self.dice.uniform(0.1, 3.0):.2f}" if kind == "refuse" else kind)
        self.tally.cuts += 1
        self.tally.ready_s.append(self.ready(before))

    def stall(self) -> None:
        """Nothing goes one way, or either, for a while; or for ever, on the connections that there are."""
        self.tally.stalls += 1
        before = self.streams.reconnects
        if self.tally.stalls % _SWALLOWED == 0:
            self.fault("swallow")
            self.tally.noticed_s.append(self.ready(before))
            return
        way = self.dice.choice(["up", "down", "both"])
        self.fault(f"stall {way} {self.dice.uniform(0.2, 4.0):.2f}")

    def ready(self, before: int) -> float:
        """Seconds until there is a new line."""
        start_s = time.monotonic()
        while self.streams.reconnects == before or not self.streams.alive:
            time.sleep(0.005)
            if time.monotonic() - start_s > _WAIT_S:
                self.tally.broken.append("the link does not come back")
                break
        return time.monotonic() - start_s

    def all(self, cuts: int, stalls: int, end: float, least: int = 0) -> None:
        """So many of each, mixed, at most until `end`; `least` of them however long that takes."""
        order = [self.cut] * cuts + [self.stall] * stalls
        self.dice.shuffle(order)
        for number, one in enumerate(order):
            time.sleep(self.dice.uniform(0.05, 1.2))
            if (time.monotonic() > end and number >= least) or self.tally.broken:
                return
            one()


def sizes(pid: int) -> dict[str, int]:
    """Threads, descriptors and MiB of a process; of this one, without what only waits to be collected."""
    if pid == os.getpid():
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
    status = Path(f"/proc/{pid}/status").read_text()
    values = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if len(line.split()) > 1}
    return {
        "threads": int(values["Threads"]),
        "files": len(os.listdir(f"/proc/{pid}/fd")),
        "MiB": int(values["VmRSS"]) >> 10,
    }


def through(box: sshd.Sshd, port: int, folder: Path) -> Path:
    """The box's ssh_config, by way of a proxy at `port`."""
    path = folder / "through"
    text = box.config.read_text().replace(f"Port {box.port}", f"Port {port}")
    path.write_text(text + f"  HostKeyAlias [127.0.0.1]:{box.port}\n")
    path.chmod(0o600)
    return path


@contextlib.contextmanager
def _rig(folder: Path, engine: Any, forbids: bool) -> Iterator[tuple[Session, int, Callable[[str], None]]]:
    """A session through a proxy that makes faults, and the port of the server there."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.streams", "--serve"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        target = int(server.stdout.readline())
        with (
            sshd.running(folder / "sshd", f"DisableForwarding {'yes' if forbids else 'no'}") as box,
            faulty(box.port) as (port, fault),
            connect("box", config=through(box, port, folder), ask=None, engine=engine) as session,
        ):
            yield session, target, fault
    finally:
        server.kill()
        server.communicate()


def run(
    folder: Path,
    *,
    seed: int,
    cuts: int,
    stalls: int,
    seconds: float,
    least: int = 0,
    engine: str = "paramiko",
    forbids: bool = False,
) -> Tally:
    """So many faults, in so many seconds at most, but `least` in any case; `forbids`: sshd forbids forwards, a command
    carries the streams.
    """
    tally = Tally()
    place = folder / "relay"
    with _rig(folder, engine, forbids) as (session, target, fault), Streams(session, folder=str(place)) as streams, \
            forward(streams, target) as fwd:  # fmt: skip
        (path,) = place.glob("relay-*.sock")
        pid = start.ask(str(path), {"do": "look"})["pid"]
        warm = Tally()
        with Soak(fwd, warm, seed + 1).running():
            Faults(streams, fault, warm, seed + 1).all(1 + cuts // 10, 0, time.monotonic() + seconds / 10)
        tally.wrong, tally.broken = warm.wrong, warm.broken
        settled(streams)
        tally.here, tally.there = [sizes(os.getpid())], [sizes(pid)]
        began, before = time.monotonic(), streams.reconnects
        with Soak(fwd, tally, seed).running():
            Faults(streams, fault, tally, seed).all(cuts, stalls, began + seconds, least)
        tally.took_s, tally.reconnects = time.monotonic() - began, streams.reconnects - before
        settled(streams)
        tally.here.append(grown(os.getpid(), tally.here[0]))
        tally.there.append(grown(pid, tally.there[0]))
        start.ask(str(path), {"do": "retire"})
    return tally


def grown(pid: int, before: dict[str, int]) -> dict[str, int]:
    """The sizes of a process that had those of `before`, when it has let go of what it lets go of."""
    end = time.monotonic() + 30
    while True:
        now = sizes(pid)
        if all(now[key] <= before[key] for key in ("threads", "files")) or time.monotonic() > end:
            return now
        time.sleep(0.2)


def settled(streams: Streams) -> None:
    """Wait until nothing is on its way."""
    end = time.monotonic() + 10
    while streams.mux.streams and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(1.5)  # what is closed far away is closed here in its own time


def main() -> int:
    """The whole: 0 when nothing was lost, doubled, changed or broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.streams", description=__doc__.splitlines()[0])
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--stalls", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--engine", choices=("paramiko", "ssh"), default="paramiko")
    parser.add_argument("--forbids", action="store_true", help="sshd forbids forwards")
    options = parser.parse_args()
    if options.serve:
        serve()
    values = {key: value for key, value in vars(options).items() if key != "serve"}
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        tally = run(Path(folder), **values)
    print(f"seed {options.seed}, {options.engine}: {tally}")
    return int(not tally.sound)


if __name__ == "__main__":
    sys.exit(main())
