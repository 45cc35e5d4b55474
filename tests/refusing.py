"""System calls that fail as some file systems have them fail: a filter that Linux itself applies to a process."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from pathlib import Path

import pytest

NUMBERS = {
    "x86_64": {"pwrite64": 18, "flock": 73, "fsync": 74},
    "aarch64": {"flock": 32, "pwrite64": 68, "fsync": 82},
}
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2  # linux/prctl.h, linux/seccomp.h
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h


def need() -> None:
    """Skip the test where there is no such filter."""
    if platform.system() != "Linux" or platform.machine() not in NUMBERS:
        pytest.skip("no filter of system calls for this machine")


def refuse(call: str, error: int) -> None:
    """From now on `call` fails with `error`, in this process, the threads that it starts and its children."""
    number = NUMBERS[platform.machine()][call]
    steps = [(_LOAD, 0, 0, 0), (_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERROR | error), (_RETURN, 0, 0, _ALLOW)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    about = struct.pack("@HP", len(steps), ctypes.addressof(program))
    system = ctypes.CDLL(None, use_errno=True)
    for words in ((_NO_NEW_PRIVILEGES, 1, 0, 0, 0), (_SECCOMP, _FILTER, about, 0, 0)):
        if system.prctl(*words):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def python(place: Path, call: str, error: int) -> str:
    """Make a Python at `place` in which `call` fails; its path, for a box."""
    lines = (
        f"#!{sys.executable}",
        "import os, sys",
        f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})",
        "from tests.refusing import refuse",
        f"refuse({call!r}, {error})",
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])",
    )
    place.write_text("\n".join(lines) + "\n")
    place.chmod(0o755)
    return str(place)
