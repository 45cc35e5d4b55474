"""What a transfer sends: the files, folders and links below its sources, each with size, mode and time."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from typing import Dict, FrozenSet, Iterator, List, NamedTuple, Tuple

from nbkit.remote.there.frames import StoppedError, shown

PART = b".nbkit-part"  # the end of an unfinished file's name
FILE, FOLDER, LINK = "file", "folder", "link"
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
    """Everything to send, folders before what is in them; `paths` has where each name is read."""

    entries: List[Entry]
    paths: Dict[bytes, bytes]
    notes: List[str]
    contents: bool  # what a folder holds, without a name for the folder


def part_of(name: bytes) -> bytes:
    """The name under which a file grows, in the folder of its final one."""
    full = b"." + name + PART
    return full if len(full) <= 255 else b"." + hashlib.sha256(name).hexdigest()[:32].encode() + PART


def scan(sources: List[bytes], links: str, contents: bool) -> Tree:
    """Look at the sources.

    Args:
        links: "copy" makes the same link there where it stays inside the tree, "follow" sends what it leads to, "skip"
            leaves it out. A source that is itself a link is followed.
        contents: A folder's contents take their own names, not the folder's.

    Raises: StoppedError when a source is not there or cannot be read.
    """
    contents = contents and os.path.isdir(os.path.expanduser(sources[0]))
    tree = Tree([], {}, [], contents)
    for source in sources:
        path = os.path.expanduser(source)
        try:
            found = os.stat(path)
            if stat.S_ISDIR(found.st_mode):
                os.listdir(path)
        except OSError as error:
            hint = _HINTS.get(error.errno or 0, "is it yours to read?")
            if b"*" in source:
                hint = "a pattern is not filled in there: name the files, or the folder that holds them"
            raise StoppedError(f"cannot read {shown(source)}: {error.strerror}", hint) from error
        folder = stat.S_ISDIR(found.st_mode)
        if not folder and not stat.S_ISREG(found.st_mode):
            raise StoppedError(f"{shown(source)} is neither a file nor a folder", "name a file or a folder")
        top = b"" if contents else os.path.basename(os.path.realpath(path).rstrip(b"/")) or b"root"
        if not contents and os.path.basename(path.rstrip(b"/")) not in (b"", b".", b".."):
            top = os.path.basename(path.rstrip(b"/"))
        if top in tree.paths:
            raise StoppedError(
                f"two sources have the name {shown(top)}", "send them one after the other, to two folders"
            )
        for entry, where in _below(tree, path, top, found, links, contents, frozenset()):
            tree.entries.append(entry)
            tree.paths[entry.name] = where
    return tree


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
        tree.notes.append(f"{shown(name)} is neither file nor folder: left out")
        return
    this = (found.st_dev, found.st_ino)
    if this in above:
        tree.notes.append(f"{shown(name)} leads back to a folder above it: left out")
        return
    if name:
        yield Entry(name, FOLDER, 0, mode, found.st_mtime_ns, b""), path
    try:
        inside = sorted(os.listdir(path))
    except OSError as error:
        raise StoppedError(f"cannot read the folder {shown(path)}: {error.strerror}", "is it yours to read?") from error
    for child in inside:
        where, below = os.path.join(path, child), os.path.join(name, child) if name else child
        if child.startswith(b".") and child.endswith(PART):
            tree.notes.append(f"{shown(below)} is an unfinished file of a transfer: left out")
            continue
        try:
            here = os.stat(where) if links == "follow" else os.lstat(where)
        except OSError as error:
            tree.notes.append(f"{shown(below)}: {error.strerror}: left out")
            continue
        if stat.S_ISLNK(here.st_mode):
            yield from _link(tree, where, below, here, links, contents)
        else:
            yield from _below(tree, where, below, here, links, contents, above | {this})


def _link(
    tree: Tree, path: bytes, name: bytes, found: os.stat_result, links: str, contents: bool
) -> Iterator[Tuple[Entry, bytes]]:
    target = os.readlink(path)
    if links == "skip":
        tree.notes.append(f"{shown(name)} is a link: left out")
    elif not stays_inside(name, target, contents):
        tree.notes.append(f"{shown(name)} is a link out of the tree, to {shown(target)}: left out (--links follow)")
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
