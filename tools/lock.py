"""Write requirements/lock.txt: exact versions with hashes, for Linux and macOS and every Python that nbkit claims.

    make lock                  keep every pin that still fits pyproject.toml
    make lock UPGRADE=1        take the newest of everything
    make lock UPGRADE=trl      take the newest trl

Needs Python 3.11 and a package index; uv is installed into a throw-away environment. The resolver never sees torch, so
no CUDA package is fetched or locked. After resolving, each platform and Python is asked again for wheels alone: a pin
that would have to be compiled on one of them is reported, by name, and nothing is written.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "lock.txt"
UV = "uv==0.13.9"

# torch stands in torch.txt; the others would come with packages of which only the weights are wanted.
EXCLUDED = ("torch", "llm", "llama-cpp-python", "sentence-transformers")
# The oldest macOS that bitsandbytes builds for; uv reads it from the environment.
MACOS = {"MACOSX_DEPLOYMENT_TARGET": "14.0"}
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28", "aarch64-apple-darwin")
HEADER = """\
# Written by `make lock`; edit pyproject.toml or lock.in instead. Complete but for torch (torch.txt), so install with
#   pip install --no-deps --require-hashes -r requirements/lock.txt
"""
# Both systems nbkit supports: the marker says nothing.
_ALWAYS = re.compile(r" ; sys_platform == 'darwin' or sys_platform == 'linux'(?= \\)")
_AND_ALWAYS = re.compile(r" and \(sys_platform == 'darwin' or sys_platform == 'linux'\)")


def pythons() -> list[str]:
    """The Python versions named in pyproject's classifiers, oldest first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line) for line in project["classifiers"]]
    return sorted((match[1] for match in found if match), key=lambda text: int(text.split(".")[1]))


def tidy(compiled: str) -> str:
    """uv's output under our header, without markers that are always true."""
    lines = (_AND_ALWAYS.sub("", _ALWAYS.sub("", line)) for line in compiled.splitlines())
    return HEADER + "\n".join(line for line in lines if not line.startswith(("#", "--"))) + "\n"


def compile_lock(uv: Path, scratch: Path, upgrade: str) -> str:
    """Resolve pyproject and lock.in; pins in the present lock are kept unless `upgrade` names them or is "1".

    Raises: SystemExit with uv's words when the requirements cannot be met together.
    """
    staged, excluded = scratch / "lock.txt", scratch / "excluded.txt"
    staged.write_text(LOCK.read_text() if LOCK.exists() else "")
    excluded.write_text("\n".join(EXCLUDED) + "\n")
    wanted = ["--extra", "train", "--extra", "lab", "--group", "test", "--group", "browser", "--group", "lint"]
    moved = ["--upgrade"] if upgrade == "1" else ["--upgrade-package", upgrade] if upgrade else []
    form = ["--no-header", "--annotation-style", "line", "--generate-hashes", "--output-file", staged]
    reach = ["--universal", "--python-version", pythons()[0], "--excludes", excluded]
    _run([uv, "pip", "compile", "pyproject.toml", "requirements/lock.in", *reach, *wanted, *moved, *form])
    return tidy(staged.read_text())


def check_wheels(uv: Path, lock: Path) -> None:
    """Fail when a pin has no wheel on one of the platforms and Pythons.

    Raises: SystemExit naming the platform, the Python and the package.
    """
    for platform in PLATFORMS:
        for python in pythons():
            target = ["--python-platform", platform, "--python-version", python]
            _run(
                [uv, "pip", "compile", lock, "--no-deps", "--only-binary", ":all:", "--quiet", *target],
                doing=f"looking for wheels for {platform}, Python {python}",
            )
            print(f"lock: every pin has a wheel for {platform}, Python {python}", flush=True)


def _run(command: list[str | Path], doing: str = "resolving") -> None:
    environment = {**os.environ, **MACOS}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"lock: {doing} failed; {LOCK.relative_to(ROOT)} is as it was.\n{done.stderr.strip()}")


def main() -> None:
    """Resolve, check, then replace the lock in one step."""
    upgrade = sys.argv[1] if len(sys.argv) > 1 else ""
    with tempfile.TemporaryDirectory(prefix="nbkit-lock-") as folder:
        scratch = Path(folder)
        venv.create(scratch / "uv", with_pip=True)
        _run([scratch / "uv" / "bin" / "python", "-m", "pip", "install", "-q", UV], doing=f"installing {UV}")
        uv = scratch / "uv" / "bin" / "uv"
        before = LOCK.read_text() if LOCK.exists() else ""
        staged = LOCK.with_name(".lock.txt.part")
        try:
            staged.write_text(compile_lock(uv, scratch, upgrade))
            check_wheels(uv, staged)
            pins = len(re.findall(r"^[\w.-]+==", staged.read_text(), re.MULTILINE))
            changed = "unchanged" if before == staged.read_text() else "written"
            staged.replace(LOCK)
        finally:
            staged.unlink(missing_ok=True)
    print(f"lock: {LOCK.relative_to(ROOT)} {changed}, {pins} pins")


if __name__ == "__main__":
    main()
