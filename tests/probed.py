"""The probe as a box runs it, its text on stdin of a bare Python, and the files it finds there."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

# By path: nbkit.hardware.probe, as an attribute, is the function.
probe = importlib.import_module("nbkit.hardware.probe")
SOURCE = Path(probe.__file__).read_text()


def on_a_box(library="", python=sys.executable, path="", **environment):
    """What the probe prints when its text is sent to `python -`, as ssh does."""
    given = {
        **os.environ,
        "PATH": str(path),
        "NBKIT_NVML_LIBRARY": library or "/nowhere/libnvidia-ml.so.1",
        **environment,
    }
    done = subprocess.run(
        [python, "-"], input=SOURCE, check=False, env=given, capture_output=True, text=True, timeout=30
    )
    assert "" == done.stderr
    return json.loads(done.stdout)


def tree(root, files):
    """Files under `root`, by path."""
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return f"{root}/"
