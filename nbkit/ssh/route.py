"""Where a host is and how it is reached: plain facts, already looked up, no tokens left to expand."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

from nbkit.errors import HostNameError

# OpenSSH's rule (valid_hostname and valid_ruser in its ssh.c): none of these reaches a shell, a proxy or a resolver.
_NEVER_IN_HOST = frozenset("'`\"$\\;&<>|(){}")
_NEVER_IN_USER = frozenset("'`\";&<>|(){}")


@dataclass(frozen=True)
class Destination:
    """What the user typed, taken apart; empty and 0 where nothing was said."""

    host: str
    user: str = ""
    port: int = 0


@dataclass(frozen=True)
class Hop:
    """One SSH server on the way.

    Attributes:
        alias: The name that was looked up in the configuration.
        hostname: What is dialled, from this machine or from the hop before.
        identity_files: Private keys to try, absolute; those that do not exist are passed over.
        identities_only: True where the agent may only be asked for keys that `identity_files` name.
        agent: Socket of the agent; empty for none.
        host_key_alias: Name to look up in known_hosts in place of hostname and port; empty for none.
        known_hosts: The user's files; `nbkit trust` appends to the first.
        revoked_keys: File of keys that are never accepted; empty for none.
        proxy_command: Command whose stdin and stdout are the connection; empty for TCP. First hop only.
        methods: Ways to authenticate that the configuration allows.
        unsupported: What the configuration asks for and paramiko cannot do, a sentence each.
        needs_ssh: What only the system's ssh can do of it, a phrase each.
        control_path: Where a ControlMaster listens that the user has open; empty for nowhere.
        asked: As the user wrote it: what was typed, or what ProxyJump names.
        config: The route's.
        jump: The hops before it, as ProxyJump lists them, where its own configuration does not.
        number, of: Which hop it is of how many, counted from 1.
    """

    alias: str
    hostname: str
    port: int
    user: str
    identity_files: tuple[str, ...] = ()
    certificate_files: tuple[str, ...] = ()
    identities_only: bool = False
    agent: str = ""
    host_key_alias: str = ""
    known_hosts: tuple[str, ...] = ()
    global_known_hosts: tuple[str, ...] = ()
    revoked_keys: str = ""
    hash_known_hosts: bool = False
    check_host_ip: bool = False
    proxy_command: str = ""
    address_family: Literal["any", "inet", "inet6"] = "any"
    connect_timeout_s: float = 0.0
    methods: tuple[str, ...] = ("publickey", "keyboard-interactive", "password")
    unsupported: tuple[str, ...] = ()
    needs_ssh: tuple[str, ...] = ()
    control_path: str = ""
    asked: str = ""
    config: str = ""
    jump: str = ""
    number: int = 1
    of: int = 1

    @property
    def named(self) -> str:
        """How a command of nbkit names it, to paste; only `nbkit trust` takes -J, where it is behind other hops."""
        through = f" -J {shlex.quote(self.jump)}" if self.jump else ""
        return to_paste(self.asked or self.alias, self.config) + through

    @property
    def ssh(self) -> str:
        """How a command of ssh names it, to paste: options, and the host."""
        wanted = parse(self.asked or self.alias)
        options = [("-F", self.config), ("-o", self.jump and f"ProxyJump={self.jump}"), ("-p", str(wanted.port or ""))]
        words = [word for option, value in options if value for word in (option, value)]
        return shlex.join([*words, f"{wanted.user}@{wanted.host}" if wanted.user else wanted.host])

    @property
    def place(self) -> str:
        """What a person calls it, where it is, and on a way through jump hosts which of them it is."""
        bare = self.alias.lower() == self.hostname
        facts = [*([] if bare else [str(self)]), *([f"hop {self.number} of {self.of}"] if self.of > 1 else [])]
        return (str(self) if bare else self.alias) + (f" ({', '.join(facts)})" if facts else "")

    @property
    def known_name(self) -> str:
        """The name under which known_hosts knows this server: `host`, `[host]:port`, or the HostKeyAlias."""
        if self.host_key_alias:
            return self.host_key_alias
        return self.hostname if self.port == 22 else f"[{self.hostname}]:{self.port}"

    def __str__(self) -> str:
        """`user@host:port`, as a person would write it."""
        host = f"[{self.hostname}]" if ":" in self.hostname else self.hostname
        return f"{self.user}@{host}" + ("" if self.port == 22 else f":{self.port}")


@dataclass(frozen=True)
class Route:
    """The way to a host: jump hosts first, the host itself last.

    Attributes:
        asked: What the user typed.
        hops: At least one.
        source: What answered: `ssh -G`, or nbkit's own reader and its file.
        reasons: Why the route is as it is, a sentence each.
        config: File in place of the user's ssh_config, as ssh's -F takes it; empty for none.
    """

    asked: str
    hops: tuple[Hop, ...]
    source: str
    reasons: tuple[str, ...] = field(default=())
    config: str = ""

    @property
    def needs_ssh(self) -> tuple[str, ...]:
        """Why the system's ssh has to carry it; empty where paramiko can."""
        return tuple(dict.fromkeys(need for hop in self.hops for need in hop.needs_ssh))

    @property
    def target(self) -> Hop:
        """The host itself."""
        return self.hops[-1]

    @property
    def named(self) -> str:
        """How a command of nbkit names the host, to paste."""
        return self.target.named

    @property
    def ssh(self) -> str:
        """The command that goes the same way, to paste."""
        return f"ssh {self.target.ssh}"

    def __str__(self) -> str:
        """The hops in order."""
        return " -> ".join(map(str, self.hops))


