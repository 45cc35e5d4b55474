"""What a transfer sends: the files, folders and links below its sources, each with size, mode and time."""

from __future__ import annotations

import os
import stat
from typing import Dict, FrozenSet, Iterator, List, NamedTuple, Tuple

from nbkit.remote.there.frames import StoppedError, shown

PART = b".nbkit-part"  # the end of an unfinished file's name
FILE, FOLDER, LINK = "file", "folder", "link"


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


def part_of(name: bytes) -> bytes:
    """The name under which a file grows, in the folder of its final one."""
    import hashlib

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
    tree = Tree([], {}, [])
    for source in sources:
        path = os.path.expanduser(source) if source.startswith(b"~") else source
        try:
            found = os.stat(path)
            if stat.S_ISDIR(found.st_mode):
                os.listdir(path)
        except OSError as error:
            hint = "look with: ls -la" if error.errno == 2 else "is it yours to read?"
            raise StoppedError(f"cannot read {shown(source)}: {error.strerror}", hint) from error
        folder = stat.S_ISDIR(found.st_mode)
        if not folder and not stat.S_ISREG(found.st_mode):
            raise StoppedError(f"{shown(source)} is neither a file nor a folder", "name a file or a folder")
        if not folder and path.endswith(b"/"):
            raise StoppedError(f"{shown(source)} is a file, not a folder", "leave out the last /")
        top = b"" if folder and contents else os.path.basename(os.path.realpath(path).rstrip(b"/")) or b"root"
        if not (folder and contents) and os.path.basename(path.rstrip(b"/")) not in (b"", b".", b".."):
            top = os.path.basename(path.rstrip(b"/"))
        if top in tree.paths:
            raise StoppedError(
                f"two sources have the name {shown(top)}", "send them one after the other, to two folders"
            )
        for entry, where in _below(tree, path, top, found, links, frozenset()):
            tree.entries.append(entry)
            tree.paths[entry.name] = where
    return tree


def _below(
    tree: Tree, path: bytes, name: bytes, found: os.stat_result, links: str, above: FrozenSet[Tuple[int, int]]
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
            yield from _link(tree, where, below, here, links)
        else:
            yield from _below(tree, where, below, here, links, above | {this})


def _link(tree: Tree, path: bytes, name: bytes, found: os.stat_result, links: str) -> Iterator[Tuple[Entry, bytes]]:
    target = os.readlink(path)
    if links == "skip":
        tree.notes.append(f"{shown(name)} is a link: left out")
    elif not stays_inside(name, target):
        tree.notes.append(f"{shown(name)} is a link out of the tree, to {shown(target)}: left out (--links follow)")
    else:
        yield Entry(name, LINK, 0, 0o777, found.st_mtime_ns, target), path


def stays_inside(name: bytes, target: bytes) -> bool:
    """True when a link at `name` leads to something below the same top, by its words alone."""
    if target.startswith(b"/") or b"\0" in target or not target:
        return False
    depth = name.count(b"/")
    for word in target.split(b"/"):
        depth += -1 if word == b".." else word not in (b"", b".")
        if depth < 0:
            return False
    return True
