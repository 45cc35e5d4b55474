"""Run one stage of the checks as a process of its own, within a time limit, and leave nothing of it behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_GRACE_S = 10.0


def run(command: Sequence[str | Path], *, cwd: Path, limit_s: float) -> int | None:
    """The exit code of `command`, its output passed through; None when `limit_s` seconds were over and it was ended.

    It gets a session of its own: whatever it started (kernels, servers, browsers) is ended with it. A Python with
    faulthandler on, as pytest is, first says where each of its threads stood.
    """
    with subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            sys.stdout.flush()
            _end(process, signal.SIGABRT)
            return None
        except KeyboardInterrupt:
            _end(process, signal.SIGINT)
            raise
        finally:
            _group(process, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes], word: signal.Signals) -> None:
    process.send_signal(word)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)
    _group(process, signal.SIGKILL)
    process.wait()


def _group(process: subprocess.Popen[bytes], word: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, word)
