"""Before a setup: which Python here is new enough and can make environments, and what stands where the new one shall be."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import subprocess
import sys
from typing import Any

_ASK = "import sys, json, importlib.util as u; print(json.dumps([list(sys.version_info[:3]), sys.executable, all(u.find_spec(n) for n in ('venv', 'ensurepip'))]))"  # fmt: skip  # noqa: E501


def python(command: str) -> dict[str, Any] | None:
    """What it is, or None where it does not run."""
    try:
        said = subprocess.run([command, "-c", _ASK], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20,
                              check=True).stdout  # fmt: skip
        version, executable, makes_venv = json.loads(said)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return {"version": version, "executable": executable, "venv": makes_venv}


def pythons(candidates: list[str]) -> list[dict[str, Any]]:
    """This one first, then each candidate on PATH."""
    found = [python(path) for path in [sys.executable, *filter(None, map(shutil.which, candidates))]]
    return [one for one in found if one]


def place(env: str) -> dict[str, Any]:
    """The folder for the environment: absolute, what is there now, how much room."""
    path = os.path.abspath(os.path.expanduser(env))
    above = path
    while not os.path.isdir(above):
        above = os.path.dirname(above)
    marker = None
    with contextlib.suppress(OSError, ValueError), open(os.path.join(path, "nbkit-setup.json")) as file:
        marker = json.load(file)
    ours = marker is not None or os.path.exists(os.path.join(path, "nbkit-setup.part"))
    return {
        "env": path, "marker": marker, "ours": ours, "taken": _taken(path),
        "has_torch": bool(glob.glob(os.path.join(glob.escape(path), "lib/python*/site-packages/torch/__init__.py"))),
        "free_gib": shutil.disk_usage(above).free / 2**30, "writable": os.access(above, os.W_OK), "disk": above,
    }  # fmt: skip


def _taken(path: str) -> bool:
    return os.path.exists(path) and (not os.path.isdir(path) or bool(os.listdir(path)))


if __name__ == "__main__":
    _asked = globals()["REQUEST"]
    print(json.dumps({"pythons": pythons(_asked["candidates"]), **place(_asked["env"])}))
