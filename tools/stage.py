"""Run one stage of the checks as a process of its own, within a time limit, and leave nothing of it behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

_GRACE_S = 10.0
_LOOK_S = 0.5


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path,
    limit_s: float,
    output: IO[bytes] | None = None,
    stop: threading.Event | None = None,
) -> int | None:
    """The exit code of `command`; None when `limit_s` seconds were over, or `stop` was set, and it was ended.

    Its output is passed through, or goes into the file `output`.

    It gets a session of its own: whatever it started (kernels, servers, browsers) is ended with it. A Python with
    faulthandler on, as pytest is, first says where each of its threads stood.
    """
    with subprocess.Popen(
        command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    ) as process:
        try:
            return _wait(process, limit_s, stop)
        except subprocess.TimeoutExpired:
            sys.stdout.flush()
            _end(process, signal.SIGABRT)
            return None
        except KeyboardInterrupt:
            _end(process, signal.SIGINT)
            raise
        finally:
            _group(process, signal.SIGKILL)


def _wait(process: subprocess.Popen[bytes], limit_s: float, stop: threading.Event | None) -> int:
    end = time.monotonic() + limit_s
    while True:
        left = end - time.monotonic()
        try:
            return process.wait(left if stop is None else min(left, _LOOK_S))
        except subprocess.TimeoutExpired:
            if time.monotonic() >= end or (stop is not None and stop.is_set()):
                raise


def _end(process: subprocess.Popen[bytes], word: signal.Signals) -> None:
    process.send_signal(word)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)
    _group(process, signal.SIGKILL)
    process.wait()


def _group(process: subprocess.Popen[bytes], word: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, word)
