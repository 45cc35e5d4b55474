"""known_hosts as OpenSSH reads it (hostfile.c), and what it says about a key: OK, UNKNOWN, CHANGED or REVOKED.

Markers, hashed names, negation, wildcards, several keys a type. A bad line is skipped with a warning; a file that
cannot be read is an error, because it might revoke the key. Nothing here is laxer than ssh: paramiko's own reader
accepts a negated host, and loses a whole file at one line with a marker.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from nbkit.errors import HostKeyError
from nbkit.ssh.config import matches

_PLAIN = ("ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-dss",
          "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com")  # fmt: skip
_TYPES = frozenset(_PLAIN)
_SIGNATURES = {"rsa-sha2-256": "ssh-rsa", "rsa-sha2-512": "ssh-rsa"}  # a line may name a key by one of these
_LONGEST_PATTERN = 1023  # match_pattern_list gives up on a longer one, and nothing of the list matches


class Verdict(Enum):
    """What the known_hosts files say about a key that a server showed."""

    OK = "ok"
    UNKNOWN = "unknown"
    CHANGED = "changed"
    REVOKED = "revoked"


@dataclass(frozen=True)
class Key:
    """A public key: its type, and its bytes as they stand in known_hosts after base64."""

    type: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """`SHA256:...`, as ssh-keygen -l shows it."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    @property
    def short_type(self) -> str:
        """ED25519, ECDSA, RSA: what a person calls it."""
        return "ECDSA" if "ecdsa" in self.type else self.type.removeprefix("ssh-").partition("@")[0].upper()

    def line(self, name: str) -> str:
        """The line of known_hosts that names this key, without a newline."""
        return f"{name} {self.type} {base64.b64encode(self.blob).decode()}"


@dataclass(frozen=True)
class Entry:
    """A line that speaks of the host asked for.

    Attributes:
        marker: "", "revoked" or "cert-authority".
    """

    key: Key
    marker: str
    path: str
    number: int


@dataclass(frozen=True)
class Judgement:
    """A verdict with its grounds.

    Attributes:
        entries: The lines that decided it, or that stand against it.
        authority: True where a @cert-authority line covers the host.
        warnings: Lines that were skipped.
    """

    verdict: Verdict
    entries: tuple[Entry, ...] = ()
    authority: bool = False
    warnings: tuple[str, ...] = ()


def judge(key: Key, host: str, port: int, paths: Iterable[str], *, alias: str = "") -> Judgement:
    """What the files at `paths` say about `key` for `host`, which ssh knows as `[host]:port` unless port is 22.

    A host that is new under `[host]:port` is looked up as `host` too, as ssh does; `alias` (HostKeyAlias) replaces both.

    Raises: HostKeyError for a file that is there and cannot be read.
    """
    paths = list(paths)
    name = alias or (host if port == 22 else f"[{host}]:{port}")
    first = _judge(key, name, paths)
    if first.verdict is Verdict.UNKNOWN and not alias and port != 22:
        plain = _judge(key, host, paths)
        # ssh takes a good verdict from the name without the port, and stays with "unknown" otherwise; a key that is
        # revoked there is refused here.
        if plain.verdict in {Verdict.OK, Verdict.REVOKED}:
            return plain
    return first


def _judge(key: Key, name: str, paths: list[str]) -> Judgement:
    entries: list[Entry] = []
    warnings: list[str] = []
    for path in paths:
        entries += _entries(path, name, warnings)
    noted = tuple(warnings)
    authority = any(entry.marker == "cert-authority" for entry in entries)
    revoked = tuple(e for e in entries if e.marker == "revoked" and e.key.blob == key.blob)
    if revoked:
        return Judgement(Verdict.REVOKED, revoked, authority, noted)
    plain = tuple(entry for entry in entries if not entry.marker)
    same = tuple(entry for entry in plain if entry.key.blob == key.blob)
    if same:
        return Judgement(Verdict.OK, same, authority, noted)
    return Judgement(Verdict.CHANGED if plain else Verdict.UNKNOWN, plain, authority, noted)


def known_types(host: str, port: int, paths: Iterable[str], *, alias: str = "") -> list[str]:
    """Types of the keys known for the host, in the order of the files: asked for first, so that the server shows one."""
    paths, found = list(paths), []
    names = [alias] if alias else [host] if port == 22 else [f"[{host}]:{port}", host]
    for name in names:
        found += [e.key.type for path in paths for e in _entries(path, name, []) if not e.marker]
        if found:
            break
    return list(dict.fromkeys(found))


