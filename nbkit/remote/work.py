"""Runs that a box carries out on its own: a notebook, a script or a recipe from here, sent, started, followed, brought back.

What stands on the box is told by `there/work.py`; nothing of it needs this machine, and any machine finds it again.
"""

from __future__ import annotations

import base64
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbkit import atomic, smoke
from nbkit.errors import NbkitError, RemoteCommandError
from nbkit.remote import begun, lasting, parcel, program
from nbkit.remote.box import Box
from nbkit.remote.transfer import Progress, Transferred, pull, sync
from nbkit.ssh.text import plain
from nbkit.training import status

GRACE_S = 120.0  # for a training run to finish its step and save
_CALL_S = 60.0
_ENDED = ("done", "failed", "stopped", "lost")

Say = Callable[[str], None]


def ask(box: Box, **request: Any) -> dict[str, Any]:
    """Have `there/work_do.py` do request["verb"].

    Raises: RemoteCommandError with what it said; UnreachableError.
    """
    source = program.bundle("work", "work_do")
    return box.call(source, request, timeout_s=_CALL_S)


@dataclass(frozen=True)
class Work:
    """One run on a box, as it was when it was asked about.

    Attributes:
        id: Names it there: time and file.
        about: `state` (running, stopping, done, failed, stopped, lost), `file`, `kind`, `folder`, `started`, `end`,
            `progress`, and its training runs as `runs`.
    """

    box: Box
    id: str
    about: Mapping[str, Any]

    @property
    def state(self) -> str:
        return str(self.about["state"])

    @property
    def active(self) -> bool:
        """True while it is at work."""
        return self.state not in _ENDED

    @property
    def exit_code(self) -> int:
        """Of its program: 128 + the signal where one ended it; 1 where nobody knows."""
        end = self.about.get("end")
        return int(end["exit"]) if end else 1

    @property
    def failed_cell(self) -> str:
        """Which cell of the notebook failed and why; empty when none did."""
        cell = (self.about.get("end") or {}).get("cell")
        return plain(f"cell {cell['number']} ({cell['line']}): {cell['error']}", 600) if cell else ""

    @property
    def why(self) -> str:
        """Which signal ended it, and whether memory ran out; empty where it ended by itself, or was asked to."""
        return plain(str((self.about.get("end") or {}).get("why") or ""), 600)

    @property
    def left(self) -> int:
        """How many processes it had left behind when it ended."""
        return int((self.about.get("end") or {}).get("left") or 0)

    @property
    def filled(self) -> str:
        """A sentence where the disk there took no more when it ended; empty otherwise."""
        return (
            f"the disk there is full: {plain(str(self.about['folder']))}"
            if (self.about.get("end") or {}).get("full")
            else ""
        )

    @property
    def removed(self) -> bool:
        """True where its folder was deleted there while it is at work: what it writes is lost."""
        return bool(self.about.get("removed"))

    def again(self) -> Work:
        """As it is now."""
        return find(self.box, self.id)

    def follow(
        self, write: Callable[[bytes], None], *, lines: int | None = None, wait: bool = True, say: Say = print
    ) -> Work:
        """Hand what it prints to `write`, each byte once, through lost links.

        Args:
            lines: The last so many of what it has printed, and what comes then; all of it when left out.
            wait: Until it has ended; otherwise what there is.
            say: Told when the link goes and comes.

        Returns: The run as it is then.
        Raises: UnreachableError when the link does not come back; RemoteCommandError when there is no such run any more, or
            its folder was deleted before it ended.
        """
        at = 0
        ended: dict[str, Any] | None = None

        def take(told: dict[str, Any]) -> bool:
            nonlocal at, ended
            if "data" in told:
                write(base64.b64decode(told["data"]))
                at = int(told["to"])
            ended = told.get("end")
            return "end" in told

        lasting.stream(
            self.box,
            lambda: {"name": self.id, "log": at, "lines": None if at else lines, "follow": wait},
            take,
            say=say,
        )
        if ended is None:
            raise RemoteCommandError(
                f"{self.id} on {self.box.host} has ended, and its folder was deleted there: how it ended is not known.",
                hint=f"nbkit runs --on {self.box.named}",
            )
        return Work(self.box, self.id, ended)

    @property
    def named(self) -> str:
        """How a command of nbkit names it, to paste: by its id alone where this machine began it, else with its box."""
        known = [one for one in begun.every() if one.id == self.id]
        route = self.box.session.route
        if [(one.host, one.config) for one in known] == [(self.box.host, route.config)]:
            return self.id
        return f"{self.id} --on {self.box.named}"

    def stop(self, grace_s: float = GRACE_S) -> list[str]:
        """Ask it to end: its training runs finish their step and save; SIGTERM after `grace_s`, at once without one.

        Returns: The training runs that are saved first.
        Of one that has ended, what it left behind gets SIGTERM.

        Raises: RemoteCommandError when it has ended already, and nothing of it is left.
        """
        told = ask(self.box, verb="stop", name=self.id, grace_s=grace_s)
        if not told["asked"]:
            raise RemoteCommandError(
                f"{self.id} on {self.box.host} is not running: {plain(told['state'])}.", hint=f"nbkit logs {self.named}"
            )
        return [plain(name) for name in told["training"]]

    def remove(self) -> None:
        """Delete it from the box, with all that it wrote and trained there.

        Raises: RemoteCommandError while it is at work; UnreachableError.
        """
        ask(self.box, verb="remove", name=self.id)

    def wish(self, what: str, *, on: bool = True, run: str = "") -> str:
        """Ask a training run of it to finish its step and stop or pause, or, with `on=False`, take that back.

        Args:
            what: stop or pause.
            run: Its id; the newest that is at work when left out.

        Returns: Its id.
        Raises: RemoteCommandError when none is at work; UnreachableError.
        """
        active = [str(one["id"]) for one in self.about["runs"] if one["state"] in status.ACTIVE]
        if not run and not active:
            raise RemoteCommandError(
                f"{self.id} on {self.box.host} trains nothing now.", hint=f"nbkit runs --on {self.box.named}"
            )
        run = run or active[-1]
        ask(self.box, verb="ask", name=self.id, run=run, what=what, on=on, **{"from": socket.gethostname()})
        return plain(run)

    def pull(self, into: Path, runs: Path, progress: Callable[[Progress], None] | None = None) -> list[Transferred]:
        """Fetch what it wrote into `into`, with its log, and its training runs into `runs`. What was sent stays there.

        Raises: TransferError; UnreachableError.
        """
        told = ask(self.box, verb="changed", name=self.id)
        folder, above = str(told["folder"]), dict[str, list[str]]()
        for name in told["written"]:
            above.setdefault(name.rpartition("/")[0], []).append(f"{folder}/files/{name}")
        done = [
            pull(self.box, paths, f"{into / place}/", parents=True, progress=progress) for place, paths in above.items()
        ]
        said = bytearray()
        self.follow(said.extend, wait=False)  # a file that still grows is no file to transfer
        atomic.write_bytes(into / "log", bytes(said), mode=0o600)
        for run in told["runs"]:
            name = Path(str(run["id"])).name
            done.append(sync(self.box, f"{folder}/runs/{name}", runs / name, down=True, progress=progress))
        return done

    def pull_notebook(self, into: Path) -> Path | None:
        """Fetch the executed notebook; None for what is none."""
        if self.about["kind"] != "notebook":
            return None
        name = Path(str(self.about["file"])).name
        pull(self.box, f"{self.about['folder']}/files/{name}", f"{into}/", parents=True)
        return into / name


