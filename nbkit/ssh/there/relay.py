"""The relay: runs on the box, out of reach of a break, and holds the far ends of a client's streams. One thread.

It listens on a Unix socket that only this user can open. It ends when asked to, and when nobody has used it for a while.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import selectors
import socket
import time
from typing import Any, Dict, List, Optional, Set

from nbkit.ssh.there import frames as f
from nbkit.ssh.there.endpoint import AGAIN_S, REST_S, Endpoint
from nbkit.ssh.there.mux import MEMORY, Mux
from nbkit.ssh.there.spool import Spool

IDLE_S = 900.0  # without a session; then it ends
KEEP_S = 24 * 3600.0  # a client may be away so long
DISK = 1 << 30  # bytes of the spool
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_FREE = 16 << 20
_TICK_S = 1.0
_SAY_AGAIN_S = 60.0
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_MOST_BUFFERS = 64  # of one system call
_SEND_BYTES = 1 << 18  # of a line wait in its socket: sshd finds more each time it looks, small answers wait behind it


class Session:
    """One client, from its first word to its last; it may be away in between."""

    def __init__(self, relay: Relay, name: str) -> None:
        self.relay, self.name = relay, name
        self.mux: Mux = Mux(lambda request: Endpoint(self.mux, relay, request), spool=relay.spool, memory=relay.memory)
        self.line: Optional[Line] = None
        self.since = time.monotonic()  # it came, or went away

    def end(self) -> None:
        for stream in self.mux.drop_all():
            self.relay.forget(stream.sock)  # type: ignore[attr-defined]  # each is an Endpoint
        if self.line is not None:
            self.line.close()
        self.relay.sessions.pop(self.name, None)
        self.relay.idle_since = time.monotonic()


class Line:
    """A connection from a client: of a session once it has said hello."""

    def __init__(self, relay: Relay, sock: socket.socket) -> None:
        self.relay, self.sock = relay, sock
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
        self.session: Optional[Session] = None
        self.reader = f.Reader(self)
        self.out: List[memoryview] = []
        self.closing = False
        relay.lines.add(self)
        relay.watch(sock, _READ, self.event)

    def event(self, mask: int) -> None:
        """It can be read or written."""
        if mask & _READ:
            try:
                got = self.sock.recv_into(self.relay.buffer)
                if not got:
                    raise ConnectionResetError
                self.reader.feed(self.relay.buffer[:got])
            except BlockingIOError:
                pass
            except (OSError, f.BrokenError, ValueError, KeyError, TypeError):
                self.close()
                return
        self.flush()

    def frame(self, kind: int, number: int, position: int, body: bytes) -> None:
        """From the Reader: the first is a hello, or a question; the rest is the session's."""
        if self.session is not None:
            if kind == f.BYE:
                self.session.end()
            else:
                self.session.mux.frame(kind, number, position, body)
        elif kind == f.HELLO:
            self.hello(json.loads(body.decode()))
        elif kind == f.ASK:
            self.answer(self.relay.asked(json.loads(body.decode())))
        elif not self.closing:
            raise f.BrokenError("the first frame is no hello")

    def piece(self, number: int, position: int, view: memoryview) -> None:
        if self.session is not None:
            self.session.mux.piece(number, position, view)

    def hello(self, said: Dict[str, Any]) -> None:
        name = str(said["session"])
        session = self.relay.sessions.get(name)
        if session is None and (said["resume"] or said["protocol"] != f.PROTOCOL):
            self.answer({"known": False, "expired": name in self.relay.expired, **self.relay.facts()})
            return
        if session is None:
            session = self.relay.sessions[name] = Session(self.relay, name)
        if session.line is not None:
            session.line.close()  # of before the break, which this side may not have noticed
        self.session, session.line = session, self
        session.mux.begin(f.frame(f.WELCOME, 0, 0, json.dumps({"known": True, **self.relay.facts()}).encode()))

    def answer(self, what: Dict[str, Any]) -> None:
        """The only answer on this line."""
        self.closing = True
        self.out.append(memoryview(f.frame(f.WELCOME, 0, 0, json.dumps(what).encode())))

    def flush(self) -> None:
        """Send as much as goes now."""
        if self.sock.fileno() < 0:
            return
        try:
            while True:
                if not self.out and self.session is not None:
                    self.out = [memoryview(part) for part in self.session.mux.take()]
                if not self.out:
                    break
                self._sent(self.sock.sendmsg(self.out[:_MOST_BUFFERS]))
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self.closing and not self.out:
            self.close()
            return
        self.relay.watch(self.sock, _READ | (_WRITE if self.out else 0), self.event)

    def _sent(self, size: int) -> None:
        done = 0
        while done < len(self.out) and size >= len(self.out[done]):
            size -= len(self.out[done])
            done += 1
        del self.out[:done]
        if size:
            self.out[0] = self.out[0][size:]

    def close(self) -> None:
        """Let go of the line; the session waits for the next."""
        self.relay.lines.discard(self)
        self.relay.forget(self.sock)
        self.out = []
        session, self.session = self.session, None
        if session is not None and session.line is self:
            session.line, session.since = None, time.monotonic()
            session.mux.lost()


