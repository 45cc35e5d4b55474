"""Where received files go, which of them have to come, and what is done around them: folders, links, what is too much."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import Any, Dict, List, NamedTuple, Optional, Set

from nbkit.remote.there.frames import BLOCK, StoppedError, amount, raw, shown
from nbkit.remote.there.place import disk_of, explained, look
from nbkit.remote.there.tree import FILE, FOLDER, LINK, PART, Entry, part_of

OTHER = "device, pipe or socket"
_SPARE = 1 << 20  # bytes left free for what is not counted: folders, metadata


class Want(NamedTuple):
    """A file that is to come.

    Attributes:
        number: Its place among the files that were announced.
        basis: A file here that may hold some of its blocks: its part, or its older version.
    """

    number: int
    entry: Entry
    path: bytes
    basis: bytes
    need: int  # bytes of disk


class Plan:
    """Entries with their places below `base`.

    Args:
        request: What the transfer was asked for: dst, many, contents, parents, check, dry_run.

    Raises: StoppedError when `dst` cannot be what it has to be.
    """

    def __init__(self, request: Dict[str, Any], entries: List[Entry]) -> None:
        self._request = request
        self.same = 0
        self.in_the_way: List[bytes] = []  # what has to be removed first: only with `delete`
        self._absent: Set[bytes] = set()  # folders that are not there: nothing needs to be looked up below them
        self.base, renamed = b".", b""
        dst = os.path.expanduser(raw(request["dst"])) or b"."
        one_file = len(entries) == 1 and entries[0].kind == FILE and not request["contents"]
        folder, there = os.path.isdir(dst), os.path.exists(dst)
        into = dst.endswith(b"/") or request["many"] or request["contents"]
        if there and not folder and not os.path.isfile(dst):
            raise StoppedError(f"{shown(dst)} is neither a file nor a folder", "name one of these")
        if there and not folder and (into or not one_file):
            raise StoppedError(f"{shown(dst)} is a file, not a folder", "name a folder, or move it aside")
        top = entries[0].name if entries else b""
        if (folder or into) and not (folder and not into and _begun(dst) == top):
            self.base = dst
            self._parents(dst)
        else:
            above, renamed = os.path.split(dst)
            if renamed in (b".", b".."):
                raise StoppedError(f"{shown(dst)} is no name for a file or folder", "name one that can be made")
            self.base = above or b"."
            self._parents(self.base)
        self._mark, self._named = b"", top
        if renamed and entries and entries[0].kind == FOLDER:
            self._mark = os.path.join(self.base, renamed, PART)
        if renamed:
            entries = [e._replace(name=b"".join((renamed, *e.name.partition(b"/")[1:]))) for e in entries]
        self.entries = entries

    def _parents(self, folder: bytes) -> None:
        if os.path.isdir(folder):
            return
        if not self._request["parents"]:
            if os.path.lexists(folder):
                raise StoppedError(f"{shown(folder)} is a file, not a folder", "name a folder, or move it aside")
            raise StoppedError(f"there is no folder {shown(folder)}", "make it, or add --parents")
        if not self._request["dry_run"]:
            try:
                os.makedirs(folder, exist_ok=True)
            except OSError as error:
                raise explained(error, folder) from error

    def path(self, name: bytes) -> bytes:
        """Where it goes."""
        return os.path.join(self.base, name)

    def wants(self) -> List[Want]:
        """The files that have to come; nothing is written before all of them are known to fit.

        Raises: StoppedError when something of another kind stands in the way, or the disk has no room.
        """
        found: List[Want] = []
        number = -1
        for entry in self.entries:
            number += entry.kind == FILE
            new = entry.name.rpartition(b"/")[0] in self._absent
            there = None if new else self._look(entry)
            if entry.kind == FOLDER and there is None:
                self._absent.add(entry.name)
            if entry.kind != FILE:
                continue
            if there and self._is_same(there, entry):
                self.same += 1
            else:
                found.append(self._want(number, entry, there, new))
        need = sum(want.need for want in found)
        free = self.free()
        if found and need + _SPARE > free:
            raise StoppedError(
                f"not enough room: {amount(need)} to come, {amount(free)} free at {shown(self.base)}",
                f"free space there ({amount(_SPARE)} more than what comes), or choose another disk",
            )
        return found

    def _look(self, entry: Entry) -> Optional[os.stat_result]:
        path = self.path(entry.name)
        try:
            there = look(path)
        except OSError as error:
            raise explained(error, path) from error
        what = _kind(there.st_mode) if there else ""
        if not there or ((what == FOLDER) == (entry.kind == FOLDER) and what != OTHER):
            return there
        if self._request["delete"]:
            self.in_the_way.append(entry.name)
            return None
        hint = "move it aside"
        if what == LINK and os.path.isdir(path):
            hint = "name as DST what it leads to, or move it aside"
        elif self._request["contents"]:
            hint = "move it aside, or add --delete"
        raise StoppedError(f"{shown(path)} is a {what}, and a {entry.kind} was to go there", hint)

    def _is_same(self, there: os.stat_result, entry: Entry) -> bool:
        equal = stat.S_ISREG(there.st_mode) and there.st_size == entry.size
        return equal and not self._request["check"] and _same_time(there.st_mtime_ns, entry.mtime_ns)

    def _want(self, number: int, entry: Entry, there: Optional[os.stat_result], new: bool) -> Want:
        path = self.path(entry.name)
        part = os.path.join(os.path.dirname(path), part_of(os.path.basename(path)))
        old = None if new else look(part)
        if old and stat.S_ISREG(old.st_mode) and old.st_size >= BLOCK:
            return Want(number, entry, path, part, max(0, entry.size - old.st_blocks * 512))
        if there and stat.S_ISREG(there.st_mode) and there.st_size >= BLOCK:
            return Want(number, entry, path, path, entry.size)
        return Want(number, entry, path, b"", entry.size)

    def free(self) -> int:
        """Bytes that this user may still write."""
        found = disk_of(self.base)
        if not found.f_blocks:
            return sys.maxsize  # a file system that does not tell
        return found.f_bavail * found.f_frsize

    def mark(self, *, done: bool) -> None:
        """Until all of a folder under a new name is there, a file in it says of what it is: see `_begun`."""
        if not self._mark:
            return
        if done:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._mark)
            return
        handle = os.open(self._mark, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(handle, self._named)
        finally:
            os.close(handle)

    def make_folders(self) -> None:
        """All that are announced; private until everything is in them."""
        for entry in self.entries:
            if entry.kind == FOLDER:
                path = self.path(entry.name)
                try:
                    os.mkdir(path, 0o700)
                except FileExistsError:
                    if not os.access(path, os.W_OK | os.X_OK):
                        with contextlib.suppress(OSError):  # not ours: what is to be written there will say so
                            os.chmod(path, os.stat(path).st_mode & 0o7777 | 0o300)  # until everything is in it
                except OSError as error:
                    raise explained(error, path) from error

    def make_links(self) -> int:
        """All that are announced and not there; how many."""
        made = 0
        for entry in self.entries:
            if entry.kind == LINK:
                path = self.path(entry.name)
                there = look(path)
                if there and stat.S_ISLNK(there.st_mode) and os.readlink(path) == entry.target:
                    continue
                folder, name = os.path.split(path)
                part = os.path.join(folder, part_of(name))
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(part)
                os.symlink(entry.target, part)
                os.replace(part, path)
                made += 1
        return made

    def too_much(self, left: Set[bytes]) -> List[bytes]:
        """What is here below the folders that were announced, and the sender has not; the topmost name of each.

        Args:
            left: What the sender has and does not send.
        """
        known = {entry.name for entry in self.entries} | left
        folders = [e.name for e in self.entries if e.kind == FOLDER and e.name not in self._absent]
        found = []
        for folder in [b"", *folders] if self._request["contents"] else folders:
            with contextlib.suppress(FileNotFoundError):
                names = (
                    os.path.join(folder, child) for child in os.listdir(self.path(folder)) if not child.endswith(PART)
                )
                found += [name for name in names if name not in known]
        return sorted(found)

    def remove(self, names: List[bytes]) -> None:
        """Delete them.

        Raises: StoppedError where one cannot be.
        """
        import shutil  # here, not above: it brings every archiver with it

        for name in names:
            path = self.path(name)
            try:
                if os.path.isdir(path) and not os.path.islink(path):
                    shutil.rmtree(path)
                else:
                    os.unlink(path)
            except OSError as error:  # of a folder it names what is in it, without the folder
                raise explained(error, path) from error

    def settle_folders(self) -> List[str]:
        """Mode and time of each folder, from the inside outwards; notes on those of somebody else, which stay as they are."""
        notes = []
        for entry in reversed(self.entries):
            if entry.kind == FOLDER:
                path = self.path(entry.name)
                try:
                    os.chmod(path, os.stat(path).st_mode & 0o7000 | entry.mode & 0o777)  # a group's folder stays one
                    os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))
                except PermissionError:
                    notes.append(f"{shown(path)} is somebody else's: its mode and time stay as they are")
        return notes


def _begun(folder: bytes) -> Optional[bytes]:
    """Whose new name the folder is, where a transfer into it was cut off: the same one goes on there, not one level below."""
    if os.path.basename(folder) in (b"", b".", b".."):
        return None
    try:
        with open(os.path.join(folder, PART), "rb") as file:
            return file.read(4096)
    except OSError:
        return None


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return FILE
    if stat.S_ISDIR(mode):
        return FOLDER
    return LINK if stat.S_ISLNK(mode) else OTHER


def _same_time(one_ns: int, other_ns: int) -> bool:
    """Equal to the microsecond, or to the second where a file system keeps no more."""
    if one_ns // 1000 == other_ns // 1000:
        return True
    coarse = not one_ns % 10**9 or not other_ns % 10**9
    return coarse and one_ns // 10**9 == other_ns // 10**9