def begin(
    box: Box,
    file: str | Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    arguments: Sequence[str] = (),
    needs: Iterable[str | Path] = (),
    config: str = "",
    say: Say = print,
    progress: Callable[[Progress], None] | None = None,
) -> Work:
    """Send a notebook, script or recipe and start it there, in a process that needs no connection.

    Args:
        parameters: Of a notebook or a recipe.
        arguments: Of a script.
        needs: More files and folders that go along; modules beside the file that it imports do so by themselves.
        config: The ssh_config that leads there, to be remembered; empty for the user's own.
        say: Told what is worth knowing before it begins.

    Raises: NbkitError (2) for what cannot be run; RemoteCommandError for what is missing there; TransferError;
        UnreachableError. Nothing runs then, and what was sent is removed; where that is not certain, `say` is told.
    """
    given = parcel.prepare(file, parameters or {}, needs, arguments)
    if arguments and given.kind != "script":
        raise NbkitError(f"A {given.kind} takes no arguments.", hint="--param NAME=VALUE", exit_code=2)
    there = ask(box, verb="look")
    with_code = parcel.check(given, there, box)
    for note in given.notes:
        say(note)
    place = ask(box, verb="make", name=f"{time.strftime('%Y%m%d-%H%M%S')}-{_short(given.path.stem)}")
    name, has_begun = str(place["id"]), False
    try:
        parcel.send(box, given, str(place["files"]), progress)
        code = parcel.send_code(box, str(there["root"]), lambda **more: ask(box, **more)) if with_code else ""
        ask(box, verb="begin", name=name, **_order(given, arguments, parameters or {}, code))
        has_begun = True
        begun.remember(begun.Begun(name, box.host, config, box.python, given.path.name, given.kind, time.time()))
        return find(box, name)
    except BaseException as error:
        if has_begun or not _dropped(box, name):
            said = "it goes on" if has_begun else "it may have begun"
            say(f"{said}, on {box.host}, as {name}: nbkit runs --on {box.named}")
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(name) from None
        raise


