"""Kernels of this box for a Jupyter elsewhere: started, found again, what they said, their files."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from typing import Any

from nbkit.remote.there.owned import (
    ProblemError,
    environment,
    launch,
    place,
    root_folder,
    sorted_out,
    stats,
    tail,
    version,
    write,
)

CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
START_S = 60.0
LISTEN_S = 3.0


def about(request: dict[str, Any]) -> dict[str, Any]:
    """This Python, and that kernels run in it, in the folder that is asked for."""
    root_folder(request["folder"])
    if not version("ipykernel"):
        raise ProblemError(
            "%s has no ipykernel" % sys.executable,
            "nbkit setup HOST      (or name another Python: --python PATH; or there: %s -m pip install ipykernel)"
            % sys.executable,
        )
    return {"python": "%d.%d.%d" % sys.version_info[:3], "ipykernel": version("ipykernel"), "path": sys.executable}


def again(request: dict[str, Any]) -> dict[str, Any]:
    """A kernel that runs: as `start` tells of one, and its key."""
    folder = place()
    base = os.path.join(folder, "kernel-" + request["id"])
    for pid, file in sorted(sorted_out(folder)[1].items()):
        with contextlib.suppress(OSError):
            if file == base + ".json" and stats(pid)[0] not in "ZX":
                with open(file, encoding="utf-8") as text:
                    key = json.load(text)["key"]
                return {"pid": pid, "started": stats(pid)[1], "sockets": sockets(base), "key": key}
    raise ProblemError("Kernel %s has ended" % request["id"][:8], "see what runs there: nbkit kernel list HOST")


def sockets(base: str) -> list[str]:
    return ["%s-ipc-%d" % (base, number) for number in range(1, 1 + len(CHANNELS))]


def start(request: dict[str, Any]) -> dict[str, Any]:
    """Start a kernel for a Jupyter elsewhere: its five sockets lie in our folder, its key came over stdin."""
    folder = place()
    base = os.path.join(folder, "kernel-" + request["id"])
    paths = sockets(base)
    forget(request)
    info = {"transport": "ipc", "ip": base + "-ipc", "key": request["key"], "signature_scheme": "hmac-sha256"}
    info.update({name + "_port": number for number, name in enumerate(CHANNELS, start=1)})
    write(base + ".json", json.dumps(dict(info, kernel_name=request["name"])))
    words = [word.replace("{connection_file}", base + ".json") for word in request["argv"]]
    if words[0] in ("python", "python3", "python%d.%d" % sys.version_info[:2]):
        words[0] = sys.executable
    try:
        process = launch(words, folder, base + ".log", root_folder(request["folder"]), request["env"])
    except OSError as error:
        raise ProblemError(
            "%s cannot be started: %s" % (words[0], error.strerror), "nbkit tunnel HOST reads its kernels anew"
        ) from error
    end = time.time() + START_S
    while time.time() < end and process.poll() is None:
        if all(map(os.path.exists, paths)):
            started = stats(process.pid)[1]
            listen(base, folder, process.pid, started, request["listener"])
            return {"pid": process.pid, "started": started, "sockets": paths}
        time.sleep(0.02)
    process.kill()
    raise ProblemError("The kernel did not start: %s" % tail(base + ".log", request["key"]), "its log: %s.log" % base)


def listen(base: str, folder: str, pid: int, started: int, program: str) -> None:
    """Have what the kernel says written down, by a process of its own."""
    words = [sys.executable, "-", base, str(pid), str(started)]
    with open(base + ".log", "ab") as out:
        listener = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=out, stderr=out, cwd=folder, env=environment(folder, {}),
            start_new_session=True,
        )  # fmt: skip
        with listener.stdin as text:  # type: ignore[union-attr] # a pipe was asked for
            text.write(program.encode("utf-8"))
    end = time.time() + LISTEN_S
    while time.time() < end and listener.poll() is None and not os.path.exists(base + ".said"):
        time.sleep(0.01)


def said(request: dict[str, Any]) -> dict[str, Any]:
    """A piece of what a kernel said, whole lines from byte `after` on, and where the next begins."""
    path = os.path.join(place(), "kernel-%s.said" % request["id"])
    try:
        with open(path, "rb") as file:
            file.seek(request["after"])
            piece = file.read(request["most"])
    except FileNotFoundError:
        piece = b""
    piece = piece[: piece.rfind(b"\n") + 1]
    return {"text": piece.decode("utf-8"), "next": request["after"] + len(piece)}


def forget(request: dict[str, Any]) -> dict[str, Any]:
    """Remove a kernel's files."""
    folder = place()
    for name in os.listdir(folder):
        if name.startswith("kernel-" + request["id"]):
            os.unlink(os.path.join(folder, name))
    return {}
