"""Find this user's relay on the box, or start it; prints one JSON object: its socket and its pid.

REQUEST: `do` "start", `texts` of the relay's modules, `version` of them, `folder` ("" for the usual place), `limits`, and
`gone`: sessions whose clients were killed. Or `do`
"look", or "retire" (end when the last client has gone), of all that run: what each says of itself. Each version has a socket
of its own. Relays of another version are told to end when their last client has gone: no stream ends for an upgrade.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import socket
import stat
import struct
import subprocess
import sys
from typing import Any

PACKAGE = "nbkit.ssh.there"
ANSWER_S = 20.0
LONGEST = 107  # bytes of a Unix socket's path
_HEAD = struct.Struct(">BIQI")  # of frames.py, which is only loaded where a relay is started
_WELCOME, _ASK = 2, 13
# The relay's own process: its modules come over stdin, so no file holds them, and `ps` names it.
LOAD = """
import json, sys, types, socket
for name in ("nbkit", "nbkit.ssh", "nbkit.ssh.there"):
    sys.modules[name] = types.ModuleType(name)
given = json.loads(sys.stdin.buffer.read().decode())
for name, text in given["texts"].items():
    module = sys.modules["nbkit.ssh.there." + name] = types.ModuleType("nbkit.ssh.there." + name)
    setattr(sys.modules["nbkit.ssh.there"], name, module)
    exec(compile(text, "nbkit-" + name, "exec"), module.__dict__)
module.serve(socket.socket(fileno=int(sys.argv[2])), given["limits"])
"""


class BusyError(Exception):
    """A relay that is there and says nothing."""


def private(path: str) -> str:
    """Make `path` a folder that only this user can enter, or refuse it."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    about = os.lstat(path)
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
        raise PermissionError("%s is not a folder of this user's" % path)
    os.chmod(path, 0o700)
    return path


def place(name: str) -> str:
    """The folder for sockets; one for each host that shares the home folder."""
    home = os.path.expanduser("~")
    folder = os.path.join(home, ".nbkit", "run", platform.node() or "box")
    if len(os.fsencode(os.path.join(folder, name))) <= LONGEST:
        private(os.path.join(home, ".nbkit"))
        private(os.path.join(home, ".nbkit", "run"))
        return private(folder)
    short = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
    return private(os.path.join("/tmp", "nbkit-%d-%s" % (os.geteuid(), short)))  # noqa: S108 - ours, or refused


def ask(path: str, question: dict[str, Any], wait_s: float = ANSWER_S) -> Any:
    """What the relay at `path` answers; None where there is none.

    Raises: BusyError when there is one that does not answer in time: it has streams, perhaps, and is not to be replaced.
    """
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(wait_s)
            line.connect(path)
            body = json.dumps(question).encode()
            line.sendall(_HEAD.pack(_ASK, 0, 0, len(body)) + body)
            with line.makefile("rb") as answer:
                kind, _, _, size = _HEAD.unpack(answer.read(_HEAD.size))
                return json.loads(answer.read(size).decode()) if kind == _WELCOME else None
    except socket.timeout:
        raise BusyError("the relay at %s does not answer within %.0f s" % (path, wait_s)) from None
    except (OSError, ValueError, struct.error):
        return None


def start(path: str, request: dict[str, Any]) -> int:
    """Start a relay that listens at `path`; its pid."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # of one that was killed
    with socket.socket(socket.AF_UNIX) as listener, open(path[: -len("sock")] + "log", "wb") as log:
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(64)
        child = subprocess.Popen(
            [sys.executable, "-c", LOAD, "nbkit-relay", str(listener.fileno())], stdin=subprocess.PIPE, stdout=log,
            stderr=log, cwd="/", start_new_session=True, pass_fds=(listener.fileno(),),
        )  # fmt: skip
        assert child.stdin is not None
        child.stdin.write(json.dumps({"texts": request["texts"], "limits": request["limits"]}).encode())
        child.stdin.close()
        return child.pid


def ask_all(folder: str, question: dict[str, Any], but: str = "") -> list[dict[str, Any]]:
    """What each relay in the folder answers; the sockets of dead ones are cleared away."""
    answers = []
    for name in sorted(os.listdir(folder)):
        if name.startswith("relay-") and name.endswith(".sock") and name != but:
            path = os.path.join(folder, name)
            try:
                answer = ask(path, question, 5.0)
            except BusyError:
                continue
            if answer is not None:
                answers.append(answer)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(path)
    return answers


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Find or start; or ask."""
    os.umask(0o077)
    name = "relay-%s.sock" % request["version"]
    folder = private(request["folder"]) if request["folder"] else place(name)
    if request["do"] != "start":
        return {"relays": ask_all(folder, {"do": request["do"]})}
    path = os.path.join(folder, name)
    with open(os.path.join(folder, "relay.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two who come at once start one
        found = ask(path, {"do": "look"})
        if found is None:
            found = {"pid": start(path, request), "fresh": True}
        ask_all(folder, {"do": "retire"}, but=name)
        if request.get("gone"):
            ask_all(folder, {"do": "forget", "sessions": request["gone"]})
    return {"path": path, "pid": found["pid"], "fresh": found.get("fresh", False)}


if __name__ == "__main__":
    try:
        print(json.dumps(main(globals()["REQUEST"])))
    except BusyError as problem:
        print(json.dumps({"error": str(problem), "hint": "if it hangs, end it there: pkill -f nbkit-relay"}))
    except OSError as problem:
        print(json.dumps({"error": "the relay cannot be started: %s" % problem, "hint": "look at ~/.nbkit/run there"}))
