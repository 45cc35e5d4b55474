"""A port on 127.0.0.1 that reaches a port or a Unix socket of the host, and stays bound whatever the link does."""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self

from nbkit.errors import NbkitError, UnreachableError
from nbkit.ssh.session import Session

if TYPE_CHECKING:
    from nbkit.ssh.pump import Pump

WAIT_S = 10.0  # a connection waits so long for a lost link to come back


class PortTakenError(NbkitError):
    """The local port is in use by another program."""


class Forward:
    """A running forward: a context manager, `close()` is idempotent and leaves no thread and no socket.

    Attributes:
        local_port: On 127.0.0.1.
        remote: What is reached: a port of the host's loopback, or the path of a socket.
    """

    def __init__(self, session: Session, remote: int | str, local_port: int, *, wait_s: float, any_user: bool) -> None:
        from nbkit.ssh.pump import Pump

        self.session, self.remote = session, remote
        listener = _bound(local_port)
        self.local_port = int(listener.getsockname()[1])
        self._lock = threading.Lock()
        self._closed = False
        self._pump: Pump = Pump(listener, session, remote, wait_s=wait_s, any_user=any_user)
        session.hold(self._pump.link_changed)
        self._pump.start()

    @property
    def alive(self) -> bool:
        """True while connections are taken, though the link may be on its way back."""
        return not self._closed and self.session.error is None

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
        self.session.release(self._pump.link_changed)
        self._pump.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        """One line for a person."""
        return f"Forward(127.0.0.1:{self.local_port} -> {self.session.route.target} {self.remote})"


def forward(
    session: Session, remote: int | str, local_port: int = 0, *, wait_s: float = WAIT_S, any_user: bool = False
) -> Forward:
    """Open a local port that reaches `remote` on the host.

    Args:
        remote: TCP port on the host's loopback, 1-65535, or the path of a Unix socket there.
        local_port: 0 lets the OS choose; read the result from `.local_port`.
        wait_s: How long a connection waits while the link is lost, before it is closed.
        any_user: Take connections of every user of this machine. By default, on Linux, only this user's.

    Returns: A running Forward. While it runs, a lost link is made again: with longer and longer pauses, never after a
        refused login or a host key that is not trusted. Open connections end with the link; new ones wait for it.

    Raises: PortTakenError. Source: RFC 4254 section 7.2. Not covered: UDP, remote (-R) and dynamic (-D) forwards.
    """
    if isinstance(remote, int) and not 0 < remote < 65536:
        raise NbkitError(f"{remote} is not a port.", hint="a port is a number from 1 to 65535", exit_code=2)
    if isinstance(remote, str) and (not remote.startswith("/") or "\0" in remote):
        raise NbkitError(f"{remote!r} is not the path of a socket.", hint="give it from / on", exit_code=2)
    if session.error is not None:
        raise session.error
    return Forward(session, remote, local_port, wait_s=wait_s, any_user=any_user)


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


__all__ = ["Forward", "PortTakenError", "UnreachableError", "forward"]
