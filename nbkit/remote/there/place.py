"""How a received file gets its place: a part beside its final name, locked, checked, fsynced, renamed."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import Dict, List, Optional, Sequence

from nbkit.remote.there.frames import BLOCK, StoppedError, shown
from nbkit.remote.there.tree import FILE, FOLDER, LINK, Entry, part_of, stays_inside

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # Lustre without -o flock, NFS without lockd, some of FUSE
FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def check(entries: List[Entry], contents: bool, sources: Sequence[bytes] = ()) -> None:
    """Refuse names that lead out of the destination, or were not asked for, whoever sent them.

    Every name stands below folders that were announced before it, so none can lead through a link or a file.

    Args:
        sources: What was asked for; not looked at with `contents`.
    """
    kinds: Dict[bytes, str] = {}
    for entry in entries:
        words = entry.name.split(b"/")
        if b"\0" in entry.name or len(entry.name) > 4096 or any(word in (b"", b".", b"..") for word in words):
            raise StoppedError(
                f"the name {shown(entry.name)} leads out of the destination: refused", "do you trust the sender?"
            )
        if entry.kind not in (FILE, FOLDER, LINK) or entry.size < 0:
            raise StoppedError(f"{shown(entry.name)} is of no known kind: refused", "do you trust the sender?")
        above = entry.name.rpartition(b"/")[0]
        if entry.name in kinds or (above and kinds.get(above) != FOLDER):
            raise StoppedError(
                f"{shown(entry.name)} comes twice, or below what is no folder: refused", "do you trust the sender?"
            )
        if entry.kind == LINK and not stays_inside(entry.name, entry.target, contents):
            raise StoppedError(
                f"the link {shown(entry.name)} leads out of the destination: refused", "do you trust the sender?"
            )
        kinds[entry.name] = entry.kind
    strangers = [] if contents or not sources else _not_asked_for([n for n in kinds if b"/" not in n], sources)
    if strangers:
        raise StoppedError(f"{shown(strangers[0])} was not asked for: refused", "do you trust the sender?")


def _not_asked_for(tops: List[bytes], sources: Sequence[bytes]) -> List[bytes]:
    """Those of `tops` that no source can be. What `.` or `~` is called only the sender knows: one name each."""
    last = [os.path.basename(source.rstrip(b"/")) for source in sources]
    unknown = sum(name in (b"", b".", b"..") or name.startswith(b"~") for name in last)
    known, patterns = set(last), [name for name in last if any(c in name for c in (b"*", b"?", b"["))]
    left = [top for top in tops if top not in known]
    if left and patterns:
        import fnmatch  # here, not above: a program there that never needs it starts sooner

        left = [
            top
            for top in left
            if not any(
                fnmatch.fnmatchcase(top, pattern) and (pattern.startswith(b".") or not top.startswith(b"."))
                for pattern in patterns
            )
        ]
    return left[unknown:]


def look(path: bytes) -> Optional[os.stat_result]:
    """lstat, or None where nothing is."""
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


class Part:
    """The unfinished file of `path`, open and locked. What it holds is kept when `go_on` is set.

    Attributes:
        locked: False where the file system has no locks: nothing keeps another transfer away.
    """

    def __init__(self, path: bytes, *, go_on: bool) -> None:
        folder, name = os.path.split(path)
        self.locked = True
        self.path, self.part = path, os.path.join(folder, part_of(name))
        while True:
            self.handle = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self.handle)
                raise StoppedError(
                    f"another transfer is writing {shown(path)}", "wait for it, or end it; then run this again"
                ) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    os.close(self.handle)
                    raise
                self.locked = False
            found, now = os.fstat(self.handle), look(self.part)
            if now and found.st_ino == now.st_ino:
                break
            os.close(self.handle)  # it got its final name between our open and our lock
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            os.close(self.handle)
            raise StoppedError(f"{shown(self.part)} is no file of ours", "move it aside")
        if not go_on and found.st_size:
            os.ftruncate(self.handle, 0)

    def write(self, view: memoryview, at: int) -> None:
        """Write all of `view` at an offset."""
        while view:
            size = os.pwrite(self.handle, view, at)
            view, at = view[size:], at + size

    def settle(self, entry: Entry) -> None:
        """Size, mode and time as announced, and on the disk."""
        os.ftruncate(self.handle, entry.size)
        os.fchmod(self.handle, entry.mode & 0o777)
        os.utime(self.handle, ns=(entry.mtime_ns, entry.mtime_ns))

    def sync(self) -> None:
        """Wait until it is on the disk."""
        os.fsync(self.handle)

    def finish(self) -> None:
        """Give it its final name."""
        os.replace(self.part, self.path)
        os.close(self.handle)

    def leave(self) -> None:
        """Close it; what could save a later transfer nothing is removed."""
        if os.fstat(self.handle).st_size < BLOCK:
            os.unlink(self.part)
        os.close(self.handle)


def explained(error: OSError, path: bytes, free: int = 0) -> StoppedError:
    """What an error while writing means."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        if _holds_no_more_files(path):
            return StoppedError(
                f"the disk takes no more files: could not make {shown(path)}, it has no inodes left (df -i)",
                "remove files there, pack many small ones into one, or choose another disk; then run it again",
            )
        if error.errno == errno.EDQUOT:
            return StoppedError(
                f"your quota there is used up: could not write {shown(path)}. Nothing stands half-written under its own name",
                "free space there (quota -s shows the limits) and run it again: it goes on where it stopped",
            )
        return StoppedError(
            f"the disk is full: could not write {shown(path)} ({free / 2**30:.2f} GiB free). "
            "Nothing stands half-written under its own name",
            "free space there and run it again: it goes on where it stopped",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoppedError(f"no permission to write {shown(path)} ({error.strerror})", "choose a folder that is yours")
    return StoppedError(f"could not write {shown(path)}: {error.strerror}", "choose another place")


def _holds_no_more_files(path: bytes) -> bool:
    disk = disk_of(os.path.dirname(path))
    return disk.f_files > 0 and not disk.f_favail


def disk_of(folder: bytes) -> os.statvfs_result:
    """What the file system tells of itself that a folder is on, which may have to be made first."""
    while not os.path.isdir(folder or b"."):
        folder = os.path.dirname(folder)
    return os.statvfs(folder or b".")
