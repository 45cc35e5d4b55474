"""What the tests take from the operating system, installed where that can be done without asking."""

from __future__ import annotations

import os
import shutil
import subprocess

# program -> the Debian package that brings it
PROGRAMS = {"chromium": "chromium", "sshd": "openssh-server", "ssh": "openssh-client"}
# Its package opens an SSH service to the network where there is an init system: not on a person's machine, unasked.
_ONLY_IN_CI = {"sshd"}
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
_LIMIT_S = 600.0


def provide() -> list[str]:
    """Install the programs that are missing, as root on a system with apt; returns a line for each that stays missing.

    Never asks for a password: elsewhere the tests that need a program are skipped, by name, with the way to install it.
    """
    absent = {program: package for program, package in PROGRAMS.items() if not found(program)}
    wanted = [package for program, package in absent.items() if program not in _ONLY_IN_CI or os.environ.get("CI")]
    if wanted and shutil.which("apt-get") and (sudo := _as_root()) is not None:
        print(f"tests: installing {', '.join(wanted)} (apt) ...", flush=True)
        _quietly([*sudo, "apt-get", "update"])
        _quietly([*sudo, "apt-get", "install", "-y", "--no-install-recommends", *wanted])
    return [
        f"{program} is not installed; its tests are skipped (Debian, Ubuntu: sudo apt-get install {package})"
        for program, package in absent.items()
        if not found(program)
    ]


def found(program: str) -> bool:
    """Whether a program is installed, also where only root looks."""
    return shutil.which(program, path=_PATH) is not None


def _as_root() -> list[str] | None:
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") and _quietly(["sudo", "-n", "true"]):
        return ["sudo", "-n"]
    return None


def _quietly(command: list[str]) -> bool:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=_LIMIT_S, env=environment
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