class Relay:
    """Everything that one relay holds."""

    def __init__(self, listener: socket.socket, limits: Dict[str, Any]) -> None:
        self.listener, self.path = listener, listener.getsockname()
        self.memory = int(limits.get("memory") or MEMORY)
        self.idle_s, self.keep_s = float(limits.get("idle_s") or IDLE_S), float(limits.get("keep_s") or KEEP_S)
        self.spool = Spool(limits.get("spool") or os.path.dirname(self.path), int(limits.get("disk") or DISK))
        self.sessions: Dict[str, Session] = {}
        self.lines: Set[Line] = set()
        self.expired: Set[str] = set()
        self.later: List[Any] = []  # (when, endpoint that connects again)
        self.resting: Set[Endpoint] = set()  # not read for a moment, for they are ahead of their lines
        self.buffer = memoryview(bytearray(f.CHUNK))
        self.idle_since = time.monotonic()
        self.retired = self.over = False
        self.refused, self.said_full = 0, -_SAY_AGAIN_S
        self.inode = os.stat(self.path).st_ino
        self.poll = selectors.DefaultSelector()
        listener.setblocking(False)
        self.watch(listener, _READ, self.accept)

    def watch(self, sock: socket.socket, events: int, call: Any) -> None:
        """Call `call(mask)` at these events, and no others, of the socket."""
        try:
            key = self.poll.get_key(sock)
        except (KeyError, ValueError):
            if events and sock.fileno() >= 0:
                self.poll.register(sock, events, call)
            return
        if not events:
            self.poll.unregister(sock)
        elif key.events != events:
            self.poll.modify(sock, events, call)

    def forget(self, sock: Optional[socket.socket]) -> None:
        """Close a socket; idempotent."""
        if sock is not None and sock.fileno() >= 0:
            self.watch(sock, 0, None)
            sock.close()

    def accept(self, _: int) -> None:
        """A client, or one of before that comes back."""
        with contextlib.suppress(OSError):
            Line(self, self.listener.accept()[0])

    def run(self) -> None:
        """Serve until asked to end, or idle."""
        ticked = time.monotonic()
        while not self.over:
            for key, mask in self.poll.select(REST_S if self.resting else AGAIN_S if self.later else _TICK_S):
                key.data(mask)
            now = time.monotonic()
            due, self.later = [e for at, e in self.later if at <= now], [(at, e) for at, e in self.later if at > now]
            for endpoint in due:
                if endpoint.sock.fileno() >= 0:
                    endpoint.connect()
            if now - ticked >= _TICK_S:
                ticked = now
                self.tick(now)
            self.tell_if_full(now)
            for line in list(self.lines):
                if line.session is not None and not line.out and line.session.mux.waits():
                    line.flush()
            resting, self.resting = self.resting, set()
            for endpoint in resting:
                endpoint.settle()
        if self.in_place():
            with contextlib.suppress(OSError):
                os.unlink(self.path)

    def in_place(self) -> bool:
        """Whether the socket still stands at its path."""
        try:
            return os.stat(self.path).st_ino == self.inode
        except OSError:
            return False

    def tick(self, now: float) -> None:
        """Once a second: what little has come is acknowledged, who stays away too long is given up."""
        for session in list(self.sessions.values()):
            session.mux.tick()
            if session.line is None and now - session.since > self.keep_s:
                self.expired.add(session.name)
                session.end()
        if not self.lines and not self.in_place():
            self.over = True  # nobody can find us any more
        elif not self.sessions:
            self.over = self.retired or now - self.idle_since > self.idle_s

    def tell_if_full(self, now: float) -> None:
        """Say, now and then, that what runs here is held up because nothing more can be kept."""
        if self.spool.refused == self.refused or now < self.said_full + _SAY_AGAIN_S:
            return
        self.refused, self.said_full = self.spool.refused, now
        for session in self.sessions.values():
            if any(stream.keep for stream in session.mux.streams.values()):
                session.mux.note(
                    "%s keeps %d MiB of output for you and takes no more (%s): what prints there is held up until that"
                    " has been sent; nothing is lost." % (platform.node(), self.spool.held >> 20, self.spool.why)
                )

    def facts(self) -> Dict[str, Any]:
        return {"protocol": f.PROTOCOL, "pid": os.getpid(), "python": platform.python_version(), "boot": boot()}

    def asked(self, question: Dict[str, Any]) -> Dict[str, Any]:
        """What is asked of the relay, not of a session."""
        if question["do"] == "end":
            self.over = True
        elif question["do"] == "retire":
            self.retired = True
        elif question["do"] == "forget":  # their clients were killed, says who had them
            for name in question["sessions"]:
                if name in self.sessions:
                    self.sessions[name].end()
        files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        sessions = [
            {"away": s.line is None, "streams": len(s.mux.streams), "held": s.mux.held} for s in self.sessions.values()
        ]
        return {
            "sessions": sessions,
            "spooled": self.spool.held,
            "files": files,
            **self.facts(),
        }


def boot() -> str:
    """Names this run of the machine; empty where it has no name."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return ""


def keep_freed_memory() -> None:
    """Have glibc keep a window's worth of freed memory for the next bytes.

    By itself it gives each large block back to the system, and takes it anew page by page: a tenth of a large transfer's time.
    """
    with contextlib.suppress(Exception):  # another C library
        import ctypes

        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_FREE)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE)


def serve(listener: socket.socket, limits: Dict[str, Any]) -> None:
    """Run a relay on a socket that listens."""
    os.umask(0o077)
    keep_freed_memory()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    Relay(listener, limits).run()
