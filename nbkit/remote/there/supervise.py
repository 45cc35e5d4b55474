"""Watches over one run of `nbkit run`: starts its program, ends it when asked to, writes down how it ended.

A process and a session of its own: no connection's end ends it. It holds the run's lock, which it was started with. Asked to stop
(stop.json), it puts STOP into the training runs that are at work, so that they finish their step and save; what is still
there after the grace gets SIGTERM, and SIGKILL `KILL_S` later. Without a training run SIGTERM comes at once. A run has
ended when its program has, and every training run that it left in a process of its own; one that was asked to end leaves no
process at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from typing import Any, Dict, List, Optional

from nbkit.remote.there import ended, work

EVERY_S = 0.1
SLOWLY_S = 1.0  # for what reads /proc
KILL_S = 30.0
RESERVED = 64 << 10  # bytes, so that the end can be written down on a disk that the run has filled


class Watch:
    """The program of one run."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._swept = False  # what outlived the program got SIGTERM
        self.terminated = False  # this process got SIGTERM: the box is going down
        self.asked: Optional[Dict[str, Any]] = None
        self._termed = self._looked = 0.0
        self._kills = ended.Kills()
        plan = work.read_json(os.path.join(folder, "start.json"))
        with open(os.path.join(folder, "log"), "ab") as log, open(os.devnull, "rb") as nothing:
            self.child = subprocess.Popen(
                plan["argv"], cwd=os.path.join(folder, "files"), env=self._environment(plan), stdin=nothing,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _environment(self, plan: Dict[str, Any]) -> Dict[str, str]:
        values = dict(os.environ)
        values["PATH"] = os.path.dirname(sys.executable) + os.pathsep + values.get("PATH", os.defpath)
        values["NBKIT_RUNS"], values[work.MARK] = os.path.join(self.folder, "runs"), self.folder
        values["PYTHONUNBUFFERED"] = "1"
        places = [plan["code"], values.get("PYTHONPATH", "")]
        if any(places):
            values["PYTHONPATH"] = os.pathsep.join(filter(None, places))
        values.update(plan["env"])
        return values

    def wait(self) -> int:
        """Until all has ended; the program's exit code, 128 + the signal where one ended it."""
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(EVERY_S)
            over = self.child.returncode is not None
            if over and not work.at_work(self.folder) and (self.asked is None or self._nothing_left()):
                code = int(self.child.returncode)
                return 128 - code if code < 0 else code
            if over:
                time.sleep(SLOWLY_S)
            self._kills.tick()
            self._heed()

    def why(self) -> str:
        """What ended it, where that was neither itself nor somebody who asked; to be called when it has ended."""
        code, ooms = int(self.child.returncode), self._kills.late()
        if self.asked or not code:
            return ""
        if code < 0:
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
            return ended.words(code, peak, ooms, ended.limit(), "The program")
        return "Memory ran out there as it ended: Linux killed a process for it." if ooms else ""

    def _nothing_left(self) -> bool:
        """True when no process of it is there; those in sessions of their own get SIGTERM like the others."""
        left = work.marked(self.folder)
        if left and not self._swept:
            self._swept, self._termed = True, time.monotonic()
            self._signal(signal.SIGTERM, left)
        return not left

    def _heed(self) -> None:
        """Do what a request to stop asks for by now."""
        if self.asked is None:
            self.asked = work.read_json(os.path.join(self.folder, "stop.json"))
            if self.terminated:
                self.asked = {"grace_s": 0.0}
            if self.asked is None:
                return
            self.asked["since"] = time.monotonic()
        now = time.monotonic()
        if self._termed:
            if now - self._termed > KILL_S and now - self._looked > SLOWLY_S:
                self._looked = now
                self._signal(signal.SIGKILL, work.marked(self.folder))
            return
        if now - self._looked < SLOWLY_S and self._looked:
            return
        self._looked = now
        again = work.read_json(os.path.join(self.folder, "stop.json"))  # asked once more, with less grace
        grace = float((again or self.asked)["grace_s"])
        training = work.at_work(self.folder)
        for path in training:
            with contextlib.suppress(OSError):
                if not os.path.exists(os.path.join(path, "STOP")):
                    with open(os.path.join(path, "STOP"), "w") as file:
                        file.write("asked to stop\n")
        if not training or now - self.asked["since"] >= grace:
            self._termed = now
            apart = [status["pid"] for path, status in work.trainings(self.folder)
                     if path in training and os.path.isdir(os.path.join(path, "launch"))]  # fmt: skip
            self._signal(signal.SIGTERM, apart)

    def _signal(self, number: int, more: List[int]) -> None:
        with contextlib.suppress(OSError):
            if self.child.returncode is None:
                os.killpg(self.child.pid, number)
        for pid in more:
            with contextlib.suppress(OSError):
                os.kill(pid, number)


def _is_full(folder: str) -> bool:
    """Whether the disk, or what this user may have of it, takes no more."""
    probe = os.path.join(folder, "probe")
    try:
        with open(probe, "wb") as file:
            file.write(b"-" * RESERVED)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    finally:
        with contextlib.suppress(OSError):
            os.remove(probe)
    return False


def _tidy(folder: str) -> None:
    """Remove the sockets' folder of a notebook whose process was killed before it could."""
    with contextlib.suppress(OSError), open(os.path.join(folder, "place")) as file:
        place = file.read()
        about = os.lstat(place)
        if (
            stat.S_ISDIR(about.st_mode)
            and about.st_uid == os.geteuid()
            and os.path.basename(place).startswith("nbkit-")
        ):
            shutil.rmtree(place, ignore_errors=True)


def main(folder: str) -> None:
    """Watch until the end."""
    os.umask(0o077)
    began = time.time()
    why = ""
    watch = None
    reserve = os.path.join(folder, "reserve")
    try:
        with open(reserve, "wb") as file:
            file.write(b"-" * RESERVED)
        watch = Watch(folder)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: setattr(watch, "terminated", True))
        code = watch.wait()
        why = watch.why()
    except OSError as error:
        code = 126
        with contextlib.suppress(OSError), open(os.path.join(folder, "log"), "a") as log:
            log.write("%s: %s\n" % (error.filename, error.strerror))
    _tidy(folder)
    full = _is_full(folder)
    with contextlib.suppress(OSError):
        os.remove(reserve)
    told = work.read_json(os.path.join(folder, "result.json")) or {}
    end = {
        "exit": code,
        "began": began,
        "ended": time.time(),
        "asked": bool(watch and watch.asked),
        "full": full,
        "why": why,
        "left": len(work.marked(folder)),  # of what it started
        **told,
    }
    work.write_json(os.path.join(folder, "end.json"), end)