def to_paste(host: str, config: str | None = None, python: str = "") -> str:
    """How a command of nbkit names `host`, to paste: with the options without which it would be another, or not be found."""
    words = [("-F", absolute(config)), ("--python", python)]
    return shlex.join([host, *(word for option, value in words if value for word in (option, value))])


def absolute(config: str | os.PathLike[str] | None) -> str:
    """The path of an ssh_config, from wherever a command is pasted; `none` is no path, and empty is the user's own."""
    text = str(config or "")
    return text if text.lower() in {"", "none"} else str(Path(text).resolve())


def valid_host(name: str) -> bool:
    """OpenSSH's rule for a host name, before any shell or ssh sees it."""
    return (
        bool(name)
        and name[0] != "-"
        and not any(c in _NEVER_IN_HOST or c.isspace() or ord(c) < 32 or ord(c) == 127 for c in name)
    )


def valid_user(name: str) -> bool:
    """OpenSSH's rule for a remote user name."""
    if not name or name[0] == "-" or name[-1] == "\\":
        return False
    if any(c in _NEVER_IN_USER or ord(c) < 32 or ord(c) == 127 for c in name):
        return False
    return not any(a.isspace() and b == "-" for a, b in pairwise(name))


def parse(text: str) -> Destination:
    """Take `host`, `user@host:port`, `ssh://user@host:port` or `user@[v6]:port` apart, and check every part.

    Raises: HostNameError for anything that OpenSSH would refuse, or that has no host.
    """
    from urllib.parse import unquote

    if not isinstance(text, str):
        raise HostNameError(f"A host is a string, not {type(text).__name__}.", hint='nbkit.connect("gpu-box")')
    rest = text
    uri = text.startswith("ssh://")
    if uri:
        rest = text.removeprefix("ssh://").rstrip("/")
    user, at, rest = rest.rpartition("@")
    if uri:
        user = unquote(user.partition(";")[0])
    host, port_text = _split_port(rest)
    if not valid_host(host) or (at and not valid_user(user)):
        raise HostNameError(
            f"{text!r} is not a host: it is empty, begins with '-', or holds a character that a shell would act on.",
            hint="nbkit takes an alias of ~/.ssh/config, HOST, USER@HOST:PORT, ssh://USER@HOST:PORT or USER@[V6]:PORT",
        )
    port = 0
    if port_text is not None:
        if not (port_text.isascii() and port_text.isdigit() and 0 < int(port_text) < 65536):
            raise HostNameError(
                f"{text!r} has no usable port: {port_text!r}.", hint="a port is a number from 1 to 65535"
            )
        port = int(port_text)
    return Destination(host, user, port)


def _split_port(text: str) -> tuple[str, str | None]:
    """Host and port of `host:port`, `[v6]:port` or a bare IPv6 address."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if bracket and (not rest or rest.startswith(":")):
            return host, rest[1:] if rest else None
        return text, None
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, port
    return text, None
