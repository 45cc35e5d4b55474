"""From a route to a session: dial, exchange keys, judge the host's key, log in; a deadline on each step."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from nbkit.errors import HostNameError, NbkitError, SshConfigError, UnreachableError
from nbkit.ssh.keys import Ask, Keyring
from nbkit.ssh.known_hosts import Key, known_types
from nbkit.ssh.resolve import resolve
from nbkit.ssh.route import Hop, Route
from nbkit.ssh.text import plain, said
from nbkit.ssh.trust import verify

if TYPE_CHECKING:
    from nbkit.ssh.engine import Engine
    from nbkit.ssh.session import Session
    from nbkit.ssh.system import SystemEngine

DIAL_S = 15.0  # name and TCP
HELLO_S = 15.0  # version banner, and again key exchange
LOGIN_S = 30.0  # each answer while logging in


def connect(
    host: str | Route,
    *,
    config: str | Path | None = None,
    ask: Ask | str | None = "auto",
    timeout_s: float = DIAL_S,
    engine: Literal["auto", "paramiko", "ssh"] = "auto",
) -> Session:
    """Open a session on `host`, through its jump hosts.

    Args:
        host: What `resolve` takes, or a route that it made.
        config: A file in place of the user's ssh_config.
        ask: Asked for passphrases, passwords and codes, as `ask(prompt, may_be_seen)`; None for nobody; "auto" asks on
            a terminal or in the notebook.
        timeout_s: For each hop's name and TCP connection; ConnectTimeout in ssh_config has the last word.
        engine: What carries it; "auto" is paramiko, and the system's ssh where the route needs it and it is installed.

    Raises: HostNameError (2), SshConfigError (1), UnreachableError (3), HostKeyError and AuthenticationError (4).
    """
    from nbkit.ssh.session import Session

    route = host if isinstance(host, Route) else resolve(host, config=config)
    asker = default_ask() if ask == "auto" else ask
    assert asker is None or callable(asker)
    if engine == "ssh" and not shutil.which("ssh"):
        raise SshConfigError("ssh is not installed here.", hint="apt install openssh-client")
    system = engine == "ssh" or (engine == "auto" and bool(route.needs_ssh) and shutil.which("ssh") is not None)
    # All of it before any part: two threads that begin with different parts find each other's half loaded (Python 3.11).
    import paramiko  # noqa: F401

    return Session(route, ask=asker, timeout_s=timeout_s, system=system)


def default_ask() -> Ask | None:
    """Asks on the terminal or in the notebook; None where nobody is there."""
    import sys

    from nbkit.display import in_notebook

    if not in_notebook() and not (sys.stdin and sys.stdin.isatty()):
        return None

    def ask(prompt: str, seen: bool) -> str | None:
        from getpass import getpass

        try:
            return input(prompt) if seen else getpass(prompt)
        except EOFError:
            return None

    return ask


def key_of(route: Route) -> tuple[Key, str]:
    """The key that the route's target shows, and the address dialled; nothing is sent to it but the key exchange."""
    with contextlib.ExitStack() as stack:
        engines: list[Engine] = []
        stack.callback(lambda: [engine.close() for engine in reversed(engines)])
        for hop in route.hops[:-1]:
            engines.append(_arrive(hop, engines, None, DIAL_S)[0])
        engine, address = _greet(route.target, engines, DIAL_S)
        engines.append(engine)
        return engine.shown_key, address


def arrive_all(
    route: Route, rings: dict[int, Keyring], ask: Ask | None, timeout_s: float
) -> tuple[list[Engine], list[str]]:
    """Open every hop, the target last; the engines, and what let us in at each. All are closed when one fails."""
    engines: list[Engine] = []
    methods = []
    try:
        for index, hop in enumerate(route.hops):
            ring = rings.setdefault(index, Keyring(hop, ask))
            ring.notes.clear()
            engine, method = _arrive(hop, engines, ring, timeout_s)
            engines.append(engine)
            methods.append(method)
    except BaseException as error:
        if isinstance(error, NbkitError):
            error.hop = len(engines)
        for engine in reversed(engines):
            engine.close()
        raise
    return engines, methods


