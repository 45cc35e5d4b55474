"""The box's end of a transfer."""

from __future__ import annotations

import os
import sys
from typing import Any, Callable, Dict

from nbkit.remote.there import frames as f
from nbkit.remote.there.threads import batch


def main(request: Dict[str, Any]) -> None:
    """Send or receive over stdin and stdout, as `request` says; only that half of the program is here."""
    _widen_pipes()
    ends: Any
    if request["role"] == "send":
        from nbkit.remote.there import send as ends
    else:
        from nbkit.remote.there import receive as ends
    out = sys.stdout.buffer

    def write(data: f.Bytes) -> None:
        out.write(data)
        out.flush()

    given: Any = sys.stdin.buffer

    def first(view: memoryview) -> int:
        """What came with the program, which `readinto1` would not give before more comes."""
        data = given.read1(len(view))
        view[: len(data)] = data
        link.read = given.raw.readinto
        return len(data)

    link = f.Frames(first, write)
    link.refer = _Spliced(write)
    write(f.HELLO)
    try:
        with batch():
            (ends.Sender if request["role"] == "send" else ends.Receiver)(link, request).run()
    except f.StoppedError as error:
        link.fail(error)
    except (EOFError, BrokenPipeError):
        sys.exit(1)  # the other side is gone: what has come is kept


class _Spliced:
    """Puts a file's bytes on stdout without copying them, where the system can: the pages that it keeps of the file.

    They go over as they are then, not as they were when they were read: a file that changes meanwhile has another
    sha256 at the other end, which refuses it.
    """

    def __init__(self, write: Callable[[f.Bytes], None]) -> None:
        self._write, self._can = write, True

    def __call__(self, file: int, at: int, read: memoryview) -> None:
        sent = 0
        try:
            while self._can and sent < len(read):
                more = os.sendfile(sys.stdout.fileno(), file, at + sent, len(read) - sent)
                if not more:
                    break  # it became shorter
                sent += more
        except BrokenPipeError:
            raise
        except (OSError, AttributeError):
            self._can = False  # not from this file system, or not into what stdout is
        self._write(read[sent:])


def _widen_pipes() -> None:
    """Let a pipe hold a megabyte: sixteen times fewer turns between sshd and us."""
    import contextlib
    import fcntl

    for stream in (sys.stdin, sys.stdout):
        with contextlib.suppress(OSError, ValueError):
            fcntl.fcntl(stream.fileno(), 1031, 1 << 20)  # F_SETPIPE_SZ, Linux
