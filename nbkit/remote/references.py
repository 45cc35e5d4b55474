"""Models and data named by where they are: `hf://org/model@sha`, `s3://bucket/key`, `file:///mnt/nfs/data`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from nbkit.errors import UnknownReferenceError

STORES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "gdrive": "gdrive_fsspec"}  # scheme, and fsspec's package for it
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://(.*)", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,94}[\w])?", re.ASCII)  # one part of a repository's name on the hub
_SPECIAL_REVISION = re.compile(r"(refs/(?:pr|convert)/[^/]+)(?:/(.*))?")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubReference:
    """A repository of the Hugging Face hub.

    Attributes:
        kind: "models" or "datasets".
        repo: "org/name", or a name alone for the hub's oldest models.
        revision: A commit, tag or branch.
        path: A file or folder of it; empty for all.
    """

    kind: str
    repo: str
    revision: str = "main"
    path: str = ""

    @property
    def pinned(self) -> bool:
        """True when the revision is a commit: what it names never changes."""
        return COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        kind = "datasets/" if self.kind == "datasets" else ""
        return f"hf://{kind}{self.repo}@{self.revision}" + (f"/{self.path}" if self.path else "")


@dataclass(frozen=True)
class StoreReference:
    """A file or folder of a store, or of a mount of the box.

    Attributes:
        scheme: One of STORES, or "file": a path of the box itself.
        path: Bucket and key, or the path.
    """

    scheme: str
    path: str

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"


Reference = HubReference | StoreReference


def is_reference(text: str) -> bool:
    """True for what `parse` is to read: it begins with a scheme."""
    return _SCHEME.fullmatch(text) is not None


def parse(text: str) -> Reference:
    """The reference that `text` is.

    Raises: UnknownReferenceError for a scheme that is not known, a name that the hub could not have, or a path with `..`.
    """
    match = _SCHEME.fullmatch(text)
    scheme, rest = (match[1], match[2]) if match else ("", text)
    if any(ord(c) < 32 or ord(c) == 127 for c in rest) or ".." in rest.split("/"):
        raise UnknownReferenceError(f"{text!r} has a control character or a `..` in it.", hint="write the path out")
    if scheme == "hf":
        return _hub(text, rest)
    if scheme == "file" and rest.startswith("/"):
        return StoreReference(scheme, rest)
    if scheme in STORES and rest.strip("/"):
        return StoreReference(scheme, rest.strip("/"))
    raise UnknownReferenceError(
        f"{text!r} is no reference that nbkit knows.",
        hint="hf://ORG/MODEL[@REVISION], hf://datasets/ORG/NAME, s3://BUCKET/KEY, gs://BUCKET/KEY, gdrive://PATH, "
        "or file:///PATH of the box",
    )


def _hub(text: str, rest: str) -> HubReference:
    kind, rest = ("datasets", rest[len("datasets/") :]) if rest.startswith("datasets/") else ("models", rest)
    rest = rest.removeprefix("models/").strip("/")
    before, at, after = rest.partition("@")
    parts = before.split("/")
    repo, path = "/".join(parts[:2]), "/".join(parts[2:])
    revision = "main"
    if at:
        special = _SPECIAL_REVISION.fullmatch(after)
        name, below = (special[1], special[2] or "") if special else after.partition("/")[::2]
        revision, path = unquote(name), below
    names = repo.split("/")
    if not all(_NAME.fullmatch(name) and "--" not in name and ".." not in name for name in names) or (at and parts[2:]):
        raise UnknownReferenceError(
            f"{text!r} names no repository of the hub.",
            hint="hf://ORG/MODEL[@REVISION] or hf://datasets/ORG/NAME[@REVISION]",
        )
    if not re.fullmatch(r"[\w.][\w./-]*", revision, re.ASCII) or ".." in revision or revision.endswith("/"):
        raise UnknownReferenceError(
            f"{text!r} has no revision that git could have.", hint="a commit, a tag or a branch"
        )
    return HubReference(kind, repo, revision, path)
