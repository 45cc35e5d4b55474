"""Jupyter on this box: started once, found again by our mark, ended with all that is ours. Prints one JSON object.

REQUEST["do"] is "start" (or find), "look", "stop", or of kernels outside of the server: "about" (can there be one), "kernel"
(start one), "again" (find one that runs), "end" (how it ended), "said" (what it said), "forget" (its files).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from typing import Any

from nbkit.remote.there import kernel, server
from nbkit.remote.there.owned import ProblemError, place, sorted_out, write

STOP_S = 8.0


def look(_request: dict[str, Any]) -> dict[str, Any]:
    """What of ours runs here."""
    folder = place()
    servers, kernels, rest = sorted_out(folder)
    ended = kernel.ends(folder, set(kernels.values()))
    with contextlib.suppress(OSError):  # looking leaves nothing behind: an empty folder goes again
        os.rmdir(folder)
    running: dict[str, Any] | None = None
    states: dict[str, Any] = {}
    if servers:
        try:
            running = {name: value for name, value in server.found(folder, servers[0]).items() if name != "token"}
            states = {each["id"]: each for each in server.ask(server.told(folder, servers[0]), "/api/kernels")}
        except ProblemError as problem:
            running = {"pid": servers[0], "problem": problem.args[0]}
    shown: dict[str, Any] = {}
    for pid, file in sorted(kernels.items()):
        name = os.path.basename(file)[len("kernel-") : -len(".json")]
        known = states.get(name, {})
        each = {"id": name, "pid": pid, "name": known.get("name"), "state": known.get("execution_state")}
        with contextlib.suppress(OSError, ValueError):
            with open(file, encoding="utf-8") as text:
                about = json.load(text)
            each.update(of=about.get("kernel_name", ""), after=about.get("after", ""))
            each["in_use"] = kernel.connected(file[: -len(".json")])
            each["since"] = os.stat(file).st_mtime
        shown.setdefault(name, each)  # a fork of a kernel looks like it
    return {"server": running, "kernels": list(shown.values()), "ended": ended, "rest": commands(rest)}


def commands(rest: dict[int, str]) -> list[dict[str, Any]]:
    return [{"pid": pid, "command": command} for pid, command in sorted(rest.items())]


def stop(_request: dict[str, Any]) -> dict[str, Any]:
    """End the server and the kernels, also those whose server is gone; leave alone what people started from them."""
    folder = place()
    servers, kernels, _ = sorted_out(folder)
    ended = [{"pid": pid, "what": "server"} for pid in servers] + [{"pid": pid, "what": "kernel"} for pid in kernels]
    # The server ends its kernels itself; then come those that are not, or no longer, a server's; then what did not obey.
    for number, groups in ((signal.SIGTERM, "servers"), (signal.SIGTERM, "kernels"), (signal.SIGKILL, "both")):
        servers, kernels, _ = sorted_out(folder)
        for pid in servers if groups != "kernels" else ():
            with contextlib.suppress(OSError):
                os.kill(pid, number)
        for pid, file in kernels.items() if groups != "servers" else ():
            with contextlib.suppress(OSError):
                write(file[: -len("json")] + "asked", "")
                os.killpg(pid, number)
        end = time.time() + STOP_S
        while time.time() < end and any(sorted_out(folder)[: 1 if groups == "servers" else 2]):
            time.sleep(0.05)
    servers, kernels, rest = sorted_out(folder)
    if servers or kernels:
        raise ProblemError("These processes do not end: %s" % sorted([*servers, *kernels]), "look there: ps -fp PID")
    shutil.rmtree(folder, ignore_errors=True)
    return {"ended": ended, "rest": commands(rest)}


def main(request: dict[str, Any]) -> None:
    verbs = {
        "start": server.start, "look": look, "stop": stop, "about": kernel.about, "kernel": kernel.start,
        "again": kernel.again, "end": kernel.end, "said": kernel.said, "forget": kernel.forget,
    }  # fmt: skip
    try:
        if not os.path.isdir("/proc/self"):
            raise ProblemError("This box has no /proc: nbkit finds its Jupyter there", "use a Linux box")
        answer = verbs[request["do"]](request)
    except ProblemError as problem:
        answer = {"error": problem.args[0], "hint": problem.args[1]}
    except OSError as error:
        answer = {
            "error": "%s: %s" % (error.filename or "Jupyter", error.strerror),
            "hint": "look there: df -h; ls -ld ~",
        }
    print(json.dumps(answer))
