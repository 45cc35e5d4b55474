"""What `nbkit run` keeps on this box: one 0700 folder a run, and how to tell what became of it.

<state>/nbkit/work/<id>/
    job.json       what was asked for, and when
    lock           held by the process that watches over the run, as long as that lives
    log            what the program printed, stdout and stderr as they came
    files/         where it works: the file, what was sent with it, what it writes
    runs/          NBKIT_RUNS: its training runs
    sent.json      size and time of what was sent, to tell it from what was written
    progress.json  of a notebook: the cell that is at work
    place          of a notebook: the folder of its kernel's sockets
    stop.json      somebody asked it to end
    end.json       how it ended
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
import time
from typing import Any, Dict, List, Optional, Tuple

ACTIVE = ("waiting", "training", "evaluating", "paused", "stalled")
MARK = "NBKIT_WORK"
_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[A-Za-z0-9._-]{1,60}\Z")
_LOOK_S = 0.05
_END_BYTES = 4096


class ProblemError(Exception):
    """A sentence, and a fix."""


def root() -> str:
    """The folder of all runs, 0700."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    path = os.path.join(state, "nbkit", "work")
    os.makedirs(path, mode=0o700, exist_ok=True)
    os.chmod(path, 0o700)
    return path


def folder_of(name: str) -> str:
    """The folder of one run; no name leads out of the root."""
    if not _ID.match(name):
        raise ProblemError("%r is no name of a run" % name, "nbkit runs --on HOST")
    return os.path.join(root(), name)


