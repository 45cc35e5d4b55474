"""The system's ssh as the carrier of a session: where the configuration needs what paramiko cannot do.

One master connection behind a control socket in a folder of ours, or the user's own where one runs already; commands and
forwards are asked of it. Never laxer than ssh: StrictHostKeyChecking is yes, whatever the configuration says.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paramiko.ssh_exception import ChannelException, SSHException

from nbkit.errors import AuthenticationError, HostKeyError, NbkitError, UnreachableError
from nbkit.ssh.keys import Ask
from nbkit.ssh.pings import Pings
from nbkit.ssh.pipes import PipeProcess, end_child
from nbkit.ssh.route import Hop, Route
from nbkit.ssh.sockets import Relay, SocketStream
from nbkit.ssh.stream import Sink
from nbkit.ssh.text import plain

_PING_AFTER_S = 3  # as the other engine
_DEAD_AFTER_S = 10
_LOGIN_S = 90.0  # a person may have to type
_MOST_LOG = 1_000_000
_LAST_WORDS_S = 0.2  # on stderr, of a command that has said nothing else
_MUX_S = 20.0  # for an answer of the master, which is on this machine
_CONNECT_FAILED = 2  # of RFC 4254, section 5.1
_STRICT = ("-o", "StrictHostKeyChecking=yes", "-o", "UpdateHostKeys=no", "-o", "ForwardAgent=no", "-o", "ForwardX11=no",
           "-o", "ClearAllForwardings=yes", "-o", "PermitLocalCommand=no", "-o", "RemoteCommand=none", "-o", "Tunnel=no",
           "-o", "ControlPersist=no", "-o", "LogLevel=INFO", "-o", "ForkAfterAuthentication=no")  # fmt: skip
# ssh runs it for each question; it asks the process that listens on the socket, so no answer is in an argument or a file.
_ASKPASS = """#!/bin/sh
exec {python} -c 'import socket, sys
line = socket.socket(socket.AF_UNIX)
line.connect(sys.argv[1])
line.sendall(sys.argv[2].encode())
line.shutdown(socket.SHUT_WR)
answer = line.makefile("rb").read()
sys.stdout.buffer.write(answer[1:])
sys.exit(answer[:1] != b"+")' {socket} "$1"
"""


class SystemEngine:
    """A connection to `route.target` that ssh has made, with what a Session uses of an Engine.

    Attributes:
        active: True while the master answers.
        lost: Why the connection ended; empty while it lives.
    """

    def __init__(self, route: Route, ask: Ask | None, timeout_s: float) -> None:
        self.route = route
        self.active, self.lost = True, ""
        self._folder = Path(tempfile.mkdtemp(prefix="nbkit-ssh-"))  # 0700
        self._log = self._folder / "log"
        self.pings = Pings(self._send_ping)
        self._lock = threading.Lock()
        self._ended: list[Callable[[], None]] = []
        self._forwards: dict[int | str, Path] = {}
        self._log_seen = 0
        self._master: subprocess.Popen[bytes] | None = None
        self._control = _running_master(route)
        try:
            if not self._control:
                self._control = str(self._folder / "m")
                self._start_master(ask, timeout_s)
            self._held = subprocess.Popen(self._mux("-T", "--", route.target.alias, "exec cat"), stdin=subprocess.PIPE,
                                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
                                          start_new_session=True)  # fmt: skip
        except BaseException:
            self._end_master()
            raise
        self._relay = Relay()
        self._relay.start()
        self._watcher = threading.Thread(target=self._watch, name="nbkit-ssh-watch", daemon=True)
        self._watcher.start()

    # -- the master

    def _mux(self, *words: str) -> list[str]:
        """ssh as a client of the master: no configuration, and no connection of its own where the master is gone."""
        return ["ssh", "-F", "none", "-S", self._control, "-o", "ControlMaster=no", "-o", "ProxyCommand=false",
                "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", *words]  # fmt: skip

    def _start_master(self, ask: Ask | None, timeout_s: float) -> None:
        _refuse_lax_jumps(self.route)
        target = self.route.target
        words = ["ssh", *(["-F", self.route.config] if self.route.config else []), *_STRICT,
                 "-o", "ControlMaster=yes", "-o", f"ControlPath={self._control}",
                 "-o", f"ConnectTimeout={int(target.connect_timeout_s or timeout_s)}",
                 "-o", f"ServerAliveInterval={_PING_AFTER_S}", "-o", "ServerAliveCountMax=3",
                 "-o", f"BatchMode={'no' if ask else 'yes'}", "-N", "-T", "-p", str(target.port), "-l", target.user,
                 "--", target.alias]  # fmt: skip
        env = dict(os.environ)
        with contextlib.ExitStack() as stack:
            if ask:
                env |= stack.enter_context(_askpass(self._folder, ask))
            log = stack.enter_context(self._log.open("wb"))
            self._master = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, env=env,
                                            start_new_session=True)  # fmt: skip
            end = time.monotonic() + _LOGIN_S
            while not self._answers():
                if self._master.poll() is not None:
                    raise _cause(self.route, self.said)
                if time.monotonic() > end:
                    raise UnreachableError(
                        f"{target} did not let us in within {_LOGIN_S:.0f} s.", hint=f"look with: ssh -v {target.ssh}"
                    )
                time.sleep(0.02)

    def _answers(self) -> bool:
        return Path(self._control).exists() and _checked(self._control)

    @property
    def said(self) -> str:
        """What ssh wrote, harmless."""
        with contextlib.suppress(OSError):
            return plain(self._log.read_bytes().decode(errors="replace").strip(), _MOST_LOG, lines=True)
        return ""

    def _end_master(self) -> None:
        if self._master is not None:
            end_child(self._master)
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- life

    def _watch(self) -> None:
        """Read the echoes of the held command; its end is the end of the link."""
        import select

        assert self._held.stdout
        silent, why = 0, ""
        while self.active:
            if select.select([self._held.stdout], [], [], 1.0)[0]:
                echo = os.read(self._held.stdout.fileno(), 4096)
                if not echo:
                    why = _last(self.said) or "ssh has ended"
                    break
                silent = 0
                for _ in echo:
                    self.pings.answered()
            else:
                silent += 1
                if silent >= _DEAD_AFTER_S:
                    why = f"no answer for {silent} s"
                elif silent % _PING_AFTER_S == 0:
                    with contextlib.suppress(SSHException):
                        self.pings.ask()
        self.lost = self.lost or why
        self.active = False
        self._held.kill()
        with self._held:  # not to the end of its output: the master holds that, too, and may be stuck
            pass
        for remote, path in list(self._forwards.items()) if self._master is None else []:  # it goes on without us
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._asked_master("-O", "cancel", "-L", f"{path}:{_target(remote)}")
        self._end_master()
        self._relay.stop()
        self.pings.end()
        with self._lock:
            callbacks, self._ended = self._ended, []
        for callback in callbacks:
            callback()

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when the connection has ended; at once if it has."""
        with self._lock:
            if self.active:
                self._ended.append(callback)
                return
        callback()

    def give_up(self, why: str) -> None:
        """End the connection; idempotent, does not wait."""
        self.lost = self.lost or why
        self.active = False
        with contextlib.suppress(OSError):
            self._held.kill()

    close = give_up

    def join(self, timeout: float) -> None:
        """Wait until nothing of it runs."""
        self._watcher.join(timeout)
        self._relay.join(timeout)

    def why_lost(self) -> str:
        """Why the link ended; empty while the master answers."""
        if self.active and not self._answers():
            self.give_up(_last(self.said) or "ssh has ended")
        return self.lost

    def _send_ping(self) -> None:
        assert self._held.stdin
        try:
            self._held.stdin.write(b".")
        except (OSError, ValueError) as error:  # ValueError: it is closed
            raise SSHException(self.lost or "ssh has ended") from error

    def round_trip(self, timeout_s: float) -> float:
        """Seconds until a byte came back from the held command.

        Raises: TimeoutError, SSHException when the connection ended.
        """
        took = self.pings.round_trip(timeout_s)
        if not self.active:
            raise SSHException(self.lost)
        return took

    def facts(self) -> dict[str, Any]:
        """What is known of the connection; ciphers and keys are ssh's own business."""
        return {"carrier": "the system's ssh", "master": "ours" if self._master else self._control}

    # -- what it carries

    def execute(self, line: str, *, stderr_bytes: int, timeout_s: float) -> PipeProcess:
        """Start a command."""
        del timeout_s  # the master is on this machine
        return PipeProcess(
            self._mux("-T", "--", self.route.target.alias, line), line, str(self.route.target), self.why_lost,
            stderr_bytes=stderr_bytes,
        )  # fmt: skip

    def converse(self, line: str, sink: Sink, *, timeout_s: float) -> SocketStream:
        """Start a command whose stdin and stdout are the stream."""
        del timeout_s  # as above
        ours, theirs = socket.socketpair()
        with theirs:
            words, end = self._mux("-T", "--", self.route.target.alias, line), theirs.fileno()
            child = subprocess.Popen(
                words, stdin=end, stdout=end, stderr=subprocess.PIPE, bufsize=0, start_new_session=True
            )
        # The child ends with the command, which ends with its stdin, or with the master; so does who listens to it.
        listener = threading.Thread(target=lambda: _hear(child, stream), name="nbkit-ssh-stderr", daemon=True)

        def silent() -> None:
            if listener.is_alive():
                listener.join(timeout=_LAST_WORDS_S)

        stream = self._relay.adopt(ours, sink, silent)
        listener.start()
        return stream

    def reach(self, remote: int | str, opened: Callable[[Exception | None], None], sink: Sink) -> SocketStream | None:
        """A connection to a port or a socket on the host; `opened` is told, with an error or None."""

        def silent() -> None:  # ssh takes every connection, and closes it when the host says no: its log says why
            if refusal := self._newest_refusal():
                opened(ChannelException(_CONNECT_FAILED, refusal))

        try:
            stream = self._relay.open(str(self._forwards.get(remote) or self._forward(remote)), sink, silent)
        except OSError as error:
            opened(SSHException(f"ssh takes no connection: {error.strerror}"))
            self.why_lost()
            return None
        except ChannelException as error:
            opened(error)
            return None
        opened(None)
        return stream

    def _newest_refusal(self) -> str:
        seen, self._log_seen = self._log_seen, len(self.said)
        refusals = re.findall(r"open failed: (.*)", self.said[seen:])
        return refusals[-1].strip() if refusals else ""

    def _forward(self, remote: int | str) -> Path:
        path = self._folder / f"f{len(self._forwards)}"
        done = self._asked_master("-O", "forward", "-L", f"{path}:{_target(remote)}")
        if done.returncode:
            raise ChannelException(_CONNECT_FAILED, plain(done.stderr.decode(errors="replace").strip(), 300))
        self._forwards[remote] = path
        return path

    def _asked_master(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(self._mux(*words, "--", self.route.target.alias), check=False, capture_output=True,
                              stdin=subprocess.DEVNULL, timeout=_MUX_S)  # fmt: skip


def _hear(child: subprocess.Popen[bytes], stream: SocketStream) -> None:
    """Hand on what a command says on stderr, and wait for its end."""
    assert child.stderr
    with child.stderr:
        while data := child.stderr.read(65536):
            stream.taken(len(data))
            stream.sink.error_data(memoryview(data))
    child.wait()


def _target(remote: int | str) -> str:
    return remote if isinstance(remote, str) else f"127.0.0.1:{remote}"


def _last(text: str) -> str:
    return text.splitlines()[-1].strip().rstrip(".") if text else ""


def _checked(control: str) -> bool:
    """True where a master answers behind the control socket."""
    done = subprocess.run(["ssh", "-F", "none", "-S", control, "-O", "check", "--", "x"], check=False, capture_output=True,  # noqa: S607
                          stdin=subprocess.DEVNULL, timeout=_MUX_S)  # fmt: skip
    return done.returncode == 0


def _running_master(route: Route) -> str:
    """The control socket of a connection that the user has open; empty for none."""
    path = route.target.control_path
    return path if path and _checked(path) else ""


def _refuse_lax_jumps(route: Route) -> None:
    """ssh connects to jump hosts by their own configuration, which may accept any key: not for us.

    Raises: HostKeyError.
    """
    for hop in route.hops[:-1]:
        command = ["ssh", "-G", *(["-F", route.config] if route.config else []), "--", hop.alias]
        done = subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=_MUX_S)
        if re.search(rb"^stricthostkeychecking (false|no|off|accept-new)$", done.stdout, re.MULTILINE):
            raise HostKeyError(
                f"{hop.alias}, a jump host, has StrictHostKeyChecking off, which nbkit does not take over.",
                hint=f"set StrictHostKeyChecking yes for {hop.alias} in {route.config or '~/.ssh/config'}",
            )


