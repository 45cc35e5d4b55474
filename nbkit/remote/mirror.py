"""A training run on a box, as a Run of this machine: its small files are copied here as they grow, over one command there.

What is here is a run directory as any other, without checkpoints and result, so that every view works on it. Who has a
line of status has all the rows of before it.
"""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from nbkit import atomic, folders
from nbkit.errors import NbkitError, RemoteCommandError, RunError
from nbkit.remote.asking import Asker
from nbkit.remote.box import Box
from nbkit.remote.lasting import stream
from nbkit.remote.work import Work, find, works
from nbkit.training import Run
from nbkit.training.status import Status, recorded

BEGIN_S = 600.0  # for a run to begin: it imports torch, and may load a model first
_GROWING = ("events.jsonl", "metrics.jsonl", "samples.jsonl", "system.jsonl")
_WHOLE = ("config.yaml", "status.json")


class MirroredRun(Run):
    """A run on a box. `stop`, `pause` and `unpause` reach it there, those of a lost link when that is back.

    Attributes:
        work: Names, on its box, what trains it.
        error: Why it is not seen any more: the link did not come back.
    """

    def __init__(self, path: Path, mirror: Mirror) -> None:
        super().__init__(path)
        self._mirror, self.work, self.host = mirror, mirror.work.id, mirror.box.host

    @property
    def named(self) -> str:
        return f"{self.work} --on {self.host}"

    @property
    def again(self) -> str:
        return f'nbkit.watch("{self.work}", on="{self.host}")'

    @property
    def error(self) -> NbkitError | None:
        return self._mirror.error

    @property
    def status(self) -> Status:
        """The recorded one, corrected by what the box says of its process, and by what is known of the link."""
        seen, mirror = recorded(self.path), self._mirror
        if not seen.active:
            return seen
        if mirror.gone:
            return replace(
                seen, state="failed", doing="", hint=f"nbkit logs {mirror.work.named} has what it printed",
                cause=f"its process {seen.pid} on {mirror.box.host} is gone (killed, or out of memory)",
            )  # fmt: skip
        if mirror.error is not None:
            lost = f"not seen any more ({mirror.error.message.rstrip('.')}); {self.again} in a cell looks again"
            return replace(seen, state="stalled", away=True, doing=lost)
        wishes = ", ".join(mirror.asker.waiting)
        if mirror.lost:
            then = f"; then it is asked to {wishes}" if wishes else ""
            return replace(seen, away=True, doing=f"the link to {mirror.box.host} is lost, connecting again{then}")
        if wishes:
            return replace(seen, away=True, doing=f"{mirror.box.host} does not answer yet; it is asked to {wishes}")
        if mirror.asker.refused:
            seen = replace(seen, doing=mirror.asker.refused)
        ours = replace(seen, updated=seen.updated - mirror.ahead_s)
        return replace(seen, state="stalled") if self._silent(ours) else seen

    @property
    def pausing(self) -> bool:
        return "PAUSE" in self._mirror.wishes

    def unpause(self) -> None:
        self._mirror.ask("pause", on=False)

    def _wish(self, verb: str) -> None:
        self._mirror.ask(verb, on=True)


