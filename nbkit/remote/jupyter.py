"""The Jupyter server of a box: start or find it, look at it, end it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nbkit import ssh
from nbkit.errors import RemoteCommandError, UnreachableError
from nbkit.remote import program
from nbkit.remote.box import Box

_MODULES = ("ended", "owned", "server", "kernel", "jupyter")
_KEEPER = ("ended", "listen", "keep")
_ANSWER_S = 30.0
_PIECE = 4 << 20
_TIMEOUT_S = 90.0  # the program itself gives a server 60 s


@dataclass(frozen=True)
class Server:
    """A running server, reachable through a forward.

    Attributes:
        remote: Its Unix socket.
        lab: Version of JupyterLab; empty where there is none.
        token: Lets its bearer do all that the user may do there.
        root: The folder whose files it shows.
        fresh: True when it was started just now.
        notes: What a person should know, a sentence each.
    """

    pid: int
    remote: str
    token: str = field(repr=False)
    version: str
    lab: str
    root: str
    python: str
    fresh: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Running:
    """What of ours runs on a box.

    Attributes:
        server: Facts of the server; {"pid", "problem"} for one that does not answer; None without one.
        kernels: id, pid, name and state of each, name and state None for one that no server knows; of those that nbkit
            started also the display name (of), since when (seconds since 1970), whether some Jupyter is connected to it
            (in_use), and what became of the one before, in its place (after, empty unless that ended by itself).
        ended: id, of, since and what became of it (text) of each kernel that ended by itself and left what it said.
        rest: pid and command of what people started from kernels and terminals, which nbkit leaves alone.
    """

    server: dict[str, Any] | None
    kernels: list[dict[str, Any]]
    ended: list[dict[str, Any]]
    rest: list[dict[str, Any]]


@dataclass(frozen=True)
class Stopped:
    """What was ended (pid and what), and what people started from kernels and was left alone (pid and command)."""

    ended: list[dict[str, Any]]
    rest: list[dict[str, Any]]


def start(box: Box, *, root: str = "", carrier: ssh.Session | ssh.Streams | None = None) -> Server:
    """Find our Jupyter server on the box or start it, detached: it outlives this connection.

    It listens on a Unix socket that only this user can open. Its kernels talk over Unix sockets too. The user's own server
    configuration is not read: it may open the server to the network.

    Args:
        root: The folder whose files it shows; the home folder by default. A server that runs keeps its own.
        carrier: What is to reach it; the box's session by default.

    Raises: RemoteCommandError without Jupyter there, with one that has known holes, or where the carrier does not reach it.
    """
    found = _call(box, "start", root=root)
    if not _reaches(box, carrier or box.session, found):
        if found["fresh"]:
            stop(box)
        raise RemoteCommandError(
            f"sshd on {box.host} does not forward to the socket where Jupyter listens.",
            hint="ask for AllowStreamLocalForwarding yes in its sshd_config",
        )
    return _server(box, found, root)


def _server(box: Box, found: dict[str, Any], root: str) -> Server:
    notes = []
    if root and not found["fresh"]:
        notes.append(f"Jupyter was running already and keeps its folder, {found['root']}.")
    if found["as_root"]:
        notes.append(f"You are root on {box.host}, so notebooks run as root there.")
    if not found["lab"]:
        notes.append(f"{box.host} has no JupyterLab: the URL serves VS Code and kernels, no page.")
    if found["old_lab"]:
        notes.append(f"JupyterLab {found['lab']} on {box.host} has known holes; open no notebook you do not trust.")
    return Server(
        pid=int(found["pid"]), remote=str(found["sock"]), token=str(found["token"]),
        version=str(found["version"]), lab=str(found["lab"]), root=str(found["root"]), python=str(found["python"]),
        fresh=bool(found["fresh"]), notes=tuple(notes),
    )  # fmt: skip


def look(box: Box) -> Running:
    """What of ours runs on the box.

    Raises: RemoteCommandError; UnreachableError.
    """
    return Running(**_call(box, "look"))


def stop(box: Box) -> Stopped:
    """End our server and kernels on the box, also kernels whose server is gone; nothing that others started.

    Raises: RemoteCommandError; UnreachableError.
    """
    return Stopped(**_call(box, "stop"))


def about_kernels(box: Box, folder: str = "") -> dict[str, str]:
    """The box's Python (python, path) and its ipykernel, by version.

    Raises: RemoteCommandError where it has no ipykernel, or no such folder; UnreachableError.
    """
    return _call(box, "about", folder=folder)


def start_kernel(
    box: Box,
    kernel_id: str,
    argv: list[str],
    env: dict[str, str],
    key: str,
    name: str = "",
    *,
    folder: str = "",
    keep: bool = False,
) -> dict[str, Any]:
    """Start a kernel of its own on the box: its pid, start time, the paths of its five sockets and their beginning (base).

    Args:
        name: What people call it; shown by `look`.
        folder: Where it works; the home folder when empty.
        keep: The one before it, with this id, ended by itself: what that said can still be read.

    Raises: RemoteCommandError; UnreachableError.
    """
    return _call(
        box, "kernel", id=kernel_id, argv=argv, env=env, key=key, name=name, folder=folder, keep=keep,
        logs=f"What it printed until then: nbkit kernel logs {box.named} {kernel_id[:8]}",
        keeper=program.bundle(*_KEEPER),
    )  # fmt: skip


def find_kernel(box: Box, kernel_id: str) -> dict[str, Any]:
    """A kernel that runs there, as `start_kernel` tells of one, with its key.

    Raises: RemoteCommandError when it has ended; UnreachableError.
    """
    return _call(box, "again", id=kernel_id)


def lives(box: Box, kernel: dict[str, Any]) -> bool:
    """Whether the process of a kernel, as `start_kernel` tells of one, is there still.

    Raises: UnreachableError.
    """
    found = box.session.run(["cat", f"/proc/{kernel['pid']}/stat"])
    fields = found.text.rpartition(")")[2].split()
    return bool(fields) and fields[0] not in {"Z", "X"} and int(fields[19]) == kernel["started"]


def kernel_end(box: Box, kernel_id: str, pid: int) -> dict[str, Any]:
    """What became of a kernel that ran as process `pid`: text, and status (exit status, or the negative of a signal).

    Or, when somebody else has restarted it, {"again": the one in its place}, as `start_kernel` tells of one.

    Raises: RemoteCommandError; UnreachableError.
    """
    return _call(box, "end", id=kernel_id, pid=pid)


def said(box: Box, kernel_id: str) -> Iterator[dict[str, Any]]:
    """What a kernel of ours printed, showed and raised since it began, whoever was there to hear it; oldest first.

    Yields: type, at (ISO 8601), request (the id of the request it belongs to) and content as in Jupyter's messages, of
        `data` the texts only; omitted (bytes) in place of a content that is longer than 256 KiB. Types of Jupyter's are
        execute_input, stream, execute_result, display_data and error; of ours are end (the kernel ended by itself; a
        restarted one's lines follow), full (from there on nothing was kept) and lost (count: messages, with a full disk).

    Raises: RemoteCommandError; UnreachableError.
    """
    for part in ("before", "said"):
        after = 0
        while (piece := _call(box, "said", id=kernel_id, part=part, after=after, most=_PIECE))["text"]:
            after = int(piece["next"])
            yield from map(json.loads, piece["text"].splitlines())


def forget_kernel(box: Box, kernel_id: str) -> None:
    """Remove the files of a kernel that has ended.

    Raises: RemoteCommandError; UnreachableError.
    """
    _call(box, "forget", id=kernel_id)


def _call(box: Box, do: str, **more: Any) -> dict[str, Any]:
    try:
        return box.call(program.bundle(*_MODULES), {"do": do, **more}, timeout_s=_TIMEOUT_S)
    except RemoteCommandError as error:  # the program does not know what the user calls the box
        raise RemoteCommandError(error.message, hint=error.hint.replace("HOST", box.host)) from error


def get(port: int, path: str, token: str) -> Any:
    """The JSON that the server behind a forward answers to one GET.

    Raises: OSError when it does not answer, or not with JSON.
    """
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_S)
    try:
        line.request("GET", path, headers={"Authorization": f"token {token}"})
        answer = line.getresponse()
        if answer.status != http.HTTPStatus.OK:
            raise OSError(f"HTTP {answer.status}")
        return json.loads(answer.read())
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(str(error) or type(error).__name__) from error
    finally:
        line.close()


def _reaches(box: Box, carrier: ssh.Session | ssh.Streams, found: dict[str, Any]) -> bool:
    """True when the carrier reaches the server, which is known to listen.

    Raises: UnreachableError when the link is lost.
    """
    with ssh.forward(carrier, str(found["sock"])) as probe:
        try:
            get(probe.local_port, "/api", found["token"])
        except OSError:
            if not box.session.alive:
                raise UnreachableError(f"The connection to {box.host} is lost.", hint="try again") from None
            return False
    return True
