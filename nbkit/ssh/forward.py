"""A port or a Unix socket here that reaches one of the host, and stays bound whatever the link does."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from nbkit.closing import Closing
from nbkit.errors import NbkitError, UnreachableError

if TYPE_CHECKING:
    from nbkit.ssh.pump import Pump
    from nbkit.ssh.session import Session
    from nbkit.ssh.streams import Streams

WAIT_S = 10.0  # a connection waits so long for a lost link to come back


class PortTakenError(NbkitError):
    """The local port is in use by another program."""


class Forward(Closing):
    """A running forward: a context manager, `close()` is idempotent and leaves no thread and no socket.

    Attributes:
        local: The port on 127.0.0.1, or the path of the Unix socket.
        session: What makes a lost link again.
        carrier: What the connections ride on: the session, or streams over it.
        remote: What is reached: a port of the host's loopback, or the path of a socket.
    """

    def __init__(
        self,
        carrier: Session | Streams,
        remote: int | str,
        local: int | str,
        *,
        wait_s: float,
        any_user: bool,
        keep: bool,
    ) -> None:
        from nbkit.ssh.pump import Pump
        from nbkit.ssh.session import Session

        self.carrier, self.remote = carrier, remote
        self.session = carrier if isinstance(carrier, Session) else carrier.session
        listener = _bound(local) if isinstance(local, int) else _bound_path(local)
        self.local: int | str = int(listener.getsockname()[1]) if isinstance(local, int) else local
        self._lock = threading.Lock()
        self._closed = False
        self._pump: Pump = Pump(listener, carrier, remote, wait_s=wait_s, any_user=any_user, keep=keep)
        carrier.hold(self._pump.link_changed)
        self._pump.start()

    @property
    def local_port(self) -> int:
        """The port on 127.0.0.1; 0 where it is a socket."""
        return self.local if isinstance(self.local, int) else 0

    @property
    def alive(self) -> bool:
        """True while connections are taken, though the link may be on its way back."""
        return not self._closed and self.carrier.error is None

    @property
    def refused(self) -> int:
        """Local connections that were closed because another user of this machine made them."""
        return self._pump.refused

    @property
    def failed(self) -> str:
        """Why the newest connection did not reach its end; empty when none failed."""
        return self._pump.failed

    def close(self) -> None:
        """Stop taking connections and end those that are open."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.carrier.release(self._pump.link_changed)
        self._pump.stop()
        if isinstance(self.local, str):
            with contextlib.suppress(OSError):
                Path(self.local).unlink()

    def __repr__(self) -> str:
        """One line for a person."""
        here = self.local if isinstance(self.local, str) else f"127.0.0.1:{self.local}"
        return f"Forward({here} -> {self.session.route.target} {self.remote})"


def forward(
    session: Session | Streams,
    remote: int | str,
    local_port: int | str = 0,
    *,
    wait_s: float = WAIT_S,
    any_user: bool = False,
    keep: bool = False,
) -> Forward:
    """Open a local port that reaches `remote` on the host.

    Args:
        session: What it rides on. Over Streams, open connections outlive the link: no byte is lost or doubled.
        remote: TCP port on the host's loopback, 1-65535, or the path of a Unix socket there.
        local_port: 0 lets the OS choose; read the result from `.local_port`. Or the path of a Unix socket to make, 0600.
        wait_s: How long a connection waits while the link is lost, before it is closed.
        any_user: Take connections of every user of this machine. By default, on Linux, only this user's.
        keep: Over Streams, take what the other end sends while we are away or slow, and keep it there, in memory and then on
            disk. For what must not be held up, such as a kernel's output; by default a slow reader holds its source up.

    Returns: A running Forward. While it runs, a lost link is made again: with longer and longer pauses, never after a
        refused login or a host key that is not trusted. Over a Session open connections end with the link; new ones wait.

    Raises: PortTakenError. Source: RFC 4254 section 7.2. Not covered: UDP, remote (-R) and dynamic (-D) forwards.
    """
    if isinstance(remote, int) and not 0 < remote < 65536:
        raise NbkitError(f"{remote} is not a port.", hint="a port is a number from 1 to 65535", exit_code=2)
    if isinstance(remote, str) and (not remote.startswith("/") or "\0" in remote):
        raise NbkitError(f"{remote!r} is not the path of a socket.", hint="give it from / on", exit_code=2)
    if session.error is not None:
        raise session.error
    return Forward(session, remote, local_port, wait_s=wait_s, any_user=any_user, keep=keep)


def _bound(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # Connections of the last run linger, and keep its port from the next unless both say this; another listener
        # still keeps us out.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(1024)
    except (OSError, OverflowError) as error:
        listener.close()
        raise PortTakenError(
            f"Port {port} on 127.0.0.1 cannot be taken: {getattr(error, 'strerror', None) or error}.",
            hint="leave the port out, and a free one is chosen      (who has it: ss -ltnp)",
        ) from error
    return listener


def _bound_path(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(path)
        listener.listen(1024)
    except (OSError, ValueError) as error:
        listener.close()
        raise PortTakenError(
            f"No socket can be made at {path}: {getattr(error, 'strerror', None) or error}.",
            hint="give a path of at most 107 bytes, in a folder of yours, where nothing stands",
        ) from error
    finally:
        os.umask(before)
    return listener


__all__ = ["Forward", "PortTakenError", "UnreachableError", "forward"]
