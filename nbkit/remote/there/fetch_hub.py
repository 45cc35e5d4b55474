"""Fetch a repository of the Hugging Face hub into the hub's own cache, every file checked against the hub's digest.

A file stands under its final name only when its content has the sha256 (large files) or git blob sha1 (small ones) that
the hub tells for the commit. What is there already is read and checked as well. A broken download goes on where it
stopped.

REQUEST: endpoint, kind ("models" or "datasets"), repo, revision, path (a file or folder of it; empty: all), cache, token,
allow_pickle, plan (the "plan" of an earlier answer: nothing is then fetched, only checked and linked).
Answer: cache, home (the repository's folder in it), plan (commit, files, left_out), bytes (fetched), missing (of a plan),
folder (the snapshot, when nothing is missing). Or unreachable (no way to the hub from here), or refused (it wants a token).

Source: huggingface_hub 2.4 file_download.py (layout).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, Callable, Dict, List, Tuple

from nbkit.remote.there.hub import HUB, WIRE, Entry, FetchError, Hub, WireError, checked, chosen, listing

TELL_S = 0.5
TRIES, AT_ONCE, CHUNK = 5, 4, 1 << 20
SPARE_BYTES = 256 << 20  # left free on the disk


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


def main(request: Dict[str, Any]) -> None:
    """Print the answer."""
    try:
        told = answer(request)
    except FetchError as error:
        told = error.answer
    except OSError as error:
        place = error.filename or "the hub's cache"
        told = {"error": "%s: %s" % (error.strerror or error, place), "hint": "look there: df -h; ls -ld"}
    print(json.dumps(told))
