"""The receiving end of a transfer; runs on either side. Trusts no name and no byte of the sender."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from nbkit.remote.there import frames as f
from nbkit.remote.there.delta import NOTHING, basis_of, tell
from nbkit.remote.there.place import FATAL, Part, check, explained
from nbkit.remote.there.plan import Plan, Want
from nbkit.remote.there.threads import Aside
from nbkit.remote.there.tree import YOURS, Entry

_BATCH_FILES, _BATCH_BYTES = 128, 32 << 20  # fsynced together, then renamed
_SYNC_THREADS = 8
_JOIN_S = 30.0
_NO_LOCKS = "the disk has no file locks: have nothing else write there until this is done"
Progress = Callable[[int, int, str], None]


class Receiver:
    """Receives what a Sender sends, into `dst` of the request."""

    def __init__(self, link: f.Frames, request: Dict[str, Any], progress: Optional[Progress] = None) -> None:
        self._link, self._request, self._progress = link, dict(request), progress
        self._batch: List[Tuple[Part, Entry]] = []
        self._batch_bytes = 0
        self._folders: Set[bytes] = set()  # those to fsync
        self._done = self._total = 0
        self._over = False
        self._aside = Aside()
        self._joined: List[Any] = []  # of the commands that lent us their stdin
        self._result: Dict[str, Any] = {"files": 0, "bytes": 0, "kept": 0, "same": 0, "links": 0, "deleted": [],
                                        "failed": [], "notes": [], "names": [], "sha256": ""}  # fmt: skip

    def run(self) -> Dict[str, Any]:
        """Receive everything; what was done.

        Raises: StoppedError, or what the streams raise.
        """
        entries = self._announced()
        check(entries, self._request["contents"], [f.raw(name) for name in self._request.get("sources", ())])
        self._plan = plan = Plan(self._request, entries)
        wants = plan.wants()
        extra = plan.too_much(self._left) if self._request["delete"] else []
        self._total = sum(want.entry.size for want in wants)
        self._result["same"] = plan.same
        there = sum(want.entry.size for want in wants if want.basis)
        self._link.put_json(f.PLAN_END, {"files": len(wants), "bytes": self._total, "there": there})
        if self._request["dry_run"]:
            self._result["names"] = [f.text(want.entry.name) for want in wants]
            self._result["deleted"] = [f.text(name) for name in plan.in_the_way + extra]
            self._result["notes"] += [f"{name} {why}" for name, why, _ in self._result["failed"]]
            self._result["failed"] = []
        else:
            self._make_way()
            if there:
                threading.Thread(
                    target=self._ask_meanwhile, args=[wants], name="nbkit-transfer-asks", daemon=True
                ).start()
            else:
                self._ask(wants)
            try:
                for want in wants:
                    self._file(want)
                self._link.take(f.ALL_SENT)
            finally:
                self._over = True
                self._flush()
            self._finish(extra)
        self._link.put_long_json(f.DONE, self._result)
        self._link.flush()
        return self._result

    def _announced(self) -> List[Entry]:
        entries: List[Entry] = []
        rest = b""
        while True:
            kind, body = self._link.take(f.TREE, f.TREE_END)
            if kind == f.TREE_END:
                rest += body
                if body:
                    continue
                said = json.loads(rest.decode())
                self._result["notes"] = [str(note) for note in said["notes"]]
                self._result["failed"] = [[f.shown(f.raw(name)), str(why), YOURS] for name, why in said["failed"]]
                self._left = {f.raw(name) for name in said["left"]}
                self._request["contents"] = bool(self._request["contents"] and said["contents"])
                self._request["many"] = bool(self._request["many"] or said["many"])
                if said["failed"]:  # below it may well be what would be deleted
                    self._request["delete"] = False
                return entries
            for name, what, size, mode, mtime_ns, target in json.loads(body.decode()):
                entries.append(Entry(f.raw(name), str(what), int(size), int(mode), int(mtime_ns), f.raw(target)))

    def _make_way(self) -> None:
        """Remove what stands in the way, make the folders."""
        plan = self._plan
        plan.remove(plan.in_the_way)
        plan.make_folders()
        try:
            plan.mark(done=False)
        except OSError as error:
            raise explained(error, error.filename or plan.base, plan.free()) from error

    def _ask(self, wants: List[Want]) -> None:
        """Say which files are wanted, and which blocks of them are here already."""
        for want in wants:
            old = basis_of(want.basis, want.basis == want.path, want.entry.size) if want.basis else NOTHING
            self._link.put_json(f.PLAN, [want.number, *old])
            for rows in tell(want.basis, old) if old.size else ():
                self._link.put(f.HASHES, rows)
                self._link.flush()
                if self._over:
                    return
        self._link.flush()

    def _ask_meanwhile(self, wants: List[Want]) -> None:
        """The same in a thread, while what is told first comes already. When it breaks off, the sender ends the transfer."""
        try:
            self._ask(wants)
        except Exception as error:
            with contextlib.suppress(Exception):
                self._link.fail(f.StoppedError(f"what is there already cannot be told ({error})", "run it again"))

    def _widen(self) -> None:
        """Take more streams: other commands of this user lend us their stdin, through a socket in a private folder."""
        import array  # here, not above: a program there that never needs it starts sooner
        import socket
        import tempfile

        with tempfile.TemporaryDirectory(prefix="nbkit-") as folder, socket.socket(socket.AF_UNIX) as listener:
            path = os.path.join(folder, "s")
            listener.bind(path)
            listener.listen(16)
            listener.settimeout(_JOIN_S)
            self._link.put(f.WIDEN, path.encode())
            self._link.flush()
            count = int(json.loads(self._link.take(f.WIDEN)[1].decode()))
            reads: Dict[int, Callable[[memoryview], int]] = {0: self._link.read}
            for _ in range(count):
                peer, _address = listener.accept()
                number, extra, _flags, _from = peer.recvmsg(1, socket.CMSG_SPACE(4))
                handle = array.array("i", extra[0][2])[0]
                reads[number[0]] = os.fdopen(handle, "rb", buffering=0).readinto
                self._joined.append(peer)  # the other command lives until this is closed
            self._link.put(f.WIDEN)
            self._link.flush()
            self._link.read, self._link.lender = f.StripedReader([reads[number] for number in sorted(reads)]).read, None

    # -- one file

    def _file(self, want: Want) -> None:
        """Fill and check its part; what is wrong with this one alone does not stop the others."""
        part, refusal = self._open(want)
        fault = refusal.message if refusal else ""
        try:
            fault = self._content(part, want) or fault
            if part and not fault:
                part.settle(want.entry)
        except BaseException as error:
            if part:
                part.leave()
            if isinstance(error, OSError) and error.errno:
                raise explained(error, want.path, self._plan.free()) from error
            raise
        if part and not fault:
            self._batch.append((part, want.entry))
            self._batch_bytes += want.entry.size
            if len(self._batch) >= _BATCH_FILES or self._batch_bytes >= _BATCH_BYTES:
                self._flush()
            return
        if part:
            part.leave()
        named = refusal is not None and fault == refusal.message
        self._result["failed"].append(
            ["" if named else f.shown(want.entry.name), fault, refusal.hint if refusal and named else ""]
        )

    def _open(self, want: Want) -> Tuple[Optional[Part], Optional[f.StoppedError]]:
        """Its part; or none, and why."""
        try:
            part = Part(want.path, go_on=want.basis not in (b"", want.path))
        except f.StoppedError as error:
            return None, error
        except OSError as error:
            found = explained(error, want.path, self._plan.free())
            if error.errno in FATAL:
                raise found from error
            return None, found
        if not part.locked and _NO_LOCKS not in self._result["notes"]:
            self._result["notes"].append(_NO_LOCKS)
        return part, None

    def _content(self, part: Optional[Part], want: Want) -> str:
        """Take the frames of one file, to its end; what is wrong with it, or nothing."""
        whole, at = hashlib.sha256(), 0
        write = part.write if part else _nowhere
        while True:
            kind, size = self._link.head()
            if kind == f.DATA and size <= f.BLOCK and at + size <= want.entry.size:
                for view in self._link.pieces(size):
                    with self._aside.doing(write, view, at):
                        whole.update(view)
                    at += len(view)
            elif kind == f.KEPT:
                at = self._keep(part, want, at, json.loads(self._link.body(size).decode()), whole)
            elif kind == f.WIDEN:
                self._widen()
            elif kind in (f.FILE_END, f.FILE_FAILED):
                self._done += at
                body = self._link.body(size)
                if kind == f.FILE_FAILED:
                    return str(json.loads(body.decode()))
                self._result["sha256"] = whole.hexdigest()
                damaged = at != want.entry.size or whole.digest() != body
                return "what arrived is not what was sent (sha256); send it again" if damaged else ""
            else:
                raise f.StoppedError(f"the other side said {kind!r} out of turn", f.VERSIONS)
            if self._progress:
                self._progress(self._done + at, self._total, f.text(want.entry.name))

    def _keep(self, part: Optional[Part], want: Want, at: int, kept: List[int], whole: Any) -> int:
        """What is here: read once more for the file's sha256, copied where the older version has it."""
        start, count = map(int, kept)
        end, moves = at + count, want.basis == want.path
        if start < 0 or count < 0 or end > want.entry.size or not want.basis or (start != at and not moves):
            raise f.StoppedError("the other side keeps more than there is", f.VERSIONS)
        self._result["kept"] += count
        with open(want.basis, "rb") as basis:
            basis.seek(start)
            while part and at < end:
                block = basis.read(min(f.BLOCK, end - at))
                if not block:
                    break  # it shrank meanwhile: the sha256 will tell
                whole.update(block)
                if moves:
                    part.write(memoryview(block), at)
                at += len(block)
        return end

    def _flush(self) -> None:
        """Have the batch on the disk, then give every file its final name."""
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        if not batch:
            return
        try:
            _sync([part for part, _ in batch])
            for part, entry in batch:
                part.finish()
                self._folders.add(os.path.dirname(part.path) or b".")
                self._result["files"] += 1
                self._result["bytes"] += entry.size
        except OSError as error:
            raise explained(error, batch[0][0].path, self._plan.free()) from error

    def _finish(self, extra: List[bytes]) -> None:
        """Links, what is too much, the folders' modes and times."""
        try:
            self._result["links"] = self._plan.make_links()
            if not self._result["failed"]:
                self._plan.remove(extra)
                self._result["deleted"] = [f.text(name) for name in self._plan.in_the_way + extra]
                self._plan.mark(done=True)
            self._result["notes"] += self._plan.settle_folders()
        except OSError as error:
            raise explained(error, error.filename or self._plan.base, self._plan.free()) from error
        for path in self._folders:
            with contextlib.suppress(OSError):  # some network file systems refuse fsync on a folder
                handle = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)


def _nowhere(view: memoryview, at: int) -> None:
    """What is received of a file that cannot be written here."""


def _sync(parts: List[Part]) -> None:
    """Wait until they are on the disk."""
    if len(parts) == 1:
        parts[0].sync()
        return
    from concurrent.futures import ThreadPoolExecutor  # takes a while to import

    with ThreadPoolExecutor(_SYNC_THREADS) as pool:
        list(pool.map(Part.sync, parts))