def _order(given: parcel.Parcel, arguments: Sequence[str], values: Mapping[str, Any], code: str) -> dict[str, Any]:
    """What the box's side is told: the command, its environment, what is written down of it."""
    file = given.path.name
    programs = {"supervise": f"import sys\nREQUEST = sys.argv[1]\n{program.bundle('ended', 'work', 'supervise')}"}
    if given.kind == "notebook":
        programs["notebook"] = program.text("notebook")
        argv = ["{python}", "-u", "{folder}/notebook.py", "{folder}", file]
    elif given.kind == "recipe":
        argv = ["{python}", "-u", "-m", "nbkit.training.from_recipe", file]
    else:
        argv = ["{python}", "-u", file, *arguments]
    # Threads that wait must not spin: the box may have other work.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **({"NBKIT_SMOKE": "1"} if smoke.on() else {})}
    about = {"file": file, "kind": given.kind, "arguments": list(arguments), "parameters": dict(values),
             "sent_from": socket.gethostname()}  # fmt: skip
    return {"programs": programs, "argv": argv, "env": environment, "code": code, "about": about}


def _dropped(box: Box, name: str) -> bool:
    """Take back what was sent for nothing; where that fails, the box clears it away a day later."""
    try:
        return bool(ask(box, verb="drop", name=name)["dropped"])
    except NbkitError:
        return False


def _short(stem: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")[:40] or "run"


def works(box: Box) -> list[Work]:
    """Every run on the box, the newest first, whichever machine began it.

    Raises: RemoteCommandError; UnreachableError.
    """
    return [Work(box, str(about["id"]), about) for about in ask(box, verb="every")["runs"]]


def find(box: Box, name: str = "") -> Work:
    """A run on the box: by its id, the start of one, its file's name, or a training run in it; the newest for "".

    Raises: RemoteCommandError when there is none, or `name` fits several; UnreachableError.
    """
    about = ask(box, verb="find", name=name)
    return Work(box, str(about["id"]), about)
