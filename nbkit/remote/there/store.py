"""What stands at a place of a store (S3, Google Cloud Storage, Google Drive), told by fsspec, or at a path of a mount."""

from __future__ import annotations

import base64
import datetime as dt
import functools
import hashlib
import importlib
import os
import re
import stat
import sys
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

DRIVE = "/content/drive/MyDrive"  # where Colab mounts it
# A checksum against accidents, which is all that stores tell; Python 3.8 cannot say so.
new_md5 = functools.partial(hashlib.md5, usedforsecurity=False) if sys.version_info >= (3, 9) else hashlib.md5


class StoreError(Exception):
    """What cannot go on; `answer` says why."""

    def __init__(self, **answer: str) -> None:
        super().__init__(answer)
        self.answer = answer


class Source(NamedTuple):
    """One file of the store.

    Attributes:
        name: Below the place; empty for the place itself.
        time: Since the epoch; 0 where the store tells none.
        read: Its bytes from the offset `start` to `end`; by name, as fsspec's clients differ in the order.
        told: The md5 that the store tells, and the size of the parts of which it is one (0: of the whole); or None.
    """

    name: str
    size: int
    time: float
    read: Callable[..., bytes]
    told: Callable[[], Optional[Tuple[str, int]]]


class Md5:
    """md5 of what goes by; with a part's size, as S3 has it: md5 of the parts' md5s, and their number."""

    def __init__(self, part: int) -> None:
        self.part, self.left = part, part
        self.sums: List[bytes] = []
        self.now: Any = new_md5()

    def update(self, data: bytes) -> None:
        view = memoryview(data)
        while self.part and len(view) >= self.left:
            self.now.update(view[: self.left])
            self.sums.append(self.now.digest())
            view, self.left, self.now = view[self.left :], self.part, new_md5()
        self.now.update(view)
        self.left -= len(view)

    def hexdigest(self) -> str:
        if not self.part:
            return str(self.now.hexdigest())
        sums = self.sums + ([self.now.digest()] if self.left < self.part else [])
        return "%s-%d" % (new_md5(b"".join(sums)).hexdigest(), len(sums))


def mounted(path: str) -> Iterator[Source]:
    """The files at a path of this machine; links are followed, as a mount may be made of them."""
    if not os.path.exists(path):
        raise StoreError(error="There is no %s" % path, hint="is it mounted? look: ls -la %s; mount" % path)

    def unreadable(error: OSError) -> None:
        raise StoreError(
            error="Cannot read (%s) the folder %s" % (error.strerror, error.filename),
            hint="have its owner grant it, or push the folders beside it",
        ) from error

    walk = os.walk(path, onerror=unreadable)
    names = [path] if os.path.isfile(path) else [os.path.join(top, n) for top, _, some in walk for n in some]
    for name in sorted(names):
        about = os.stat(name)
        if not stat.S_ISREG(about.st_mode):  # a pipe would be waited for
            raise StoreError(
                error="%s is neither a file nor a folder" % name, hint="remove it, or push the folders beside it"
            )
        relative = os.path.relpath(name, path) if name != path else ""
        yield Source(relative, about.st_size, about.st_mtime, functools.partial(piece, name), lambda: None)


def piece(name: str, start: int, end: int) -> bytes:
    """Bytes of a file here."""
    with open(name, "rb") as file:
        file.seek(start)
        return file.read(end - start)


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
    files = {name: about for name, about in found.items() if about.get("type") != "directory" and name[-1:] != "/"}
    if not files:
        raise StoreError(
            error="%s://%s holds nothing" % (scheme, path), hint="check the bucket, the path and its rights"
        )
    for name, about in sorted(files.items()):
        changed = about.get("LastModified") or about.get("mtime") or about.get("updated")
        relative = name[len(path) :].strip("/") if name != path else ""
        read, told = functools.partial(system.cat_file, name), functools.partial(md5_of, system, name, about)
        yield Source(relative, int(about["size"]), seconds(changed), read, told)


def md5_of(system: Any, name: str, about: Dict[str, Any]) -> Optional[Tuple[str, int]]:
    """The md5 that a store tells of an object, and the size of its parts (0: one); None where it tells none.

    S3's ETag is the md5 of an object that went up in one part, or of its parts' md5s, unless a key of KMS or of the
    customer encrypts it.
    """
    if about.get("md5Hash"):  # Google's
        return base64.b64decode(about["md5Hash"]).hex(), 0
    etag = re.fullmatch(r'"?([0-9a-f]{32}(?:-(\d+))?)"?', str(about.get("ETag", "")))
    if not etag or not hasattr(system, "call_s3"):
        return None
    bucket, key, _ = system.split_path(name)
    number = {"PartNumber": 1} if etag.group(2) else {}
    head = system.call_s3("head_object", Bucket=bucket, Key=key, **number)
    part, count = (int(head["ContentLength"]), int(etag.group(2))) if etag.group(2) else (0, 0)
    sealed = str(head.get("ServerSideEncryption", "")).startswith("aws:kms") or head.get("SSECustomerAlgorithm")
    odd = part and -(-int(about["size"]) // part) != count  # parts of several sizes
    return None if sealed or odd else (etag.group(1), part)


def seconds(changed: Any) -> float:
    """A store's time since the epoch; 0 where it tells none, so that the file is read again."""
    if isinstance(changed, str):
        changed = dt.datetime.strptime(changed.replace("Z", "+0000"), "%Y-%m-%dT%H:%M:%S.%f%z")
    return changed.timestamp() if isinstance(changed, dt.datetime) else float(changed or 0)