def by_ssh(route: Route, ask: Ask | None, timeout_s: float) -> SystemEngine:
    """Have the system's ssh make the connection.

    Raises: as `connect`.
    """
    from nbkit.ssh.system import SystemEngine

    certified = any("certificate authority" in need for need in route.needs_ssh)
    if len(route.hops) == 1 and not certified and not route.target.control_path and not route.target.proxy_command:
        # ssh would refuse it as well; our words say how to trust it.
        verify(route.target, *key_of(route))
    return SystemEngine(route, ask, timeout_s)


def _arrive(hop: Hop, before: list[Engine], ring: Keyring | None, timeout_s: float) -> tuple[Engine, str]:
    from nbkit.ssh.login import Login

    engine, address = _greet(hop, before, timeout_s)
    ring = ring or Keyring(hop, None)
    try:
        verify(hop, engine.shown_key, address)
        method = Login(engine, hop, ring, ring.ask, timeout_s=LOGIN_S).run()
        engine.serve()
        _hold_nodelay(engine)
    except BaseException:
        engine.close()
        raise
    finally:
        ring.close()
    return engine, method


def _greet(hop: Hop, before: list[Engine], timeout_s: float) -> tuple[Engine, str]:
    """Dial, exchange versions and keys; no user and no key of ours is sent."""
    from paramiko.ssh_exception import IncompatiblePeer, SSHException

    from nbkit.ssh.engine import Engine

    try:
        sock, address, proxy_said = _dial(hop, before, hop.connect_timeout_s or timeout_s)
    except UnreachableError as error:
        error.unanswered = not before and not hop.proxy_command
        raise
    files = (*hop.known_hosts, *hop.global_known_hosts)
    types = known_types(hop.hostname, hop.port, files, alias=hop.host_key_alias)
    engine = Engine(sock, hop.place, key_types=types)
    engine.banner_timeout = engine.handshake_timeout = HELLO_S
    place = hop.place
    try:
        engine.start_client(timeout=3 * HELLO_S)
        if not engine.initial_kex_done:
            raise SSHException("no key exchange in time")
    except IncompatiblePeer as error:
        engine.close()
        raise UnreachableError(
            f"{place} and nbkit have no algorithm in common: {plain(str(error))}.",
            hint="nbkit offers no 3des, cbc, sha1, md5 or ssh-rsa/SHA-1; the server wants an update "
            f"(ssh -vv {hop.ssh} shows what it offers)",
        ) from error
    except (SSHException, EOFError, OSError) as error:
        engine.close()
        raise UnreachableError(
            f"{place} does not speak SSH with us: {plain(_cause(error)) or 'it closed the connection'}.{proxy_said()}"
            + (f" It said: {plain(engine.packetizer.banner_text, 300)}" if engine.packetizer.banner_text else ""),
            hint=f"does its ProxyCommand work? look with: ssh -v {hop.ssh}"
            if hop.proxy_command
            else f"is the port right? look with: ssh -v {hop.ssh}      (a server that just hangs up may"
            " have banned this address for a while: PerSourcePenalties, fail2ban)",
        ) from error
    return engine, address


