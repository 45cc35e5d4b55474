"""A function from here, run on a box: its source goes over, it outlives the connection, its run can be watched here."""

from __future__ import annotations

import contextlib
import inspect
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

from nbkit import smoke
from nbkit.errors import NbkitError, RemoteCommandError, TransferError
from nbkit.remote import lasting
from nbkit.remote.box import Box
from nbkit.remote.transfer import sync
from nbkit.ssh.text import plain
from nbkit.training import Run
from nbkit.training.run import runs_dir

# The runs that a job has begun.
_RUNS = """
import json, os
folder = os.path.expanduser(REQUEST["folder"])
names = os.listdir(folder) if os.path.isdir(folder) else []
print(json.dumps({"runs": sorted(n for n in names if os.path.isfile(os.path.join(folder, n, "status.json")))}))
"""
_EVERY_S = 1.0
_CALL_S = 60.0
_LOG_BYTES = 2**20
# Written by `there/job.py` to a file and started in the job's folder, which is its only argument.
_PROGRAM = """
import json, os, sys
os.environ["NBKIT_RUNS"] = os.path.expanduser({runs!r})
os.environ.update({environment!r})
os.chdir(os.path.expanduser("~"))
{source}
with open(os.path.join(sys.argv[1], "request.json")) as file:
    arguments = json.load(file)
result = {{"value": {name}(**arguments)}}
with open(os.path.join(sys.argv[1], "result.json"), "w") as file:
    json.dump(result, file)
"""


class Job:
    """A function at work on a box. Closing the notebook, or losing the link, does not end it.

    Attributes:
        name: Names it on the box.
        runs: The folder of its runs there, below the home folder.
    """

    def __init__(self, box: Box, name: str, runs: str) -> None:
        self.box, self.name, self.runs = box, name, runs
        self._log, self._text, self._reading = lasting.Log(box, name), "", threading.Lock()
        self._mirror: threading.Thread | None = None
        self._error: NbkitError | None = None

    def follow(self, into: str | Path | None = None, *, timeout_s: float = 300.0) -> Run:
        """Keep a copy of its run here, once a second, for `nbkit.watch` and any other view, until the job ends.

        A lost link is made again, with longer and longer pauses, and the copy goes on where it was. It ends before the
        job only when the box is closed, or refuses us.

        Args:
            into: The folder of runs here; default: the one that `nbkit.runs` lists.
            timeout_s: For its run to begin: it imports torch first.

        Raises: RemoteCommandError when it ended before, or began no run in time; UnreachableError.
        """
        end, folder = time.monotonic() + timeout_s, Path(into) if into is not None else runs_dir()
        with lasting.held(self.box.session):
            while (left_s := end - time.monotonic()) > 0:
                running = lasting.through(self.box.session, self._told, back_s=left_s)["running"]
                found = lasting.through(self.box.session, lambda: self._copied(folder), back_s=left_s)
                if found:
                    self._mirror = threading.Thread(target=self._keep_up, args=(folder,), name=self.name, daemon=True)
                    self._mirror.start()
                    return found
                if not running:
                    self.wait()
                    break
                time.sleep(_EVERY_S)
        raise RemoteCommandError(
            f"{self.name} on {self.box.host} began no run.", hint="call nbkit.start(trainer) in it"
        )

    def wait(self) -> Any:
        """Wait until it ends, and until the copy of its run is whole. Returns: What the function returned.

        A lost link is made again.

        Raises: RemoteCommandError with its last words when it failed; UnreachableError when the box is closed.
        """
        if self._mirror is not None:
            self._mirror.join()
        if self._error is not None:
            raise self._error
        with lasting.held(self.box.session):
            while (told := lasting.through(self.box.session, self._told))["running"] or told["text"]:
                time.sleep(_EVERY_S if told["running"] else 0.0)
        if told["result"] is None:
            last = plain(self._text.strip().rpartition("\n")[2], 400) or "nothing"
            raise RemoteCommandError(
                f"{self.name} on {self.box.host} failed: {last}", hint="print(job.log()) has all of it"
            )
        return told["result"]["value"]

    def log(self) -> str:
        """What it has printed, the last MB."""
        while self._told()["text"]:
            pass
        return plain(self._text, _LOG_BYTES, lines=True)

    def stop(self) -> bool:
        """End it now; False when it had ended. `run.stop()` on the box ends a run well."""
        return bool(self.box.call("job", {"verb": "stop", "name": self.name}, timeout_s=_CALL_S)["stopped"])

    def _told(self) -> dict[str, Any]:
        """How it is, and what it has printed since the last time."""
        with self._reading:
            told = self._log.read()
            self._text = (self._text + told["text"])[-_LOG_BYTES:]
            return told

    def _copied(self, into: Path) -> Run | None:
        """As `_copy`; None too where a file was being written, which comes with the next copy."""
        with contextlib.suppress(TransferError):
            return self._copy(into)
        return None

    def _copy(self, into: Path) -> Run | None:
        """Bring the copy of its newest run up to date; None before it has begun one."""
        begun = self.box.call(_RUNS, {"folder": f"~/{self.runs}"}, timeout_s=_CALL_S)["runs"]
        if not begun:
            return None
        sync(self.box, f"{self.runs}/{begun[-1]}", into / Path(begun[-1]).name, down=True, growing=True)
        return Run(into / Path(begun[-1]).name)

    def _keep_up(self, into: Path) -> None:
        session = self.box.session
        try:
            with lasting.held(session):
                while lasting.through(session, self._told)["running"]:
                    lasting.through(session, lambda: self._copied(into))
                    time.sleep(_EVERY_S)
                lasting.through(session, lambda: self._copy(into))
        except NbkitError as error:
            self._error = error


def start(
    box: Box,
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    name: str,
    uses: Sequence[Callable[..., Any]] = (),
) -> Job:
    """Run `function(**arguments)` in the box's Python, and return at once.

    It runs in a process and a session of its own, in the home folder, with its runs in a new folder of `~/runs`.

    Args:
        function: Its source goes over: it imports what it needs itself, and uses no name from around it but `uses`.
        arguments: What JSON can hold.
        name: Names the job on the box.
        uses: Functions that it calls.

    Raises: RemoteCommandError when a job of that name is at work there, or it cannot be started.
    """
    source = "\n".join(dedent(inspect.getsource(one)) for one in (*uses, function))
    # Threads that wait must not spin: the box may have other work.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **({"NBKIT_SMOKE": "1"} if smoke.on() else {})}
    runs = f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    text = _PROGRAM.format(runs=f"~/{runs}", environment=environment, source=source, name=function.__name__)
    asked = {"verb": "start", "name": name, "python": "", "source": text, "request": dict(arguments)}
    if not box.call("job", asked, timeout_s=_CALL_S)["started"]:
        raise RemoteCommandError(f"A job {name} is at work on {box.host}.", hint="wait for it, or give another name")
    return Job(box, name, runs)
