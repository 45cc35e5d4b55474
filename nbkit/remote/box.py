"""A box: a session on a host, and the Python that our programs run in there."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nbkit import atomic, folders, ssh
from nbkit.remote import program
from nbkit.ssh.keys import Ask

DIAL_S = 15.0


@dataclass
class Box:
    """A host and its Python. A context manager; `close()` is idempotent.

    Attributes:
        session: The connection.
        host: What the user typed.
        python: Shell words that start the box's Python, quoted where they need it.
    """

    session: ssh.Session
    host: str
    python: str

    def call(self, source: str, request: Mapping[str, Any] | None = None, *, timeout_s: float = 60.0) -> dict[str, Any]:
        """Run a program in the box's Python and return the JSON object that it prints as its last line.

        Args:
            source: The name of one in `nbkit/remote/there`, or a program's text.
            request: What it finds as REQUEST.

        Raises: RemoteCommandError with what the program said; UnreachableError.
        """
        text = program.text(source) if source.isidentifier() else source
        return program.call(self.session, text, request or {}, python=self.python, timeout_s=timeout_s)

    def close(self) -> None:
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