def _cause(error: Exception) -> str:
    """What happened, without the numbers and the names of functions that libraries put before it."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return re.sub(r"\[Errno -?\d+\] ?", "", text.removeprefix("Error reading SSH protocol banner")).strip()


def _hold_nodelay(engine: Engine) -> None:
    """Keep one idle command running: sshd before 10.1 sends small packets at once only while a session runs.

    Without it 4 KiB answers wait up to 45 ms for an acknowledgement. A server that runs no commands is left alone; nobody
    waits for its answer.
    """
    from paramiko.message import Message

    from nbkit.ssh.process import ChannelProcess

    idle = ChannelProcess("exec cat", engine.place)

    def opened(error: Exception | None) -> None:
        if error is None:
            m = Message()
            m.add_byte(b"\x62")  # SSH_MSG_CHANNEL_REQUEST
            m.add_int(idle.stream.remote_chanid)
            m.add_string("exec")
            m.add_boolean(False)
            m.add_string(idle.command)
            engine.later(m)

    engine.held = engine.open_stream("session", b"", opened, idle)


def _dial(hop: Hop, before: list[Engine], timeout_s: float) -> tuple[Any, str, Any]:
    """A connected socket, the address, and what a proxy has to say when it goes wrong."""
    from nbkit.ssh.engine import direct_tcp

    if before:
        before_it = before[-1].place
        try:
            stream = before[-1].open_wait("direct-tcpip", direct_tcp(hop.hostname, hop.port), timeout_s=timeout_s)
        except NbkitError:
            raise
        except Exception as error:
            raise UnreachableError(
                f"{hop.place} cannot be reached from the hop before it, {before_it}: {said(error)}.",
                hint=f"does {before_it} resolve {hop.hostname}, reach port {hop.port}, and allow TCP forwarding?",
            ) from error
        return stream, "", lambda: ""
    if hop.proxy_command:
        return _proxy(hop)
    return (*_tcp(hop, timeout_s), lambda: "")


def _tcp(hop: Hop, timeout_s: float) -> tuple[socket.socket, str]:
    family = {"any": socket.AF_UNSPEC, "inet": socket.AF_INET, "inet6": socket.AF_INET6}[hop.address_family]
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def look_up() -> None:  # in a thread of its own: a resolver knows no deadline
        try:
            answers.put(socket.getaddrinfo(hop.hostname, hop.port, family, socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=look_up, name="nbkit-ssh-resolver", daemon=True).start()
    try:
        found = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise UnreachableError(
            f"No answer from DNS for {hop.place} within {timeout_s:.0f} s.", hint="check the network, or the VPN"
        ) from None
    if isinstance(found, UnicodeError):
        raise HostNameError(
            f"{hop.hostname!r} is not a host name: its parts between dots have 1 to 63 bytes each, in UTF-8.",
            hint=f"write it as DNS has it, or give it a HostName in {hop.config or '~/.ssh/config'}",
        ) from found
    if isinstance(found, Exception):
        known = "" if hop.place == str(hop) else f", which is {hop.place}"
        raise UnreachableError(
            f"There is no host {hop.hostname!r}{known}: {plain(_cause(found))}.",
            hint=f"ssh -G {hop.ssh} | grep hostname      shows what the alias stands for; a VPN may have to be up",
        ) from found
    last: OSError | None = None
    for af, kind, protocol, _, address in found[:8]:
        sock = socket.socket(af, kind, protocol)
        sock.settimeout(timeout_s)
        try:
            sock.connect(address)
        except OSError as error:
            sock.close()
            last = error
            continue
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return sock, str(address[0])
    raise UnreachableError(f"{hop.place} cannot be reached: {_why(last, timeout_s)}.", hint=_fix(last, hop)) from last


def _why(error: OSError | None, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:.0f} s"
    return (error.strerror or str(error)) if error else "no address"


def _fix(error: OSError | None, hop: Hop) -> str:
    if isinstance(error, ConnectionRefusedError):
        return f"the host is up, but nothing listens on port {hop.port}: is sshd running, is the port right?"
    return "is the machine up, the VPN connected, the address right, the firewall open?"


def _proxy(hop: Hop) -> tuple[socket.socket, str, Any]:
    """Run ProxyCommand as ssh does: `exec` in the user's shell, our connection its stdin and stdout.

    Host and user have passed OpenSSH's rule, so what the tokens brought in is nothing a shell acts on.
    """
    ours, theirs = socket.socketpair()
    shell = os.environ.get("SHELL") or "/bin/sh"
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the connection
    try:
        # bash takes a socket on stdin for a remote login and reads ~/.bashrc, unless it is not the first shell.
        process = subprocess.Popen(
            [shutil.which(shell) or "/bin/sh", "-c", f"exec {hop.proxy_command}"],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=errors,
            start_new_session=True,
            env={**os.environ, "SHLVL": "2"},
        )
    except OSError as error:
        ours.close()
        raise UnreachableError(
            f"ProxyCommand of {hop.place} cannot be run: {error}.", hint="mend ProxyCommand"
        ) from error
    finally:
        theirs.close()

    proxied = _Proxied(ours, process, errors)
    return proxied, "", proxied.said


class _Proxied(socket.socket):
    """Our end of a ProxyCommand; closing it ends the command."""

    def __init__(self, ours: socket.socket, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        super().__init__(fileno=ours.detach())
        self._process, self._errors, self._text = process, errors, ""

    def said(self) -> str:
        """What the command wrote to stderr, as a sentence; empty for nothing."""
        if not self._errors.closed:
            self._errors.seek(0)
            self._text = plain(self._errors.read(2000).decode(errors="replace").strip(), 400)
        return f" ProxyCommand said: {self._text}" if self._text else ""

    def close(self) -> None:
        super().close()
        self.said()
        self._errors.close()
        process = self._process
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=5)
