"""What is ours on this box: one folder, and the processes that carry our mark.

A process is ours when it carries MARK with our folder in its environment and names one of our files on its command line.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import stat
import subprocess
import sys

MARK = "NBKIT_JUPYTER"
# A socket's path holds 107 bytes, and ZeroMQ appends "/kernel-<uuid>-ipc-1" to the folder.
LONGEST_FOLDER = 107 - len("/kernel-00000000-0000-0000-0000-000000000000-ipc-1")


class ProblemError(Exception):
    """A sentence, and a fix."""


def private(path: str) -> str:
    """Make `path` a folder that only this user can enter, or refuse it."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    about = os.lstat(path)
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
        raise ProblemError("%s is not a folder of this user's" % path, "look who made it: ls -ld %s" % path)
    os.chmod(path, 0o700)
    return path


def place() -> str:
    """The folder for sockets, token and log; one for each host that shares the home folder."""
    home = os.path.expanduser("~")
    folder = os.path.join(home, ".nbkit", "run", platform.node() or "box")
    if len(os.fsencode(folder)) <= LONGEST_FOLDER:
        private(os.path.join(home, ".nbkit"))
        private(os.path.join(home, ".nbkit", "run"))
        return private(folder)
    name = "nbkit-%d-%s" % (os.geteuid(), hashlib.sha256(os.fsencode(folder)).hexdigest()[:8])
    return private(os.path.join("/tmp", name))  # noqa: S108 - ours, or refused


def write(path: str, text: str) -> None:
    """A file that only this user can read, under any umask."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def stats(pid: int) -> tuple[str, int]:
    """State and start time (clock ticks since boot) of a process; OSError when it is gone."""
    with open("/proc/%d/stat" % pid, "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return fields[0].decode(), int(fields[19])


def marked(folder: str) -> dict[int, list[str]]:
    """pid -> command line, of this user's processes that carry our mark."""
    mark = ("%s=%s" % (MARK, folder)).encode()
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if os.stat("/proc/" + name).st_uid != os.geteuid():
                continue
            with open("/proc/%s/environ" % name, "rb") as file:
                if mark not in file.read().split(b"\0"):
                    continue
            with open("/proc/%s/cmdline" % name, "rb") as file:
                words = file.read().decode("utf-8", "replace").split("\0")
            found[int(name)] = words
    return found


def sorted_out(folder: str) -> tuple[list[int], dict[int, str], dict[int, str]]:
    """Servers (pids), kernels (pid -> connection file) and the rest (pid -> command line) of what is marked."""
    servers, kernels, rest = [], {}, {}
    for pid, words in marked(folder).items():
        file = next((w for w in words if w.startswith(folder + "/kernel-")), "")
        if config(folder) in words:
            servers.append(pid)
        elif file.endswith(".json"):
            kernels[pid] = file
        elif not file:  # what writes down what a kernel says ends with it
            rest[pid] = " ".join(words).strip()
    return servers, kernels, rest


def config(folder: str) -> str:
    return os.path.join(folder, "server_config.json")


def environment(folder: str, more: dict[str, str]) -> dict[str, str]:
    """What a server or kernel of ours gets: our mark, and this Python's folder first, so that `!pip` is its own."""
    values = dict(os.environ)
    values.pop("JPY_PARENT_PID", None)
    values["PATH"] = os.path.dirname(sys.executable) + os.pathsep + values.get("PATH", os.defpath)
    values.update(more)
    values[MARK] = folder
    return values


def launch(words: list[str], folder: str, log: str, cwd: str, more: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a process that outlives the link; what it says goes into `log`."""
    write(log, "")
    with open(log, "ab") as out, open(os.devnull, "rb") as nothing:
        return subprocess.Popen(
            words, stdin=nothing, stdout=out, stderr=out, cwd=cwd, env=environment(folder, more), start_new_session=True
        )


def tail(log: str, secret: str) -> str:
    with open(log, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file.read().replace(secret, "***").splitlines() if line.strip()]
    return " / ".join(lines[-3:]) or "it said nothing"


def version(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def root_folder(wanted: str) -> str:
    path = os.path.abspath(os.path.expanduser(wanted or "~"))
    if not os.path.isdir(path):
        raise ProblemError("There is no folder %s" % path, "make it, or name another: --dir PATH")
    return path
