"""NVML libraries of our own, in place of a GPU."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def compiled(source: str, library: Path, *options: str) -> str:
    """The path of `library`, built of `source` with gcc; the test is skipped without one."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        pytest.skip("needs gcc, to build an NVML library without a GPU")
    text = library.with_suffix(".c")
    text.write_text(source)
    subprocess.run([compiler, "-shared", "-fPIC", *options, "-o", library, text], check=True, timeout=60)
    return str(library)
