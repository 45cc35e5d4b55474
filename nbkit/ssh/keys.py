"""Keys to log in with: from an agent, from files, with certificates; nobody is asked for a passphrase until a server wants it."""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from nbkit.ssh.route import Hop
from nbkit.ssh.text import plain

Ask = Callable[[str, bool], str | None]
"""Asks a person: the prompt, and whether the answer may be seen. None for no answer."""

_AGENT_S = 60.0  # a hardware key waits for a touch
_MAGIC = b"openssh-key-v1\0"
_TRIES = 3  # for a passphrase


class Remember:
    """Asks a person once, and answers from memory when a lost connection is made again: nobody may be there then.

    A remembered answer is given once a connection, so that one which no longer holds is not tried until the server
    bans us. Memory only.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._known: dict[str, str] = {}
        self._left: set[str] | None = None

    def again(self) -> None:
        """From here on, answer from memory only; call before each attempt to connect again."""
        self._left = set(self._known)

    def __call__(self, prompt: str, seen: bool) -> str | None:
        if self._left is not None:
            if prompt not in self._left:
                return None
            self._left.remove(prompt)
            return self._known[prompt]
        answer = self._ask(prompt, seen)
        if answer:
            self._known[prompt] = answer
        return answer


@dataclass
class Candidate:
    """A key that may be offered.

    Attributes:
        label: What a person calls it: `id_ed25519`, `agent:yubikey`, `id_ed25519 (certificate)`.
        algorithm: Key type; RSA is given its SHA-2 name when it is offered.
        blob: Public key or certificate.
        load: Opens the private key; None where that did not work, `note` then says why.
        at_hand: The private key where nobody has to be asked for it; None elsewhere.
    """

    label: str
    algorithm: str
    blob: bytes
    load: Callable[[], Any]
    note: str = ""
    at_hand: Callable[[], Any] = lambda: None


@dataclass
class Keyring:
    """The keys of one hop, in the order OpenSSH offers them.

    Attributes:
        notes: Why a key could not be offered, a sentence each, for the error.
        opened: Private keys that were opened, by path: a reconnect asks for no passphrase again. Memory only.
    """

    hop: Hop
    ask: Ask | None
    opened: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def candidates(self) -> Iterator[Candidate]:
        """Agent keys that the configuration names, other agent keys, then files."""
        files = [(path, kind, blob) for path, kind, blob in map(self._public, self.hop.identity_files) if blob]
        named = {blob for _, _, blob in files}
        held = self._agent()
        first = [key for key in held if key.blob in named]
        rest = [] if self.hop.identities_only else [key for key in held if key.blob not in named]
        offered = {key.blob for key in held}
        for key in (*first, *rest):
            certificate = next((c for c in self._certificates() if _certifies(c[1], key.blob)), None)
            if certificate:
                yield Candidate(f"{key.label} (certificate)", *certificate, key.load)
            yield key
        for path, kind, blob in files:
            if blob in offered:
                continue
            for certificate in [*self._certificates(Path(f"{path}-cert.pub"))]:
                if _certifies(certificate[1], blob):
                    yield self._file(f"{Path(path).name} (certificate)", path, *certificate)
            yield self._file(Path(path).name, path, kind, blob)

    def _file(self, label: str, path: str, kind: str, blob: bytes) -> Candidate:
        candidate = Candidate(label, kind, blob, lambda: None)
        candidate.load = lambda: self._open(path, candidate)
        candidate.at_hand = lambda: self._at_hand(path, candidate)
        return candidate

    def _at_hand(self, path: str, candidate: Candidate) -> Any:
        if path not in self.opened and not candidate.algorithm.startswith("sk-"):
            with contextlib.suppress(Exception):  # locked, or not here: `load` says which, if the server wants it
                self.opened[path] = self._read(path, None)
        return self.opened.get(path)

    def _certificates(self, *more: Path) -> Iterator[tuple[str, bytes]]:
        for path in (*more, *map(Path, self.hop.certificate_files)):
            with contextlib.suppress(OSError, ValueError, IndexError):
                kind, text = path.read_text(errors="replace").split()[:2]
                if "-cert-v01@" in kind:
                    yield kind, base64.b64decode(text)

    def _public(self, path: str) -> tuple[str, str, bytes]:
        """Path, type and blob of a key file, without opening its private part; an empty blob where there is none."""
        try:
            content = Path(path).read_bytes()
        except FileNotFoundError:
            return self._pub_file(path)
        except OSError as error:
            self.notes.append(f"{path} cannot be read ({error.strerror})")
            return path, "", b""
        with contextlib.suppress(ValueError, IndexError, binascii.Error):
            body = base64.b64decode(b"".join(line for line in content.splitlines() if not line.startswith(b"-")))
            if body.startswith(_MAGIC):
                blob = _strings(body[len(_MAGIC) :], 3, skip_count=True)
                return path, _strings(blob, 0).decode("ascii"), blob
        found = self._pub_file(path)
        if not found[2]:
            with contextlib.suppress(Exception):  # an old PEM key without its .pub: open it to see
                key = self._read(path, None)
                return path, key.get_name(), key.asbytes()
            self.notes.append(f"{Path(path).name} is not a key that nbkit reads (or has no .pub beside it)")
        return found

    @staticmethod
    def _pub_file(path: str) -> tuple[str, str, bytes]:
        with contextlib.suppress(OSError, ValueError, IndexError):
            kind, text = Path(f"{path}.pub").read_text(errors="replace").split()[:2]
            return path, kind, base64.b64decode(text)
        return path, "", b""

    @staticmethod
    def _read(path: str, passphrase: str | None) -> Any:
        from paramiko import ECDSAKey, Ed25519Key, RSAKey
        from paramiko.pkey import PKey

        del ECDSAKey, Ed25519Key, RSAKey  # imported for PKey.from_path, which looks them up
        key = PKey.from_path(path, password=passphrase.encode() if passphrase else None)
        key.public_blob = None
        return key

    def _open(self, path: str, candidate: Candidate) -> Any:
        """The private key, asking for its passphrase; None with a note where it cannot be had."""
        name = Path(path).name
        if path in self.opened:
            return self.opened[path]
        if candidate.algorithm.startswith("sk-"):
            candidate.note = f"{name} lives on a security key: ssh-add it, the agent can use it"
        elif not Path(path).exists():
            candidate.note = f"{name}: the server would take it, but the private key is not here"
        else:
            key = self._unlocked(path, candidate)
            if key is not None:
                self.opened[path] = key
            return key
        return None

    def _unlocked(self, path: str, candidate: Candidate) -> Any:
        name, passphrase = Path(path).name, None
        for tries_left in range(_TRIES, -1, -1):
            try:
                return self._read(path, passphrase)
            except Exception as error:
                if not _wants_passphrase(error, passphrase):
                    candidate.note = f"{name} cannot be opened ({plain(str(error), 100)})"
                    return None
            candidate.note = f"{name} is locked by a passphrase" + (
                " and there is nobody to ask: ssh-add it first"
                if self.ask is None
                else ", and the right one was not given"
            )
            passphrase = self.ask(f"Passphrase for {path}: ", False) if self.ask and tries_left else None
            if not passphrase:
                return None
        return None

    def _agent(self) -> list[Candidate]:
        if not self.hop.agent:
            return []
        from paramiko.agent import AgentSSH

        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(_AGENT_S)
        agent = AgentSSH()
        try:
            sock.connect(self.hop.agent)
            agent._connect(sock)  # noqa: SLF001 - paramiko's public class reads SSH_AUTH_SOCK only, not IdentityAgent
        except Exception as error:
            sock.close()
            self.notes.append(f"the agent at {self.hop.agent} does not answer ({plain(str(error), 80)})")
            return []
        self._agents = agent  # held open: its keys sign through it
        return [
            Candidate(f"agent:{plain(key.comment, 40) or key.name}", key.name, key.blob, partial(_itself, key))
            for key in agent.get_keys()
        ]

    def close(self) -> None:
        """Let the agent go."""
        agent = self.__dict__.pop("_agents", None)
        if agent is not None:
            agent._close()  # noqa: SLF001 - as above


def _itself(key: Any) -> Any:
    return key


def _wants_passphrase(error: Exception, given: str | None) -> bool:
    from paramiko.ssh_exception import PasswordRequiredException

    text = str(error).lower()
    return isinstance(error, PasswordRequiredException | TypeError) or bool(
        re.search(r"password|passphrase|encrypted|decrypt", text) or (given and isinstance(error, ValueError))
    )


def _strings(data: bytes, index: int, *, skip_count: bool = False) -> bytes:
    """The `index`-th length-prefixed string of `data`; `skip_count` passes the number of keys before the last."""
    at = 0
    for i in range(index + 1):
        if skip_count and i == index:
            at += 4
        size = int.from_bytes(data[at : at + 4])
        if at + 4 + size > len(data):
            raise ValueError("cut short")
        value = data[at + 4 : at + 4 + size]
        at += 4 + size
    return value


def _certifies(certificate: bytes, blob: bytes) -> bool:
    """True when `certificate` is one for the public key `blob`: its fields follow the nonce."""
    try:
        kind, plain_kind = _strings(certificate, 0), _strings(blob, 0)
        nonce_end = 4 + len(kind) + 4 + len(_strings(certificate, 1))
    except ValueError:
        return False
    return kind.startswith(plain_kind.partition(b"@")[0]) and certificate[nonce_end:].startswith(
        blob[4 + len(plain_kind) :]
    )
