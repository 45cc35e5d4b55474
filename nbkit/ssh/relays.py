"""The relays of ours on a host, which hold the far ends of its streams: found, started, looked at, sent away."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from nbkit.ssh import program
from nbkit.ssh.session import Session

_MODULES = ("frames", "flow", "mux", "spool", "endpoint", "relay")  # in the order in which they import each other
_START_S = 60.0


def find(session: Session, *, python: str, folder: str, limits: Mapping[str, Any], gone: Sequence[str]) -> str:
    """The socket of the relay there, which is started where none of this version runs.

    Args:
        folder: Where it is; nbkit's own when empty.
        limits: Of what it keeps, for one that is started.
        gone: Sessions whose processes are no more: what is kept for them is given back.

    Raises: RemoteCommandError with why there is none; UnreachableError.
    """
    return str(_call(session, python, do="start", folder=folder, limits=dict(limits), gone=list(gone))["path"])


def listed(
    session: Session, *, python: str = "python3", folder: str = "", retire: bool = False
) -> list[dict[str, Any]]:
    """Those on the host, each as it describes itself; usually one.

    Args:
        retire: Have each end when its last client has gone: at once, when it has none.

    Raises: RemoteCommandError, UnreachableError.
    """
    found = _call(session, python, texts={}, do="retire" if retire else "look", folder=folder)
    return [dict(each) for each in found["relays"]]


def _call(session: Session, python: str, **request: Any) -> dict[str, Any]:
    """Run `there/start.py`, which is told the relay's program and what names this version of it."""
    texts = {name: program.text_of(name) for name in _MODULES}
    version = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]
    request = {"texts": texts, "version": version, **request}
    return program.call(session, program.text_of("start"), request, python=python, timeout_s=_START_S)
