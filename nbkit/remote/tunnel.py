"""A tunnel: the Jupyter of a box on a port of this machine, and more ports with it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbkit import ssh
from nbkit.closing import Closing
from nbkit.errors import RemoteCommandError
from nbkit.remote import jupyter, kernels, tunnels
from nbkit.remote.box import Box
from nbkit.ssh.forward import PortTakenError
from nbkit.ssh.route import absolute


class Tunnel(Closing):
    """An open tunnel: a context manager, `close()` is idempotent. The server on the box outlives it.

    Attributes:
        server: The Jupyter server there.
        address: Its URL here, without the token.
        token_file: Holds the token while the tunnel is open, for scripts; this user's alone.
        forwards: The other forwards, in the order they were asked for.
        streams: What they ride on where a relay runs on the box: connections outlive the link. None where they do not.
        notes: What a person should know, a sentence each.
        kernels: What the launcher of this machine's Jupyter shows from now on.
    """

    def __init__(self, box: Box, ports: Sequence[tuple[int | str, int]], *, port: int, root: str, config: str) -> None:
        self.box = box
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            # Ports that are taken here are found out before anything is started there.
            if port:
                ssh.forward(box.session, "/", port).close()
            self.streams, notes = _streams(box)
            carrier = stack.enter_context(self.streams) if self.streams else box.session
            self.forwards = [stack.enter_context(ssh.forward(carrier, remote, local)) for remote, local in ports]
            self.server = jupyter.start(box, root=root, carrier=carrier)
            self.notes = [*self.server.notes, *notes]
            self._told = 0
            jupyter_here = stack.enter_context(_forward(box, carrier, self.server.remote, port))
            self.address = f"http://127.0.0.1:{jupyter_here.local_port}/" + ("lab" if self.server.lab else "")
            specs = _specs(box, jupyter_here.local_port, self.server.token)
            self.kernels = kernels.register(box.host, specs, config=config, python=box.python)
            tunnels.remember(tunnels.Place(box.host, config, box.python, jupyter_here.local_port))
            self.token_file = str(tunnels.token_path())
            others = [{"local": forward.local_port, "remote": forward.remote} for forward in self.forwards]
            entry = tunnels.Opened(box.host, os.getpid(), self.address, self.token_file, time.time(), others)
            stack.enter_context(tunnels.listed(entry, self.server.token))
            self._stack = stack.pop_all()

    @property
    def url(self) -> str:
        """The address with the token: whoever has it may do all that the user may do there."""
        return f"{self.address}?token={self.server.token}"

    @property
    def ended(self) -> bool:
        """True when `nbkit stop` was asked to end it, wherever that ran."""
        return tunnels.asked_to_close(self.token_file)

    def news(self) -> list[str]:
        """What has happened to its connections since the last call: a relay that was lost, a disk there that is full."""
        notes = list(self.streams.notes) if self.streams else []
        new, self._told = notes[self._told :], len(notes)
        return new

    def close(self) -> None:
        """Close the ports here; what runs on the box goes on."""
        self._stack.close()

    def __repr__(self) -> str:
        """One line for a person."""
        return f"Tunnel({self.address} -> {self.box.host})"

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: everything but the token, which stands in `token_file`."""
        return {
            "host": self.box.host, "url": self.address, "token_file": self.token_file, "fresh": self.server.fresh,
            "root": self.server.root, "server": self.server.version, "pid": self.server.pid, "kernels": self.kernels,
            "forwards": [{"local": f.local_port, "remote": f.remote} for f in self.forwards],
            "resumes": self.streams is not None, "notes": self.notes,
        }  # fmt: skip


def tunnel(
    box: Box,
    ports: Sequence[tuple[int | str, int]] = (),
    *,
    port: int = 0,
    root: str = "",
    config: str | Path | None = None,
) -> Tunnel:
    """Start Jupyter on the box, or find the one that runs; bring it here, and its kernels into this machine's Jupyter.

    Args:
        ports: More forwards: a port or a socket's path there, and the port here, 0 for any.
        port: For Jupyter here; 0 for the one it had the last time where that is free, else any.
        root: The folder there whose files it shows; the home folder by default.
        config: The ssh_config that `box` was reached with, for kernels that are started later.

    Returns: A running Tunnel. A lost link is made again, and open connections go on: a page's WebSocket, a download.

    Raises: PortTakenError; RemoteCommandError; UnreachableError; StorageError.
    """
    return Tunnel(box, ports, port=port, root=root, config=absolute(config) or box.session.route.config)


def _streams(box: Box) -> tuple[ssh.Streams | None, list[str]]:
    """Streams to the box, or a sentence that says why connections end with the link."""
    try:
        streams = ssh.Streams(box.session, python=box.python)
    except RemoteCommandError as error:
        why = error.message.rstrip(".")
        return None, [f"Open connections will end when the link breaks, for no relay runs on {box.host}: {why}."]
    forbids = f"sshd on {box.host} forbids forwards to sockets: a command there carries all connections in their place."
    return streams, [forbids] * box.session.sockets_refused


def _forward(box: Box, carrier: ssh.Session | ssh.Streams, remote: int | str, port: int) -> ssh.Forward:
    before = tunnels.remembered(box.host)
    if not port and before is not None and before.port:
        with contextlib.suppress(PortTakenError):
            return ssh.forward(carrier, remote, before.port)
    return ssh.forward(carrier, remote, port)


def _specs(box: Box, port: int, token: str) -> dict[str, Any]:
    """The kernels of the box, asked for through the tunnel: it works before anyone is told of it.

    Raises: RemoteCommandError.
    """
    try:
        return dict(jupyter.get(port, "/api/kernelspecs", token)["kernelspecs"])
    except (OSError, KeyError, TypeError) as error:
        raise RemoteCommandError(
            f"Jupyter on {box.host} does not answer through the tunnel: {error}.", hint=f"nbkit status {box.named}"
        ) from error
