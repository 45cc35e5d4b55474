"""One way to write a file: staged beside its final name, fsynced, then renamed.

A reader sees the old file or the new one, whole; a full disk or a kill leaves nothing under the final name. What a kill
leaves beside it is named after its process, so that `sweep` can tell it from the work of a live one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nbkit.errors import StorageError

_STAGED = ".part-"
_OWNED = re.compile(rf"^{re.escape(_STAGED)}([0-9a-f]{{8}})-(\d+)-(\d+)\.")
_OLD_S = 24 * 3600.0  # staged by a process that cannot be seen from here: left alone for a day
_EXCHANGE, _AT_FDCWD = 2, -100  # renameat2(2)


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
        handle, staged = tempfile.mkstemp(dir=path.parent, prefix=_staged(path.name))
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
def folder(path: str | Path, *, private: bool = False) -> Iterator[Path]:
    """Fill a staging folder; it takes the name `path` when the block ends well, and is gone when it does not.

    An existing folder at `path` is replaced only then: on Linux the two change names in one instant, elsewhere a kill
    between two renames leaves the older one in `.part-*`, which `sweep` puts back.

    Args:
        private: Folders 0700 and files 0600, under any umask; otherwise folders are 0755.
    Raises: StorageError.
    """
    path = Path(path)
    with explain(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=path.parent, prefix=_staged(path.name)))
        try:
            staged.chmod(0o700 if private else 0o755)
            yield staged
            for found in [staged, *staged.rglob("*")]:
                if private:
                    found.chmod(0o700 if found.is_dir() else 0o600)
                if found.is_file():
                    _sync_file(found)
                else:
                    _sync_folder(found)
            _swap(staged, path)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        _sync_folder(path.parent)


def remove(path: Path) -> None:
    """Delete a folder so that a kill in between leaves nothing under its name."""
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=_staged("trash")))
    path.rename(aside / path.name)
    shutil.rmtree(aside, ignore_errors=True)


def sweep(parent: Path) -> list[str]:
    """Clear away what killed processes left staged in `parent`, and put back a folder that was being replaced.

    What belongs to a live process is left alone; so is, for a day, what another machine staged on a shared disk.

    Returns: The names that were removed or put back.
    """
    done = []
    for staged in sorted(parent.glob(f"{_STAGED}*")):
        if not _abandoned(staged):
            continue
        for old in staged.iterdir() if ".old." in staged.name and staged.is_dir() else ():
            if not (parent / old.name).exists():
                old.rename(parent / old.name)
        if staged.is_dir():
            shutil.rmtree(staged, ignore_errors=True)
        else:
            staged.unlink(missing_ok=True)
        done.append(staged.name)
    return done


def _staged(name: str) -> str:
    """The start of a staging name: machine, process and its start, so that it can be told whether its owner lives."""
    return f"{_STAGED}{_machine()}-{os.getpid()}-{_started(os.getpid())}.{name}."


def _machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _started(pid: int) -> int:
    """Clock ticks from boot to the start of `pid`, from proc(5); 0 when it is gone, 1 where there is no /proc."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        if Path("/proc/self/stat").exists():
            return 0
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return 0
    except PermissionError:
        return 1
    return 1


def _abandoned(staged: Path) -> bool:
    owner = _OWNED.match(staged.name)
    if owner and owner.group(1) == _machine():
        return _started(int(owner.group(2))) != int(owner.group(3))
    with contextlib.suppress(OSError):
        return time.time() - staged.stat().st_mtime > _OLD_S
    return False


def _swap(staged: Path, path: Path) -> None:
    if not path.exists():
        staged.rename(path)
        return
    if _exchange(staged, path):
        shutil.rmtree(staged, ignore_errors=True)  # holds the older one now
        return
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=_staged("old")))
    path.rename(old / path.name)
    try:
        staged.rename(path)
    except BaseException:
        (old / path.name).rename(path)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change names in one instant; False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # an old C library
        return False
    return not rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE)


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
