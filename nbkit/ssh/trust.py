"""Whether to trust a server: known by key, or refused. Nothing is accepted on first sight, and nothing overrides a change.

`StrictHostKeyChecking no` and `accept-new` are not honoured. A new key is trusted by naming its fingerprint, which comes
from somewhere else than the connection itself: the box's console, its owner, the cloud's page.

Stricter than ssh in two ways: `@revoked` holds with a tab behind it too, where ssh overlooks the whole line; and a key that
is revoked for the host's name without the port is revoked for every port.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nbkit.atomic import explain
from nbkit.errors import HostKeyError
from nbkit.ssh.known_hosts import Judgement, Key, Verdict, hashed, judge
from nbkit.ssh.route import Hop

_KRL = b"SSHKRL\n\0"
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")


@dataclass(frozen=True)
class Seen:
    """What `trust` found, and did.

    Attributes:
        host: As the user named it.
        named: As a command of nbkit names it.
        name: As known_hosts names it.
        line: The line that trusts the key.
        written: File that holds the line now; empty where nothing was written.
        verdict: Before anything was written.
    """

    host: str
    named: str
    name: str
    key: Key
    verdict: Verdict
    line: str
    written: str = ""

    @property
    def command(self) -> str:
        """What trusts the key, to paste."""
        return f"nbkit trust {self.named} {self.key.fingerprint}"

    def __str__(self) -> str:
        """What a person needs to compare, then the next step."""
        shown = f"{self.name}  {self.key.short_type}  {self.key.fingerprint}"
        if self.written:
            return f"{shown}\n  trusted now: {self.written}"
        if self.verdict is Verdict.OK:
            return f"{shown}\n  already trusted"
        return (
            f"{shown}\n  not trusted. On the host itself, compare with:  "
            f"ssh-keygen -lf /etc/ssh/ssh_host_{self.key.short_type.lower()}_key.pub\n  then:  {self.command}"
        )

    def as_dict(self) -> dict[str, str]:
        """For `--json`."""
        return {
            "host": self.host, "name": self.name, "type": self.key.type, "fingerprint": self.key.fingerprint,
            "verdict": self.verdict.value, "line": self.line, "written": self.written, "command": self.command,
        }  # fmt: skip


def verdict(hop: Hop, key: Key, address: str = "") -> Judgement:
    """What this user's files say about `key` for `hop`; `address` is the IP dialled, for CheckHostIP.

    Raises: HostKeyError where a file that could revoke the key cannot be read, or will not be run.
    """
    for reason in hop.unsupported:
        if reason.startswith("KnownHostsCommand"):
            raise HostKeyError(f"{hop}: {reason}.", hint="unset KnownHostsCommand for this host, or use ssh itself")
    if hop.revoked_keys and _revoked(hop.revoked_keys, key):
        return Judgement(Verdict.REVOKED)
    files = (*hop.known_hosts, *hop.global_known_hosts)
    said = judge(key, hop.hostname, hop.port, files, alias=hop.host_key_alias)
    if said.verdict is Verdict.OK and hop.check_host_ip and address and not hop.host_key_alias:
        by_address = judge(key, address, hop.port, files)
        if by_address.verdict in {Verdict.CHANGED, Verdict.REVOKED}:
            return by_address
    return said


def verify(hop: Hop, key: Key, address: str = "") -> Judgement:
    """Return when the key is trusted.

    Raises: HostKeyError with the cause, and for an unknown key the exact line that trusts it.
    """
    said = verdict(hop, key, address)
    if said.verdict is Verdict.OK:
        return said
    shown = f"{key.short_type} {key.fingerprint}"
    if said.verdict is Verdict.UNKNOWN:
        why = (
            " (a @cert-authority line covers it, but it showed a plain key, or a certificate, which nbkit cannot judge)"
            if said.authority
            else ""
        )
        raise HostKeyError(
            f"{hop.place} is not known{why}. It showed {shown}.",
            hint=f"compare with the host's own: ssh-keygen -lf /etc/ssh/ssh_host_{key.short_type.lower()}_key.pub, then\n"
            f"        nbkit trust {hop.named} {key.fingerprint}",
        )
    where = "".join(
        f"\n        {e.path}, line {e.number}: {e.key.short_type} {e.key.fingerprint}" for e in said.entries
    )
    if said.verdict is Verdict.REVOKED:
        raise HostKeyError(
            f"The key of {hop.place} is REVOKED: {shown}.{where}",
            hint="the host needs a new key; nbkit has no switch that accepts a revoked one",
        )
    file = f" -f {shlex.quote(said.entries[0].path)}" if said.entries else ""
    raise HostKeyError(
        f"The key of {hop.place} has CHANGED. It showed {shown}; known is:{where}\n"
        "  Either the host was set up anew, or someone stands in between.",
        hint="ask the host's owner; only if it was set up anew:\n"
        f"        ssh-keygen -R {shlex.quote(hop.known_name)}{file}; nbkit trust {hop.named}",
    )


def trust(host: str, fingerprint: str = "", *, config: str | Path | None = None, jump: str = "") -> Seen:
    """Show the key of `host`, and with its `fingerprint` (SHA256:...) add it to known_hosts.

    Jump hosts on the way must be trusted already; `jump` names them where the configuration does not, as for a jump host
    that is itself reached through another. Nothing is sent to the host but the key exchange: no user, no key.

    Raises: HostKeyError where the fingerprint is not the key's, or the host is known by another key, or revoked;
        nothing is written then.
    """
    from nbkit.ssh.connect import key_of
    from nbkit.ssh.resolve import resolve

    if fingerprint and not _FINGERPRINT.fullmatch(fingerprint):
        raise HostKeyError(
            f"{fingerprint!r} is not a fingerprint.",
            hint="it looks like SHA256:... with 43 more characters",
            exit_code=2,
        )
    route = resolve(host, config=config, jump=jump)
    hop, (key, address) = route.target, key_of(route)
    said = verdict(hop, key, address)
    if said.verdict in {Verdict.CHANGED, Verdict.REVOKED}:
        verify(hop, key, address)
    if fingerprint and fingerprint != key.fingerprint:
        raise HostKeyError(
            f"{hop.place} showed {key.short_type} {key.fingerprint}, not {fingerprint}. Nothing was written.",
            hint="a host may have several keys: compare the one of this type; if it differs, do not connect",
        )
    if said.verdict is Verdict.OK or not fingerprint:
        return Seen(host, hop.named, hop.known_name, key, said.verdict, key.line(hop.known_name))
    written, line = _append(hop, key)
    return Seen(host, hop.named, hop.known_name, key, said.verdict, line, written)


def _append(hop: Hop, key: Key) -> tuple[str, str]:
    """Add the key to the user's first known_hosts file; its path, and the line."""
    if not hop.known_hosts:
        raise HostKeyError(
            f"{hop}: UserKnownHostsFile is none, so a key cannot be kept.", hint="set UserKnownHostsFile"
        )
    path = Path(hop.known_hosts[0])
    line = key.line(hashed(hop.known_name) if hop.hash_known_hosts else hop.known_name)
    with explain(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path) as handle:
            # Again under the lock: someone may have been quicker, with the same key or with another.
            said = verdict(hop, key)
            if said.verdict in {Verdict.CHANGED, Verdict.REVOKED}:
                raise HostKeyError(f"{hop.known_name} became known by another key meanwhile.", hint=f"look at {path}")
            if said.verdict is Verdict.UNKNOWN:
                _write(handle, line)
    return str(path), line


