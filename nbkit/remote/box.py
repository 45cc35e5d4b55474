"""A box: a session on a host, and the Python that our programs run in there."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from nbkit import atomic, folders, ssh
from nbkit.closing import Closing
from nbkit.display import Table
from nbkit.errors import HostNameError, NbkitError, RemoteCommandError
from nbkit.hardware import Machine
from nbkit.remote import look, program, trace
from nbkit.remote.trace import Examination
from nbkit.ssh.keys import Ask
from nbkit.ssh.route import to_paste

DIAL_S = 15.0


@dataclass
class Box(Closing):
    """A host and its Python. A context manager; `close()` is idempotent.

    Attributes:
        session: The connection.
        host: What the user typed.
        python: Shell words that start the box's Python, quoted where they need it.
    """

    session: ssh.Session
    host: str
    python: str

    @property
    def named(self) -> str:
        """How a command of nbkit names the box, to paste: with -F and --python where they are needed to come here again."""
        route = self.session.route
        usual = remembered(route) or "python3"
        return to_paste(self.host, route.config, "" if self.python == usual else self.python)

    def call(self, source: str, request: Mapping[str, Any] | None = None, *, timeout_s: float = 60.0) -> dict[str, Any]:
        """Run a program in the box's Python and return the JSON object that it prints as its last line.

        Args:
            source: The name of one in `nbkit/remote/there`, or a program's text.
            request: What it finds as REQUEST.

        Raises: RemoteCommandError with what the program said; UnreachableError.
        """
        text = program.text(source) if source.isidentifier() else source
        try:
            return program.call(self.session, text, request or {}, python=self.python, timeout_s=timeout_s)
        except RemoteCommandError as error:  # what runs there does not know by which name we call it
            error.hint = re.sub(r"(nbkit setup )?\bHOST\b", self._named, error.hint)
            raise

    def _named(self, found: re.Match[str]) -> str:
        return (
            f"{found[1]}{self.session.route.named}" if found[1] else self.named
        )  # setup takes --python for another thing

    def check(self, *, read_speed: bool = False) -> Machine:
        """What the box has: a Machine, as `nbkit.probe` tells of this one.

        Raises: RemoteCommandError, UnreachableError.
        """
        return look.machine(self, read_speed=read_speed)

    def doctor(self, *, error: str | None = None, fast: bool = False, timeout_s: float = 120.0) -> Examination:
        """What is wrong on the way to the box and in it: the path, hop by hop, and the doctor's findings there.

        Args:
            error: What a run there ended with: rules that know it say what it means.
            fast: Leave out importing torch, and how fast the disks are read.
            timeout_s: What importing torch and bitsandbytes may take.

        Raises: UnreachableError when the link is lost meanwhile.
        """
        return trace.examination(self, error=error, fast=fast, timeout_s=timeout_s)

    def table(self) -> Table:
        """How the box is reached and secured, and which Python runs there."""
        rows: list[tuple[str, str]] = [("way", str(self.session.route))]
        if self.session.alive:
            facts = self.session.facts
            rows += [
                ("login", ", ".join(facts["login"])),
                ("host key", facts["host_key"]),
                ("cipher", facts["cipher"]),
                ("server", facts["server"]),
                ("round trip", f"{1000 * self.session.round_trip():.1f} ms"),
            ]
        rows.append(("Python", self.python))
        return Table(
            ("part", "found"), rows, title=f"{self.host}: {'connected' if self.session.alive else 'not connected'}"
        )

    def close(self) -> None:
        self.session.close()

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        """In a notebook: the connection, and below it, folded, the machine."""
        html = self.table()._repr_html_()
        if not self.session.alive:
            return html
        try:
            inside = self.check()._repr_html_()
        except NbkitError as error:
            inside = f"<pre>{escape(str(error))}</pre>"
        return f"<div>{html}<details open><summary>Machine</summary>{inside}</details></div>"

    def __repr__(self) -> str:
        """One line for a person; asks nothing of the box."""
        return f"Box({self.host}, {self.session.route}, {'alive' if self.session.alive else 'lost'})"


def connect(
    host: str,
    *,
    config: str | Path | None = None,
    ask: Ask | str | None = "auto",
    python: str = "",
    timeout_s: float = DIAL_S,
) -> Box:
    """Open a session on a host.

    Args:
        host: An alias of ~/.ssh/config, USER@HOST[:PORT] or ssh://USER@HOST:PORT.
        config: A file in place of the user's ssh_config.
        ask: Asked for passphrases, passwords and codes; None for nobody; "auto" asks on a terminal or in the notebook.
        python: Shell words that start a Python there. Default: the one that `nbkit setup` left or was told, else python3.
        timeout_s: For each hop's name and TCP connection.

    Raises: HostNameError (2), SshConfigError (1), UnreachableError (3), HostKeyError and AuthenticationError (4).
    """
    session = ssh.connect(host, config=config, ask=ask, timeout_s=timeout_s)
    return Box(session, host, python or remembered(session.route) or "python3")


def doctor(
    host: str,
    *,
    config: str | Path | None = None,
    ask: Ask | str | None = "auto",
    python: str = "",
    error: str | None = None,
    fast: bool = False,
    timeout_s: float = 120.0,
) -> Examination:
    """What is wrong on the way to a host and in it. A connection that fails is a finding: the path shows where.

    Args:
        timeout_s: What importing torch and bitsandbytes there may take.

    Raises: HostNameError (2).
    """
    route = None
    try:
        route = ssh.resolve(host, config=config)
        with connect(host, config=config, ask=ask, python=python) as box:
            return box.doctor(error=error, fast=fast, timeout_s=timeout_s)
    except HostNameError:
        raise
    except NbkitError as failure:
        return trace.unreached(host, route, failure)


def remembered(route: ssh.Route) -> str:
    """The words that start the Python of the box at the end of `route`; empty when none was set up."""
    try:
        found = json.loads(_memory(route).read_text(encoding="utf-8"))
        return str(found["python"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def remember(route: ssh.Route, python: str) -> None:
    """Use `python` for that box from now on, from whichever alias leads there by that way.

    Raises: StorageError.
    """
    atomic.write_json(_memory(route), {"route": str(route), "python": python}, mode=0o600)


def _memory(route: ssh.Route) -> Path:
    name = re.sub(r"[^A-Za-z0-9.-]", "_", route.target.hostname)[:60]
    return folders.state() / "boxes" / f"{name}-{hashlib.sha256(str(route).encode()).hexdigest()[:12]}.json"
