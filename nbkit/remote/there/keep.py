"""Beside each kernel of ours, as its parent: starts it, has what it says written down, and tells how it ended.

`python - BASE`, its program and REQUEST on stdin; prints the kernel's pid, or why there is none, as JSON. BASE.end is empty
while the kernel runs; then it holds a line of JSON, and "told" on a second once that was said to those who listen. BASE.asked
is there where somebody of ours ends the kernel: that needs no explanation.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

from nbkit.remote.there import ended, listen

TICK_MS = 2000
SETTLE_MS = 200


def main(request: dict[str, Any]) -> None:
    base = request["base"]
    log = os.open(base + ".log", os.O_WRONLY | os.O_APPEND)
    wake, woken = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    end = os.open(base + ".end", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
    try:
        child = subprocess.Popen(
            request["argv"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=request["cwd"],
            start_new_session=True,
        )
    except OSError as error:
        print(json.dumps({"error": "%s cannot be started: %s" % (request["argv"][0], error.strerror)}))
        return
    pid, child.returncode = child.pid, 0  # it is waited for here, with what it used
    print(json.dumps({"pid": pid}), flush=True)
    os.dup2(log, 1)  # who started us waits no longer

    ear = hearing(base, pid, comms=not any("ipykernel" in word for word in request["argv"]))  # it names their topic so
    found: Any = None
    kills = ended.Kills()
    while found is None:
        if ear is None:
            found = os.wait4(pid, 0)
            break
        ear.hear(TICK_MS, wake)
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 64)
        found = over(pid)
        kills.tick()
    while ear is not None and ear.hear(SETTLE_MS):
        pass  # what it said last
    status = found[1]
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    facts = ended.facts(code, found[2].ru_maxrss << 10, kills.late())
    tell(base, end, ear, facts)


def hearing(base: str, pid: int, *, comms: bool) -> Any:
    """The Listener, once the kernel has its sockets; None where there is no pyzmq, or no kernel any more."""
    while not os.path.exists(base + "-ipc-2"):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.02)
    try:
        return listen.Listener(base, comms=comms)
    except (ImportError, OSError) as error:
        sys.stderr.write("what the kernel says is not kept: %s\n" % error)
        return None


def over(pid: int) -> Any:
    """What os.wait4 tells of a kernel that has ended; None for one that runs."""
    found = os.wait4(pid, os.WNOHANG)
    return found if found[0] else None


def tell(base: str, end: int, ear: Any, facts: dict[str, Any]) -> None:
    """Write down how it ended, and say it to those who listen, unless it was asked to end."""
    asked = os.path.exists(base + ".asked") or facts["status"] == 0
    with contextlib.suppress(OSError):
        os.write(end, json.dumps(dict(facts, asked=asked)).encode("utf-8") + b"\n")
    if ear is not None and not asked:
        line = {"type": "end", "at": listen.now(), "request": "", "content": {"text": facts["text"]}}
        ear.keep(json.dumps(line).encode("utf-8") + b"\n")
        with contextlib.suppress(Exception):  # the files are gone, or the link is
            with open(base + ".json", encoding="utf-8") as file:
                about = json.load(file)
            ear.last_word(facts["text"] + "\n" + about["logs"], about["key"])
    with contextlib.suppress(OSError):
        os.write(end, b"told\n")
