"""What is done with runs on this box: look, make a place, begin, list, stop, tell what was written. Prints one JSON object."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from importlib import util
from typing import Any, Dict, List

from nbkit.remote.there import work

NOTEBOOK_NEEDS = ("nbclient", "nbformat", "ipykernel")
_OLD_S = 24 * 3600.0  # a place that nothing was begun in


def look(_request: Dict[str, Any]) -> Dict[str, Any]:
    """What a run would find here."""
    from importlib import metadata

    versions = {}
    for module in (*NOTEBOOK_NEEDS, "nbkit", "trl"):
        versions[module] = ""
        found = util.find_spec(module)
        if found and found.origin:  # not a bare folder of that name
            versions[module] = "unknown"
            with contextlib.suppress(metadata.PackageNotFoundError):
                versions[module] = metadata.version("nbkit-llm" if module == "nbkit" else module)
    return {"python": sys.executable, "version": list(sys.version_info[:2]), "packages": versions, "root": work.root()}


def make(request: Dict[str, Any]) -> Dict[str, Any]:
    """An empty place for a run that is about to be sent, under `name` or, where that is taken, another one."""
    for name in sorted(os.listdir(work.root())):
        old = os.path.join(work.root(), name)
        with contextlib.suppress(OSError):
            unused = not os.path.exists(os.path.join(old, "job.json")) and name != "code"
            if unused and time.time() - os.stat(old).st_mtime > _OLD_S:
                shutil.rmtree(old, ignore_errors=True)
    name, number = request["name"], 1
    while True:
        folder = work.folder_of(name)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
            break
        number += 1
        name = "%s-%d" % (request["name"], number)
    for below in ("files", "runs"):
        os.mkdir(os.path.join(folder, below), 0o700)
    return {"id": name, "folder": folder, "files": os.path.join(folder, "files")}


def drop(request: Dict[str, Any]) -> Dict[str, Any]:
    """Remove a place where nothing was begun."""
    folder = work.folder_of(request["name"])
    begun = os.path.exists(os.path.join(folder, "job.json"))
    if not begun:
        shutil.rmtree(folder, ignore_errors=True)
    return {"dropped": not begun}


def code(request: Dict[str, Any]) -> Dict[str, Any]:
    """Where nbkit's own code of this content lies, unpacked from `wheel` where it does not yet; "" without a wheel."""
    place = os.path.join(work.root(), "code", request["digest"])
    if not os.path.isdir(place) and request["wheel"]:
        staged = "%s.%d.part" % (place, os.getpid())
        with zipfile.ZipFile(request["wheel"]) as archive:
            archive.extractall(staged)
        with contextlib.suppress(OSError):  # somebody else was first
            os.replace(staged, place)
        shutil.rmtree(staged, ignore_errors=True)
    if request["wheel"]:
        os.unlink(request["wheel"])
    return {"code": place if os.path.isdir(place) else ""}


def _listed(files: str) -> Dict[str, List[int]]:
    found = {}
    for above, folders, names in os.walk(files):
        for name in [*folders, *names]:
            about = os.lstat(os.path.join(above, name))
            found[os.path.relpath(os.path.join(above, name), files)] = [about.st_size, about.st_mtime_ns]
    return found


def begin(request: Dict[str, Any]) -> Dict[str, Any]:
    """Start it, in a session of its own; it lives on when this program and its connection are gone."""
    folder = work.folder_of(request["name"])
    files = os.path.join(folder, "files")
    for name, text in request["programs"].items():
        with open(os.path.join(folder, name + ".py"), "w", encoding="utf-8") as file:
            file.write(text)
    words = [word.replace("{python}", sys.executable).replace("{folder}", folder) for word in request["argv"]]
    work.write_json(os.path.join(folder, "sent.json"), _listed(files))
    work.write_json(os.path.join(folder, "start.json"), {"argv": words, "env": request["env"], "code": request["code"]})
    about = {**request["about"], "python": sys.executable, "host": platform.node(), "started": time.time()}
    # The lock is the run's sign of life, and is handed on: there is no moment at which it looks dead.
    with work.hold(folder) as lock, open(os.path.join(folder, "log"), "ab") as log, open(os.devnull, "rb") as nothing:
        work.write_json(os.path.join(folder, "job.json"), about)
        watcher = subprocess.Popen(
            [sys.executable, "-u", os.path.join(folder, "supervise.py"), folder], cwd=folder, stdin=nothing,
            stdout=log, stderr=log, start_new_session=True, pass_fds=(lock.fileno(),),
        )  # fmt: skip
    return {"pid": watcher.pid}


