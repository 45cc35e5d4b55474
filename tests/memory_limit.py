"""Memory that runs out: a cgroup that may take little of it."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from tests.waiting import until


@pytest.fixture
def cgroup():
    """A memory cgroup of 400 MiB, of either version."""
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        folder = Path(root) / f"nbkit-{os.getpid()}"
        with contextlib.suppress(OSError):
            folder.mkdir()
            if (folder / limit).exists():
                (folder / limit).write_text(str(400 << 20))
                yield folder
                for pid in (folder / "cgroup.procs").read_text().split():  # of a test that failed
                    os.kill(int(pid), signal.SIGKILL)
                until(lambda: not (folder / "cgroup.procs").read_text(), "processes are left in the cgroup")  # noqa: B023
                folder.rmdir()
                return
            folder.rmdir()
    pytest.skip("no memory cgroup can be made here: needs root")
