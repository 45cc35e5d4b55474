"""Fetch a repository of the Hugging Face hub into the hub's own cache, every file checked against the hub's digest.

A file stands under its final name only when its content has the sha256 (large files) or git blob sha1 (small ones) that
the hub tells for the commit. What is there already is read and checked as well. A broken download goes on where it
stopped. A token is sent to the hub's own host alone, never to where it redirects.

REQUEST: endpoint, kind ("models" or "datasets"), repo, revision, path (a file or folder of it; empty: all), cache, token,
allow_pickle, plan (the "plan" of an earlier answer: nothing is then fetched, only checked and linked).
Answer: cache, home (the repository's folder in it), plan (commit, files, left_out), bytes (fetched), missing (of a plan),
folder (the snapshot, when nothing is missing). Or unreachable (no way to the hub from here), or refused (it wants a token).

Source: huggingface_hub 2.4 file_download.py and hf_api.py (layout, addresses, headers). Not covered: xet's own protocol.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, Callable, Dict, List, Optional, Tuple

REQUEST: Dict[str, Any] = globals().get("REQUEST", {})  # set by the opening
Entry = Dict[str, Any]  # path, size, digest

REACH_S, READ_S, TELL_S = 10.0, 60.0, 0.5
TRIES, AT_ONCE, CHUNK = 5, 4, 1 << 20
SPARE_BYTES = 256 << 20  # left free on the disk
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


def hasher(entry: Entry) -> Any:
    """The hash that the digest is of: sha256 of the content, or git's sha1 of a blob."""
    if len(entry["digest"]) == 64:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % entry["size"])  # noqa: S324 - git's own, which is what the hub tells


def feed(path: str, into: Any) -> int:
    """Hash what `path` holds; returns its size."""
    size = 0
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(CHUNK), b""):
            into.update(chunk)
            size += len(chunk)
    return size


def right(path: str, entry: Entry) -> bool:
    """True when `path` has the content that the hub tells."""
    seen = hasher(entry)
    try:
        return bool(os.path.getsize(path) == entry["size"] == feed(path, seen) and seen.hexdigest() == entry["digest"])
    except OSError:
        return False


class Work:
    """What the threads share: how far each file is, told now and then on stdout, and whether to go on."""

    def __init__(self, entries: List[Entry]) -> None:
        self.total = sum(entry["size"] for entry in entries)
        self.done: Dict[str, int] = {}
        self.told = 0.0
        self.lock, self.over = threading.Lock(), threading.Event()

    def at(self, entry: Entry, size: int) -> None:
        with self.lock:
            self.done[entry["digest"]] = size
            if time.monotonic() - self.told > TELL_S:
                self.told = time.monotonic()
                print(json.dumps({"progress": [sum(self.done.values()), self.total]}), flush=True)


