"""Files and folders to a box and back: checked by sha256, resumed block by block, never half there under their own name.

The same code runs at both ends (`there/send.py`, `there/receive.py`): the box's half goes over as text. One stream carries
many small files; a large push over a long link is striped over several channels, as sshd grants each only 2 MiB ahead.
A file that comes again sends only what its part (1 MiB blocks, by sha256) or its older version (`there/delta.py`: finer
blocks, wherever they stand now) lacks: what rsync would be called for, without rsync at either end.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nbkit.errors import NbkitError, TransferError, UnreachableError
from nbkit.remote import program
from nbkit.remote.box import Box
from nbkit.remote.there import frames
from nbkit.remote.there.receive import Receiver
from nbkit.remote.there.send import Sender
from nbkit.remote.there.threads import batch
from nbkit.ssh.process import ChannelProcess, Process
from nbkit.ssh.text import plain

Links = Literal["copy", "follow", "skip"]
Source = str | Path
_BEGINNINGS = {"another", "cannot", "could", "no", "not", "the", "there"}
AGAIN = "run it again: it goes on where it stopped"
_MODULES = {
    "send": ("frames", "tree", "delta", "threads", "send", "transfer"),
    "receive": ("frames", "tree", "delta", "threads", "place", "plan", "receive", "transfer"),
}  # by what the box is to do
_LONG_S = 0.01  # a round trip from which one channel's window is what limits a push
_STREAMS = 6
_NOISE_BYTES = 64 * 1024  # a login shell may print before our program starts
_END_S = 10.0
_TELL_S = 0.1


@dataclass(frozen=True)
class Progress:
    """How far a transfer is.

    Attributes:
        done: Bytes that are over, sent or found there.
        total: Bytes of all files that differ.
        name: The file that is on its way.
        seconds: Since the start.
    """

    done: int
    total: int
    name: str
    seconds: float

    @property
    def speed(self) -> float:
        """Bytes a second."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def left_s(self) -> float:
        """Seconds to go, at this speed."""
        return (self.total - self.done) / self.speed if self.speed else 0.0


@dataclass(frozen=True)
class Transferred:
    """What a transfer did.

    Attributes:
        files: That were written.
        bytes: Their size.
        sent: Bytes that went over the link for them.
        kept: Bytes that were there already, in a part or an older version.
        same: Files that were there with the same size and time.
        links: Symbolic links made.
        deleted: Names that were removed (sync with delete).
        notes: What was left out, and why.
        names: With dry_run, what would be written.
        sha256: Of the file, where one was written.
    """

    files: int = 0
    bytes: int = 0
    sent: int = 0
    kept: int = 0
    same: int = 0
    links: int = 0
    deleted: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    sha256: str = ""
    seconds: float = 0.0


