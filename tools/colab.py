"""A kernel with Colab's versions: an environment of requirements/colab.txt laid over this one, made once and kept.

    python -m tools.colab              make it if need be and print its Python

It holds Colab's ipykernel, IPython, ipywidgets, anywidget, traitlets and tornado; everything else (torch, transformers)
comes from the environment that runs this, after its own packages. Colab's front end is not in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tools.guards import ROOT

PINS = ROOT / "requirements" / "colab.txt"
FOLDER = Path(os.environ.get("NBKIT_COLAB_VENV") or ROOT / ".venv" / "colab")
_PIP_S = 240.0


class CannotMakeError(Exception):
    """The environment cannot be made here; the text says why."""


def fingerprint() -> str:
    """What the environment depends on: the pins, this Python, and where this environment lives."""
    seen = (PINS.read_bytes(), sys.version.encode(), sysconfig.get_path("purelib").encode(), str(FOLDER).encode())
    return hashlib.sha256(b"\0".join(seen)).hexdigest()


def python() -> Path:
    """Colab-shaped Python; the first call takes about half a minute and an index of packages.

    Raises: CannotMakeError with pip's last words, for instance without a network.
    """
    interpreter, stamp = FOLDER / "bin" / "python", FOLDER / "nbkit-colab"
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with FOLDER.with_name(FOLDER.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of the tests in one folder
        with contextlib.suppress(OSError):
            if stamp.read_text() == fingerprint() and os.access(interpreter, os.X_OK):
                return interpreter
        try:
            _make(interpreter)
        except (subprocess.SubprocessError, OSError) as error:
            shutil.rmtree(FOLDER, ignore_errors=True)
            said = getattr(error, "stdout", b"") or b""
            raise CannotMakeError(f"{error}\n{said.decode(errors='replace')[-2000:]}") from error
        stamp.write_text(fingerprint())
    return interpreter


def _make(interpreter: Path) -> None:
    """The environment itself, without pip in it: ours installs into it."""
    venv.EnvBuilder(clear=True, with_pip=False, symlinks=True).create(FOLDER)
    site = subprocess.run(
        [interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True, timeout=30,
    ).stdout.strip()  # fmt: skip
    pip = [sys.executable, "-m", "pip", "--python", interpreter, "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "--no-input", "--no-deps", "--require-hashes", "-r", PINS],
        check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_PIP_S,
    )  # fmt: skip
    # A .pth line puts a folder at the end of sys.path: Colab's packages win, torch is found.
    (Path(site) / "nbkit-below.pth").write_text(sysconfig.get_path("purelib") + "\n")


if __name__ == "__main__":
    print(python())
