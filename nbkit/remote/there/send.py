"""The sending end of a transfer; runs on either side."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import queue
import threading
from typing import Any, Callable, Dict, List, Optional, Tuple

from nbkit.remote.there import frames as f
from nbkit.remote.there.delta import ROW, Basis, Rows, Window, pieces
from nbkit.remote.there.threads import Aside
from nbkit.remote.there.tree import Entry, scan

_AT_ONCE = 500  # entries in a frame
Progress = Callable[[int, int, str], None]  # bytes done, bytes in all, the file's name
GROWING = (b".jsonl", b".log")  # lines are only ever appended to these
Widen = Callable[[str, int], List[Callable[[f.Bytes], Any]]]


class Sender:
    """Sends `sources` to a Receiver.

    Args:
        progress: Told how far it is.
        widen: Given the path of a socket there and the bytes to go, opens more streams to it.
    """

    def __init__(
        self,
        link: f.Frames,
        request: Dict[str, Any],
        progress: Optional[Progress] = None,
        widen: Optional[Widen] = None,
    ) -> None:
        self._link, self._request, self._progress, self._widen = link, request, progress, widen
        kinds = (f.PLAN, f.HASHES, f.PLAN_END, f.WIDEN, f.DONE)
        self._replies: Dict[bytes, queue.Queue[Optional[bytes]]] = {kind: queue.Queue() for kind in kinds}
        self._ended: Optional[BaseException] = None
        self._block = memoryview(bytearray(f.BLOCK))
        self._aside = Aside()
        self._done = self._total = self._there = self._sent = 0

    def run(self) -> Dict[str, Any]:
        """Send everything; what the receiver says at the end, and `sent`, the bytes that went over.

        Raises: StoppedError, or what the streams raise.
        """
        tree = scan(
            [f.raw(name) for name in self._request["sources"]], self._request["links"], self._request["contents"]
        )
        rows = [[f.text(e.name), e.kind, e.size, e.mode, e.mtime_ns, f.text(e.target)] for e in tree.entries]
        reader = threading.Thread(target=self._listen, name="nbkit-transfer-replies", daemon=True)
        reader.start()
        try:
            for at in range(0, len(rows), _AT_ONCE):
                self._link.put_json(f.TREE, rows[at : at + _AT_ONCE])
            failed = [[f.text(name), why] for name, why in tree.failed]
            left = [f.text(name) for name in tree.left]
            self._link.put_long_json(
                f.TREE_END,
                {"notes": tree.notes, "contents": tree.contents, "many": tree.many, "left": left, "failed": failed},
            )
            self._link.flush()
            files = [entry for entry in tree.entries if entry.kind == "file"]
            summary = json.loads(self._reply(f.PLAN_END).decode())
            self._total, self._there = summary["bytes"], summary["there"]
            if not self._request["dry_run"]:
                self._all(files, tree.paths, summary["files"])
            said = b"".join(iter(lambda: self._reply(f.DONE), b""))
            done: Dict[str, Any] = json.loads(said.decode())
        except f.StoppedError:
            raise
        except Exception as error:  # Ctrl-C does not wait
            reader.join(5)  # the other side may have said why before it went
            if isinstance(self._ended, f.StoppedError):
                raise self._ended from error
            raise
        done["sent"] = self._sent
        return done

    def _all(self, files: List[Entry], paths: Dict[bytes, bytes], count: int) -> None:
        self._widen_for(self._total - self._there)
        for _ in range(count):
            index, block, size, moves = json.loads(self._reply(f.PLAN).decode())
            if not (0 < block <= f.BLOCK and size >= 0):
                raise f.StoppedError("the other side has blocks of another size", f.VERSIONS)
            old = Rows(Basis(block, size, bool(moves)), self._rows)
            self._file(files[index], paths[files[index].name], old)
            old.drain()
        self._link.put(f.ALL_SENT)
        self._link.flush()

    def _rows(self) -> bytes:
        rows = self._reply(f.HASHES)
        if not rows or len(rows) % ROW:
            raise f.StoppedError("the other side tells of no blocks", f.VERSIONS)
        return rows

    def _widen_for(self, size: int) -> None:
        """Have more streams, where so much is still to go over that they are worth the round trips which they cost."""
        if not self._widen or size < 8 * f.BLOCK:
            return
        widen, self._widen = self._widen, None
        self._link.put(f.WIDEN)
        self._link.flush()
        writes = widen(self._reply(f.WIDEN).decode(), size)
        self._link.put_json(f.WIDEN, len(writes))
        self._link.flush()
        self._reply(f.WIDEN)
        self._link.write = f.StripedWriter([self._link.write, *writes]).write

    def _file(self, entry: Entry, path: bytes, old: Rows) -> None:
        """One file: what the receiver has is named, the rest sent."""
        try:
            with open(path, "rb", buffering=0, opener=_opened) as file:
                whole = self._content(file, entry, old)
        except OSError as error:
            self._link.put_json(f.FILE_FAILED, f"cannot be read: {error.strerror}")
            return
        if whole:
            self._link.put(f.FILE_END, whole)
        else:
            self._link.put_json(f.FILE_FAILED, "changed while it was being sent; send it again")

    def _content(self, file: Any, entry: Entry, old: Rows) -> bytes:
        """The file's sha256; empty when it is not, or no longer, what was announced."""
        grows = self._request.get("growing", False) and entry.name.endswith(GROWING)
        if not _same(file, entry, grows):
            return b""
        whole = self._against(file, entry, old) if old.size else self._all_of(file, entry)
        more = not entry.size and not grows and file.read(1)
        if not _same(file, entry, grows):
            return b""
        if more:
            raise OSError(errno.EINVAL, "it says that it is empty and is not, as files of /proc and /sys do")
        return whole

    def _all_of(self, file: Any, entry: Entry) -> bytes:
        whole, size = hashlib.sha256(), 0
        while size < entry.size:
            view = self._block[: min(self._read(file), entry.size - size)]
            if not view:
                return b""
            with self._aside.doing(whole.update, view):
                self._data(view, entry, (file.fileno(), size))
            size += len(view)
        return whole.digest()

    def _against(self, file: Any, entry: Entry, old: Rows) -> bytes:
        window, size = Window(file.read, entry.size), 0
        for piece in pieces(window, old):
            if isinstance(piece, tuple):
                self._link.put_json(f.KEPT, piece)
                self._link.flush()  # the other side reads it once more meanwhile
                size += piece[1]
                self._moved(piece[1], entry)
            else:
                size += len(piece)
                self._data(piece, entry)
        return window.whole.digest() if size == entry.size else b""

    def _data(self, view: f.Bytes, entry: Entry, source: Optional[Tuple[int, int]] = None) -> None:
        self._link.put(f.DATA, view, source)
        self._sent += len(view)
        if self._widen and self._sent >= 8 * f.BLOCK:
            self._widen_for(self._total - self._done - len(view))
        self._moved(len(view), entry)

    def _moved(self, size: int, entry: Entry) -> None:
        self._done += size
        if self._progress:
            self._progress(self._done, self._total, f.text(entry.name))

    def _read(self, file: Any) -> int:
        size = 0
        while size < f.BLOCK:
            more = file.readinto(self._block[size:])
            if not more:
                break
            size += more
        return size

    # -- what the receiver says

    def _listen(self) -> None:
        try:
            while True:
                kind, body = self._link.take(*self._replies)
                self._replies[kind].put(body)
        except BaseException as error:
            self._ended = error
            for replies in self._replies.values():
                replies.put(None)

    def _reply(self, kind: bytes) -> bytes:
        """The next of this kind, when it is there."""
        if self._replies[kind].empty():
            self._link.flush()
        body = self._replies[kind].get()
        if body is None:
            assert self._ended is not None
            raise self._ended
        return body


def _opened(path: Any, flags: int) -> int:
    """What stands in the place of the file that was announced may be a pipe now: it is not waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def _same(file: Any, entry: Entry, grows: bool) -> bool:
    found = os.fstat(file.fileno())
    if grows:
        return found.st_size >= entry.size  # what was announced of it still stands
    return (found.st_size, found.st_mtime_ns) == (entry.size, entry.mtime_ns)
