"""Byte streams to a host that outlive the connection: a relay there holds their far ends while the link is made again.

`Streams(session)` starts the relay where none runs, and is then what a `forward` rides on. The line to it is a channel to its
socket or, where sshd forbids that, a command there. docs/relay.md has the protocol.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nbkit.closing import Closing
from nbkit.errors import NbkitError, RemoteCommandError, UnreachableError
from nbkit.ssh import carried, left, relays
from nbkit.ssh.relayed import Line, RelayStream
from nbkit.ssh.session import Session
from nbkit.ssh.text import plain
from nbkit.ssh.there import frames as f
from nbkit.ssh.there.mux import Mux

if TYPE_CHECKING:
    from nbkit.ssh.session import Connection
    from nbkit.ssh.stream import Sink

_GREET_S = 15.0
_SILENT_S, _DEAD_S = 3, 30  # the link itself is watched by the session; this is for a relay that hangs
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
_MOST_NOTES = 100


class Streams(Closing):
    """Streams over one session. A context manager; `close()` is idempotent and ends them all.

    Attributes:
        session: Makes the link again; held open as long as this is.
        error: Why it is over for good; None while it is not.
        notes: What a person should know, in the order it happened: a relay that was lost, a spool that is full.
        reconnects: How often a line was made again.
    """

    def __init__(
        self, session: Session, *, python: str = "python3", folder: str = "", limits: Mapping[str, Any] | None = None
    ) -> None:
        self.session = session
        self.error: NbkitError | None = None
        self.notes: list[str] = []
        self.reconnects = 0
        self._python, self._folder, self._limits = python, folder, dict(limits or {})
        self._line: Line | None = None
        self._path = ""
        self._boot = ""
        self._changed: list[Callable[[], None]] = []
        self._send_lock = threading.Lock()
        self._again = self._closed = False
        self._awake = threading.Event()
        self._mark: left.Mark | None = None
        self._new_session()
        try:
            self._attach()
        except BaseException:
            self._unmark()
            raise
        session.hold(self.wake)
        self._thread = threading.Thread(target=self._run, name="nbkit-ssh-streams", daemon=True)
        self._thread.start()

    def _new_session(self) -> None:
        self._name, self._resume = secrets.token_hex(16), False
        self._unmark()
        self._mark = left.mark(self._to, self._name)
        self.mux = Mux()
        self.mux.noted, self.mux.greeted = self._noted, self._greeted

    @property
    def _to(self) -> str:
        return f"{self.session.route} {self._folder}"

    def _unmark(self) -> None:
        mark, self._mark = self._mark, None
        if mark is not None:
            mark.remove()

    # -- the line

    def _find(self) -> None:
        """Find the relay there, or start it.

        Raises: RemoteCommandError with why there is none; UnreachableError.
        """
        behind = left.behind(self._to)  # of processes of ours that were killed
        self._path = relays.find(
            self.session, python=self._python, folder=self._folder, limits=self._limits, gone=sorted(behind)
        )
        for path in behind.values():
            path.unlink(missing_ok=True)

    def _attach(self) -> None:
        """Open a line to the relay and take up the session on it: to its socket, or by a command where sshd forbids that.

        Raises: RemoteCommandError, UnreachableError.
        """
        fresh, session = not self._path, self.session
        if fresh:
            self._find()
        engine = session.engine
        line, error = self._take_up(engine)
        if line.refused and fresh and not session.sockets_refused and engine.active:
            # A program there has just spoken to the relay. What sshd refuses it gives the same words as a socket that is gone.
            session.sockets_refused = True
            line, error = self._take_up(engine)
            session.sockets_refused = error is None
        if error is None:
            return
        line.end("given up")
        if not session.alive or line.forgotten:
            raise error
        self._path = ""  # it may have gone: look again
        if fresh:
            relays.listed(session, python=self._python, folder=self._folder, retire=True)
            raise RemoteCommandError(
                f"{session.route.asked} does not let us reach the relay that was started there: {line.why}.",
                hint="look there: ls -l ~/.nbkit/run/*",
            )
        raise error

    def _take_up(self, engine: Connection) -> tuple[Line, UnreachableError | None]:
        """A new line over `engine`, and why it is none."""
        line = Line(self)
        hello = {"protocol": f.PROTOCOL, "session": self._name, "resume": self._resume}
        with self._send_lock:
            self.mux.begin(f.frame(f.HELLO, 0, 0, json.dumps(hello).encode()))
        try:
            if self.session.sockets_refused:
                carried.reach(engine, self._path, line.opened, line, python=self._python)
            else:
                engine.reach(self._path, line.opened, line)
            line.wait_open(_GREET_S)
            self._line = line
            self.flush()
            line.wait_ready(_GREET_S)
        except UnreachableError as error:
            return line, error
        return line, None

    def _greeted(self, said: dict[str, Any]) -> None:
        """The relay's first word, on the transport's thread."""
        line = self._line
        if said["known"]:
            self._resume, self._boot = True, said["boot"]
            return
        if self._boot and said["boot"] != self._boot:
            why = "was restarted"
        elif said["expired"]:
            why = "has given us up after a long absence"
        else:
            why = "has lost its relay (it was ended)"
        gone, streams = f"{self.session.route.asked} {why}", self.mux.drop_all()
        self._boot = said["boot"]
        if streams:
            count = f"{len(streams)} open connection{'s' * (len(streams) > 1)}"
            self._noted(f"{gone}: {count} ended; new ones work.")
        self._new_session()
        if line is not None:
            line.forgotten = True
            line.end(gone)
        for stream in streams:
            stream.gone()  # type: ignore[attr-defined]  # each is a RelayStream

    def _noted(self, text: str) -> None:
        self.notes.append(plain(text, 500))
        del self.notes[:-_MOST_NOTES]
        self._tell()

    # -- the thread

    def _run(self) -> None:
        pause, ticked = _FIRST_PAUSE_S, time.monotonic()
        while not self._closed:
            if self.session.error is not None or self.session.closed:
                closed = UnreachableError(
                    f"The connection to {self.session.route.asked} was closed.", hint="connect again"
                )
                self._end(self.session.error or closed)
                return
            if self._line is None or self._line.over:
                if not self.session.wait(0.5):
                    continue
                try:
                    self._attach()
                except NbkitError as error:
                    if isinstance(error, RemoteCommandError) and error.message not in self.notes[-1:]:
                        self._noted(error.message)  # it will not mend itself
                    self._awake.wait(pause)
                    self._awake.clear()
                    pause = min(2 * pause, _LONGEST_PAUSE_S)
                    continue
                self.reconnects += 1
                pause = _FIRST_PAUSE_S
                self._tell()
            self._awake.wait(1.0)
            self._awake.clear()
            if time.monotonic() - ticked >= 1.0:
                ticked = time.monotonic()
                self._tick()
            self.flush()

    def _tick(self) -> None:
        line = self._line
        self.mux.tick()
        if line is not None and line.silent_ticks() >= _DEAD_S:
            line.end(f"the relay has not answered for {_DEAD_S} s")
        elif line is not None and line.silent % _SILENT_S == _SILENT_S - 1:
            self.mux.say(f.PING)

    def wake(self) -> None:
        """Have the thread look: something is to be sent, or the link has changed."""
        self._awake.set()

    def flush(self) -> None:
        """Send what there is, unless another thread does already. Waits for the network, not for the relay."""
        self._again = True
        while self._again and self._send_lock.acquire(blocking=False):
            try:
                self._again = False
                if self._line is not None:
                    self._line.send()
            finally:
                self._send_lock.release()

    def _end(self, error: NbkitError) -> None:
        self.error = error
        for stream in self.mux.drop_all():
            stream.gone()  # type: ignore[attr-defined]  # as above
        self._tell()

    # -- what a forward uses

    @property
    def alive(self) -> bool:
        """True while the relay is in reach."""
        return self._line is not None and self._line.ready and not self._line.over

    def reach(
        self, remote: int | str, opened: Callable[[Exception | None], None], sink: Sink, *, keep: bool = False
    ) -> RelayStream:
        """A connection to a port or a socket on the host, that a lost link does not end; as `Session.reach`.

        Args:
            keep: What the other end sends while we are away or slow is kept there, in memory and then on disk.

        Raises: UnreachableError while the link is away, or the error that ended it for good.
        """
        if self.error is not None:
            raise self.error.with_traceback(None)  # the same each time: it would grow with each
        if not self.alive or self._closed:
            raise UnreachableError(f"The link to {self.session.route.asked} is away.", hint="it is being made again")
        mux = self.mux
        stream = RelayStream(self, remote, opened, sink, keep=keep)
        mux.open(stream)
        opened(None)
        self.flush()
        if self.mux is not mux:  # the relay was lost just now
            stream.gone()
        return stream

    def hold(self, changed: Callable[[], None]) -> None:
        """Have `changed` called whenever the line comes or goes."""
        self._changed.append(changed)

    def release(self, changed: Callable[[], None]) -> None:
        """The counterpart of `hold`."""
        with contextlib.suppress(ValueError):
            self._changed.remove(changed)

    def _tell(self) -> None:
        for changed in list(self._changed):
            changed()

    def close(self) -> None:
        """End every stream, and tell the relay; it ends itself when nobody uses it."""
        if self._closed:
            return
        self._closed = True
        self.mux.say(f.BYE)
        self.flush()
        self.wake()
        self._thread.join(timeout=_GREET_S)
        self.session.release(self.wake)
        if self._line is not None:
            self._line.end("closed here")
        self._unmark()
        for stream in self.mux.drop_all():
            stream.gone()  # type: ignore[attr-defined]  # as above
