"""One way to write a file: staged beside its final name, fsynced, then renamed.

A reader sees the old file or the new one, whole; a full disk or a kill leaves nothing under the final name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nbkit.errors import StorageError

_STAGED = ".part-"


@contextlib.contextmanager
def explain(path: Path) -> Iterator[None]:
    """Turn an OSError met while writing `path` into a StorageError that says what to do.

    Raises: StorageError for a full disk, a missing permission, a read-only file system or a path that is not a folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            free = _free_gib(path)
            raise StorageError(
                f"The disk is full: could not write {path} ({free:.2f} GiB free there). Nothing was left half-written.",
                hint=f"free space on that disk, or choose another folder; look with: du -xh --max-depth=2 {path.parent}",
            ) from error
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise StorageError(
                f"No permission to write {path} ({error.strerror}).",
                hint=f"choose a folder you own, or: sudo chown -R $USER {path.parent}",
            ) from error
        if error.errno in {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}:
            raise StorageError(
                f"Could not write {path}: {error.strerror}.", hint="choose another name, or move what is there aside"
            ) from error
        raise


def _free_gib(path: Path) -> float:
    for folder in (path, *path.parents):
        if folder.is_dir():
            return shutil.disk_usage(folder).free / 2**30
    return 0.0


def write_bytes(path: str | Path, content: bytes, *, mode: int = 0o644, durable: bool = True) -> Path:
    """Write `content` to `path` whole or not at all; parents are made. `mode` is the final permission.

    `durable=False` leaves out the fsync, for a small file that is written again in a moment.

    Raises: StorageError.
    """
    path = Path(path)
    with explain(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, staged = tempfile.mkstemp(dir=path.parent, prefix=f"{_STAGED}{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), mode)
                if durable:
                    os.fsync(file.fileno())
            Path(staged).replace(path)
        except BaseException:
            Path(staged).unlink(missing_ok=True)
            raise
        if durable:
            _sync_folder(path.parent)
    return path


def write_text(path: str | Path, content: str, *, mode: int = 0o644, durable: bool = True) -> Path:
    """Write UTF-8 text; see write_bytes."""
    return write_bytes(path, content.encode(), mode=mode, durable=durable)


def write_json(path: str | Path, value: Any, *, mode: int = 0o644, durable: bool = True) -> Path:
    """Write `value` as indented JSON with a final newline; see write_bytes. NaN is refused: it is not JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return write_text(path, text, mode=mode, durable=durable)


@contextlib.contextmanager
def folder(path: str | Path) -> Iterator[Path]:
    """Fill a staging folder; it takes the name `path` when the block ends well, and is gone when it does not.

    An existing folder at `path` is replaced only then.

    Raises: StorageError.
    """
    path = Path(path)
    with explain(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{_STAGED}{path.name}."))
        try:
            staged.chmod(0o755)
            yield staged
            for file in staged.rglob("*"):
                if file.is_file():
                    _sync_file(file)
            _swap(staged, path)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        _sync_folder(path.parent)


def _swap(staged: Path, path: Path) -> None:
    if not path.exists():
        staged.rename(path)
        return
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{_STAGED}old."))
    path.rename(old / path.name)
    try:
        staged.rename(path)
    except BaseException:
        (old / path.name).rename(path)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(path: Path) -> None:
    with contextlib.suppress(OSError):  # some network file systems refuse fsync on a folder
        _sync_file(path)


def sha256(path: str | Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
