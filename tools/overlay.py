"""Environments laid over this one: a few pinned packages first, everything else (torch, transformers) from here.

    python -m tools.overlay colab              make it if need be and print its Python
    python -m tools.overlay bench-dashboard

`colab` is a kernel with Colab's ipykernel, IPython, ipywidgets, anywidget, traitlets and tornado (not Colab's page).
`bench-dashboard` holds the peers of that benchmark. Each is made once and kept in .venv until its pins change.
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

_PIP_S = 240.0


class CannotMakeError(Exception):
    """The environment cannot be made here; the text says why."""


def python(name: str) -> Path:
    """The Python of overlay `name`; the first call takes about half a minute and needs an index of packages.

    Args:
        name: requirements/NAME.txt holds its pins, with hashes.
    Raises: CannotMakeError with pip's last words, for instance without a network.
    """
    pins, folder = ROOT / "requirements" / f"{name}.txt", ROOT / ".venv" / f"over-{name}"
    interpreter, stamp, wanted = folder / "bin" / "python", folder / "nbkit-overlay", _fingerprint(pins, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of the tests in one folder
        with contextlib.suppress(OSError):
            if stamp.read_text() == wanted and os.access(interpreter, os.X_OK):
                return interpreter
        try:
            _make(folder, pins)
        except (subprocess.SubprocessError, OSError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            said = getattr(error, "stdout", b"") or b""
            raise CannotMakeError(f"{error}\n{said.decode(errors='replace')[-2000:]}") from error
        stamp.write_text(wanted)
    return interpreter


def _fingerprint(pins: Path, folder: Path) -> str:
    """What an overlay depends on: its pins, this Python, and where both environments live."""
    seen = (pins.read_bytes(), sys.version.encode(), sysconfig.get_path("purelib").encode(), str(folder).encode())
    return hashlib.sha256(b"\0".join(seen)).hexdigest()


def _make(folder: Path, pins: Path) -> None:
    venv.EnvBuilder(clear=True, with_pip=False, symlinks=True).create(folder)
    interpreter = folder / "bin" / "python"
    site = subprocess.run(
        [interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout.strip()  # fmt: skip
    pip = [sys.executable, "-m", "pip", "--python", interpreter, "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "--no-input", "--no-deps", "--require-hashes", "-r", pins],
        check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_PIP_S,
    )  # fmt: skip
    # A .pth line puts a folder at the end of sys.path: the overlay's packages win, the rest is found here.
    (Path(site) / "nbkit-below.pth").write_text(sysconfig.get_path("purelib") + "\n")


if __name__ == "__main__":
    print(python(sys.argv[1]))
