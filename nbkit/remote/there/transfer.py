"""The box's end of a transfer."""

from __future__ import annotations

import sys
from typing import Any, Dict

from nbkit.remote.there import frames as f


def main(request: Dict[str, Any]) -> None:
    """Send or receive over stdin and stdout, as `request` says; only that half of the program is here."""
    _widen_pipes()
    end: Any
    if request["role"] == "send":
        from nbkit.remote.there.send import Sender as end
    else:
        from nbkit.remote.there.receive import Receiver as end
    out = sys.stdout.buffer

    def write(data: f.Bytes) -> None:
        out.write(data)
        out.flush()

    link = f.Frames(sys.stdin.buffer.readinto1, write)  # type: ignore[union-attr]  # it has it
    write(f.HELLO)
    try:
        end(link, request).run()
    except f.StoppedError as error:
        link.fail(error)
    except (EOFError, BrokenPipeError):
        sys.exit(1)  # the other side is gone: what has come is kept


def _widen_pipes() -> None:
    """Let a pipe hold a megabyte: sixteen times fewer turns between sshd and us."""
    import contextlib
    import fcntl

    for stream in (sys.stdin, sys.stdout):
        with contextlib.suppress(OSError, ValueError):
            fcntl.fcntl(stream.fileno(), 1031, 1 << 20)  # F_SETPIPE_SZ, Linux