def push(
    box: Box,
    sources: Source | Sequence[Source],
    dst: str = "",
    *,
    links: Links = "copy",
    parents: bool = False,
    check: bool = False,
    dry_run: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Transferred:
    """Send files and folders to the box.

    Args:
        sources: Files or folders here. A pattern (`*`, `?`, `[`) that is no file's name stands for what it matches.
        dst: There: a folder that they go into, or the new name of the only one; relative to the home folder.
        links: "copy" makes the same link where it stays inside the tree, "follow" sends what it leads to, "skip" neither.
        parents: Make the folders that `dst` lacks.
        check: Compare what is there by sha256, not by size and time.
        dry_run: Only say what would be done.
        progress: Called ten times a second at most.

    Raises: TransferError with the cause; UnreachableError when the link breaks. What has come over is kept for the next time.
    """
    paths = _several(sources)
    request = _request(paths, dst, links, parents, check, dry_run)
    return _send(box, request, progress)


def pull(
    box: Box,
    sources: str | Sequence[str],
    dst: Source = ".",
    *,
    links: Links = "copy",
    parents: bool = False,
    check: bool = False,
    dry_run: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Transferred:
    """Fetch files and folders from the box; see `push`. No name that the box sends leads out of `dst`."""
    request = _request(_several(sources), os.fspath(dst), links, parents, check, dry_run)
    return _receive(box, request, progress)


def sync(
    box: Box,
    source: Source,
    dst: Source,
    *,
    down: bool = False,
    delete: bool = False,
    links: Links = "copy",
    check: bool = False,
    dry_run: bool = False,
    growing: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Transferred:
    """Make the folder `dst` hold what the folder `source` holds; see `push`.

    Args:
        down: From the box to here.
        delete: Remove from `dst` what `source` does not have, and what stands in the way of it (a folder where a file is
            to go); refused where that is the home folder or the root. What `source` has and does not send stays.
        growing: Take of `.jsonl` and `.log` files that grow what was there at the start, instead of refusing them.
    """
    if delete and _is_home(os.fspath(dst), here=down):
        raise TransferError(
            f"With delete, everything in {os.fspath(dst) or 'the home folder'} that is not in {source} would go.",
            hint="name a folder of its own: HOST:project" if not down else "name a folder of its own",
            exit_code=2,
        )
    request = _request([os.fspath(source)], os.fspath(dst), links, True, check, dry_run)
    request |= {"contents": True, "delete": delete, "growing": growing}
    return (_receive if down else _send)(box, request, progress)


def _is_home(dst: str, *, here: bool) -> bool:
    """The home folder, which is where a path on the box begins, or the root of all."""
    if here:
        return Path(dst).expanduser().resolve() in {Path.home().resolve(), Path("/")}
    return dst.strip("/") in {"", ".", "~"}


def _several(sources: Source | Sequence[Source]) -> list[str]:
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    if not given:
        raise TransferError("There is nothing to transfer.", hint="name a file or a folder", exit_code=2)
    return [os.fspath(one) for one in given]


def _request(sources: list[str], dst: str, links: Links, parents: bool, check: bool, dry_run: bool) -> dict[str, Any]:
    if any("\0" in name or not name for name in sources) or "\0" in dst:
        raise TransferError("A name is empty or holds a NUL character.", hint="no file can have it", exit_code=2)
    return {"sources": [frames.text(os.fsencode(name)) for name in sources], "dst": frames.text(os.fsencode(dst)),
            "many": len(sources) > 1, "links": links, "parents": parents, "check": check, "dry_run": dry_run,
            "contents": False, "delete": False}  # fmt: skip


def _send(box: Box, request: dict[str, Any], progress: Callable[[Progress], None] | None) -> Transferred:
    start = time.monotonic()
    with contextlib.ExitStack() as helpers, _link(box, {**request, "role": "receive"}) as link:

        def widen(path: str, total: int) -> list[Callable[[frames.Bytes], Any]]:
            count = min(_STREAMS - 1, total // (4 * frames.BLOCK))
            with ThreadPoolExecutor(count) as pool:  # each takes several round trips
                started = list(pool.map(lambda number: _helper(box, path, number), range(1, count + 1)))
            return [helpers.enter_context(process).write for process in started]

        far = box.session.rtt_s > _LONG_S
        done = Sender(link, request, _paced(progress, start), widen if far else None).run()
    return _transferred(done, start)


def _receive(box: Box, request: dict[str, Any], progress: Callable[[Progress], None] | None) -> Transferred:
    start = time.monotonic()
    with _link(box, {**request, "role": "send"}) as link:
        receiver = Receiver(link, request, _paced(progress, start))
        try:
            done = receiver.run()
        except frames.StoppedError as error:
            if not error.theirs:
                with contextlib.suppress(NbkitError):
                    link.fail(error)
            raise
    return _transferred({**done, "sent": done["bytes"] - done["kept"]}, start)


def _helper(box: Box, path: str, number: int) -> Process:
    """A command there that lends its stdin to the transfer at the socket `path`."""
    process = box.session.start(_line(box))
    process.write(program.opening(program.text("join"), {"path": path, "number": number}))
    return process


def _line(box: Box) -> str:
    """Starts Python there without its site-packages: nothing of them is needed, and looking at them takes a while."""
    return program.command(f"{box.python} -S")


@contextlib.contextmanager
def _link(box: Box, request: dict[str, Any]) -> Iterator[frames.Frames]:
    """Frames to the box's end of a transfer; its errors, and those of the streams, become ours.

    Raises: TransferError, UnreachableError, RemoteCommandError.
    """
    source = program.bundle(*_MODULES[request["role"]])
    with batch(), box.session.start(_line(box)) as process, contextlib.ExitStack() as stack:
        greeting = _Greeting(process)
        try:
            process.write(program.opening(source, request))
            lender = process if isinstance(process, ChannelProcess) else None
            if lender:
                stack.enter_context(batch(lender.reader))
            link = frames.Frames(process.readinto, process.write, lender)

            def first(view: memoryview) -> int:
                greeting.wait()
                link.read = process.readinto
                return process.readinto(view)

            link.read = first  # what is to be sent first does not wait for it
            yield link
        except frames.StoppedError as error:
            place = f"{box.host}: " if error.theirs else ""
            hint = (
                error.hint.replace("look with: ", f"look with: {box.session.route.ssh} ")
                if error.theirs
                else error.hint
            )
            message = f"{place}{plain(error.message)}"
            if message.partition(" ")[0] in _BEGINNINGS:  # not a file's name
                message = message[:1].upper() + message[1:]
            raise TransferError(f"{message}.", hint=plain(hint)) from error
        except UnreachableError as error:
            raise UnreachableError(error.message, hint=f"{AGAIN} (what has come over is kept)") from error
        except (EOFError, NbkitError) as error:
            raise _ended(box, process, greeting.instead()) from error


class _Greeting:
    """Waits for the first words of our program there: a login shell may have printed before."""

    def __init__(self, process: Process) -> None:
        self._process, self._lock = process, threading.Lock()
        self._heard: bytes | None = b""  # so far; None once they have come

    def wait(self, timeout_s: float | None = None) -> None:
        """Read on to their end.

        Raises: EOFError when they do not come, TooLateError for each byte.
        """
        with self._lock:
            while self._heard is not None:
                byte = self._process.read(1, timeout_s)
                if not byte or len(self._heard) > _NOISE_BYTES:
                    raise EOFError
                self._heard += byte
                if self._heard.endswith(frames.HELLO):
                    self._heard = None

    def instead(self) -> bytes | None:
        """What came in their place, also where our end failed first, at writing to what had ended; None when they came."""
        if self._lock.acquire(timeout=_END_S):  # a thread that reads replies may wait for them, too
            self._lock.release()
            with contextlib.suppress(EOFError, NbkitError):
                self.wait(_END_S)
        return self._heard


def _ended(box: Box, process: Process, heard: bytes | None = None) -> NbkitError:
    """Why the program there ended without a word, or in place of its first word said what was heard."""
    try:
        status = process.wait(_END_S)
    except NbkitError as error:
        return error
    if status in {126, 127} or b"Error" in process.stderr or heard is not None:
        try:
            program.answer(box.session, heard or b"", process.stderr, status, box.python)
        except NbkitError as error:
            return error
    return TransferError(f"{box.host}: our program there ended (exit status {status}).", hint=AGAIN)


def _paced(progress: Callable[[Progress], None] | None, start: float) -> Callable[[int, int, str], None] | None:
    if progress is None:
        return None
    last = 0.0

    def tell(done: int, total: int, name: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _TELL_S or done == total:
            last = now
            progress(Progress(done, total, plain(name), now - start))

    return tell


def told_by(progress: Callable[[Progress], None] | None, name: str) -> Callable[[dict[str, Any]], None]:
    """What gets the lines of a program that fetches: those that say how far it is go to `progress`."""
    start = time.monotonic()

    def tell(line: dict[str, Any]) -> None:
        if progress and "progress" in line:
            done, total = line["progress"]
            progress(Progress(done, total, name, time.monotonic() - start))

    return tell


def _transferred(done: dict[str, Any], start: float) -> Transferred:
    """Raises: TransferError when a file did not get over."""
    failed = [tuple(plain(str(word)) for word in one) for one in done["failed"]]
    if failed:
        name, why, hint = failed[0]
        said = f"{name}: {why}" if name else why[:1].upper() + why[1:]
        others = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        files = int(done["files"])
        over = f" What could be sent is over, whole: {files} {'file' if files == 1 else 'files'}." if files else ""
        raise TransferError(f"{said}{others}.{over}", hint=hint or "mend that, then run it again")
    return Transferred(
        files=int(done["files"]),
        bytes=int(done["bytes"]),
        sent=int(done["sent"]),
        kept=int(done["kept"]),
        same=int(done["same"]),
        links=int(done["links"]),
        deleted=tuple(plain(str(name)) for name in done["deleted"]),
        notes=tuple(plain(str(note)) for note in done["notes"]),
        names=tuple(plain(str(name)) for name in done["names"]),
        sha256=plain(str(done["sha256"])) if done["files"] == 1 else "",
        seconds=round(time.monotonic() - start, 3),
    )
