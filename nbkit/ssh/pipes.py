"""A command that the system's ssh runs on a host: a Process over the pipes of a child."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Sequence

from nbkit.closing import Closing
from nbkit.errors import NbkitError
from nbkit.ssh.process import STDERR_BYTES, Bytes, ended, late, reads_no_more

_BROKEN = 255  # what ssh itself ends with
_LOOK_S = 0.05
_SIGNALS_S = (0.2, 0.3, 0.5, 1.0, 1.0)  # pauses after each; 3 s in all, within what a session's close waits


def end_child(child: subprocess.Popen[bytes]) -> None:
    """End a child, and wait for its end: by SIGTERM, and by SIGKILL where that does not do.

    SIGTERM again and again: an ssh that gets it between its look for one and its wait goes on waiting (OpenSSH 9.2).
    """
    for pause_s in _SIGNALS_S:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(pause_s)
            return
    child.kill()
    child.wait()


class PipeProcess(Closing):
    """A Process whose stdin and stdout are pipes. `lost` says why the link ended, empty while it stands."""

    def __init__(
        self, argv: Sequence[str], command: str, host: str, lost: Callable[[], str], *, stderr_bytes: int = STDERR_BYTES
    ) -> None:
        self.command, self._host, self._lost = command, host, lost
        self._child = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self._errors, self._errors_most = bytearray(), stderr_bytes
        self._lock = threading.Lock()
        self._over = False  # its output has ended
        pipes = (self._child.stdin, self._child.stdout, self._child.stderr)
        self._stdin, self._stdout, self._stderr = (pipe for pipe in pipes if pipe is not None)
        os.set_blocking(self._stdin.fileno(), False)
        self._listener = threading.Thread(target=self._listen, name="nbkit-ssh-stderr", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        with self._stderr, contextlib.suppress(OSError):
            while data := self._stderr.read(65536):
                with self._lock:
                    self._errors += data
                    if len(self._errors) > 2 * self._errors_most:
                        del self._errors[: -self._errors_most]

    def write(self, data: Bytes, timeout_s: float | None = None) -> None:
        """See Process."""
        left = memoryview(data).cast("B")
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while left:
            try:
                sent = os.write(self._stdin.fileno(), left)
            except BlockingIOError:
                wait_s = None if end is None else max(0.0, end - time.monotonic())
                if not select.select([], [self._stdin], [], wait_s)[1]:
                    raise late(self._host, self.command, "took no more input", timeout_s or 0) from None
                continue
            except (OSError, ValueError) as error:
                raise self._broken() or reads_no_more(self._host, self.command) from error
            left = left[sent:]

    def close_stdin(self) -> None:
        """See Process."""
        self._stdin.close()

    def readinto(self, buffer: bytearray | memoryview, timeout_s: float | None = None) -> int:
        """See Process."""
        if not select.select([self._stdout], [], [], timeout_s)[0]:
            raise late(self._host, self.command, "said nothing", timeout_s or 0)
        got = os.readv(self._stdout.fileno(), [buffer])
        self._over = not got and len(buffer) > 0
        if not got and len(buffer) and (broken := self._broken()):
            raise broken
        return got

    def read(self, n: int, timeout_s: float | None = None) -> bytes:
        """See Process."""
        buffer = bytearray(n)
        got = self.readinto(buffer, timeout_s)
        del buffer[got:]
        return bytes(buffer)

    @property
    def stderr(self) -> bytes:
        """See Process."""
        if self._child.poll() is not None:
            self._listener.join(timeout=5)
        with self._lock:
            return bytes(self._errors[-self._errors_most :])

    def wait(self, timeout_s: float | None = None) -> int:
        """See Process."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            # Not by a thread: one that still reads when the pipe is closed reads what comes by the next of that number.
            while not self._over and self._child.poll() is None:
                left = _LOOK_S if end is None else end - time.monotonic()
                if left <= 0:
                    raise late(self._host, self.command, "did not end", timeout_s or 0)
                if select.select([self._stdout], [], [], min(left, _LOOK_S))[0]:
                    self._over = not os.read(self._stdout.fileno(), 65536)
            status = self._child.wait(None if end is None else max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise late(self._host, self.command, "did not end", timeout_s or 0) from None
        if broken := self._broken():
            raise broken
        return status

    def _broken(self) -> NbkitError | None:
        """Why the output ended, unless the command ended it: ssh ends with 255 when its master is gone."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._child.wait(1) == _BROKEN and (why := self._lost()):
                return ended(self._host, self.command, why)
        return None

    def close(self) -> None:
        """See Process."""
        end_child(self._child)
        # ssh's master holds stderr as well, while the command runs on: its reader ends then, and not before.
        self._listener.join(timeout=0.2)
        for pipe in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):
                pipe.close()