def only_certified(host: str, port: int, paths: Iterable[str], *, alias: str = "") -> bool:
    """True where a @cert-authority line covers the host and no key of its own is known; a file that cannot be read says no."""
    paths = list(paths)
    try:
        if known_types(host, port, paths, alias=alias):
            return False
        name = alias or (host if port == 22 else f"[{host}]:{port}")
        return any(entry.marker == "cert-authority" for path in paths for entry in _entries(path, name, []))
    except HostKeyError:
        return False


def _entries(path: str, name: str, warnings: list[str]) -> Iterator[Entry]:
    try:
        content = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise HostKeyError(
            f"{path} cannot be read ({error.strerror}), so a key that it revokes would not be known.",
            hint=f"ls -l {path}      it must be a file that you may read",
        ) from error
    for number, line in enumerate(content.split(b"\n"), start=1):
        entry = _entry(line.split(b"\0")[0], name, path, number, warnings)
        if entry is not None:
            yield entry


def _entry(line: bytes, name: str, path: str, number: int, warnings: list[str]) -> Entry | None:
    text = line.lstrip(b" \t")
    if not text or text[:1] == b"#":
        return None
    try:
        marker, text = _marker(text)
        parts = re.split(rb"[ \t]+", text, maxsplit=1)
        if len(parts) < 2:
            raise ValueError("no key")
        names, rest = parts
        if not _names_match(name, names):
            return None
        key = parse_key(rest)
        if key is None:
            raise ValueError("not a key")
    except ValueError as error:
        warnings.append(f"{path}, line {number}: {error}; the line is skipped.")
        return None
    return Entry(key, marker, path, number)


def _marker(text: bytes) -> tuple[str, bytes]:
    """The marker of a line, and what follows.

    ssh overlooks a marker that a tab follows, and then a key that was meant to be revoked; nbkit does not.

    Raises: ValueError for a marker that is none.
    """
    if text[:1] != b"@":
        return "", text
    word, *rest = re.split(rb"[ \t]+", text, maxsplit=1)
    marker = {b"@revoked": "revoked", b"@cert-authority": "cert-authority"}.get(word, "")
    if not marker or not rest or rest[0][:1] == b"@":
        raise ValueError("not a marker")
    return marker, rest[0]


def parse_key(text: bytes) -> Key | None:
    """The key at the start of `text`: its type, a space, base64; None for anything else, and for a key cut short."""
    parts = re.split(rb"[ \t]+", text, maxsplit=2)
    if len(parts) < 2 or text[:1] == b"#":
        return None
    try:
        kind = parts[0].decode("ascii")
        coded = re.sub(rb"[\r\v\f]", b"", parts[1])
        blob = base64.b64decode(coded, validate=True)
        if base64.b64encode(blob) != coded:
            return None  # ssh takes the one canonical spelling
        length = struct.unpack_from(">I", blob)[0]
    except (UnicodeDecodeError, binascii.Error, struct.error):
        return None
    kind = _SIGNATURES.get(kind, kind)
    if kind not in _TYPES or blob[4 : 4 + length] != kind.encode() or not _whole(blob):
        return None
    return Key(kind, blob)


def _whole(blob: bytes) -> bool:
    """True when `blob` is a sequence of length-prefixed strings that ends where the bytes end."""
    at = count = 0
    while at < len(blob):
        if at + 4 > len(blob):
            return False
        at += 4 + int.from_bytes(blob[at : at + 4])
        count += 1
    return at == len(blob) and count >= 2


def _names_match(name: str, names: bytes) -> bool:
    """OpenSSH's match_maybe_hashed.

    Raises: ValueError for a hashed name that is not one.
    """
    if names[:1] == b"|":
        return _hashed(name, names)
    found = False
    host = name.lower()
    for pattern in names.decode("utf-8", "surrogateescape").split(","):
        text = pattern.removeprefix("!").lower()
        if len(text.encode("utf-8", "surrogateescape")) > _LONGEST_PATTERN:
            return False
        if matches(host, text):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def _hashed(name: str, field: bytes) -> bool:
    parts = field.split(b"|")
    if len(parts) != 4 or parts[1] != b"1":
        raise ValueError("not a hashed name")
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in parts[2:])
    except binascii.Error as error:
        raise ValueError("not a hashed name") from error
    if len(salt) != 20 or len(digest) != 20:
        raise ValueError("not a hashed name")
    return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)


def hashed(name: str) -> str:
    """`name` as HashKnownHosts writes it."""
    salt = os.urandom(20)
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"
