"""Bring a file or folder of a store, or of a mount of the box, to the box: there where it can, else through here."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nbkit import atomic, folders
from nbkit.errors import MissingPackageError, RemoteCommandError, require
from nbkit.remote import program
from nbkit.remote.box import Box
from nbkit.remote.references import STORES, StoreReference
from nbkit.remote.there.frames import amount
from nbkit.remote.transfer import Progress, told_by
from nbkit.remote.transfer import push as send
from nbkit.ssh.text import plain


@dataclass(frozen=True)
class Stored:
    """A file or folder of a store that stands on a box.

    Attributes:
        reference: What was asked for.
        place: Where it stands there.
        files: How many.
        bytes: Of all of them.
        fetched: Bytes that were read now; the rest was there with the same size and time, or from a cut.
        sha256: Of what was brought, by path.
        unchecked: How many of these the store tells no md5 of, so that only their size was compared.
        read: "on the box", or "here", with why.
    """

    reference: StoreReference
    place: str
    files: int
    bytes: int
    fetched: int
    sha256: Mapping[str, str]
    unchecked: int
    read: str

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "reference": str(self.reference)}

    def __str__(self) -> str:
        """What came, and where it stands."""
        brought = f"{amount(self.fetched)} of {amount(self.bytes)} read {self.read}"
        note = f"\n  Note: the store tells no md5 of {self.unchecked} of these: their size was compared"
        mount = self.reference.scheme == "file"
        shown = note if self.unchecked and not mount else ""
        return f"{self.reference}: {self.files} file{'' if self.files == 1 else 's'}, {brought}.\n  In:   {self.place}{shown}"


def push(
    box: Box, reference: StoreReference, into: str = "", *, progress: Callable[[Progress], None] | None = None
) -> Stored:
    """Bring what `reference` names into a folder of the box, under its own name.

    The box reads it with its own credentials where its Python has fsspec's package for the store; else this machine
    does, with the ones it has, and sends it on. No credentials go over. `file://` is a path of the box: a mount. Each
    object has the md5 that the store tells, or this fails; all that is there comes, pickles too.

    Args:
        into: A folder there; default: the home folder.
        progress: Called twice a second at most.

    Raises: RemoteCommandError where neither can read it, with both reasons; MissingPackageError; TransferError.
    """
    package = STORES.get(reference.scheme, "")
    request = {"scheme": reference.scheme, "path": reference.path, "package": package, "into": into}
    tell = told_by(progress, reference.name)

    def there(request: dict[str, Any]) -> dict[str, Any]:
        return program.follow(box.session, _program(), request, tell, python=box.python)

    told, read = there(request), "on the box"
    why = f"its Python has no {told['absent']}" if "absent" in told else plain(told.get("refused", ""), 300)
    if why:
        if importlib.util.find_spec(package) is None and "refused" in told:
            raise RemoteCommandError(f"{box.host} cannot read {reference}: {why}.", hint=_CREDENTIALS)
        _need(package, reference)
        told, read = _through_here(box, reference, request, there, tell, why), f"here ({why})"
    files, size, sha256 = told["files"], told["bytes"], dict(told["sha256"])
    return Stored(reference, told["place"], files, size, told["fetched"], sha256, told["unchecked"], read)


def _program() -> str:
    return program.bundle("store", "fetch_store")


def _need(package: str, reference: StoreReference) -> None:
    """Raises: MissingPackageError where this machine cannot read the store either."""
    if reference.scheme == "gdrive" and importlib.util.find_spec(package) is None:
        raise MissingPackageError(
            f"Neither machine has {package}, which reads {reference}.",
            hint="mount the drive on the box (rclone mount; on Colab drive.mount), then push file:///PATH of the mount",
        )
    require("fsspec", package, extra="cloud")


_CREDENTIALS = (
    "check the path and its rights, and the credentials there: aws configure; gcloud auth application-default login"
)


def _through_here(
    box: Box,
    reference: StoreReference,
    request: dict[str, Any],
    there: Callable[[dict[str, Any]], dict[str, Any]],
    tell: Callable[[dict[str, Any]], None],
    why: str,
) -> dict[str, Any]:
    """Read what the box lacks into a folder of the cache, send that on, remove it; after a cut it is gone on with.

    Raises: RemoteCommandError.
    """

    def here(request: dict[str, Any]) -> dict[str, Any]:
        told = program.here(_program(), request, tell)
        if "error" in told:
            said = f"{plain(told['error'], 400)} (read here: {why})."
            raise RemoteCommandError(said, hint=plain(told["hint"], 300))
        if "refused" in told:
            reason = plain(told["refused"], 300)
            raise RemoteCommandError(
                f"Neither {box.host} ({why}) nor this machine ({reason}) can read {reference}.", hint=_CREDENTIALS
            )
        return told

    with _scratch(reference) as scratch:
        plan = here({**request, "list": True})["sources"]
        state = there({**request, "plan": plan})
        told = {"fetched": 0, "sha256": {}, "unchecked": 0}
        if state["missing"]:
            told = here({**request, "into": str(scratch), "only": state["missing"]})
            send(box, scratch / reference.name, f"{request['into'] or '.'}/", parents=True)
    return {**told, **state}


@contextlib.contextmanager
def _scratch(reference: StoreReference) -> Iterator[Path]:
    """A private folder for one reference; it stays after a failure, and one process at a time has it.

    Raises: StorageError.
    """
    folder = folders.cache() / "stores" / hashlib.sha256(str(reference).encode()).hexdigest()[:16]
    with atomic.explain(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = folder.with_suffix(".lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder.mkdir(exist_ok=True, mode=0o700)
        yield folder
        shutil.rmtree(folder)
