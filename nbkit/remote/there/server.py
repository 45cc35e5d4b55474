"""The Jupyter server of this box: started once, detached, and found again."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import http.client
import json
import os
import secrets
import socket
import sys
import time
from typing import Any

from nbkit.remote.there.owned import ProblemError, config, launch, place, root_folder, sorted_out, tail, version, write

OLDEST = (2, 21, 0)  # before it: notebooks could run code in the page (fixed 2.20), tokens went into the log (2.21)
OLDEST_LAB = (4, 6, 6)
START_S = 60.0


class Local(http.client.HTTPConnection):
    """HTTP over the server's socket."""

    def __init__(self, info: dict[str, Any]) -> None:
        http.client.HTTPConnection.__init__(self, "localhost", timeout=10)
        self.info = info

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.info["sock"])


def ask(info: dict[str, Any], path: str) -> Any:
    """One GET of the server's REST interface; OSError when it does not answer well."""
    line = Local(info)
    try:
        line.request("GET", path, headers={"Authorization": "token " + info["token"], "Host": "localhost"})
        answer = line.getresponse()
        body = answer.read()
    except http.client.HTTPException as error:
        raise OSError(errno.EPROTO, str(error)) from error
    finally:
        line.close()
    if answer.status != 200:
        raise OSError(errno.EPROTO, "HTTP %d" % answer.status)
    return json.loads(body.decode("utf-8"))


def told(folder: str, pid: int) -> Any:
    """What the server wrote about itself once it listened: sock, token, root_dir, version."""
    with open(os.path.join(folder, "jpserver-%d.json" % pid), encoding="utf-8") as file:
        return json.load(file)


def numbers(text: str) -> tuple[int, ...]:
    found = []
    for part in text.split(".")[:3]:
        digits = "".join(c for c in part if c.isdigit())
        found.append(int(digits or 0))
    return tuple(found)


def check_versions() -> None:
    """Refuse a Python without Jupyter, or with one that has known holes."""
    have = version("jupyter_server")
    setup = "nbkit setup HOST      (or name a Python that has it: --python PATH)"
    if not have or not version("ipykernel"):
        lacking = "jupyter_server" if not have else "ipykernel"
        raise ProblemError("%s has no %s" % (sys.executable, lacking), setup)
    if numbers(have) < OLDEST:
        need = ".".join(map(str, OLDEST))
        raise ProblemError(
            "%s has jupyter_server %s, which has known security holes; at least %s is needed"
            % (sys.executable, have, need),
            "nbkit setup HOST      (or there: %s -m pip install -U 'jupyter_server>=%s' jupyterlab)"
            % (sys.executable, need),
        )


def settings(folder: str, root: str) -> dict[str, dict[str, Any]]:
    """The server's whole configuration: the user's own file, which may open it to the network, is not read."""
    server = {"open_browser": False, "root_dir": root, "allow_root": os.geteuid() == 0, "port_retries": 0}
    server.update(sock=os.path.join(folder, "server.sock"), sock_mode="0600")
    if version("jupyterlab"):
        server["default_url"] = "/lab"
    return {
        "ServerApp": server,
        "IdentityProvider": {"token": secrets.token_urlsafe(32)},
        "ConnectionFileMixin": {"transport": "ipc"},  # other users of this box can read a TCP kernel's messages
    }


def start(request: dict[str, Any]) -> dict[str, Any]:
    """Find our server, or start it: detached, on a Unix socket, its token in a file of this user's alone."""
    folder = place()
    with open(os.path.join(folder, "lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        servers = sorted_out(folder)[0]
        if servers:
            return found(folder, servers[0])
        check_versions()
        root = root_folder(request["root"])
        chosen = settings(folder, root)
        write(config(folder), json.dumps(chosen))
        log = os.path.join(folder, "server.log")
        words = [sys.executable, "-m", "jupyter_server", "--config", config(folder)]
        server = launch(words, folder, log, folder, {"JUPYTER_RUNTIME_DIR": folder})
        end = time.time() + START_S
        while time.time() < end:
            if server.poll() is not None:
                break
            with contextlib.suppress(OSError, ValueError):  # not there yet, half written
                ask(told(folder, server.pid), "/api/status")
                return dict(found(folder, server.pid), fresh=True)
            time.sleep(0.05)
        why = "ended at once" if server.poll() is not None else "did not answer within %d s" % START_S
        server.kill()
        raise ProblemError(
            "Jupyter %s: %s" % (why, tail(log, chosen["IdentityProvider"]["token"])), "its log: %s" % log
        )


def found(folder: str, pid: int) -> dict[str, Any]:
    """The running server, for the tunnel."""
    try:
        info = told(folder, pid)
        ask(info, "/api/status")
    except (OSError, ValueError) as error:
        raise ProblemError(
            "Jupyter (pid %d) of an earlier tunnel does not answer (%s)" % (pid, error), "nbkit stop HOST"
        ) from error
    with open("/proc/%d/cmdline" % pid, "rb") as file:
        python = file.read().split(b"\0")[0].decode("utf-8", "replace")
    lab = version("jupyterlab")
    return {
        "fresh": False, "pid": pid, "sock": info["sock"], "token": info["token"],
        "version": info["version"], "root": info["root_dir"], "python": python, "lab": lab,
        "old_lab": bool(lab) and numbers(lab) < OLDEST_LAB, "as_root": os.geteuid() == 0,
    }  # fmt: skip
