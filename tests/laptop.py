"""A person's machine: the `nbkit` command as processes of their own, in a folder of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests.sshd import Sshd

NBKIT = [sys.executable, "-m", "nbkit.cli"]


class Laptop:
    """What nbkit remembers stays in `folder`, where its commands run; `options` name the server to a verb."""

    def __init__(self, folder: Path, server: Sshd) -> None:
        self.folder, self.options = folder, ["-F", str(server.config), "--python", shlex.quote(sys.executable)]
        self.environment = {**os.environ, "NBKIT_STATE": str(folder / "state"), "NBKIT_CACHE": str(folder / "cache")}
        self.environment.pop("NBKIT_RUNS", None)
        folder.mkdir()

    def popen(self, *words: str) -> subprocess.Popen[str]:
        """`nbkit WORDS`, started."""
        return subprocess.Popen([*NBKIT, *words], cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip

    def run(self, *words: str, timeout_s: float = 120) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        process = self.popen(*words)
        out, err = process.communicate(timeout=timeout_s)
        return process.returncode, out, err
