"""Fetch a file or folder of a store (S3, Google Cloud Storage, Google Drive) through fsspec, or copy one of a mount.

A file takes its name only when it is whole: as many bytes as the store tells, and fsynced. What is there with the size
and time of the source is left alone. Credentials are what this machine has; none come over.

REQUEST: scheme, path, package (fsspec's for the scheme), into (a folder; the source goes in under its own name).
Answer: place (of the result), files, bytes, fetched (of these), sha256 (by path, of what was fetched); or absent (the
package), or refused (what the store said).
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import importlib
import json
import os
from typing import Any, Callable, Dict, Iterator, Tuple

REQUEST: Dict[str, Any] = globals().get("REQUEST", {})  # set by the opening

CHUNK = 1 << 20
DRIVE = "/content/drive/MyDrive"  # where Colab mounts it
Source = Tuple[str, int, float, Callable[[], Any]]  # path below the place, size, time, how to read it


class StoreError(Exception):
    """What cannot go on; `answer` says why."""

    def __init__(self, **answer: str) -> None:
        super().__init__(answer)
        self.answer = answer


def mounted(path: str) -> Iterator[Source]:
    """The files at a path of this machine; links are followed, as a mount may be made of them."""
    if not os.path.exists(path):
        raise StoreError(error="There is no %s" % path, hint="is it mounted? look: ls -la %s; mount" % path)
    names = [path] if os.path.isfile(path) else [os.path.join(top, n) for top, _, some in os.walk(path) for n in some]
    for name in sorted(names):
        about = os.stat(name)
        relative = os.path.relpath(name, path) if name != path else ""
        yield relative, about.st_size, about.st_mtime, functools.partial(open, name, "rb")


def stored(scheme: str, path: str, package: str) -> Iterator[Source]:
    """The files at a path of a store.

    Raises: StoreError.
    """
    try:
        importlib.import_module(package)
        system = importlib.import_module("fsspec").filesystem(scheme)
    except ImportError as error:
        raise StoreError(absent=package) from error
    try:
        found = system.find(path, detail=True)
    except Exception as error:
        raise StoreError(refused="%s: %s" % (type(error).__name__, error)) from error
    if not found:
        raise StoreError(
            error="%s://%s holds nothing" % (scheme, path), hint="check the bucket, the path and its rights"
        )
    for name, about in sorted(found.items()):
        time = about.get("LastModified") or about.get("mtime") or about.get("updated")
        relative = name[len(path) :].strip("/") if name != path else ""
        yield relative, int(about["size"]), seconds(time), functools.partial(system.open, name, "rb")


def seconds(time: Any) -> float:
    """A store's time since the epoch; 0 where it tells none, so that the file is read again."""
    if isinstance(time, str):
        time = dt.datetime.strptime(time.replace("Z", "+0000"), "%Y-%m-%dT%H:%M:%S.%f%z")
    return time.timestamp() if isinstance(time, dt.datetime) else float(time or 0)


def copy(source: Source, place: str) -> str:
    """Bring one file; its sha256.

    Raises: StoreError where it has not the size that was told; OSError of the disk.
    """
    relative, size, time, read = source
    part, digest, have = place + ".nbkit-part", hashlib.sha256(), 0
    os.makedirs(os.path.dirname(place) or ".", exist_ok=True)
    try:
        with read() as content, open(part, "wb") as file:
            for chunk in iter(lambda: content.read(CHUNK), b""):
                file.write(chunk)
                digest.update(chunk)
                have += len(chunk)
            file.flush()
            os.fsync(file.fileno())
        if have != size:
            told = "%s has %d bytes, and the store tells %d" % (relative or place, have, size)
            raise StoreError(error=told, hint="it changed meanwhile? run this again")
        if time:
            os.utime(part, (time, time))
        os.replace(part, place)
    finally:
        if os.path.exists(part):
            os.unlink(part)
    return digest.hexdigest()


def same(source: Source, place: str) -> bool:
    """True when `place` has the size and time of the source."""
    try:
        about = os.stat(place)
    except OSError:
        return False
    return (about.st_size, int(about.st_mtime)) == (source[1], int(source[2])) and source[2] > 0


def answer(request: Dict[str, Any]) -> Dict[str, Any]:
    """What the request asks for, done.

    Raises: StoreError; OSError.
    """
    scheme, path = request["scheme"], request["path"]
    drive = os.path.join(DRIVE, path)
    if scheme == "file" or (scheme == "gdrive" and os.path.exists(drive)):
        sources = list(mounted(path if scheme == "file" else drive))
    else:
        sources = list(stored(scheme, path, request["package"]))
    into = os.path.expanduser(request["into"] or "~")
    place = os.path.join(into, os.path.basename(path.rstrip("/")))
    told: Dict[str, Any] = {"place": os.path.abspath(place), "files": len(sources), "sha256": {}}
    told.update(bytes=sum(source[1] for source in sources), fetched=0)
    for source in sources:
        if ".." in source[0].split("/"):
            raise StoreError(
                error="The store tells a name that leaves its folder: %r" % source[0], hint="do not use it"
            )
        target = os.path.join(place, *source[0].split("/")) if source[0] else place
        if not same(source, target):
            told["sha256"][source[0] or os.path.basename(place)] = copy(source, target)
            told["fetched"] += source[1]
            print(json.dumps({"progress": [told["fetched"], told["bytes"]]}), flush=True)
    return told


def main() -> None:
    try:
        told = answer(REQUEST)
    except StoreError as error:
        told = dict(error.answer)
    except OSError as error:
        told = {
            "error": "%s: %s" % (error.strerror or error, error.filename or "?"),
            "hint": "look there: df -h; ls -la",
        }
    except Exception as error:  # of a store's own client
        told = {"refused": "%s: %s" % (type(error).__name__, error)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
