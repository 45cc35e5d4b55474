"""Faults under transfers: cuts, kills of either side, damaged parts, full disks, sources that change.

    python -m tests.chaos.transfer --seed 1

After each fault the same transfer is done again, undisturbed. Counted: files that are not the source's (corrupt), names
that were taken by something that was neither the old file nor the new one (early), and the most bytes that a cut had sent
twice (resent).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nbkit import remote
from nbkit.errors import NbkitError
from nbkit.remote.there.tree import part_of
from tests import sshd
from tests.delay_proxy import delayed
from tests.waiting import until

MIB = 1 << 20
_SIZE = 12 * MIB
_SMALL = 20


@dataclass
class Tally:
    """What was seen."""

    tried: int = 0
    failed: int = 0  # the fault ended the transfer; the others came to their end before it
    corrupt: int = 0
    early: int = 0
    most_resent: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    def note(self, error: BaseException) -> None:
        """A transfer that failed."""
        self.failed += 1
        self.errors[type(error).__name__] = self.errors.get(type(error).__name__, 0) + 1


class Chaos:
    """A source tree, a server, and a destination that is made anew for each fault."""

    def __init__(self, folder: Path, server: sshd.Sshd, seed: int) -> None:
        self.folder, self.server, self.numbers = folder, server, random.Random(seed)
        self.tally = Tally()
        self.source = folder / "source"
        self.source.mkdir()
        (self.source / "big").write_bytes(self.numbers.randbytes(_SIZE))
        for number in range(_SMALL):
            (self.source / f"small{number}").write_bytes(self.numbers.randbytes(self.numbers.randrange(9000)))

    def fresh(self, where: Path) -> Path:
        """A destination that holds an old version of one file."""
        where.mkdir(parents=True)
        (where / "big").write_bytes(b"old")
        return where

    def look(self, dst: Path, *, final: bool) -> None:
        """Compare every final name with the source; before the end a name may be absent, or hold the old file."""
        for path in self.source.iterdir():
            there = dst / path.name
            whole = there.exists() and there.read_bytes() == path.read_bytes()
            if final and not whole:
                self.tally.corrupt += 1
            elif not whole and there.exists() and there.read_bytes() != b"old":
                self.tally.early += 1

    def move(self, config: Path, dst: Path, *, up: bool, **options: object) -> remote.Transferred:
        """The transfer."""
        with remote.connect("box", config=config) as box:
            return remote.sync(box, self.source, str(dst), down=not up, **options)  # type: ignore[arg-type]

    def again(self, dst: Path, *, up: bool, over: int | None = None) -> None:
        """The same, undisturbed; then everything must be right.

        Args:
            over: Bytes that went over the link before: with those of now, what exceeds the files was sent twice.
        """
        self.look(dst, final=False)
        done = self.move(self.server.config, dst, up=up)
        if over is not None:
            size = sum(path.stat().st_size for path in self.source.iterdir())
            self.tally.most_resent = max(self.tally.most_resent, over + done.sent - size)
        self.look(dst, final=True)
        self.tally.corrupt += len(list(dst.glob(".*.nbkit-part")))
        self.tally.tried += 1

    # -- faults

    def cut(self, number: int) -> None:
        """The link is cut after so many bytes."""
        dst, up = self.fresh(self.folder / f"cut{number}"), bool(number % 2)
        after = self.numbers.randrange(20_000, _SIZE)
        with delayed(self.server.port, 0.0, cut_after=after) as proxy:
            config = self._through(proxy.port)
            try:
                self.move(config, dst, up=up)
            except NbkitError as error:
                self.tally.note(error)
        self.again(dst, up=up, over=after)

    def _through(self, port: int) -> Path:
        path = self.folder / "through"
        path.write_text(self.server.config.read_text().replace(f"Port {self.server.port}", f"Port {port}"))
        path.write_text(path.read_text() + f"  HostKeyAlias [127.0.0.1]:{self.server.port}\n")
        path.chmod(0o600)
        return path

    def kill(self, number: int) -> None:
        """kill -9 of this side, then of the other, in the middle."""
        dst, up, far = self.fresh(self.folder / f"kill{number}"), bool(number % 2), bool(number // 2 % 2)
        words = [str(self.source), f"box:{dst}"] if up else [f"box:{self.source}", str(dst)]
        command = [sys.executable, "-m", "nbkit.cli", "sync", "-F", str(self.server.config), *words]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < end and not list(dst.glob(".big*")):
            time.sleep(0.002)
        time.sleep(self.numbers.random() * 0.1)
        if far:
            for pid in self.server.children():
                with contextlib.suppress(OSError):
                    if b"nbkit" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(pid, signal.SIGKILL)
        else:
            process.kill()
        self.tally.failed += process.wait(30) != 0
        time.sleep(0.05)
        self._settled(dst)
        self.again(dst, up=up)

    @staticmethod
    def _settled(dst: Path) -> None:
        """Wait until the side that lives on has let go of its parts."""
        import fcntl

        for part in dst.glob(".*.nbkit-part"):
            with contextlib.suppress(FileNotFoundError), part.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)

    def corrupted(self, number: int) -> None:
        """A part of before is damaged: a flipped byte, cut short, too long, or of another file."""
        dst, up = self.fresh(self.folder / f"part{number}"), bool(number % 2)
        content = bytearray((self.source / "big").read_bytes()[: self.numbers.randrange(MIB, _SIZE)])
        for _ in range(self.numbers.randrange(1, 4)):
            content[self.numbers.randrange(len(content))] ^= 1 + self.numbers.randrange(255)
        if number % 5 == 0:
            content += self.numbers.randbytes(_SIZE)
        if number % 7 == 0:
            content = bytearray(self.numbers.randbytes(2 * MIB))
        (dst / os.fsdecode(part_of(b"big"))).write_bytes(content)
        self.again(dst, up=up)

    def full(self, number: int) -> None:
        """The disk fills up, before or in the middle; then there is room."""
        up = bool(number % 2)
        with small_disk(self.folder / f"disk{number}", 2 * _SIZE) as disk:
            dst = self.fresh(disk / "dst")
            ballast = disk / "ballast"
            room = self.numbers.randrange(_SIZE // 4, 2 * _SIZE - 3 * MIB)
            ballast.write_bytes(b"")
            stop = threading.Event()

            def fill() -> None:  # while the transfer runs, as another program would
                while not stop.is_set() and not list(dst.glob(".big*")):
                    time.sleep(0.001)
                with contextlib.suppress(OSError), ballast.open("wb") as file:
                    file.write(bytes(2 * _SIZE - room))

            filler = threading.Thread(target=fill)
            if number % 3:
                filler.start()
            else:
                ballast.write_bytes(bytes(2 * _SIZE - room))
            try:
                self.move(self.server.config, dst, up=up)
            except NbkitError as error:
                self.tally.note(error)
            stop.set()
            if number % 3:
                filler.join()
            self.look(dst, final=False)
            ballast.unlink()
            self.again(dst, up=up)

    def changed(self, number: int) -> None:
        """The source changes in the middle."""
        dst, up = self.fresh(self.folder / f"changed{number}"), bool(number % 2)

        def change(now: remote.Progress) -> None:
            if 0 < now.done < _SIZE:
                with (self.source / "big").open("r+b") as file:
                    file.seek(self.numbers.randrange(_SIZE))
                    file.write(self.numbers.randbytes(100))

        before = (self.source / "big").read_bytes()
        try:
            self.move(self.server.config, dst, up=up, progress=change)
        except NbkitError as error:
            self.tally.note(error)
        big = (dst / "big").read_bytes()
        self.tally.early += big not in {b"old", before, (self.source / "big").read_bytes()}
        self.again(dst, up=up)


@contextlib.contextmanager
def small_disk(where: Path, size: int, files: int = 0) -> Iterator[Path]:
    """A tmpfs of `size` bytes, and of so many files and folders (0: any number); needs root."""
    where.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},nr_inodes={files}", "tmpfs", str(where)], check=True)
    try:
        yield where
    finally:  # a program on the box may not have ended yet
        until(lambda: not subprocess.run(["umount", str(where)], check=False).returncode, "the disk stays busy")


def run(folder: Path, *, seed: int, cuts: int, kills: int, corrupted: int, full: int, changed: int) -> Tally:
    """So many of each fault."""
    with sshd.running(folder / "sshd") as server:
        chaos = Chaos(folder, server, seed)
        for count, fault in ((cuts, chaos.cut), (kills, chaos.kill), (corrupted, chaos.corrupted), (full, chaos.full),
                             (changed, chaos.changed)):  # fmt: skip
            for number in range(count):
                fault(number)
        return chaos.tally


def main() -> int:
    """The whole: 0 when nothing was corrupt and no name taken early."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.transfer", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    for name, count in (("cuts", 200), ("kills", 20), ("corrupted", 30), ("full", 20), ("changed", 10)):
        parser.add_argument(f"--{name}", type=int, default=count)
    options = parser.parse_args()
    if os.getuid() != 0 and options.full:
        print("chaos: no full disks: mounting a small one needs root", file=sys.stderr)
        options.full = 0
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        tally = run(Path(folder), **vars(options))
    print(f"seed {options.seed}: {tally}")
    return int(bool(tally.corrupt or tally.early))


if __name__ == "__main__":
    sys.exit(main())