def download(hub: Hub, address: str, entry: Entry, blob: str, work: Work) -> None:
    """Bring one blob here, going on with what an earlier download left.

    Raises: FetchError where the content is wrong twice, or the wire broke too often.
    """
    part, wrong, reason = blob + ".nbkit-part", 0, ""
    with open(part, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FetchError(
                error="Another nbkit is fetching %s" % entry["path"], hint="wait for it, then run this again"
            ) from error
        for attempt in range(TRIES):
            if work.over.wait(0.5 * attempt):
                return
            try:
                have, digest = receive(hub, address, entry, file, work)
            except WireError as error:
                reason = str(error)
                continue
            reason = "%d bytes, digest %s" % (have, digest)
            if (have, digest) == (entry["size"], entry["digest"]):
                os.fsync(file.fileno())
                os.replace(part, blob)
                return
            if have >= entry["size"]:
                file.truncate(0)
                wrong += 1
            if wrong == 2:
                os.unlink(part)
                raise FetchError(
                    error="%s is twice not what the hub says it is: %s, expected %d bytes, digest %s"
                    % (entry["path"], reason, entry["size"], entry["digest"]),
                    hint="a proxy or mirror may damage it; nothing of it was kept",
                )
    raise FetchError(
        error="%s broke off %d times: %s" % (entry["path"], TRIES, reason),
        hint="run this again: it goes on where it stopped",
    )


def receive(hub: Hub, address: str, entry: Entry, file: IO[bytes], work: Work) -> Tuple[int, str]:
    """Append to `file` what is missing of `entry`; returns its size then, and its digest.

    Raises: WireError, with what has arrived left in `file`.
    """
    seen = hasher(entry)
    have = feed(file.name, seen)
    if have >= entry["size"] > 0:
        return have, seen.hexdigest()
    with hub.open(address, start=have) as response:
        if have and not (response.headers.get("Content-Range") or "").startswith("bytes %d-" % have):
            file.truncate(0)
            have, seen = 0, hasher(entry)
        while have <= entry["size"] and not work.over.is_set():
            try:
                chunk = response.read(CHUNK)
            except WIRE as error:
                raise WireError(error) from error
            if not chunk:
                break
            file.write(chunk)
            file.flush()
            seen.update(chunk)
            have += len(chunk)
            work.at(entry, have)
    return have, seen.hexdigest()


def fetch(hub: Hub, request: Dict[str, Any], commit: str, entries: List[Entry], blobs: str) -> int:
    """Bring every entry's blob here, a few at a time; returns the number of bytes.

    Raises: FetchError.
    """
    needed = sum(int(entry["size"]) for entry in entries)
    free = shutil.disk_usage(blobs).free
    if needed + SPARE_BYTES > free:
        raise FetchError(
            error="%s has %.1f GB free, and %.1f GB are to come" % (blobs, free / 1e9, needed / 1e9),
            hint="free some space, or name another folder: HOST:/path/of/the/cache",
        )
    work = Work(entries)
    place = "/%s%s/resolve/%s/" % ("datasets/" if request["kind"] == "datasets" else "", request["repo"], commit)

    def one(entry: Entry) -> None:
        try:
            address = place + urllib.parse.quote(entry["path"])
            download(hub, address, entry, os.path.join(blobs, entry["digest"]), work)
        except BaseException:
            work.over.set()
            raise

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in [pool.submit(one, entry) for entry in entries]:
            done.result()
    return needed


def link(home: str, commit: str, files: List[Entry], revision: str) -> str:
    """Make the snapshot: relative links into blobs, and the name of the revision where it is not the commit itself."""
    folder = os.path.join(home, "snapshots", commit)
    for entry in files:
        place = os.path.join(folder, *entry["path"].split("/"))
        target = os.path.relpath(os.path.join(home, "blobs", entry["digest"]), os.path.dirname(place))
        replace(place, lambda new, target=target: os.symlink(target, new))  # type: ignore[misc]
    if revision != commit:
        replace(os.path.join(home, "refs", *revision.split("/")), lambda new: write(new, commit))
    return folder


def replace(place: str, make: Callable[[str], None]) -> None:
    """Make a file or link beside `place`, then give it that name in one step."""
    os.makedirs(os.path.dirname(place), exist_ok=True)
    new = "%s.nbkit-%d" % (place, os.getpid())
    if os.path.lexists(new):
        os.unlink(new)
    make(new)
    os.replace(new, place)


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def cache_of(folder: str) -> str:
    """`folder`, or the hub's cache as its own client finds it."""
    env = os.environ.get
    home = env("HF_HOME") or os.path.join(env("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "huggingface")
    cache = folder or env("HF_HUB_CACHE") or env("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return os.path.abspath(os.path.expandvars(os.path.expanduser(cache)))


def answer(request: Dict[str, Any]) -> Dict[str, Any]:
    """What the request asks for, done.

    Raises: FetchError; OSError of the disk.
    """
    cache = cache_of(request["cache"])
    home = os.path.join(cache, "--".join([request["kind"], *request["repo"].split("/")]))
    blobs, plan = os.path.join(home, "blobs"), request["plan"]
    hub = None if plan else Hub(request["endpoint"] or os.environ.get("HF_ENDPOINT") or HUB, request["token"])
    if hub is None:
        plan = dict(plan, files=[checked(entry) for entry in plan["files"]])
    else:
        commit, files = listing(hub, request["kind"], request["repo"], request["revision"])
        kept, left = chosen(files, request)
        plan = {"commit": commit, "files": kept, "left_out": left}
    os.makedirs(blobs, exist_ok=True)
    wanted = {entry["digest"]: entry for entry in plan["files"]}
    missing = [entry for digest, entry in wanted.items() if not right(os.path.join(blobs, digest), entry)]
    found = {"cache": cache, "home": home, "plan": plan, "bytes": 0, "missing": missing}
    if missing and hub is None:
        return found
    if hub is not None and missing:
        found.update(bytes=fetch(hub, request, plan["commit"], missing, blobs), missing=[])
    found["folder"] = link(home, plan["commit"], plan["files"], request["revision"])
    return found


def main() -> None:
    try:
        told = answer(REQUEST)
    except FetchError as error:
        told = error.answer
    except OSError as error:
        place = error.filename or "the hub's cache"
        told = {"error": "%s: %s" % (error.strerror or error, place), "hint": "look there: df -h; ls -ld"}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
