"""The Hugging Face hub, asked over HTTPS: what a repository holds, and which of its files are to be had.

A token is sent to the hub's own host alone, never to where it redirects.

Source: huggingface_hub 2.4 hf_api.py (addresses, headers, pages). Not covered: xet's own protocol.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import IO, Any, Dict, List, Optional, Tuple

Entry = Dict[str, Any]  # path, size, digest

REACH_S, READ_S = 10.0, 60.0
HUB = "https://huggingface.co"
COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill")
# The same weights again, for other frameworks; Keras' format can carry code.
OTHER_WEIGHTS = (".h5", ".keras", ".msgpack", ".ot", ".onnx", ".onnx_data", ".tflite", ".mlmodel")
WIRE = (OSError, http.client.HTTPException)


class FetchError(Exception):
    """What cannot go on; `answer` says why."""

    def __init__(self, **answer: str) -> None:
        super().__init__(answer)
        self.answer = answer


class WireError(Exception):
    """The wire failed; `final` where another try would not help."""

    def __init__(self, error: Any) -> None:
        reason = getattr(error, "reason", error)
        super().__init__(str(reason) or type(error).__name__)
        self.final = isinstance(reason, (socket.gaierror, ConnectionRefusedError))


class SameHost(urllib.request.HTTPRedirectHandler):
    """Follows redirects, with the token on the hub's own host only, and never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> Optional[urllib.request.Request]:
        before, after = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if before.scheme == "https" and after.scheme != "https":
            raise FetchError(error="The hub redirects from https to %s" % after.scheme, hint="check HF_ENDPOINT")
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and (before.scheme, before.netloc) != (after.scheme, after.netloc):
            new.remove_header("Authorization")
        return new


class Hub:
    """The hub at `endpoint`, asked with `token` where there is one."""

    def __init__(self, endpoint: str, token: str) -> None:
        parts = urllib.parse.urlsplit(endpoint)
        local = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")
        if parts.scheme != "https" and not local:
            raise FetchError(
                error="The hub's address %s is not https" % endpoint, hint="set HF_ENDPOINT to an https address"
            )
        self.endpoint = endpoint.rstrip("/")
        self.headers = {"User-Agent": "nbkit", "Accept-Encoding": "identity"}
        if token:
            self.headers["Authorization"] = "Bearer " + token
        self.opener = urllib.request.build_opener(SameHost)

    def open(self, path: str, start: int = 0, timeout: float = READ_S) -> Any:
        """The response to a GET of `path` from byte `start` on.

        Raises: FetchError for what no second try mends; WireError for the rest.
        """
        headers = dict(self.headers, **({"Range": "bytes=%d-" % start} if start else {}))
        request = urllib.request.Request(self.endpoint + path, headers=headers)  # noqa: S310 - https, or this machine
        try:
            return self.opener.open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            reason = "HTTP %d, %s" % (error.code, error.headers.get("X-Error-Message") or error.reason)
            if error.code in (401, 403):
                raise FetchError(refused=reason) from error
            if error.code == 404:
                raise FetchError(
                    error="The hub has no %s (%s)" % (path, reason), hint="check the name and the revision"
                ) from error
            raise WireError(reason) from error
        except WIRE as error:
            raise WireError(error) from error

    def json(self, path: str) -> Tuple[Any, str]:
        """Content of a JSON page, and the path of the next one or "".

        Raises: FetchError where the hub cannot be reached or does not answer in its own way.
        """
        reason = ""
        for pause in (0.0, 0.5, 1.0):
            time.sleep(pause)
            try:
                with self.open(path, timeout=REACH_S) as response:
                    following = re.search(r'<([^>]+)>;\s*rel="next"', response.headers.get("Link") or "")
                    return json.loads(response.read().decode()), self._path(following.group(1)) if following else ""
            except ValueError as error:
                raise FetchError(
                    error="%s does not answer as a hub: %s" % (self.endpoint, error), hint="check HF_ENDPOINT"
                ) from error
            except (WireError, *WIRE) as error:
                reason = str(error)
                if getattr(error, "final", False):
                    break
        raise FetchError(unreachable="%s: %s" % (self.endpoint, reason))

    def _path(self, url: str) -> str:
        if not url.startswith(self.endpoint + "/"):
            raise FetchError(error="The hub's next page is elsewhere: %s" % url[:200], hint="check HF_ENDPOINT")
        return url[len(self.endpoint) :]


def listing(hub: Hub, kind: str, repo: str, revision: str) -> Tuple[str, List[Entry]]:
    """Commit of `revision`, and its files.

    Raises: FetchError.
    """
    place = "/api/%s/%s" % (kind, repo)
    commit = str(hub.json("%s/revision/%s" % (place, urllib.parse.quote(revision, safe="")))[0].get("sha"))
    if not COMMIT.fullmatch(commit) or (COMMIT.fullmatch(revision) and commit != revision):
        raise FetchError(
            error="The hub resolves %s to %s, which is not that commit" % (revision, commit[:80]),
            hint="check HF_ENDPOINT",
        )
    files: List[Entry] = []
    page = "%s/tree/%s?recursive=true" % (place, commit)
    while page:
        entries, page = hub.json(page)
        for entry in entries:
            if entry["type"] == "file":
                large = entry.get("lfs") or {"oid": entry["oid"], "size": entry["size"]}
                files.append(checked({"path": entry["path"], "size": large["size"], "digest": large["oid"]}))
    return commit, files


def checked(entry: Entry) -> Entry:
    """`entry`, when nothing of it can lead out of the cache.

    Raises: FetchError.
    """
    if any(part in ("", ".", "..") for part in entry["path"].split("/")) or "\0" in entry["path"]:
        raise FetchError(
            error="The hub tells a file name that leaves its folder: %r" % entry["path"][:200], hint="do not use it"
        )
    if not DIGEST.fullmatch(entry["digest"]) or not isinstance(entry["size"], int):
        raise FetchError(error="The hub tells no digest for %s" % entry["path"], hint="check HF_ENDPOINT")
    return entry


def chosen(files: List[Entry], request: Dict[str, Any]) -> Tuple[List[Entry], List[str]]:
    """What is to be had, and the names that are left out.

    Raises: FetchError where nothing would be left, or where the weights are pickled only.
    """
    below = request["path"]
    files = [entry for entry in files if not below or (entry["path"] + "/").startswith(below + "/")]
    if not files:
        raise FetchError(error="%s has no file %s" % (request["repo"], below), hint="look at its files on the hub")
    model = request["kind"] == "models"
    safe = any(entry["path"].endswith(".safetensors") for entry in files)
    # In a data set .bin is data, and there is no second copy in another format.
    pickled = PICKLED if model else PICKLED[1:]
    leave = (() if request["allow_pickle"] else pickled) + (OTHER_WEIGHTS if model and safe else ())
    left = [entry["path"] for entry in files if entry["path"].lower().endswith(leave)]
    kept = [entry for entry in files if entry["path"] not in left]
    unsafe = [name for name in left if name.lower().endswith(pickled)]
    if unsafe and (not kept or (model and not safe)):
        raise FetchError(
            error="%s has pickles only (%s), which can run code when they are loaded"
            % (request["repo"], ", ".join(unsafe)[:200]),
            hint="look for a copy with .safetensors; if you trust its author: --allow-pickle",
        )
    return kept, left