@contextlib.contextmanager
def _askpass(folder: Path, ask: Ask) -> Any:
    """The environment in which ssh asks us; a thread answers while it is open."""
    script, place = folder / "askpass", folder / "ask"
    script.write_text(_ASKPASS.format(python=shlex.quote(sys.executable), socket=shlex.quote(str(place))))
    script.chmod(0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen(4)
        threading.Thread(target=_answer, args=(listener, ask), name="nbkit-ssh-ask", daemon=True).start()
        try:
            yield {
                "SSH_ASKPASS": str(script),
                "SSH_ASKPASS_REQUIRE": "force",
                "DISPLAY": os.environ.get("DISPLAY", ":0"),
            }
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread


def _answer(listener: socket.socket, ask: Ask) -> None:
    with contextlib.suppress(OSError):
        while True:
            line, _ = listener.accept()
            with line:
                prompt = plain(line.makefile("rb").read(4000).decode(errors="replace"), 500, lines=True)
                # A host's key is never accepted in passing, of a jump host neither.
                answer = None if "continue connecting" in prompt else ask(prompt, False)
                line.sendall(b"-" if answer is None else b"+" + answer.encode() + b"\n")


def _cause(route: Route, said: str) -> NbkitError:
    """The error that ssh's own words mean; it names the hop that they are about."""
    hop, line = _failed(route, said)
    error = _error(hop, said, line)
    error.hop = hop.number - 1
    return error


def _failed(route: Route, said: str) -> tuple[Hop, str]:
    """The hop, and the line that tells: each jump host has an ssh of its own, and the last one speaks last."""
    hops = route.hops[:-1] if "UNKNOWN port" in said else route.hops  # says an ssh whose jump host brought it nowhere
    for line in said.splitlines():
        for hop in hops:
            words = (f"connect to host {hop.hostname} port {hop.port}:", f"resolve hostname {hop.hostname}:",
                     f"key is known for {hop.known_name} ", f"{hop.user}@{hop.hostname}: Permission denied")  # fmt: skip
            if any(each in line for each in words):
                return hop, line.strip().rstrip(".")
    return route.target, _last(said)


def _error(target: Hop, said: str, line: str) -> NbkitError:
    if re.search(
        r"host key verification failed|REMOTE HOST IDENTIFICATION|revoked|host key is known", said, re.IGNORECASE
    ):
        return HostKeyError(
            f"ssh does not trust {target.place}:\n{said}",
            hint=f"nbkit trust {target.named} shows its key; compare it with the host's own before you trust it",
        )
    if re.search(r"permission denied|too many authentication|no supported authentication", said, re.IGNORECASE):
        return AuthenticationError(
            f"{target.place} refused us, user {target.user!r}; ssh said: {line}",
            hint=f"ssh-copy-id {target.ssh}      or look with: ssh -v {target.ssh}",
        )
    return UnreachableError(
        f"ssh does not reach {target.place}: {line or 'it said nothing'}.", hint=f"look with: ssh -v {target.ssh}"
    )
