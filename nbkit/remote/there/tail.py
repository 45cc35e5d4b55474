"""Hands on what a run writes, as it grows, until it has ended: lines of JSON, each with bytes in base64.

REQUEST: `name` of the run; `log`, the bytes of its log that are over there already (or `lines`: the last so many), and
whether to `follow`; or `run`, the start of the id of its training run ("" is the newest), and `have`, the bytes of each
file of each. A line every two seconds comes in any case: this program ends when nobody reads.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from typing import Any, Dict, List, Optional, Tuple

from nbkit.remote.there import work

LOG_EVERY_S, RUN_EVERY_S, BEAT_S, SLOWLY_S = 0.05, 0.1, 2.0, 1.0
MOST = 512 * 1024  # of one line, before base64
GROWING = ("events.jsonl", "metrics.jsonl", "samples.jsonl", "system.jsonl")
REQUESTS = ("STOP", "PAUSE")


class Teller:
    """Says what is new; keeps a beat."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def tell(self, **told: Any) -> None:
        """One line."""
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        self._last = time.monotonic()

    def pause(self, seconds: float) -> None:
        """Wait, with a sign of life now and then."""
        if time.monotonic() - self._last > BEAT_S:
            self.tell(now=time.time())
        time.sleep(seconds)


def grown(path: str, offset: int, *, lines: bool) -> Tuple[int, bytes]:
    """Where the new bytes of `path` begin, and they; from the start where it has become shorter."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            offset = 0 if size < offset else offset
            file.seek(offset)
            data = file.read(min(MOST, size - offset))
    except FileNotFoundError:
        return offset, b""
    if lines:
        data = data[: data.rfind(b"\n") + 1]
    return offset, data


def last_lines(path: str, count: int) -> int:
    """Where the last `count` lines begin."""
    if not os.path.exists(path):  # its folder was deleted
        return 0
    with open(path, "rb") as file:
        at = end = os.fstat(file.fileno()).st_size
        while at:
            step = min(at, 65536)
            file.seek(at - step)
            block = file.read(step)
            for index in range(step - 1, -1, -1):
                if block[index] == 10 and at - step + index + 1 < end:
                    if count <= 1:
                        return at - step + index + 1 if count else end
                    count -= 1
            at -= step
    return 0 if count else end


def log(request: Dict[str, Any], teller: Teller) -> None:
    """The log, until the run has ended and all is said."""
    folder = work.chosen(request["name"])["folder"]
    path = os.path.join(folder, "log")
    offset = int(request["log"]) if request["lines"] is None else last_lines(path, int(request["lines"]))
    while True:
        running = work.goes_on(folder)  # asked first: what it wrote last is read
        offset, data = grown(path, offset, lines=False)
        if data:
            offset += len(data)
            teller.tell(to=offset, data=base64.b64encode(data).decode())
        elif not running or not request["follow"]:
            return teller.tell(end=work.described(folder))
        else:
            teller.pause(LOG_EVERY_S)


class Mirrored:
    """The small files of one training run."""

    def __init__(self, folder: str, path: str, have: Dict[str, int], teller: Teller) -> None:
        self.folder, self.path, self.have, self.teller = folder, path, have, teller
        self._status = self._config = b""
        self._wishes: Optional[List[str]] = None
        self._looked = 0.0

    def hand_on(self) -> bool:
        """All that is new, the status last: who has it has the rows of before. True when the run is over."""
        status = self._read("status.json")
        try:
            about = json.loads(status)
        except ValueError:
            return False
        over = about.get("state") not in work.ACTIVE
        gone = False
        if not over and time.monotonic() - self._looked > SLOWLY_S:
            self._looked = time.monotonic()
            gone = not work.lives(self.folder, about)
            gone = gone and self._read("status.json") == status
        for name in GROWING:
            while self._grow(name):
                pass
        config = self._read("config.yaml")
        if config != self._config:
            self._config = config
            self.teller.tell(file="config.yaml", whole=base64.b64encode(config).decode())
        wishes = [name for name in REQUESTS if os.path.exists(os.path.join(self.path, name))]
        if wishes != self._wishes:
            self._wishes = wishes
            self.teller.tell(wishes=wishes)
        if status != self._status:
            self._status = status
            self.teller.tell(file="status.json", whole=base64.b64encode(status).decode())
        if over or gone:
            self.teller.tell(over=True, gone=gone, now=time.time())
        return over or gone

    def _grow(self, name: str) -> bool:
        at, data = grown(os.path.join(self.path, name), self.have.get(name, 0), lines=True)
        if data:
            self.teller.tell(file=name, at=at, data=base64.b64encode(data).decode())
        self.have[name] = at + len(data)
        return bool(data)

    def _read(self, name: str) -> bytes:
        try:
            with open(os.path.join(self.path, name), "rb") as file:
                return file.read(MOST)
        except OSError:
            return b""


def run(request: Dict[str, Any], teller: Teller) -> None:
    """A training run, from its beginning, which is waited for, to its end."""
    folder = work.chosen(request["name"])["folder"]
    while True:
        running = work.goes_on(folder)
        begun = [path for path, _ in work.trainings(folder) if os.path.basename(path).startswith(request["run"])]
        if begun:
            break
        if not running:
            return teller.tell(end=work.described(folder))
        teller.pause(RUN_EVERY_S)
    teller.tell(run=os.path.basename(begun[-1]), now=time.time())
    have = request["have"].get(os.path.basename(begun[-1])) or {}
    mirrored = Mirrored(folder, begun[-1], dict(have), teller)
    while not mirrored.hand_on():
        teller.pause(RUN_EVERY_S)
    return None


def main(request: Dict[str, Any]) -> None:
    """Until the end, or until nobody reads."""
    teller = Teller()
    try:
        (log if "log" in request else run)(request, teller)
    except work.ProblemError as problem:
        teller.tell(error=problem.args[0], hint=problem.args[1])
    except BrokenPipeError:
        os._exit(0)