def _write(handle: int, line: str) -> None:
    """Append one line whole or not at all.

    One write to a file opened for appending, not a rename: ssh itself appends to this file without a lock, and a
    rename would lose what it adds between our read and our rename.
    """
    size = os.fstat(handle).st_size
    broken = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
    content = (b"\n" if broken else b"") + line.encode() + b"\n"
    try:
        if os.write(handle, content) != len(content):
            raise OSError(28, os.strerror(28))
        os.fsync(handle)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(handle, size)
        raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    import fcntl

    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def _revoked(path: str, key: Key) -> bool:
    """True when RevokedHostKeys holds the key: a list of public keys, or a KRL, which ssh-keygen reads."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise HostKeyError(
            f"RevokedHostKeys {path} cannot be read ({error.strerror}); ssh refuses every host then, and so does nbkit.",
            hint=f"restore {path}, or unset RevokedHostKeys",
        ) from error
    if content.startswith(_KRL):
        return _in_krl(path, key)
    from nbkit.ssh.known_hosts import parse_key

    for line in content.split(b"\n"):
        text = line.strip(b" \t\r")
        if text and not text.startswith(b"#"):
            found = parse_key(text)
            if found is None:
                raise HostKeyError(
                    f"RevokedHostKeys {path}: {text[:40].decode(errors='replace')!r} is not a key; fail closed.",
                    hint=f"mend {path}",
                )
            if found.blob == key.blob:
                return True
    return False


def _in_krl(path: str, key: Key) -> bool:
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".pub") as file:
        file.write(key.line("").strip() + "\n")
        file.flush()
        try:
            done = subprocess.run(["ssh-keygen", "-Q", "-f", path, file.name], check=False, capture_output=True,  # noqa: S607
                                  timeout=20, stdin=subprocess.DEVNULL)  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise HostKeyError(
                f"RevokedHostKeys {path} is a KRL, which needs ssh-keygen.", hint="apt install openssh-client"
            ) from error
    return done.returncode != 0
