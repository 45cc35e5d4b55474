"""Bytes that wait for a link and find no room in memory: written to files without a name, 0600, up to a limit."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from typing import Any

RETRY_S = 5.0  # a full disk may have room again
SEGMENT = 16 << 20  # bytes of one file; it goes when all of it has been read


class Parked:
    """Bytes on disk: where they stand."""

    def __init__(self, segment: Segment, at: int, size: int) -> None:
        self.segment, self.at, self.size = segment, at, size

    def __len__(self) -> int:
        return self.size


class Segment:
    """One file, which has lost its name: it is gone with the process, however that ends."""

    def __init__(self, folder: str) -> None:
        handle, path = tempfile.mkstemp(prefix="spool-", dir=folder)  # 0600
        os.unlink(path)
        self.handle, self.size, self.live = handle, 0, 0


class Spool:
    """The files of one relay.

    Attributes:
        held: Bytes that stand in them.
        full: Why nothing more goes in; empty while there is room.
        refused: How often it was full so far; `why`, the last time.
    """

    def __init__(self, folder: str, most: int) -> None:
        self.folder, self.most = folder, most
        self.held = 0
        self.full = self.why = ""
        self.refused = 0
        self._since = 0.0
        self._last: Any = None
        self._lock = threading.Lock()

    def park(self, data: Any) -> Any:
        """Write `data`: a Parked, or None where there is no room, and `full` says why."""
        view = memoryview(data)
        with self._lock:
            if self.held + len(view) > self.most:
                return self._no("the limit of %d MiB on disk is reached" % (self.most >> 20))
            try:
                if self._last is None or self._last.size >= SEGMENT:
                    self._last = Segment(self.folder)  # who reads the one before last closes it
                segment = self._last
                at, done = segment.size, 0
                while done < len(view):
                    done += os.pwrite(segment.handle, view[done:], at + done)
            except OSError as error:
                return self._no("%s: %s" % (self.folder, error.strerror or error))
            segment.size += len(view)
            segment.live += len(view)
            self.held += len(view)
            return Parked(segment, at, len(view))

    def _no(self, why: str) -> None:
        self.full = self.why = why
        self.refused += 1
        self._since = time.monotonic()

    def takes(self) -> bool:
        """Whether it is worth a try."""
        if self.full and self.held < self.most and time.monotonic() > self._since + RETRY_S:
            self.full = ""
        return not self.full

    def load(self, parked: Parked) -> bytes:
        """Read it back; its place on disk is free then.

        Raises: OSError, also for a file that has become shorter.
        """
        parts, done = [], 0
        while done < parked.size:
            part = os.pread(parked.segment.handle, parked.size - done, parked.at + done)
            if not part:
                raise OSError("the spool has lost %d bytes" % (parked.size - done))
            parts.append(part)
            done += len(part)
        self.drop(parked)
        return b"".join(parts)

    def drop(self, parked: Parked) -> None:
        """Nobody wants it any more."""
        with self._lock:
            segment = parked.segment
            segment.live -= parked.size
            self.held -= parked.size
            if not segment.live:
                if segment is self._last:
                    self._last = None
                os.close(segment.handle)
            if self.held <= self.most * 3 // 4:
                self.full = ""