class Mirror:
    """Copies one training run, from a thread of its own, until it has ended.

    Args:
        owned: Close the box in the end.
    Attributes:
        lost: The link is being made again.
        gone: The run's process there has ended without a word.
        ahead_s: How far the box's clock is ahead of ours.
        wishes: What was asked of it there: STOP, PAUSE.
        asker: Asks it.
    """

    def __init__(self, work: Work, run: str = "", *, owned: bool = False) -> None:
        self.work, self.box = work, work.box
        self.lost = self.gone = False
        self.ahead_s = 0.0
        self.wishes: list[str] = []
        self.error: NbkitError | None = None
        self._run, self._owned = run, owned
        self._root = _place(work)
        self._path: Path | None = None
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, name=f"mirror {work.id}", daemon=True)
        self.asker = Asker(work, self._thread.is_alive)

    def start(self, timeout_s: float = BEGIN_S) -> MirroredRun:
        """Begin, and wait until the run has.

        Raises: RunError when what is at work there ends, or `timeout_s` pass, before a training run begins;
            UnreachableError.
        """
        self._thread.start()
        self._begun.wait(timeout_s)
        if self._path is not None and (self._path / "status.json").is_file():
            return MirroredRun(self._path, self)
        if self.error is not None:
            raise self.error
        where = f"{self.work.id} on {self.box.host}"
        if self._begun.is_set():
            raise RunError(f"{where} trained nothing.", hint=f"nbkit logs {self.work.named}")
        raise RunError(f"{where} began no training run in {timeout_s:g} s.", hint=f"nbkit attach {self.work.named}")

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until the copy is whole."""
        self._thread.join(timeout_s)

    def ask(self, what: str, *, on: bool) -> None:
        """Ask the run to stop or pause, or take that back; while the link is away, when it is back.

        Raises: UnreachableError when it will not come back; RemoteCommandError.
        """
        assert self._path is not None
        self.asker.ask(what, on=on, run=self._path.name)

    def _keep_up(self) -> None:
        try:
            stream(self.box, self._request, self._take, say=self._said)
        except NbkitError as error:
            self.error = error
        except Exception as error:  # a full disk here, a box that sends nonsense: told, not lost in a thread
            self.error = RunError(f"{type(error).__name__}: {error}", hint="NBKIT_DEBUG=1")
        finally:
            self._begun.set()
            if self._owned:
                self.box.close()

    def _said(self, line: str) -> None:
        self.lost = "is back" not in line

    def _request(self) -> dict[str, Any]:
        """What to send: all that is not here yet."""
        have = {
            folder.name: {name: _whole_lines(folder / name) for name in _GROWING}
            for folder in self._root.glob("*") if folder.is_dir()
        }  # fmt: skip
        return {"name": self.work.id, "run": self._path.name if self._path else self._run, "have": have}

    def _take(self, told: dict[str, Any]) -> bool:
        self.lost = False
        if "now" in told:
            self.ahead_s = float(told["now"]) - time.time()
        if "run" in told:
            self._path = self._root / Path(str(told["run"])).name
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if "wishes" in told:
            self.wishes = [str(wish) for wish in told["wishes"]]
        if "file" in told and self._path is not None:
            self._write(self._path / str(told["file"]), told)
        if "end" in told:
            return True
        self.gone = bool(told.get("gone"))
        return bool(told.get("over"))

    def _write(self, path: Path, told: dict[str, Any]) -> None:
        if "whole" in told and path.name in _WHOLE:
            atomic.write_bytes(path, base64.b64decode(told["whole"]), mode=0o600, durable=False)
            if path.name == "status.json":
                self._begun.set()
        elif "data" in told and path.name in _GROWING:
            at = int(told["at"])
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # Another process may mirror the same run: the same bytes go to the same places, and nothing is cut off.
                if at == 0:
                    os.ftruncate(handle, 0)
                os.pwrite(handle, base64.b64decode(told["data"]), at)
            finally:
                os.close(handle)


def watch(
    box: Box,
    name: str = "",
    *,
    owned: bool = False,
    timeout_s: float = BEGIN_S,
    say: Callable[[str], None] = lambda _: None,
) -> MirroredRun:
    """The training run called `name`, or the newest of the run called so, or the newest of all, as a Run of this machine.

    Args:
        owned: Close the box when the run has ended.
        say: Told when a run has to be waited for.

    Raises: RemoteCommandError, RunError when there is none; UnreachableError.
    """
    if name:
        work = find(box, name)
        run = next((str(one["id"]) for one in work.about["runs"] if one["id"].startswith(name)), "")
        _say_waiting(work, say)
        return Mirror(work, run, owned=owned).start(timeout_s)
    newest = next((work for work in works(box) if work.active or work.about["runs"]), None)
    if newest is None:
        raise RemoteCommandError(
            f"Nothing that nbkit run began trains on {box.host}.", hint=f"nbkit runs --on {box.named}"
        )
    _say_waiting(newest, say)
    return Mirror(newest, owned=owned).start(timeout_s)


def _say_waiting(work: Work, say: Callable[[str], None]) -> None:
    if work.active and not work.about["runs"]:
        say(f"{work.id} on {work.box.host} does not train yet; it is shown once it does.")


def _place(work: Work) -> Path:
    """The folder of the copies of a run's training runs, in the cache."""
    which = sha256(str(work.box.session.route).encode()).hexdigest()[:12]
    folder = folders.cache() / "mirrors" / which / Path(work.id).name
    with atomic.explain(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _whole_lines(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    try:
        with path.open("rb") as file:
            end = os.fstat(file.fileno()).st_size
            while end:
                start = max(0, end - 65536)
                file.seek(start)
                found = file.read(end - start).rfind(b"\n")
                if found >= 0:
                    return start + found + 1
                end = start
    except OSError:
        pass
    return 0
