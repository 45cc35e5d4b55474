"""Bring a file or folder of a store, or of a mount of the box, to the box: there where it can, else through here."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nbkit.errors import MissingPackageError, RemoteCommandError, require
from nbkit.remote import program
from nbkit.remote.box import Box
from nbkit.remote.references import STORES, StoreReference
from nbkit.remote.transfer import Progress
from nbkit.remote.transfer import push as send
from nbkit.ssh.text import plain

PROGRAM = "fetch_store"


@dataclass(frozen=True)
class Stored:
    """A file or folder of a store that stands on a box.

    Attributes:
        reference: What was asked for.
        place: Where it stands there.
        files: How many.
        bytes: Of all of them.
        fetched: Bytes that had to be brought; the rest was there with the same size and time.
        sha256: Of what was brought, by path.
        read: "on the box", or "here", with why.
    """

    reference: StoreReference
    place: str
    files: int
    bytes: int
    fetched: int
    sha256: Mapping[str, str]
    read: str

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "reference": str(self.reference)}

    def __str__(self) -> str:
        """What came, and where it stands."""
        brought = f"{self.fetched / 1e6:.1f} of {self.bytes / 1e6:.1f} MB read {self.read}"
        return f"{self.reference}: {self.files} files, {brought}.\n  In:   {self.place}"


def push(
    box: Box, reference: StoreReference, into: str = "", *, progress: Callable[[Progress], None] | None = None
) -> Stored:
    """Bring what `reference` names into a folder of the box, under its own name.

    The box reads it with its own credentials where its Python has fsspec's package for the store; else this machine
    does, with the ones it has, and sends it on. No credentials go over. `file://` is a path of the box: a mount.

    Args:
        into: A folder there; default: the home folder.
        progress: Called after each file.

    Raises: RemoteCommandError where neither can read it, with both reasons; MissingPackageError; TransferError.
    """
    package = STORES.get(reference.scheme, "")
    request = {"scheme": reference.scheme, "path": reference.path, "package": package, "into": into}
    start = time.monotonic()

    def tell(line: dict[str, Any]) -> None:
        if progress and "progress" in line:
            done, total = line["progress"]
            progress(Progress(done, total, reference.name, time.monotonic() - start))

    told, read = program.follow(box.session, program.text(PROGRAM), request, tell, python=box.python), "on the box"
    why = f"its Python has no {told['absent']}" if "absent" in told else plain(told.get("refused", ""), 300)
    if why:
        if importlib.util.find_spec(package) is None and "refused" in told:
            raise RemoteCommandError(f"{box.host} cannot read {reference}: {why}.", hint=_CREDENTIALS)
        _need(package, reference)
        told, read = _through_here(box, reference, request, tell, why), f"here ({why})"
    return Stored(reference, told["place"], told["files"], told["bytes"], told["fetched"], dict(told["sha256"]), read)


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
    box: Box, reference: StoreReference, request: dict[str, Any], tell: Callable[[dict[str, Any]], None], why: str
) -> dict[str, Any]:
    """Read it into a temporary folder and send that on.

    Raises: RemoteCommandError.
    """
    with tempfile.TemporaryDirectory(prefix="nbkit-store-") as scratch:
        told = program.here(program.text(PROGRAM), {**request, "into": scratch}, tell)
        if "refused" in told or "error" in told:
            reason = plain(told.get("refused") or told["error"], 300)
            raise RemoteCommandError(
                f"Neither {box.host} ({why}) nor this machine ({reason}) can read {reference}.", hint=_CREDENTIALS
            )
        into = request["into"] or "."
        sent = send(box, told["place"], f"{into}/", parents=True)
        return {**told, "place": f"{into}/{reference.name}", "fetched": sent.sent}
