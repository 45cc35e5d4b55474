"""What a transfer sends: the files, folders and links below its sources, each with size, mode and time."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from typing import Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Tuple

from nbkit.remote.there.frames import StoppedError, shown

PART = b".nbkit-part"  # the end of an unfinished file's name
FILE, FOLDER, LINK = "file", "folder", "link"
YOURS = "is it yours to read?"
_HINTS = {errno.ENOENT: "look with: ls -la", errno.ENOTDIR: "is a file named with a / behind it?"}


class Entry(NamedTuple):
    """One name below the destination."""

    name: bytes
    kind: str
    size: int
    mode: int
    mtime_ns: int
    target: bytes  # of a link


class Tree(NamedTuple):
    """Everything to send, folders before what is in them; `paths` has where each name is read.

    Attributes:
        left: Names that are here and not sent; `notes` has why.
        failed: Names that cannot be read, and why.
        contents: What a folder holds, without a name for the folder.
        many: More than one source.
    """

    entries: List[Entry]
    paths: Dict[bytes, bytes]
    notes: List[str]
    left: List[bytes]
    failed: List[Tuple[bytes, str]]
    contents: bool
    many: bool

    def leave(self, name: bytes, why: str, otherwise: str = "") -> None:
        """Send it not, and say so."""
        self.left.append(name)
        self.notes.append(f"{shown(name)} {why}: left out{otherwise}")


def part_of(name: bytes) -> bytes:
    """The name under which a file grows, in the folder of its final one."""
    full = b"." + name + PART
    return full if len(full) <= 255 else b"." + hashlib.sha256(name).hexdigest()[:32].encode() + PART


def scan(sources: List[bytes], links: str, contents: bool) -> Tree:
    """Look at the sources.

    Args:
        sources: Where none has that name, a pattern (`*`, `?`, `[`) stands for what it matches; not with `contents`.
        links: "copy" makes the same link there where it stays inside the tree, "follow" sends what it leads to, "skip"
            leaves it out. A source that is itself a link is followed.
        contents: A folder's contents take their own names, not the folder's.

    Raises: StoppedError when a source is not there or cannot be read.
    """
    if not contents:
        sources = [name for source in sources for name in _matching(source)]
    contents = contents and os.path.isdir(os.path.expanduser(sources[0]))
    tree = Tree([], {}, [], [], [], contents, len(sources) > 1)
    for source in sources:
        path = os.path.expanduser(source)
        try:
            found = os.stat(path)
            if stat.S_ISDIR(found.st_mode):
                os.listdir(path)
        except OSError as error:
            hint = _HINTS.get(error.errno or 0, YOURS)
            raise StoppedError(f"cannot read {shown(source)}: {error.strerror}", hint) from error
        folder = stat.S_ISDIR(found.st_mode)
        if not folder and not stat.S_ISREG(found.st_mode):
            raise StoppedError(f"{shown(source)} is neither a file nor a folder", "name a file or a folder")
        top = b"" if contents else os.path.basename(os.path.realpath(path).rstrip(b"/")) or b"root"
        if not contents and os.path.basename(path.rstrip(b"/")) not in (b"", b".", b".."):
            top = os.path.basename(path.rstrip(b"/"))
        if top in tree.paths:
            if os.path.samefile(tree.paths[top], path):
                continue
            raise StoppedError(
                f"two sources have the name {shown(top)}", "send them one after the other, to two folders"
            )
        for entry, where in _below(tree, path, top, found, links, contents, frozenset()):
            tree.entries.append(entry)
            tree.paths[entry.name] = where
    return tree


def _matching(source: bytes) -> List[bytes]:
    """The source; where there is none of that name and it is a pattern, what it matches, as a shell would have it."""
    path = os.path.expanduser(source)
    if os.path.lexists(path) or not any(c in path for c in (b"*", b"?", b"[")):
        return [source]
    import glob  # here, not above: a program there that never needs it starts sooner

    found = sorted(glob.glob(path))
    if not found:
        raise StoppedError(f"nothing matches {shown(source)}", "look with: ls -la")
    return found


def _below(
    tree: Tree,
    path: bytes,
    name: bytes,
    found: os.stat_result,
    links: str,
    contents: bool,
    above: FrozenSet[Tuple[int, int]],
) -> Iterator[Tuple[Entry, bytes]]:
    mode = found.st_mode & 0o777
    if stat.S_ISREG(found.st_mode):
        yield Entry(name, FILE, found.st_size, mode, found.st_mtime_ns, b""), path
        return
    if not stat.S_ISDIR(found.st_mode):
        tree.leave(name, "is neither file nor folder")
        return
    this = (found.st_dev, found.st_ino)
    if this in above:
        tree.leave(name, "leads back to a folder above it")
        return
    try:
        inside = sorted(os.listdir(path))
    except OSError as error:
        tree.failed.append((name, f"cannot be read: {error.strerror}"))
        return
    if name:
        yield Entry(name, FOLDER, 0, mode, found.st_mtime_ns, b""), path
    for child in inside:
        where, below = os.path.join(path, child), os.path.join(name, child) if name else child
        if child.startswith(b".") and child.endswith(PART):
            tree.notes.append(f"{shown(below)} is an unfinished file of a transfer: left out")
            continue
        here = _look(tree, where, below, links)
        if here and stat.S_ISLNK(here.st_mode):
            yield from _link(tree, where, below, here, links, contents)
        elif here:
            yield from _below(tree, where, below, here, links, contents, above | {this})


def _look(tree: Tree, path: bytes, name: bytes, links: str) -> Optional[os.stat_result]:
    """What is at `path`, or None where it cannot be seen; the tree keeps why."""
    try:
        return os.stat(path) if links == "follow" else os.lstat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):  # removed meanwhile, or a link that leads nowhere
            tree.leave(name, f"cannot be read ({error.strerror})")
        else:
            tree.failed.append((name, f"cannot be read: {error.strerror}"))
        return None


def _link(
    tree: Tree, path: bytes, name: bytes, found: os.stat_result, links: str, contents: bool
) -> Iterator[Tuple[Entry, bytes]]:
    target = os.readlink(path)
    if links == "skip":
        tree.leave(name, "is a link")
    elif not stays_inside(name, target, contents):
        tree.leave(name, f"is a link out of the tree, to {shown(target)}", "; --links follow sends what it leads to")
    else:
        yield Entry(name, LINK, 0, 0o777, found.st_mtime_ns, target), path


def stays_inside(name: bytes, target: bytes, contents: bool) -> bool:
    """True when a link at `name` leads to something below the same top.

    `..` may only stand first: behind a word it could climb out of wherever another link leads.
    """
    words = target.split(b"/")
    up = 0
    while words and words[0] == b"..":
        words.pop(0)
        up += 1
    if target.startswith(b"/") or b"\0" in target or not target or b".." in words:
        return False
    return up <= name.count(b"/") - (not contents)
