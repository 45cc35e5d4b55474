"""What became of a kernel or a run, in plain words: how its process ended, and whether memory ran out."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import time
from typing import Any, Iterator, Optional

LEAST_S = 4.0  # what Linux has counted within so long belongs to the end
_GIB = 1 << 30
_V1 = "/sys/fs/cgroup/memory"
_V2 = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")


def folders() -> Iterator[str]:
    """Folders of this process's memory cgroup and of those above it, the nearest first."""
    with contextlib.suppress(OSError), open("/proc/self/cgroup") as file:
        for line in file:
            number, kinds, path = line.rstrip("\n").split(":", 2)
            if "memory" not in kinds.split(",") and number != "0":
                continue
            for root in (_V1,) if kinds else _V2:
                parts = path.strip("/").split("/")
                for length in range(len(parts), -1, -1):  # a container may see its own as the root
                    folder = os.path.join(root, *parts[:length])
                    if os.path.isdir(folder):
                        yield folder


def number_of(path: str, name: str) -> Optional[int]:
    """The number behind `name` in a file of lines with a name and a number, or the number that is all of it."""
    with contextlib.suppress(OSError, ValueError), open(path) as file:
        for line in file:
            words = line.split()
            if words and words[0] == name:
                return int(words[1])
            if not name:
                return int(line)
    return None


def oom_kills() -> Optional[int]:
    """How many processes the kernel has killed for want of memory so far: of our cgroup, or else of the machine."""
    for folder in folders():
        for name in ("memory.events", "memory.oom_control"):
            found = number_of(os.path.join(folder, name), "oom_kill")
            if found is not None:
                return found
    return number_of("/proc/vmstat", "oom_kill")


def limit() -> Optional[int]:
    """Bytes that our cgroup may take; None where it may take all."""
    found = [number_of(os.path.join(folder, name), "") for folder in folders()
             for name in ("memory.max", "memory.limit_in_bytes")]  # fmt: skip
    all_of_it = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    numbers = [number for number in found if number is not None and number < all_of_it]
    return min(numbers) if numbers else None


def boot() -> str:
    """Names this run of the machine; empty where it has no name."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return ""


def size(count: int) -> str:
    return "%.1f GiB" % (count / _GIB) if count >= _GIB else "%d MiB" % (count >> 20)


def words(status: int, peak: int, ooms: Optional[int], most: Optional[int], what: str = "The kernel") -> str:
    """One or two sentences.

    Args:
        status: Exit status; a signal's number, negative.
        peak: The most bytes of memory that the process had.
        ooms: Processes killed for want of memory while it ended; None where the machine does not tell.
        most: Bytes that its cgroup may take.
        what: Begins the sentence.
    """
    at, host = time.strftime("%H:%M:%S"), platform.node() or "the box"
    if status >= 0:
        return "%s ended by itself at %s on %s, with exit status %d." % (what, at, host, status)
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "a signal"
    did = "was killed" if -status in (signal.SIGKILL, signal.SIGTERM) else "crashed"
    said = "%s %s at %s on %s (%s, signal %d)" % (what, did, at, host, name, -status)
    had = "it had %s at most" % size(peak)
    if status != -signal.SIGKILL:
        return "%s; %s." % (said, had)
    if ooms:
        whose = "the %s that its cgroup may take" % size(most) if most else "the machine's memory"
        return "%s because memory ran out, %s; %s." % (said, whose, had)
    if ooms is None:
        return "%s; %s. Whether memory ran out, this machine does not tell." % (said, had)
    return "%s; %s. Linux had not run out of memory: a person, a batch system or a memory watchdog did it." % (
        said,
        had,
    )


class Kills:
    """Processes that Linux killed for want of memory of late: what belongs to an end, not to the hours before."""

    def __init__(self) -> None:
        self._older = self._newer = oom_kills()
        self._ticked = time.monotonic()

    def tick(self) -> None:
        """To be called now and then."""
        if time.monotonic() > self._ticked + LEAST_S:
            self._older, self._newer, self._ticked = self._newer, oom_kills(), time.monotonic()

    def late(self) -> Optional[int]:
        """How many; None where the machine does not tell."""
        now = oom_kills()
        return None if now is None else now - (self._older or 0)


def facts(status: int, peak: int, ooms: Optional[int]) -> dict[str, Any]:
    """What is written down of an end."""
    return {"at": time.time(), "status": status, "peak": peak, "ooms": ooms, "text": words(status, peak, ooms, limit())}
