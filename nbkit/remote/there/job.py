"""A program that outlives the connection: started in a folder of its own, its log read from any offset, ended by name.

It lives as long as its folder's lock is held; whoever asks while it runs is told so instead of starting a second one.
"""

# os.path answers False where Path.exists of Python 3.8 raises:

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any, Callable

_LOOK_S = 0.2


def folder_of(name: str) -> str:
    """The job's folder, 0700."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    folder = os.path.join(state, "nbkit", "jobs", name)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    os.chmod(folder, 0o700)
    return folder


def lock(folder: str, *, shared: bool = False) -> Any:
    """The folder's lock, or None while a job holds it; `shared` only to see whether one does."""
    held = open(os.path.join(folder, "lock"), "a+b")  # noqa: SIM115 - handed on to the job
    for _ in range(5):  # somebody may be looking just now
        try:
            fcntl.flock(held, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0 if shared else _LOOK_S)
        else:
            return held
    held.close()
    return None


def runs(folder: str) -> bool:
    """Whether a job is at work here."""
    held = lock(folder, shared=True)
    if held is not None:
        held.close()
    return held is None


def start(folder: str, python: str, source: str, request: dict[str, Any]) -> dict[str, Any]:
    """Start `source` with `python`, unless a job runs here already; the request stands in a file beside it."""
    held = lock(folder)
    if held is None:
        return {"started": False}
    for name, content in (("program.py", source), ("request.json", json.dumps(request)), ("result.json", "")):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(content)
    with open(os.path.join(folder, "log"), "wb") as log:
        # A session of its own, so that the end of ours does not end it; the lock is its sign of life.
        child = subprocess.Popen(
            [python or sys.executable, "-u", os.path.join(folder, "program.py"), folder], cwd=folder,
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            pass_fds=(held.fileno(),),
        )  # fmt: skip
    with open(os.path.join(folder, "pid"), "w") as file:
        file.write(str(child.pid))
    return {"started": True}


def read(folder: str, offset: int, wait_s: float) -> dict[str, Any]:
    """Whole lines of the log from `offset` on, waiting a while for the first; whether it runs; its result once it ended."""
    end = time.monotonic() + wait_s
    while True:
        running = runs(folder)  # asked first, so that what it wrote last is read
        with open(os.path.join(folder, "log"), "rb") as log:
            log.seek(offset)
            data = log.read(2**20)
        whole = data[: data.rfind(b"\n") + 1] if running else data
        if whole or not running or time.monotonic() > end:
            break
        time.sleep(_LOOK_S)
    result = None
    if not running:
        with contextlib.suppress(ValueError, OSError), open(os.path.join(folder, "result.json")) as file:
            result = json.load(file)
    text = whole.decode("utf-8", "replace")
    return {"text": text, "offset": offset + len(whole), "running": running, "result": result}


def stop(folder: str) -> dict[str, Any]:
    """End the job and all that it started."""
    if not runs(folder):
        return {"stopped": False}
    with open(os.path.join(folder, "pid")) as file:
        os.killpg(int(file.read()), signal.SIGTERM)
    return {"stopped": True}


if __name__ == "__main__":
    os.umask(0o077)
    asked = dict(globals()["REQUEST"])
    verbs: dict[str, Callable[..., dict[str, Any]]] = {"start": start, "read": read, "stop": stop}
    verb = verbs[asked.pop("verb")]
    print(json.dumps(verb(folder_of(asked.pop("name")), **asked)))