def write_json(path: str, value: Any) -> None:
    """Whole or not at all; 0600 by the umask that every program of ours sets."""
    staged = "%s.%d.part" % (path, os.getpid())
    with open(staged, "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.replace(staged, path)


def read_json(path: str) -> Any:
    """What `write_json` wrote, or None."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def held(folder: str) -> bool:
    """Whether the run is at work: somebody holds its lock."""
    try:
        file = open(os.path.join(folder, "lock"), "rb")  # noqa: SIM115 - closed below
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def hold(folder: str) -> Any:
    """Take the lock, for as long as the file that is returned stays open."""
    file = open(os.path.join(folder, "lock"), "a+b")  # noqa: SIM115 - handed on
    for _ in range(100):  # somebody may be looking just now
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        time.sleep(_LOOK_S)
    raise ProblemError("%s is at work already" % os.path.basename(folder), "nbkit runs --on HOST")


def marks() -> Dict[str, List[int]]:
    """The processes that runs started, at any depth, by the mark in their environment: folder -> pids. This one is left out."""
    mark, found = ("%s=" % MARK).encode(), {}  # type: Tuple[bytes, Dict[str, List[int]]]
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError), open("/proc/%s/environ" % name, "rb") as file:
                for word in file.read().split(b"\0"):
                    if word.startswith(mark):
                        found.setdefault(os.fsdecode(word[len(mark) :]), []).append(int(name))
    return found


def marked(folder: str) -> List[int]:
    """Every process that the run started, at any depth; this one is left out."""
    return marks().get(folder, [])


def lives(folder: str, status: Dict[str, Any]) -> bool:
    """Whether the process that wrote a training run's `status` is there; one of another host that shares this home folder
    cannot be seen, and counts as there.
    """
    pid = int(status.get("pid") or 0)
    if status.get("host") not in (None, "", platform.node()):
        return True
    if pid <= 0:
        return False
    if os.path.isdir("/proc/self"):
        with contextlib.suppress(OSError), open("/proc/%d/environ" % pid, "rb") as file:
            return ("%s=%s" % (MARK, folder)).encode() in file.read().split(b"\0")
        return False
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def goes_on(folder: str) -> bool:
    """Whether the run is at work: watched over, or left alone by a watcher that was killed."""
    if held(folder):
        return True
    return not os.path.exists(os.path.join(folder, "end.json")) and bool(marked(folder))


def trainings(folder: str) -> List[Tuple[str, Dict[str, Any]]]:
    """Path and status of each training run, the newest last; one whose process is gone has `gone` set."""
    found = []
    runs = os.path.join(folder, "runs")
    for name in os.listdir(runs) if os.path.isdir(runs) else ():
        status = read_json(os.path.join(runs, name, "status.json"))
        if isinstance(status, dict):
            active = status.get("state") in ACTIVE
            status["gone"] = active and not lives(folder, status)
            found.append((os.path.join(runs, name), status))
    return sorted(found, key=lambda one: (one[1].get("started") or 0, one[0]))


def at_work(folder: str) -> List[str]:
    """The training runs that still write."""
    return [path for path, status in trainings(folder) if status.get("state") in ACTIVE and not status["gone"]]


def _loss(path: str) -> Optional[float]:
    """The last one in metrics.jsonl."""
    with contextlib.suppress(OSError), open(os.path.join(path, "metrics.jsonl"), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _END_BYTES))
        for line in reversed(file.read().splitlines()):
            with contextlib.suppress(ValueError, AttributeError):
                loss = json.loads(line).get("loss")
                if loss is not None:
                    return float(loss)
    return None


def described(folder: str) -> Optional[Dict[str, Any]]:
    """All that is known of a run; None where nothing was begun.

    `state` is running, stopping, done, failed, stopped, or lost: ended without a word (killed, or the box was restarted).
    `removed` is true where somebody deleted its folder while it was at work.
    """
    about = read_json(os.path.join(folder, "job.json"))
    if not isinstance(about, dict):
        about = _without_folder(folder, marked(folder))
        if about is None:
            return None
    running = goes_on(folder)  # asked first: what it wrote last is read
    end = read_json(os.path.join(folder, "end.json"))
    asked = os.path.exists(os.path.join(folder, "stop.json"))
    if running and end is None:
        state = "stopping" if asked else "running"
    elif end is None:
        state = "lost"
    else:
        state = "stopped" if end["asked"] else "failed" if end["exit"] else "done"
    found = []
    for path, status in trainings(folder):
        row = {key: status.get(key) for key in ("state", "step", "max_steps", "cause", "started", "updated")}
        if status["gone"]:
            row.update(state="failed", cause="its process is gone")
        found.append({"id": os.path.basename(path), "loss": _loss(path), **row})
    return {
        **about, "id": os.path.basename(folder), "folder": folder, "state": state, "end": end, "runs": found,
        "progress": read_json(os.path.join(folder, "progress.json")), "now": time.time(),
    }  # fmt: skip


def _without_folder(folder: str, pids: List[int]) -> Optional[Dict[str, Any]]:
    """What is known of a run whose folder was deleted under it: its processes carry the name; None without any."""
    name = os.path.basename(folder)
    began = []
    for pid in pids:
        with contextlib.suppress(OSError):
            began.append(os.stat("/proc/%d" % pid).st_mtime)
    if not began:
        return None
    return {"file": name[16:], "kind": "unknown", "started": min(began), "removed": True}


def every() -> List[Dict[str, Any]]:
    """All runs, the newest first; those too whose folder was deleted while they are at work."""
    folder = root()
    names = {name for name in os.listdir(folder) if os.path.exists(os.path.join(folder, name, "job.json"))}
    names.update(map(os.path.basename, marks()))  # of another root, `described` finds none
    found = [described(os.path.join(folder, name)) for name in names]
    return sorted((one for one in found if one), key=lambda one: (one["started"], one["id"]), reverse=True)


def chosen(name: str) -> Dict[str, Any]:
    """The run called `name`: its id, the start of one, its file's name, or a training run of it; the newest for ""."""
    begun = described(folder_of(name)) if _ID.match(name) else None
    if begun:
        return begun
    runs = every()
    fits = [one for one in runs if one["id"].startswith(name)]
    fits = fits or [one for one in runs if name in (one["file"], os.path.splitext(one["file"])[0])][:1]
    fits = fits or [one for one in runs if any(training["id"].startswith(name) for training in one["runs"])]
    exact = [one for one in fits if one["id"] == name]
    if not fits:
        which = "no run %r" % name if name else "no run"
        raise ProblemError("%s of nbkit is there" % which, "nbkit runs --on HOST")
    if name and not exact and len(fits) > 1:
        raise ProblemError("%r fits %s" % (name, ", ".join(one["id"] for one in fits)), "write more of the id")
    return (exact or fits)[0]