def every(_request: Dict[str, Any]) -> Dict[str, Any]:
    """All runs, the newest first."""
    return {"runs": work.every()}


def find(request: Dict[str, Any]) -> Dict[str, Any]:
    """One run, by name."""
    return work.chosen(request["name"])


def stop(request: Dict[str, Any]) -> Dict[str, Any]:
    """Ask a run to end; see supervise.py. `training` names what will finish its step and save first.

    What a run that has ended left behind is ended all the same.
    """
    about = work.chosen(request["name"])
    folder, active = about["folder"], about["state"] in ("running", "stopping")
    training = [os.path.basename(path) for path in work.at_work(folder)]
    if not active and not work.marked(folder):
        return {**about, "asked": False, "training": []}
    os.makedirs(folder, mode=0o700, exist_ok=True)  # deleted, it is still where its watcher looks
    wish = os.path.join(folder, "stop.json")
    again = os.path.exists(wish)
    work.write_json(wish, {"grace_s": request["grace_s"], "at": time.time()})
    if not active or not work.held(folder):  # nobody watches over it any more
        _end_all(folder, kill=again)
    return {**about, "asked": True, "training": training}


def _end_all(folder: str, *, kill: bool) -> None:
    """SIGTERM to each process of a run, or SIGKILL."""
    for pid in work.marked(folder):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL if kill else signal.SIGTERM)


def remove(request: Dict[str, Any]) -> Dict[str, Any]:
    """Delete a run that has ended, with all that it wrote and trained here."""
    about = work.chosen(request["name"])
    if about["state"] in ("running", "stopping"):
        raise work.ProblemError("%s is at work" % about["id"], "nbkit stop %s --on HOST" % about["id"])
    shutil.rmtree(about["folder"])
    return about


def ask(request: Dict[str, Any]) -> Dict[str, Any]:
    """Put a request (STOP, PAUSE) into a training run, or take it away."""
    about = work.chosen(request["name"])
    path = os.path.join(about["folder"], "runs", os.path.basename(request["run"]))
    if not os.path.isfile(os.path.join(path, "status.json")):
        raise work.ProblemError("there is no training run %r" % request["run"], "nbkit runs --on HOST")
    wish = os.path.join(path, {"stop": "STOP", "pause": "PAUSE"}[request["what"]])
    if request["on"]:
        with open(wish, "w") as file:
            file.write("asked from %s\n" % request["from"])
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(wish)
    return {}


def changed(request: Dict[str, Any]) -> Dict[str, Any]:
    """What it wrote: the names below files/ that were not sent, or were sent otherwise; whole folders where all is new."""
    about = work.chosen(request["name"])
    if about.get("removed"):
        raise work.ProblemError(
            "the folder of %s was deleted: what it wrote is gone" % about["id"], "end it: nbkit stop %s" % about["id"]
        )
    files = os.path.join(about["folder"], "files")
    sent = work.read_json(os.path.join(about["folder"], "sent.json")) or {}
    found, left = [], [""]
    while left:
        above = left.pop()
        for name in sorted(os.listdir(os.path.join(files, above))):
            inner = os.path.join(above, name)
            info = os.lstat(os.path.join(files, inner))
            if inner not in sent:
                found.append(inner)
            elif os.path.isdir(os.path.join(files, inner)) and not os.path.islink(os.path.join(files, inner)):
                left.append(inner)
            elif [info.st_size, info.st_mtime_ns] != sent[inner]:
                found.append(inner)
    return {**about, "written": [name for name in found if os.path.basename(name) != "__pycache__"]}


def main(request: Dict[str, Any]) -> None:
    """Carry out request["verb"]."""
    os.umask(0o077)
    verbs = {one.__name__: one for one in (look, make, drop, code, begin, every, find, stop, remove, ask, changed)}
    try:
        answer = verbs[request["verb"]](request)
    except work.ProblemError as problem:
        answer = {"error": problem.args[0], "hint": problem.args[1]}
    except OSError as error:
        answer = {
            "error": "%s: %s" % (error.filename or "nbkit", error.strerror),
            "hint": "look there: df -h; ls -ld ~",
        }
    print(json.dumps(answer))
