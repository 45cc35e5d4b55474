"""Jupyter on this box: started once, found again by our mark, ended with all that is ours. Prints one JSON object.

REQUEST["do"] is "start" (or find), "look", "stop", or of kernels outside of the server: "about" (can there be one), "kernel"
(start one), "again" (find one that runs), "said" (what it said), "forget" (its files).
A process is ours when it carries MARK with our folder in its environment and names one of our files on its command line.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import json
import os
import platform
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from typing import Any

MARK = "NBKIT_JUPYTER"
OLDEST = (2, 21, 0)  # before it: notebooks could run code in the page (fixed 2.20), tokens went into the log (2.21)
OLDEST_LAB = (4, 6, 6)
# A socket's path holds 107 bytes, and ZeroMQ appends "/kernel-<uuid>-ipc-1" to the folder.
LONGEST_FOLDER = 107 - len("/kernel-00000000-0000-0000-0000-000000000000-ipc-1")
CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
START_S = 60.0
LISTEN_S = 3.0
STOP_S = 8.0


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


# -- processes


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


# -- the server


class Local(http.client.HTTPConnection):
    """HTTP over the server's socket, or its port where it has none."""

    def __init__(self, info: dict[str, Any]) -> None:
        http.client.HTTPConnection.__init__(self, "localhost", timeout=10)
        self.info = info

    def connect(self) -> None:
        if not self.info["sock"]:
            self.sock = socket.create_connection(("127.0.0.1", self.info["port"]), self.timeout)
            return
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
    """What the server wrote about itself once it listened: sock or port, token, root_dir, version."""
    with open(os.path.join(folder, "jpserver-%d.json" % pid), encoding="utf-8") as file:
        return json.load(file)


def version(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


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


def root_folder(wanted: str) -> str:
    path = os.path.abspath(os.path.expanduser(wanted or "~"))
    if not os.path.isdir(path):
        raise ProblemError("There is no folder %s" % path, "make it, or name another: --dir PATH")
    return path


def settings(folder: str, root: str, *, tcp: bool) -> dict[str, dict[str, Any]]:
    """The server's whole configuration: the user's own file, which may open it to the network, is not read."""
    server = {"open_browser": False, "root_dir": root, "allow_root": os.geteuid() == 0, "port_retries": 0}
    if version("jupyterlab"):
        server["default_url"] = "/lab"
    if tcp:
        server.update(ip="127.0.0.1", port=0)
    else:
        server.update(sock=os.path.join(folder, "server.sock"), sock_mode="0600")
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
        chosen = settings(folder, root, tcp=bool(request["tcp"]))
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
        "fresh": False, "pid": pid, "sock": info["sock"], "port": info["port"], "token": info["token"],
        "version": info["version"], "root": info["root_dir"], "python": python, "lab": lab,
        "old_lab": bool(lab) and numbers(lab) < OLDEST_LAB, "as_root": os.geteuid() == 0,
    }  # fmt: skip


def look(_request: dict[str, Any]) -> dict[str, Any]:
    """What of ours runs here."""
    folder = place()
    servers, kernels, rest = sorted_out(folder)
    with contextlib.suppress(OSError):  # looking leaves nothing behind: an empty folder goes again
        os.rmdir(folder)
    server: dict[str, Any] | None = None
    states: dict[str, Any] = {}
    if servers:
        try:
            server = {name: value for name, value in found(folder, servers[0]).items() if name != "token"}
            states = {each["id"]: each for each in ask(told(folder, servers[0]), "/api/kernels")}
        except ProblemError as problem:
            server = {"pid": servers[0], "problem": problem.args[0]}
    shown: dict[str, Any] = {}
    for pid, file in sorted(kernels.items()):
        name = os.path.basename(file)[len("kernel-") : -len(".json")]
        known = states.get(name, {})
        each = {"id": name, "pid": pid, "name": known.get("name"), "state": known.get("execution_state")}
        with contextlib.suppress(OSError, ValueError):
            with open(file, encoding="utf-8") as text:
                each["of"] = json.load(text).get("kernel_name", "")
            each["since"] = os.stat(file).st_mtime
        shown.setdefault(name, each)  # a fork of a kernel looks like it
    return {"server": server, "kernels": list(shown.values()), "rest": commands(rest)}


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
        for pid in kernels if groups != "servers" else ():
            with contextlib.suppress(OSError):
                os.killpg(pid, number)
        end = time.time() + STOP_S
        while time.time() < end and any(sorted_out(folder)[: 1 if groups == "servers" else 2]):
            time.sleep(0.05)
    servers, kernels, rest = sorted_out(folder)
    if servers or kernels:
        raise ProblemError("These processes do not end: %s" % sorted([*servers, *kernels]), "look there: ps -fp PID")
    shutil.rmtree(folder, ignore_errors=True)
    return {"ended": ended, "rest": commands(rest)}


# -- a kernel without the server


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
    """A kernel that runs: as `kernel` tells of one, and its key."""
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


def kernel(request: dict[str, Any]) -> dict[str, Any]:
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


def main(request: dict[str, Any]) -> None:
    verbs = {
        "start": start, "look": look, "stop": stop, "about": about, "kernel": kernel, "again": again, "said": said,
        "forget": forget,
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


main(REQUEST)  # type: ignore[name-defined]  # noqa: F821 - comes with the program
