"""A session on a host: commands, channels, a sign of life; made again by itself where someone holds it open."""

from __future__ import annotations

import contextlib
import random
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbkit.closing import Closing
from nbkit.errors import AuthenticationError, HostKeyError, NbkitError, RemoteCommandError, UnreachableError
from nbkit.ssh.keys import Ask, Keyring, Remember
from nbkit.ssh.process import STDERR_BYTES, Process, TooLateError, ended, late
from nbkit.ssh.route import Route
from nbkit.ssh.text import plain, said

if TYPE_CHECKING:
    from nbkit.ssh.engine import Engine
    from nbkit.ssh.stream import Sink
    from nbkit.ssh.system import SystemEngine

    Connection = Engine | SystemEngine

_MOST_OUTPUT = 16 * 1024 * 1024
_READ_BYTES = 256 * 1024
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 30.0
# Where the first host does not even answer, nobody is bothered by trying: so that we are back soon when the network is.
_LONGEST_UNANSWERED_S, _UNANSWERED_DIAL_S = 1.0, 3.0
_PATIENT_TRY = 4  # each fourth try waits as long as the first connection did


@dataclass(frozen=True)
class Result:
    """What a command left: exit status (128 + signal where a signal ended it), and its two outputs, as bytes."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """stdout as text, without the last newline."""
        return self.stdout.decode("utf-8", "replace").rstrip("\n")


class Session(Closing):
    """A connection to `route.target`. A context manager; `close()` is idempotent.

    Attributes:
        route: The way here.
        methods: What let us in at each hop.
        error: Why the session is over for good; None while it lives or is being made again.
        sockets_refused: sshd there did not connect us to a socket that listens: Streams go through a command instead.
    """

    def __init__(self, route: Route, *, ask: Ask | None, timeout_s: float, system: bool = False) -> None:
        self.route = route
        self.error: NbkitError | None = None
        self.methods: list[str] = []
        self.sockets_refused = False
        self._ask, self._timeout_s = Remember(ask) if ask else None, timeout_s
        self._system = system
        self._rings: dict[int, Keyring] = {}
        self._engines: list[Connection] = []
        self._state = threading.Condition()
        self._closed = threading.Event()
        self._holders = 0
        self._supervisor: threading.Thread | None = None
        self._changed: list[Callable[[], None]] = []
        self._open()

    # -- life

    def _open(self, dial_s: float = 0.0) -> None:
        from nbkit.ssh.connect import arrive_all, by_ssh

        engines: list[Connection]
        timeout_s = min(self._timeout_s, dial_s or self._timeout_s)
        if self._system:
            engines, methods = [by_ssh(self.route, self._ask, timeout_s)], ["as ssh does"]
        else:
            engines, methods = arrive_all(self.route, self._rings, self._ask, timeout_s)  # type: ignore[assignment]
        with self._state:
            self._engines, self.methods = engines, methods
            gone = self._closed.is_set()
            self._state.notify_all()
        if gone:
            self._drop(engines)
            return
        engines[-1].on_end(lambda: self._lost(engines))
        self._tell()

    def _lost(self, engines: list[Connection]) -> None:
        """On the transport's thread: the connection ended."""
        with self._state:
            if self._engines is not engines:
                return
            if self._holders and not self._closed.is_set() and self.error is None:
                self._supervise()
            self._state.notify_all()
        self._tell()

    def _supervise(self) -> None:
        if self._supervisor is None or not self._supervisor.is_alive():
            self._supervisor = threading.Thread(target=self._come_back, name="nbkit-ssh-supervisor", daemon=True)
            self._supervisor.start()

    def _come_back(self) -> None:
        """Connect again, with longer and longer pauses; never after a refusal, which would only get us banned."""
        pause, tries = _FIRST_PAUSE_S, 0
        while not self._closed.is_set():
            tries += 1
            self._drop(self._engines)
            if self._ask:
                self._ask.again()
            try:
                self._open(0.0 if tries % _PATIENT_TRY == 0 else _UNANSWERED_DIAL_S)
            except (AuthenticationError, HostKeyError) as error:
                with self._state:
                    self.error = error
                    self._state.notify_all()
                self._tell()
                return
            except NbkitError as error:
                unanswered = isinstance(error, UnreachableError) and error.unanswered
                pause = min(pause, _LONGEST_UNANSWERED_S if unanswered else _LONGEST_PAUSE_S)
                self._closed.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
                pause = 2 * pause
                continue
            with self._state:
                if self.alive or self._closed.is_set():
                    self._supervisor = None
                    return

    @staticmethod
    def _drop(engines: list[Connection]) -> None:
        for engine in reversed(engines):
            engine.give_up("closed here")

    def hold(self, changed: Callable[[], None]) -> None:
        """Have a lost connection made again until `release`; `changed` is called whenever it comes or goes."""
        with self._state:
            self._holders += 1
            self._changed.append(changed)
            if not self.alive and self.error is None and not self._closed.is_set():
                self._supervise()

    def release(self, changed: Callable[[], None]) -> None:
        """The counterpart of `hold`."""
        with self._state, contextlib.suppress(ValueError):
            self._changed.remove(changed)
            self._holders -= 1

    def _tell(self) -> None:
        for changed in list(self._changed):
            changed()

    @property
    def alive(self) -> bool:
        """True while the connection stands, as far as is known: a dead peer is noticed within 12 s."""
        engines = self._engines
        return bool(engines) and all(engine.active for engine in engines)

    @property
    def engine(self) -> Connection:
        """The connection to the target.

        Raises: UnreachableError when it is lost, or the error that ended the session for good.
        """
        if self.error is not None:
            raise self.error.with_traceback(None)  # the same each time: it would grow with each
        if not self.alive:
            why = (
                "it was closed"
                if self._closed.is_set()
                else next((e.lost for e in self._engines if e.lost), "it ended")
            )
            raise UnreachableError(
                f"The connection to {self.route.asked} is lost: {why}.",
                hint="connect again; nbkit forwards do it alone",
            )
        return self._engines[-1]

    def reach(
        self, remote: int | str, opened: Callable[[Exception | None], None], sink: Sink, *, keep: bool = False
    ) -> Any:
        """A connection to a port of the host's loopback or to a socket there, that ends with the link.

        Args:
            opened: Told whether it stands, with an error or None, on the transport's thread.
            sink: Where its data goes.
            keep: Means something to Streams only: here nothing is kept.

        Raises: UnreachableError when the link is lost, or the error that ended the session for good.
        """
        del keep
        return self.engine.reach(remote, opened, sink)

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        return self._closed.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait until the connection stands; False when it does not within `timeout_s`, or never will."""
        with self._state:
            self._state.wait_for(
                lambda: self.alive or self._closed.is_set() or self.error is not None, timeout=timeout_s
            )
        return self.alive

    def close(self) -> None:
        """End the connection, and every attempt to make it again."""
        self._closed.set()
        with self._state:
            engines, supervisor = self._engines, self._supervisor
            self._state.notify_all()
        self._drop(engines)
        for engine in engines:
            if engine is not threading.current_thread():
                engine.join(timeout=5)
        if supervisor is not None and supervisor is not threading.current_thread():
            supervisor.join(timeout=self._timeout_s)
        self._tell()

    def __repr__(self) -> str:
        """One line for a person."""
        return f"Session({self.route}, {'alive' if self.alive else 'lost'})"

    # -- facts

    @property
    def facts(self) -> dict[str, Any]:
        """How the connection is secured and reached, for a record or `--json`."""
        return {
            "route": [str(hop) for hop in self.route.hops], "login": self.methods, "source": self.route.source,
            "why": list(self.route.needs_ssh) if self._system else [], **self.engine.facts(),
        }  # fmt: skip

    def round_trips(self, timeout_s: float = 10.0) -> list[float]:
        """Seconds to each hop and back, the target last.

        Raises: UnreachableError.
        """
        self.engine  # noqa: B018 - raises when the session is over
        return [engine.round_trip(timeout_s) for engine in self._engines[:-1]] + [self.round_trip(timeout_s)]

    @property
    def rtt_s(self) -> float:
        """Seconds of the shortest round trip to the host so far: asked for only where none is known yet.

        Raises: UnreachableError.
        """
        return self.engine.pings.rtt_s or self.round_trip()

    def round_trip(self, timeout_s: float = 10.0) -> float:
        """Seconds for a request to the host and its answer.

        Raises: UnreachableError.
        """
        try:
            return self.engine.round_trip(timeout_s)
        except NbkitError:
            raise
        except Exception as error:
            raise UnreachableError(
                f"{self.route.asked} does not answer: {plain(str(error))}.", hint="check the network"
            ) from error

    # -- commands

    def start(
        self, command: Sequence[str] | str, *, stderr_bytes: int = STDERR_BYTES, timeout_s: float = 20.0
    ) -> Process:
        """Start a command on the host; its stdin and stdout are byte streams. Close it when done.

        Args:
            command: Words, each quoted so that it arrives as it is; or one string for the login shell, as it is.
                Both are seen by `ps` there: a secret goes into its stdin.
            stderr_bytes: Of stderr, so much is kept, the last.
            timeout_s: For the host to say that it runs.

        Raises: UnreachableError; RemoteCommandError where the host runs no commands.
        """
        from paramiko.ssh_exception import ChannelException

        line = command if isinstance(command, str) else shlex.join(command)
        if "\0" in line:
            raise RemoteCommandError("A command with a NUL character cannot be run.", hint="remove it", exit_code=2)
        host = str(self.route.target)
        try:
            return self.engine.execute(line, stderr_bytes=stderr_bytes, timeout_s=timeout_s)
        except NbkitError:
            raise
        except ChannelException as error:
            raise RemoteCommandError(
                f"{host} runs no command: {said(error)}.", hint="too many at once (MaxSessions), or it is not allowed"
            ) from error
        except Exception as error:
            raise ended(host, line, plain(str(error))) from error

    def run(
        self,
        command: Sequence[str] | str,
        *,
        input: bytes = b"",  # noqa: A002 - subprocess.run's own word
        timeout_s: float = 60.0,
        limit: int = _MOST_OUTPUT,
    ) -> Result:
        """Run a command on the host and wait for it.

        Args:
            command: As for `start`.
            input: For its stdin, which is closed after it.
            limit: Bytes of stdout, more is an error; of stderr so many are kept, the last.

        Raises: RemoteCommandError when it does not end within `timeout_s` or says more than `limit`; UnreachableError.
        """
        end = time.monotonic() + timeout_s
        with self.start(command, stderr_bytes=limit, timeout_s=min(timeout_s, 20.0)) as process:
            feeder = threading.Thread(target=_feed, args=(process, input), name="nbkit-ssh-stdin", daemon=True)
            feeder.start()
            try:
                out = _collect(process, end, limit)
                status = process.wait(max(0.1, end - time.monotonic()))
            except TooLateError as error:
                raise late(str(self.route.target), process.command, "did not end", timeout_s) from error
            finally:
                process.close()
                feeder.join(timeout=5)
            return Result(status, out, process.stderr)


def _collect(process: Process, end: float, limit: int) -> bytes:
    """Everything a command says on stdout."""
    out = bytearray()
    while data := process.read(_READ_BYTES, max(0.0, end - time.monotonic())):
        out += data
        if len(out) > limit:
            raise RemoteCommandError(
                f"{plain(process.command, 80)!r} says more than {limit} bytes.", hint="write to a file there"
            )
    return bytes(out)


def _feed(process: Process, content: bytes) -> None:
    with contextlib.suppress(NbkitError):  # the command may end before it has read all: its own business
        process.write(content)
        process.close_stdin()
