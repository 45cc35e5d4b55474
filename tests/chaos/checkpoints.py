"""Kill a training 200 times, fill its disk 50 times, tamper with 100 checkpoints: what is lost, and what is noticed.

python -m tests.chaos.checkpoints [--kills 200] [--disk 50] [--tamper 100] [--peer 20] [--seed N] [--first 0] [--json]

The same faults, fewer of them, are done to plain Trainer (--peer of each). Needs root for the disks (a small tmpfs is
mounted for each point); without, that row says so. Each fault draws from the seed and its own number, so the whole can be
done in parts: `--kills 100 --disk 0 --tamper 0`, then the same with `--first 100`. Ctrl-C prints what there is.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbkit.display import Table
from tests.chaos import train


@dataclass
class Tally:
    """What one kind of fault did to one trainer."""

    fault: str
    who: str
    seed: int
    tried: int = 0
    inside: int = 0  # of the kills, those that left a save half done
    unusable: int = 0  # the resume failed
    most_lost: int = 0  # steps that were done and had to be done again
    exact: int = 0  # resumed, and ended with the losses and weights of the undisturbed run
    different: int = 0  # resumed, and ended otherwise without a word
    skipped: str = ""
    errors: dict[str, int] = field(default_factory=dict)

    def count(self, resumed: dict[str, Any] | None, whole: dict[str, Any], done: int) -> None:
        """Compare what the resumed run says with the undisturbed one; `done` steps had been done before the fault."""
        self.tried += 1
        if resumed is None or resumed["error"]:
            self.unusable += 1
            text = (resumed or {"error": "killed or silent"})["error"].splitlines()[0]
            text = re.sub(r"\S*/chaos-[^/]+/[^/]+/", "", text)[:70]
            self.errors[text] = self.errors.get(text, 0) + 1
            return
        begun = int(resumed["point"].rpartition("-")[2]) if resumed["point"] else 0
        self.most_lost = max(self.most_lost, done - begun)
        same = {step: loss for step, loss in resumed["losses"].items() if whole["losses"].get(step) != loss}
        if resumed["model"] == whole["model"] and not same:
            self.exact += 1
        else:
            self.different += 1


class Chaos:
    """All faults, from one seed."""

    def __init__(self, folder: Path, seed: int, first: int = 0) -> None:
        self.folder, self.seed, self.first = folder, seed, first
        self.numbers = random.Random(seed)
        self.tallies: list[Tally] = []
        self._wholes: dict[str, dict[str, Any]] = {}

    def whole(self, run: Callable[..., None]) -> dict[str, Any]:
        """What `run` does undisturbed: its losses, its model, and its median seconds."""
        if run.__name__ not in self._wholes:
            self._wholes[run.__name__] = self._undisturbed(run)
        return self._wholes[run.__name__]

    def _each(self, fault: str, run: Callable[..., None], number: int) -> Iterator[tuple[int, Tally]]:
        """Number the faults, each with its own random numbers, and say now and then how far it is."""
        tally = Tally(fault, run.__name__, self.seed)
        self.tallies.append(tally)
        began = time.monotonic()
        for index in range(self.first, self.first + number):
            self.numbers = random.Random(f"{self.seed} {fault} {run.__name__} {index}")
            yield index, tally
            tried = index + 1 - self.first
            if tried % 10 == 0 or tried == number:
                counts = f"{tally.unusable} unusable, {tally.different} different, {tally.most_lost} steps lost at most"
                _say(f"{fault}, {run.__name__}: {tried} of {number}, {counts}, {time.monotonic() - began:.0f} s")

    def _undisturbed(self, run: Callable[..., None]) -> dict[str, Any]:
        times = []
        for _ in range(3):
            root = self._root()
            began = time.monotonic()
            train.end(train.child(run, root))
            times.append(time.monotonic() - began)
            found = train.result(root)
            if found is None or found["error"]:
                raise RuntimeError(f"{run.__name__} does not even run undisturbed: {found}")
            shutil.rmtree(root)
        return {**found, "seconds": sorted(times)[1]}

    def _root(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder, prefix="run-"))

    def kills(self, run: Callable[..., None], number: int) -> None:
        """SIGKILL: every second one at a random moment, the others once a save is seen to be under way."""
        whole = self.whole(run)
        for index, tally in self._each("kill -9, half inside a save", run, number):
            root = self._root()
            pid = train.child(run, root)
            try:
                if index % 2:
                    which, wait = self.numbers.randrange(1, 5), self.numbers.random() * 0.03
                    self._until_saving(root, pid, which)
                    time.sleep(wait)
                else:
                    time.sleep(self.numbers.random() * whole["seconds"])
            finally:
                os.kill(pid, signal.SIGKILL)
                train.end(pid)
            done = train.steps_done()
            tally.inside += _half_saved(root)
            train.result(root)
            tally.count(self._resumed(run, root), whole, done)
            shutil.rmtree(root)

    def _until_saving(self, root: Path, pid: int, which: int) -> None:
        """Return as soon as the `which`-th save has begun to write, or the child has ended."""
        until = time.monotonic() + 60
        step = which * train.EVERY
        while time.monotonic() < until:
            for place in (*root.glob("*/checkpoints"), root / "plain"):
                if any(f"checkpoint-{step}" in path.name for path in _listed(place)):
                    return
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return
            time.sleep(0.001)

    def _resumed(self, run: Callable[..., None], root: Path) -> dict[str, Any] | None:
        try:
            train.end(train.child(run, root))
        except TimeoutError as error:
            return {"error": str(error)}
        return train.result(root)

    def disks(self, run: Callable[..., None], number: int) -> None:
        """A disk of its own that is full at a random byte; then it gets room, and the run is resumed."""
        whole, size = self.whole(run), self._size_of_a_run(run)
        for _, tally in self._each("disk full", run, number):
            room = 40_000 + int(self.numbers.random() * size)
            root = self._root()
            try:
                with _disk(root, room):
                    inner = root / "in"
                    inner.mkdir()
                    # The look at the free space before each save would end every run here: this is the fault after it.
                    train.end(train.child(_unwarned(run), inner))
                    train.result(inner)
                    done = train.steps_done()
                    subprocess.run(["mount", "-o", "remount,size=256m", root], check=True, timeout=20)
                    resumed = self._resumed(run, inner)
                    tally.count(resumed, whole, done)
            except PermissionError as error:
                tally.skipped = str(error)
                return
            finally:
                shutil.rmtree(root, ignore_errors=True)

    def _size_of_a_run(self, run: Callable[..., None]) -> int:
        root = self._root()
        train.end(train.child(run, root))
        train.result(root)
        size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        shutil.rmtree(root)
        return size

    def tampered(self, run: Callable[..., None], number: int) -> None:
        """Of a run killed at its end, the newest checkpoint loses a file, has a bit flipped or is cut: it must be noticed.

        Accepted silently is what resumes from it and ends otherwise than the undisturbed run; for nbkit also what resumes
        from it at all.
        """
        whole, source = self.whole(run), self._killed(run)
        for index, tally in self._each("newest checkpoint tampered with", run, number):
            root = self._root()
            shutil.copytree(source, root, dirs_exist_ok=True)
            newest = max(_checkpoints(root), key=lambda path: int(path.name.rpartition("-")[2]))
            self._tamper(newest, ("missing", "flipped", "cut")[index % 3])
            resumed = self._resumed(run, root)
            tally.count(resumed, whole, int(newest.name.rpartition("-")[2]))
            if run is train.ours and resumed and not resumed["error"] and resumed["point"] == newest.name:
                exact = resumed["model"] == whole["model"]
                tally.exact, tally.different = tally.exact - exact, tally.different + exact
            shutil.rmtree(root)
        shutil.rmtree(source)

    def _killed(self, run: Callable[..., None]) -> Path:
        """A run killed once checkpoint 6 of 8 stands and the one before last is gone.

        Raises: RuntimeError when it was not to be had in 50 attempts.
        """
        wanted = {f"checkpoint-{train.STEPS - 2 * train.EVERY}", f"checkpoint-{train.STEPS - train.EVERY}"}
        for _ in range(50):
            root = self._root()
            pid = train.child(run, root)
            # Not at the first sight of the last one: a quick machine would be killed before it has rotated, every time.
            until = time.monotonic() + 60
            while time.monotonic() < until and not _stand(root, wanted):
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                    break
                time.sleep(0.0005)
            os.kill(pid, signal.SIGKILL)
            train.end(pid)
            train.result(root)
            if _stand(root, wanted):
                return root
            shutil.rmtree(root)
        raise RuntimeError("no run could be killed between its third save and its fourth")

    def _tamper(self, folder: Path, how: str) -> None:
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
        file = self.numbers.choice(files)
        content = bytearray(file.read_bytes())
        if how == "missing":
            file.unlink()
        elif how == "flipped":
            content[self.numbers.randrange(len(content))] ^= 1 << self.numbers.randrange(8)
            file.write_bytes(content)
        else:
            file.write_bytes(content[: self.numbers.randrange(len(content))])


def _unwarned(run: Callable[..., None]) -> Callable[..., None]:
    def without_look(root: Path, **arguments: Any) -> None:
        from nbkit.training import checkpoint

        checkpoint.check_room = lambda *_: None
        run(root, **arguments)

    return without_look


def _stand(root: Path, names: set[str]) -> bool:
    """True when these checkpoints, whole, and no other stand there."""
    found = _checkpoints(root)
    return {path.name for path in found} == names and all((path / "trainer_state.json").is_file() for path in found)


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _checkpoints(root: Path) -> list[Path]:
    found = [*root.glob("*/checkpoints/checkpoint-*"), *root.glob("plain/checkpoint-*")]
    return [path for path in found if path.name.rpartition("-")[2].isdigit()]


def _half_saved(root: Path) -> bool:
    """True when a save was under way: ours leaves its staging folder, plain Trainer a checkpoint without its last file."""
    if any(path.name.startswith(".part-") for place in root.glob("*/checkpoints") for path in _listed(place)):
        return True
    return any(not (path / "trainer_state.json").is_file() for path in root.glob("plain/checkpoint-*"))


@contextmanager
def _disk(folder: Path, size: int) -> Iterator[None]:
    """A tmpfs of `size` bytes at `folder`.

    Raises: PermissionError without the right to mount.
    """
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False, timeout=20).returncode:
        raise PermissionError("not run: no right to mount a small disk (needs root)")
    try:
        yield
    finally:
        for _ in range(50):
            if not subprocess.run(["umount", str(folder)], capture_output=True, check=False, timeout=20).returncode:
                break
            time.sleep(0.1)


def table(tallies: list[Tally]) -> Table:
    """One line a fault and trainer."""
    rows = [
        (
            t.fault,
            {"ours": "nbkit", "plain": "Trainer"}[t.who],
            str(t.seed),
            t.tried,
            t.inside if t.fault.startswith("kill") else None,
            t.unusable,
            t.most_lost,
            t.exact,
            t.different,
        )
        for t in tallies
    ]
    notes = [f"{t.fault}, {t.who}: {t.skipped}" for t in tallies if t.skipped]
    notes += [f"{t.fault}, {t.who}: {n} x {text}" for t in tallies for text, n in t.errors.items()]
    head = ["fault", "trainer", "seed", "tried", "inside a save", "unusable"]
    head += ["most steps lost", "bit-exact", "silently different"]
    return Table(head, rows, f"{train.STEPS} steps, a save every {train.EVERY}", notes)


def run(kills: int, disk: int, tamper: int, peer: int, seed: int, first: int = 0) -> list[Tally]:
    """All faults; `peer` of each kind for plain Trainer, at most as many as for nbkit. An interrupt ends it early."""
    train.warm()
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        chaos = Chaos(Path(folder), seed, first)
        try:
            for fault, number in ((chaos.kills, kills), (chaos.disks, disk), (chaos.tampered, tamper)):
                for who, times in ((train.ours, number), (train.plain, min(peer, number))):
                    if times:
                        fault(who, times)
        except KeyboardInterrupt:
            _say("interrupted")
        return chaos.tallies


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Print the table; 1 when nbkit lost or accepted what it must not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--disk", type=int, default=50)
    parser.add_argument("--tamper", type=int, default=100)
    parser.add_argument("--peer", type=int, default=20, help="of each kind, for plain Trainer")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--first", type=int, default=0, help="number of the first fault of each kind")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tallies = run(options.kills, options.disk, options.tamper, options.peer, options.seed, options.first)
    print(json.dumps(table(tallies).as_dicts(), indent=2) if options.json else table(tallies))
    bad = [t for t in tallies if t.who == "ours" and (t.unusable or t.different or t.most_lost > train.EVERY)]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
