"""Kernels of this box for a Jupyter elsewhere: started, found again, what they said, their files."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

from nbkit.remote.there import ended
from nbkit.remote.there.owned import (
    ProblemError,
    environment,
    marked,
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
TOLD_S = 4.0
KEPT_S = 7 * 24 * 3600.0  # so long what a kernel left that ended by itself can be read


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


def base_of(kernel_id: str) -> str:
    return os.path.join(place(), "kernel-" + kernel_id)


def running(base: str) -> dict[str, Any] | None:
    """pid, start time and sockets of the kernel that runs at `base`."""
    for pid, file in sorted(sorted_out(os.path.dirname(base))[1].items()):
        with contextlib.suppress(OSError):
            state, started = stats(pid)
            if file == base + ".json" and state not in "ZX":
                return {"pid": pid, "started": started, "base": base, "sockets": sockets(base)}
    return None


def again(request: dict[str, Any]) -> dict[str, Any]:
    """A kernel that runs: as `start` tells of one, and its key."""
    base = base_of(request["id"])
    found = running(base)
    if found is None:
        raise ProblemError(
            "Kernel %s has ended. %s" % (request["id"][:8], outcome(base)["text"].rstrip(".")),
            "see what runs there: nbkit kernel list HOST",
        )
    with open(base + ".json", encoding="utf-8") as text:
        return dict(found, key=json.load(text)["key"])


def sockets(base: str) -> list[str]:
    return ["%s-ipc-%d" % (base, number) for number in range(1, 1 + len(CHANNELS))]


def connected(base: str) -> bool:
    """Whether a client is connected to the kernel, or was when its link broke."""
    with open("/proc/net/unix") as file:
        return any(line.endswith(" %s-ipc-1\n" % base) and line.split()[5] == "03" for line in file)


def start(request: dict[str, Any]) -> dict[str, Any]:
    """Start a kernel for a Jupyter elsewhere: its five sockets lie in our folder, its key came over stdin."""
    base = base_of(request["id"])
    folder, cwd = os.path.dirname(base), root_folder(request["folder"])
    clear_away(folder)
    for pid, words in marked(folder).items():
        if base in words:  # of the one before: its socket must not be in the way
            os.kill(pid, signal.SIGKILL)
    after = outcome(base)["text"] if request["keep"] else ""
    with contextlib.suppress(FileNotFoundError):
        if request["keep"]:
            os.replace(base + ".said", base + ".before")
    forget({"id": request["id"], "but": base + ".before" if request["keep"] else ""})
    info = {"transport": "ipc", "ip": base + "-ipc", "key": request["key"], "signature_scheme": "hmac-sha256"}
    info.update({name + "_port": number for number, name in enumerate(CHANNELS, start=1)})
    info.update(kernel_name=request["name"], boot=ended.boot(), logs=request["logs"], after=after)
    write(base + ".json", json.dumps(info))
    argv = [word.replace("{connection_file}", base + ".json") for word in request["argv"]]
    if argv[0] in ("python", "python3", "python%d.%d" % sys.version_info[:2]):
        argv[0] = sys.executable
    write(base + ".log", "")
    told = begin(base, folder, {"base": base, "argv": argv, "cwd": cwd}, request["env"], request["keeper"])
    pid, paths = told["pid"], sockets(base)
    end = time.time() + START_S
    while time.time() < end and alive(pid):
        if all(map(os.path.exists, paths)):
            found = {"pid": pid, "started": stats(pid)[1], "base": base, "sockets": paths, "after": after}
            soon = time.time() + LISTEN_S
            while time.time() < soon and not os.path.exists(base + ".said"):
                time.sleep(0.01)
            return found
        time.sleep(0.02)
    write(base + ".asked", "")
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
    raise ProblemError("The kernel did not start: %s" % tail(base + ".log", request["key"]), "its log: %s.log" % base)


def begin(base: str, folder: str, request: dict[str, Any], env: dict[str, str], program: str) -> dict[str, Any]:
    """Start the process that starts the kernel and stays beside it; what it tells of that."""
    with open(base + ".log", "ab") as out:
        keeper = subprocess.Popen(
            [sys.executable, "-", base], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, cwd=folder,
            env=environment(folder, env), start_new_session=True,
        )  # fmt: skip
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    with keeper.stdin as text:
        text.write(("REQUEST = %r\n%s" % (request, program)).encode("utf-8"))
    with keeper.stdout as answer:
        line = answer.readline()
    told: dict[str, Any] = json.loads(line.decode("utf-8")) if line else {"error": tail(base + ".log", "")}
    if "error" in told:
        raise ProblemError(told["error"], "nbkit tunnel HOST reads its kernels anew")
    return told


def alive(pid: int) -> bool:
    try:
        return stats(pid)[0] not in "ZX"
    except OSError:
        return False


def outcome(base: str) -> dict[str, Any]:
    """What became of a kernel that runs no more: text; status, at and asked where they are known; shut_down where it was."""
    about: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        with open(base + ".json", encoding="utf-8") as text:
            about = json.load(text)
        with open(base + ".end", encoding="utf-8") as text:
            return dict(json.loads(text.readline()))
    if not about:
        return {"text": "Nothing is left of it: it was shut down from elsewhere, or by nbkit stop.", "shut_down": True}
    if about.get("boot") != ended.boot():
        return {"text": "Its machine was restarted, and the kernel ended with that."}
    return {"text": "Its end was not seen: what watches over it was ended, too, as happens when memory runs out."}


def end(request: dict[str, Any]) -> dict[str, Any]:
    """How the kernel ended that ran as process `pid`; or, when another has taken its place, {"again": that}."""
    base = base_of(request["id"])
    found = running(base)
    if found is not None and found["pid"] != request["pid"]:
        return {"again": found}
    limit = time.time() + TOLD_S
    while time.time() < limit and any(base in words for words in marked(os.path.dirname(base)).values()):
        with contextlib.suppress(OSError), open(base + ".end", encoding="utf-8") as text:
            if text.read().endswith("told\n"):
                break
        time.sleep(0.05)
    return outcome(base)


def ends(folder: str, kernels: set[str]) -> list[dict[str, Any]]:
    """Kernels of ours that have ended and left something to read: id, of, since and text; `kernels` run."""
    found = []
    for name in sorted(os.listdir(folder)):
        base = os.path.join(folder, name[: -len(".end")])
        if name.startswith("kernel-") and name.endswith(".end") and base + ".json" not in kernels:
            one = {"id": name[len("kernel-") : -len(".end")], "of": "", "since": os.stat(base + ".end").st_mtime}
            with contextlib.suppress(OSError, ValueError), open(base + ".json", encoding="utf-8") as text:
                one["of"] = json.load(text)["kernel_name"]
            found.append(dict(one, text=outcome(base)["text"]))
    return found


def clear_away(folder: str) -> None:
    """Remove what kernels left that ended long ago."""
    kernels = set(sorted_out(folder)[1].values())
    for one in ends(folder, kernels):
        if one["since"] < time.time() - KEPT_S:
            forget({"id": one["id"]})


def said(request: dict[str, Any]) -> dict[str, Any]:
    """A piece of what a kernel said, whole lines from byte `after` on, and where the next begins.

    `part` is "said", or "before": what the one said that ended by itself and was started again.
    """
    try:
        with open("%s.%s" % (base_of(request["id"]), request["part"]), "rb") as file:
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
        path = os.path.join(folder, name)
        if name.startswith("kernel-" + request["id"]) and path != request.get("but"):
            os.unlink(path)
    return {}
