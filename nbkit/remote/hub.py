"""Bring a model or data set of the Hugging Face hub to a box, every file checked, where `from_pretrained` finds it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nbkit.errors import ModelError, RemoteCommandError, UnreachableError
from nbkit.remote import program
from nbkit.remote.box import Box
from nbkit.remote.references import HubReference
from nbkit.remote.transfer import Progress, told_by
from nbkit.remote.transfer import push as send
from nbkit.ssh.text import plain


@dataclass(frozen=True)
class Fetched:
    """A repository that stands in a box's hub cache.

    Attributes:
        reference: What was asked for.
        commit: What it was resolved to.
        cache: The hub cache on the box.
        folder: The snapshot in it.
        files: Path and digest of each file: sha256, or git's sha1 for small ones.
        bytes: That had to be brought; the rest was there and was checked.
        left_out: Files of the repository that were not brought.
        downloaded: "on the box", or "here" where the box has no way to the hub.
    """

    reference: HubReference
    commit: str
    cache: str
    folder: str
    files: Mapping[str, str]
    bytes: int
    left_out: tuple[str, ...]
    downloaded: str

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "reference": str(self.reference), "left_out": list(self.left_out)}

    def __str__(self) -> str:
        """What a person needs: what came, how to load it, how to pin it, what was left out."""
        name = self.reference.repo
        checked = f"{len(self.files)} files, each as the hub's digest says"
        brought = f"{self.bytes / 1e6:.1f} MB downloaded {self.downloaded}"
        lines = [f"{name} at {self.commit}: {checked}; {brought}.", f"  In:   {self.folder}"]
        if not self.reference.pinned:
            pinned = replace(self.reference, revision=self.commit)
            lines.append(f"  Pin:  {pinned}      ({self.reference.revision} may move)")
        elif self.reference.kind == "models":
            lines.append(f'  Use:  from_pretrained("{name}", revision="{self.commit}")')
        if self.left_out:
            shown = ", ".join(plain(path, 60) for path in self.left_out[:5])
            lines.append(f"  Left out: {shown}{', ...' if len(self.left_out) > 5 else ''}")
        return "\n".join(lines)


def push(
    box: Box,
    reference: HubReference,
    cache: str = "",
    *,
    allow_pickle: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Fetched:
    """Download a repository on the box, or here and send it where the box has no way to the hub.

    Each file has the sha256 that the hub tells for it (small ones: git's sha1), what was there before too, or this
    fails. A token of this machine (HF_TOKEN, or what `hf auth login` left) goes to the box only when the hub asks for
    one, over stdin; nothing of it is stored there.

    Args:
        cache: A hub cache on the box; default: the one of the box's user.
        allow_pickle: Bring pickled weights too; loading one can run code.
        progress: Called twice a second at most.

    Raises: ModelError where the hub wants a token or another one; RemoteCommandError for an unknown name, damaged
        files, pickles only, a full disk; UnreachableError where neither machine reaches the hub.
    """
    request = {
        "endpoint": os.environ.get("HF_ENDPOINT", ""), "kind": reference.kind, "repo": reference.repo,
        "revision": reference.revision, "path": reference.path, "cache": cache, "token": "",
        "allow_pickle": allow_pickle, "plan": None,
    }  # fmt: skip

    tell = told_by(progress, reference.repo)

    def there(request: dict[str, Any]) -> dict[str, Any]:
        return program.follow(box.session, _program(), request, tell, python=box.python)

    told, downloaded = _admitted(there, request), "on the box"
    if "unreachable" in told:
        told, downloaded = _through_here(box, there, request, tell, plain(told["unreachable"], 200)), "here"
    plan = told["plan"]
    files = {entry["path"]: entry["digest"] for entry in plan["files"]}
    return Fetched(
        reference,
        plan["commit"],
        told["cache"],
        told["folder"],
        files,
        told["bytes"],
        tuple(plan["left_out"]),
        downloaded,
    )


def _program() -> str:
    return program.bundle("hub", "fetch_hub")


def _admitted(ask: Callable[[dict[str, Any]], dict[str, Any]], request: dict[str, Any]) -> dict[str, Any]:
    """The answer of a program that may be refused without a token, then with one.

    Raises: ModelError.
    """
    told, secret = ask(request), ""
    if "refused" in told and (secret := token()):
        told = ask({**request, "token": secret})
    if "refused" in told:
        known = "the hub does not let your token in" if secret else "no token is known here"
        raise ModelError(
            f"The hub refuses {request['repo']}: {plain(told['refused'], 300)}; {known}.",
            hint="check the name; accept the terms on its page; then: hf auth login      (or set HF_TOKEN)",
        )
    return told


def token() -> str:
    """The user's token for the hub, found as the hub's own client finds it; empty without one."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    file = Path(os.environ.get("HF_TOKEN_PATH") or Path(home) / "token").expanduser()
    found = os.environ.get("HF_TOKEN") or (file.read_text() if file.is_file() else "")
    return found.strip()


def _through_here(
    box: Box,
    there: Callable[[dict[str, Any]], dict[str, Any]],
    request: dict[str, Any],
    tell: Callable[[dict[str, Any]], None],
    reason: str,
) -> dict[str, Any]:
    """Download into a cache here, send the blobs that the box lacks, and have the box check and link them.

    Raises: UnreachableError; RemoteCommandError; ModelError.
    """
    with tempfile.TemporaryDirectory(prefix="nbkit-hub-") as scratch:
        told = _admitted(lambda asked: program.here(_program(), asked, tell), {**request, "cache": scratch})
        if "unreachable" in told:
            raise UnreachableError(
                f"Neither {box.host} ({reason}) nor this machine ({plain(told['unreachable'], 200)}) reaches the hub.",
                hint="check the network, a proxy (HTTPS_PROXY), HF_ENDPOINT",
            )
        if "error" in told:
            raise RemoteCommandError(f"{plain(told['error'], 400)}.", hint=plain(told["hint"], 400))
        offline = {**request, "plan": told["plan"]}
        state = there(offline)
        for entry in state["missing"]:
            send(box, Path(told["home"], "blobs", entry["digest"]), f"{state['home']}/blobs/{entry['digest']}")
        state = there(offline) if state["missing"] else state
        if state["missing"]:
            raise RemoteCommandError(
                f"{box.host}: {state['missing'][0]['path']} arrived damaged.",
                hint="run this again; look at the disk there",
            )
        return {**state, "bytes": told["bytes"]}
