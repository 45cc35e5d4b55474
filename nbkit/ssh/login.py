"""Logging in: keys first, then what the server asks a person for. Says which keys were tried, and why each was not taken."""

from __future__ import annotations

import queue
import shlex
import time
from pathlib import Path
from typing import Any

from paramiko.auth_handler import AuthOnlyHandler
from paramiko.common import (
    MSG_USERAUTH_INFO_REQUEST,
    cMSG_SERVICE_REQUEST,
    cMSG_USERAUTH_INFO_RESPONSE,
    cMSG_USERAUTH_REQUEST,
)
from paramiko.message import Message
from paramiko.ssh_exception import SSHException

from nbkit.errors import AuthenticationError, UnreachableError
from nbkit.ssh.engine import Engine
from nbkit.ssh.keys import Ask, Candidate, Keyring
from nbkit.ssh.route import Hop
from nbkit.ssh.text import plain

_PASSWORD_TRIES = 3
_MANY = 5  # keys refused, of the 6 tries that sshd grants
_MOST_ROUNDS = 20  # of keyboard-interactive questions
_MSG_SERVICE_ACCEPT = 6


class Handler(AuthOnlyHandler):  # type: ignore[misc]  # paramiko is not typed
    """paramiko's authentication messages, with the answers put where the logging-in thread waits for them.

    Stock paramiko sets the event it waits for after it has sent the request, answers prompts on the transport's thread,
    and cannot ask whether a key would be taken.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.answers: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    @property
    def _client_handler_table(self) -> dict[int, Any]:
        table: dict[int, Any] = super()._client_handler_table.copy()
        table[MSG_USERAUTH_INFO_REQUEST] = self._parse_sixty
        return table

    def _parse_userauth_success(self, m: Message) -> None:
        del m
        self.authenticated = True
        self.transport._auth_trigger()  # noqa: SLF001 - as paramiko's own handler does
        self.answers.put(("ok", None))

    def _parse_userauth_failure(self, m: Message) -> None:
        allowed = [plain(name, 60) for name in m.get_list()]
        self.answers.put(("partial" if m.get_boolean() else "failed", allowed))

    def _parse_userauth_banner(self, m: Message) -> None:
        self.banner = plain(m.get_string(), 2000, lines=True)

    def _parse_sixty(self, m: Message) -> None:
        """Message 60 is "this key would do" after a key, a question after keyboard-interactive, else nothing we do."""
        if self.auth_method == "publickey":
            self.answers.put(("would-do", None))
        elif self.auth_method == "keyboard-interactive":
            title, text = plain(m.get_text(), 200), plain(m.get_text(), 2000, lines=True)
            m.get_binary()
            count = m.get_int()
            if count > _MOST_ROUNDS:
                raise SSHException(f"The server asks {count} questions at once")
            self.answers.put(
                ("ask", (title, text, [(plain(m.get_text(), 200), m.get_boolean()) for _ in range(count)]))
            )
        else:
            self.answers.put(("failed", []))

    def abort(self) -> None:
        """The connection ended."""
        self.answers.put(("gone", None))


class Login:
    """One login on one connection."""

    def __init__(self, engine: Engine, hop: Hop, keyring: Keyring, ask: Ask | None, *, timeout_s: float) -> None:
        self.engine, self.hop, self.keyring, self.ask, self.timeout_s = engine, hop, keyring, ask, timeout_s
        self.tried: list[str] = []
        self.allowed: list[str] = []
        self.method = ""
        self._unusable = False
        self.handler = Handler(engine)

    def run(self) -> str:
        """Log in; returns what let us in, such as `publickey id_ed25519`.

        Raises: AuthenticationError with the keys tried and the fix; UnreachableError when the server does not answer.
        """
        self._begin()
        steps = {"publickey": self._keys, "keyboard-interactive": self._questions, "password": self._password}
        left = [name for name in steps if name in self.hop.methods]
        # Keys first, unasked: "none", which ssh begins with, costs a round trip and the pause that sshd makes after it.
        outcome = self._keys() if "publickey" in left else "failed"
        if outcome == "ok":
            return self.method
        if outcome == "partial" or self._unusable or (self.tried and "publickey" in self.allowed):
            left.remove("publickey")
        if outcome == "partial":
            self.tried.append("publickey (accepted, but not enough)")
        elif len(self.tried) < _MANY and self._request("none") == "ok":
            return "none"
        while True:
            name = next((name for name in left if name in self.allowed), None)
            if name is None:
                raise self._refused()
            outcome = steps[name]()
            if outcome == "ok":
                return self.method
            if outcome == "partial":  # the server wants another method as well
                self.tried.append(f"{name} (accepted, but not enough)")
            left.remove(name)

    def _begin(self) -> None:
        accepted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.engine._handler_table[_MSG_SERVICE_ACCEPT] = lambda _: accepted.put(True)  # noqa: SLF001 - "for subclass twiddling"
        self.engine.auth_handler = self.handler
        m = Message()
        m.add_byte(cMSG_SERVICE_REQUEST)
        m.add_string("ssh-userauth")
        start = time.perf_counter()
        self._send(m)
        end = time.monotonic() + self.timeout_s
        while True:
            try:
                accepted.get(timeout=0.1)
            except queue.Empty:
                if not self.engine.active:
                    raise self._gone() from None
                if time.monotonic() > end:
                    raise self._late() from None
            else:
                self.engine.pings.rtt_s = time.perf_counter() - start  # a first guess
                return

    def _send(self, m: Message) -> None:
        try:
            self.engine.send(m)
        except (SSHException, EOFError, OSError) as error:
            raise self._gone() from error

    def _answer(self) -> str:
        """Wait for the server; questions to a person do not count against the deadline."""
        while True:
            end = time.monotonic() + self.timeout_s
            while True:
                try:
                    kind, value = self.handler.answers.get(timeout=0.1)
                    break
                except queue.Empty:
                    if not self.engine.active:
                        raise self._gone() from None
                    if time.monotonic() > end:
                        raise self._late() from None
            if kind == "gone":
                raise self._gone()
            if kind in {"failed", "partial"} and value:
                self.allowed = value
            if kind != "ask":
                return kind
            self._reply(*value)

    def _request(self, method: str, *fields: Any) -> str:
        self.handler.auth_method = method
        m = Message()
        m.add_byte(cMSG_USERAUTH_REQUEST)
        for text in (self.hop.user, "ssh-connection", method):
            m.add_string(text)
        for value in fields:
            m.add_boolean(value) if isinstance(value, bool) else m.add_string(value)
        self._send(m)
        return self._answer()

    def _keys(self) -> str:
        outcome = "failed"
        for key in self.keyring.candidates():
            outcome = self._offer(key)
            if outcome in {"ok", "partial"}:
                self.method = f"publickey {key.label}"
                return outcome
            if self.allowed and "publickey" not in self.allowed:
                break
        return "failed" if outcome == "would-do" else outcome

    def _offer(self, key: Candidate) -> str:
        algorithm = self._algorithm(key.algorithm)
        self.tried.append(key.label)
        private = key.at_hand()  # then it signs at once: asking first whether it would do is one more round trip
        if private is None:
            outcome = self._request("publickey", False, algorithm, key.blob)
            if outcome != "would-do":
                return outcome
            private = key.load()
        if private is None:
            self.tried[-1] += " (accepted, but not usable here)"
            self._unusable = True  # nor would it be when it were offered again
            self.keyring.notes.append(key.note)
            return "failed"
        m = Message()
        m.add_string(self.engine.session_id)
        m.add_byte(cMSG_USERAUTH_REQUEST)
        for text in (self.hop.user, "ssh-connection", "publickey"):
            m.add_string(text)
        m.add_boolean(True)
        m.add_string(algorithm)
        m.add_string(key.blob)
        try:
            signature = private.sign_ssh_data(m.asbytes(), algorithm)
        except Exception as error:
            self.keyring.notes.append(f"{key.label} did not sign ({plain(str(error), 100)})")
            return "failed"
        signature = signature if isinstance(signature, bytes) else signature.asbytes()
        return self._request("publickey", True, algorithm, key.blob, signature)

    def _algorithm(self, kind: str) -> str:
        """RSA signs with SHA-2, as the server says it can; other keys sign as what they are."""
        if not kind.startswith("ssh-rsa"):
            return kind
        said = self.engine.server_extensions.get("server-sig-algs", b"")
        known = (said.decode("ascii", "replace") if isinstance(said, bytes) else said).split(",")
        name = next((n for n in ("rsa-sha2-512", "rsa-sha2-256") if n in known), "rsa-sha2-512")
        return name + kind.removeprefix("ssh-rsa")

    def _questions(self) -> str:
        if self.ask is None:
            self.keyring.notes.append(
                "the server would ask questions (keyboard-interactive), and there is nobody to ask"
            )
            return "failed"
        outcome = "failed"
        for _ in range(_PASSWORD_TRIES):
            self._rounds = self._asked = 0
            outcome = self._request("keyboard-interactive", "", "")
            self.tried.append("keyboard-interactive")
            if outcome != "failed" or not self._asked or "keyboard-interactive" not in self.allowed:
                break
        self.method = "keyboard-interactive"
        return outcome

    def _reply(self, title: str, text: str, prompts: list[tuple[str, bool]]) -> None:
        self._rounds += 1
        if self._rounds > _MOST_ROUNDS:
            self.engine.give_up("the server does not stop asking questions")
            raise self._gone()
        answers = []
        for prompt, echo in prompts:
            self._asked += 1
            before = "\n".join(part for part in (title, text) if part)
            answer = self.ask(f"{before}\n{prompt}" if before else prompt, echo) if self.ask else None
            answers.append(answer or "")
            title = text = ""
        m = Message()
        m.add_byte(cMSG_USERAUTH_INFO_RESPONSE)
        m.add_int(len(answers))
        for answer in answers:
            m.add_string(answer)
        self._send(m)

    def _password(self) -> str:
        if self.ask is None:
            self.keyring.notes.append("the server would take a password, and there is nobody to ask")
            return "failed"
        outcome = "failed"
        for _ in range(_PASSWORD_TRIES):
            password = self.ask(f"Password for {self.hop}: ", False)
            if not password:
                break
            outcome = self._request("password", False, password)
            self.tried.append("password")
            if outcome != "failed" or "password" not in self.allowed:
                break
        self.method = "password"
        return outcome

    def _refused(self) -> AuthenticationError:
        tried = f"tried {len(self.tried)}: {', '.join(self.tried)}" if self.tried else "there was nothing to try"
        notes = "".join(f"\n  Note: {note}." for note in [*self.keyring.notes, *self.hop.unsupported])
        names = [name for name in self.hop.identity_files if name]
        existing = next((name for name in names if _exists(name)), "~/.ssh/id_ed25519")
        locked = next(
            (name for name in names for note in self.keyring.notes if f"{Path(name).name} is locked" in note), ""
        )
        config = self.hop.config or "~/.ssh/config"
        if locked:
            again = "then again      or run it in a terminal, where the passphrase can be asked for"
            hint = f"ssh-add {shlex.quote(locked)}, {again}"
        elif "publickey" not in self.allowed and self.ask is None:
            hint = f"run it in a terminal, where you can be asked      (the server takes: {', '.join(self.allowed)})"
        elif not any(map(_exists, names)) and not self.hop.agent:
            hint = f"ssh-keygen -t ed25519 && ssh-copy-id {self.hop.ssh}      or set IdentityFile in {config}"
        else:
            public = f"{existing}.pub" if existing.startswith("~") else shlex.quote(f"{existing}.pub")
            hint = f"ssh-copy-id -i {public} {self.hop.ssh}      or set User or IdentityFile in {config}"
        return AuthenticationError(
            f"{self.hop.place} refused us, user {self.hop.user!r}; it takes "
            f"{', '.join(self.allowed) or 'nothing'}; {tried}.{notes}",
            hint=hint,
        )

    def _gone(self) -> AuthenticationError:
        why = self.engine.farewell or self.engine.lost or "it closed the connection"
        tried = f" after {len(self.tried)} tries ({', '.join(self.tried)})" if self.tried else ""
        many = "too many" in why.lower() or len(self.tried) >= 5
        return AuthenticationError(
            f"{self.hop.place} hung up while we logged in{tried}: {why}.",
            hint="set IdentitiesOnly yes and one IdentityFile for it: it counts every key that is offered"
            if many
            else f"look at the server's log (journalctl -u ssh on {self.hop.hostname})",
        )

    def _late(self) -> UnreachableError:
        return UnreachableError(
            f"{self.hop.place} did not answer the login within {self.timeout_s:.0f} s.",
            hint="try again; a busy login node or a slow directory service (LDAP, DNS) is the usual cause",
        )


def _exists(path: str) -> bool:
    return Path(path).exists()
