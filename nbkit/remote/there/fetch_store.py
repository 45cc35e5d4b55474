"""Fetch a file or folder of a store (S3, Google Cloud Storage, Google Drive) through fsspec, or copy one of a mount.

A file takes its name only when it is whole: as many bytes as the store tells, with the md5 that the store tells where it
tells one, and fsynced. What is there with the size and time of the source is left alone. What a cut left behind is gone
on with where an md5 will judge the whole. Credentials are what this machine has; none come over.

REQUEST: scheme, path, package (fsspec's for the scheme), into (a folder; the source goes in under its own name), and
one of: list (tell the sources, bring nothing), plan (sources that another machine told: which of them are not here?),
only (bring these alone).
Answer: place (of the result), files, bytes, fetched (read now), sha256 (by path, of what was brought), unchecked (how
many of these have no md5 to check); or sources; or missing; or absent (the package), or refused (what the store said).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, Deque, Dict, Iterator, List, Optional, Tuple

from nbkit.remote.there.store import DRIVE, Md5, Source, StoreError, mounted, stored

BLOCK = 8 << 20  # read at once; what a cut can cost is at most AT_ONCE of them
AT_ONCE = 8  # blocks of a large file, or small files: one connection to S3 gives some 80 MB/s
SPARE_BYTES = 64 << 20
TELL_S = 0.5
FULL = (errno.ENOSPC, errno.EDQUOT)
AGAIN = "run this again: it goes on where it stopped"
BUSY_S = 20.0  # a program whose link was cut ends when it next tells how far it is


class Told:
    """How far each file is, told on stdout now and then, in one."""

    def __init__(self, total: int) -> None:
        self.total, self.read, self.last, self.lock = total, 0, 0.0, threading.Lock()
        self.have: Dict[str, int] = {}

    def at(self, name: str, have: int, read: int = 0) -> None:
        """A file has so many bytes; `read` of them came now."""
        with self.lock:
            self.have[name] = have
            self.read += read
            if time.monotonic() - self.last > TELL_S:
                self.last = time.monotonic()
                print(json.dumps({"progress": [sum(self.have.values()), self.total]}), flush=True)


def part_of(place: str) -> str:
    """Where a file grows, beside its final place."""
    folder, name = os.path.split(place)
    part = ".%s.nbkit-part" % name
    if len(os.fsencode(part)) > 255:
        part = ".%s.nbkit-part" % hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return os.path.join(folder, part)


def copy(source: Source, place: str, told: Told, pool: Optional[ThreadPoolExecutor]) -> Tuple[str, bool]:
    """Bring one file; its sha256, and whether the store's md5 confirmed it.

    Raises: StoreError where it is twice not what the store tells; OSError of the disk.
    """
    expected, part = source.told(), part_of(place)
    os.makedirs(os.path.dirname(place) or ".", exist_ok=True)
    with opened(part, place) as file:
        if expected is None:
            file.truncate(0)  # nothing would tell whether what a cut left is right
        for _ in range(2):
            sha256, wrong = fill(source, file, told, pool, expected)
            if not wrong:
                os.fsync(file.fileno())
                if source.time:
                    os.utime(part, (source.time, source.time))
                os.replace(part, place)
                return sha256, expected is not None
            file.truncate(0)
        os.unlink(part)
    raise StoreError(
        error="%s is twice not what the store tells: %s" % (source.name or place, wrong),
        hint="it changed meanwhile? run this again; else it is damaged there, or on its way. Nothing of it was kept",
    )


def opened(part: str, place: str) -> BinaryIO:
    """The part, locked; one whose program lost its link is free soon.

    Raises: StoreError.
    """
    end = time.monotonic() + BUSY_S
    while True:
        file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666), "ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(part) and os.path.samestat(os.fstat(file.fileno()), os.stat(part)):
                return file  # else it got its final name between our open and our lock
        except BlockingIOError:
            if time.monotonic() > end:
                file.close()
                raise StoreError(error="Another nbkit is fetching %s" % place, hint="wait for it") from None
            time.sleep(0.2)
        file.close()


def fill(
    source: Source, file: BinaryIO, told: Told, pool: Optional[ThreadPoolExecutor], expected: Optional[Tuple[str, int]]
) -> Tuple[str, str]:
    """Append what is missing. sha256 of the whole, and what is wrong with it, or nothing."""
    sha256, md5, have = hashlib.sha256(), Md5(expected[1] if expected else 0), 0

    def see(block: bytes) -> int:
        sha256.update(block)
        if expected:
            md5.update(block)
        return len(block)

    for at in range(0, os.fstat(file.fileno()).st_size, BLOCK):
        have += see(os.pread(file.fileno(), BLOCK, at))
    told.at(source.name, have)
    try:
        for block in blocks(source, have, pool):
            file.write(block)
            file.flush()
            have += see(block)
            told.at(source.name, have, len(block))
    except Exception as error:
        if "Checksum" not in type(error).__name__:  # the store's client has one of its own too
            raise
        return "", str(error)
    told_md5 = expected[0] if expected else md5.hexdigest()
    if (have, md5.hexdigest()) == (source.size, told_md5):
        return sha256.hexdigest(), ""
    return "", "%d bytes, md5 %s, and not %d bytes, md5 %s" % (have, md5.hexdigest(), source.size, told_md5)


def blocks(source: Source, at: int, pool: Optional[ThreadPoolExecutor]) -> Iterator[bytes]:
    """What follows `at`, in order; several reads are on their way at once where there is a pool."""
    starts = range(at, source.size, BLOCK)
    if pool is None:
        for start in starts:
            yield source.read(start=start, end=min(start + BLOCK, source.size))
        return
    waiting: Deque[Any] = deque()
    try:
        for start in starts:
            waiting.append(pool.submit(source.read, start=start, end=min(start + BLOCK, source.size)))
            if len(waiting) >= AT_ONCE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for one in waiting:
            one.cancel()


def same(source: Source, place: str) -> bool:
    """True when `place` has the size and time of the source."""
    try:
        about = os.stat(place)
    except OSError:
        return False
    return (about.st_size, int(about.st_mtime)) == (source.size, int(source.time)) and source.time > 0


def fetch(lacking: List[Tuple[Source, str]], free: int) -> Dict[str, Any]:
    """Bring each source to its place.

    Raises: StoreError; OSError.
    """
    total = sum(source.size for source, _ in lacking)
    have = sum(os.path.getsize(part_of(place)) for _, place in lacking if os.path.exists(part_of(place)))
    if total - have + SPARE_BYTES > free and total:
        raise StoreError(
            error="The disk has %.1f GB free, and %.1f GB are to come" % (free / 1e9, (total - have) / 1e9),
            hint="free some space, or name another folder: HOST:/PATH",
        )
    told, checked = Told(total), 0
    digests: Dict[str, str] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        small = [(s, p, pool.submit(copy, s, p, told, None)) for s, p in lacking if s.size <= BLOCK]
        try:
            done = [(s, p, copy(s, p, told, pool)) for s, p in lacking if s.size > BLOCK]
            done += [(s, p, one.result()) for s, p, one in small]
        except BaseException:
            for _, _, one in small:
                one.cancel()
            raise
    for source, place, (sha256, sure) in done:
        digests[source.name or os.path.basename(place)] = sha256
        checked += sure
    return {"fetched": told.read, "sha256": digests, "unchecked": len(done) - checked}


def sources_of(request: Dict[str, Any]) -> List[Source]:
    """What the store tells, the mount holds, or another machine told.

    Raises: StoreError.
    """
    scheme, path, plan = request["scheme"], request["path"], request.get("plan")
    drive = os.path.join(DRIVE, path)
    if plan is not None:
        return [Source(name, size, when, lambda: b"", lambda: None) for name, size, when in plan]
    if scheme == "file" or (scheme == "gdrive" and os.path.exists(drive)):
        return list(mounted(path if scheme == "file" else drive))
    return list(stored(scheme, path, request["package"]))


def placed(sources: List[Source], place: str) -> Dict[str, Source]:
    """Each source by where it is to stand, all of them below `place`.

    Raises: StoreError.
    """
    places: Dict[str, Source] = {}
    for source in sources:
        target = os.path.normpath(os.path.join(place, source.name)) if source.name else place
        inside = not source.name or target.startswith(place + "/")
        if ".." in source.name.split("/") or "\0" in target or target in places or not inside:
            raise StoreError(
                error="The store tells a name that leaves its folder, or comes twice: %r" % source.name,
                hint="rename it there, or push a folder that does not hold it",
            )
        places[target] = source
    return places


def answer(request: Dict[str, Any]) -> Dict[str, Any]:
    """What the request asks for, done.

    Raises: StoreError; OSError of the disk.
    """
    sources, only = sources_of(request), request.get("only")
    into = os.path.expanduser(request["into"] or "~")
    place = os.path.abspath(os.path.join(into, os.path.basename(request["path"].rstrip("/"))))
    places = placed(sources, place)
    if request.get("list"):
        return {"sources": [source[:3] for source in sources]}
    lacking = [(s, p) for p, s in places.items() if not same(s, p) and (only is None or s.name in only)]
    told = {"place": place, "files": len(sources), "bytes": sum(source.size for source in sources)}
    if request.get("plan") is not None:
        return dict(told, missing=[source.name for source, _ in lacking])
    os.makedirs(into, exist_ok=True)
    try:
        return dict(told, **fetch(lacking, shutil.disk_usage(into).free))
    except StoreError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and (error.filename or error.errno in FULL):  # the disk's
            raise
        said = "%s: %s" % (type(error).__name__, error)
        if isinstance(error, PermissionError):
            raise StoreError(refused=said) from error
        raise StoreError(error="Reading it broke off: " + said, hint=AGAIN) from error


def main(request: Dict[str, Any]) -> None:
    """Print the answer."""
    try:
        told = answer(request)
    except StoreError as error:
        told = dict(error.answer)
    except OSError as error:
        told = {
            "error": "%s: %s" % (error.strerror or error, error.filename or "the disk"),
            "hint": "look there: df -h; ls -la",
        }
    print(json.dumps(told))
