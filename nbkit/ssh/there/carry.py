"""Carries bytes between this command and a Unix socket of the box, both ways: for a client that sshd lets reach no socket.

REQUEST: `path` of the socket. HELLO are its first words; whatever a login shell prints stands before them.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
from typing import Any

HELLO = b"\nnbkit-carry-1\n"
PIECE = 1 << 18  # bytes
LAST_S = 60.0  # for what the other end still says when the client says no more
_STDIN, _STDOUT = 0, 1
_IN, _OUT = select.POLLIN, select.POLLOUT


class Way:
    """Bytes of one direction: read while none wait to be written. Both files are non-blocking."""

    def __init__(self, source: int, target: int, first: bytes) -> None:
        self.source, self.target = source, target
        self.left = memoryview(first)
        self.ended = False  # nothing more can be read
        self._buffer = memoryview(bytearray(PIECE))

    @property
    def over(self) -> bool:
        """All has been read and written."""
        return self.ended and not self.left

    def move(self) -> None:
        """What goes now.

        Raises: OSError when one of the two is gone.
        """
        with contextlib.suppress(BlockingIOError):
            if not self.left and not self.ended:
                size = os.readv(self.source, [self._buffer])
                self.left, self.ended = self._buffer[:size], not size
            if self.left:
                self.left = self.left[os.write(self.target, self.left) :]


def carry(sock: socket.socket, first: bytes) -> None:
    """Copy until the socket ends, or nobody reads what it says; `first` is of stdin, and was read already."""
    number = sock.fileno()
    up, down = Way(_STDIN, number, first), Way(number, _STDOUT, HELLO)
    poll = select.poll()
    watched: dict[int, int] = {}

    def watch(file: int, events: int, *, always: bool = False) -> None:
        """A file of which nothing is wanted is not polled at all: that it has ended would be said again and again."""
        wanted = events if events or always else -1
        if wanted != watched.get(file, -1):
            watched[file] = wanted
            poll.unregister(file) if wanted < 0 else poll.register(file, wanted)

    up.move()
    down.move()
    told = False  # the socket, that no more comes
    while not down.over:
        if up.over and not told:
            told = True
            sock.shutdown(socket.SHUT_WR)
        watch(_STDIN, 0 if up.left or up.ended else _IN)
        watch(_STDOUT, _OUT if down.left else 0, always=True)
        watch(number, (_OUT if up.left else 0) | (0 if down.left else _IN))
        events = poll.poll(LAST_S * 1000 if told else None)
        if not events:
            return
        for file, event in events:
            if file == _STDOUT and event & ~_OUT:
                return
            if file == _STDIN or (file == number and event & _OUT):
                up.move()
            if file == _STDOUT or (file == number and event & ~_OUT):
                down.move()


def main(request: dict[str, Any]) -> None:
    """Connect and carry, or say why not."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(request["path"])
        except OSError as error:
            print(json.dumps({"error": "%s: %s" % (request["path"], error.strerror)}))
            return
        sock.setblocking(False)
        for file in (_STDIN, _STDOUT):
            os.set_blocking(file, False)
        stdin: Any = sys.stdin.buffer  # has read ahead
        with contextlib.suppress(OSError):
            carry(sock, stdin.peek())


if __name__ == "__main__":
    main(globals()["REQUEST"])
