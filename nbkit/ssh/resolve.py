"""From what the user typed to a route: OpenSSH is asked where it is installed, nbkit's own reader answers elsewhere."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from nbkit.errors import HostNameError, SshConfigError
from nbkit.ssh import config as own
from nbkit.ssh.known_hosts import only_certified
from nbkit.ssh.route import Destination, Hop, Route, absolute, parse, valid_host, valid_user
from nbkit.ssh.tokens import expand, expand_path, home, local_user, table

_MOST_HOPS = 8
_ANSWER_S = 20.0  # `Match exec` runs inside ssh -G
_SAFE_DEFAULT_KEYS = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")

Facts = dict[str, list[str]]
Ask = Callable[[Destination, bool], Facts]


def resolve(
    host: str,
    *,
    config: str | Path | None = None,
    engine: Literal["auto", "ssh", "own"] = "auto",
    jump: str = "",
) -> Route:
    """How to reach `host`: hops, ports, users, keys, known_hosts.

    Args:
        host: An alias of ssh_config, `user@host:port`, `ssh://...` or `user@[v6]:port`.
        config: A file in place of ~/.ssh/config and /etc/ssh/ssh_config; "none" for no file at all.
        engine: "ssh" asks `ssh -G`, "own" reads the files here; "auto" asks ssh where it is installed.
        jump: Hosts to go through, separated by commas, in place of what the configuration says, as ssh's -J has it.

    Raises: HostNameError before anything is run, for a name no shell may see. SshConfigError for a configuration that
        cannot be read or carried out.
    """
    wanted = parse(host)
    binary = shutil.which("ssh") if engine != "own" else None
    if engine == "ssh" and binary is None:
        raise SshConfigError("ssh is not installed here.", hint="apt install openssh-client")
    chosen = absolute(config)
    ask: Ask = _asking(binary, chosen) if binary else _reading(chosen)
    reasons: list[str] = []
    try:
        found = _hops(wanted, ask, reasons, jump=jump, proxied=not jump, depth=0, already_expanded=binary is not None)
    except (HostNameError, SshConfigError) as error:
        if chosen:
            error.hint = error.hint.replace("ssh -G ", f"ssh -G -F {shlex.quote(chosen)} ")
        raise
    found[-1] = replace(found[-1], asked=host, jump=jump)
    hops = [replace(hop, config=chosen, number=n, of=len(found)) for n, hop in enumerate(found, start=1)]
    source = "ssh -G" if binary else f"nbkit's own reader of {chosen or '~/.ssh/config'}"
    return Route(host, tuple(hops), source, tuple(reasons), chosen)


def _hops(
    wanted: Destination,
    ask: Ask,
    reasons: list[str],
    *,
    proxied: bool,
    depth: int,
    already_expanded: bool,
    jump: str = "",
) -> list[Hop]:
    """The hops to `wanted`, itself last. `proxied=False` where ssh is given -J: the host's own proxy then has no say."""
    if depth > _MOST_HOPS:
        raise SshConfigError(
            f"{wanted.host}: more than {_MOST_HOPS} jump hosts, or a ProxyJump that leads back to itself.",
            hint=f"ssh -G {wanted.host} | grep -i proxy      then set ProxyJump none for the jump host",
        )
    facts = ask(wanted, proxied)
    hop = _hop(wanted, facts, already_expanded)
    jump = facts.get("proxyjump", [""])[0] if proxied else jump
    if not jump or jump.lower() == "none":
        return [hop]
    names = jump.split(",")
    last = _jump(names[-1], wanted.host)
    if (last.host.lower(), last.port or 22, last.user or hop.user) == (hop.hostname, hop.port, hop.user):
        raise SshConfigError(  # ssh says so too
            f"{wanted.host}: jumphost loop: the way to it leads through itself ({jump}).",
            hint=f"give the jump host a block of its own, above the others: Host {last.host} / ProxyJump none",
        )
    before: list[Hop] = []
    for index, name in enumerate(names):
        way = _hops(
            _jump(name, wanted.host),
            ask,
            reasons,
            proxied=index == 0,
            depth=depth + 1,
            already_expanded=already_expanded,
        )
        before += [*way[:-1], replace(way[-1], asked=name.strip(), jump=",".join(names[:index]))]
    reasons.append(f"{hop} is reached through {', '.join(map(str, before))} (ProxyJump).")
    return [*before, hop]


def _jump(name: str, of: str) -> Destination:
    try:
        return parse(name.strip())
    except HostNameError as error:
        raise HostNameError(f"ProxyJump of {of}: {error.message}", hint=error.hint) from error


def _asking(binary: str, config: str) -> Ask:
    """Facts from `ssh -G`: Match, Include, defaults and canonical names are OpenSSH's business."""

    def ask(wanted: Destination, proxied: bool) -> Facts:
        command = [binary, "-G", "-T"]
        if config:
            command += ["-F", config]
        if wanted.port:
            command += ["-p", str(wanted.port)]
        if wanted.user:
            command += ["-l", wanted.user]
        if not proxied:
            command += ["-o", "ProxyJump=none"]
        try:
            done = subprocess.run(
                [*command, "--", wanted.host], check=False, capture_output=True, stdin=subprocess.DEVNULL,
                timeout=_ANSWER_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise SshConfigError(
                f"ssh -G {wanted.host} did not answer in {_ANSWER_S:.0f} s.", hint="look for a slow Match exec"
            ) from error
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise SshConfigError(f"ssh cannot read the configuration: {said}", hint="mend the line that it names")
        facts: Facts = {}
        for line in done.stdout.decode("utf-8", "surrogateescape").splitlines():
            name, _, value = line.partition(" ")
            facts.setdefault(name.lower(), []).append(value)
        if not proxied:  # `ProxyJump none` leaves room for a ProxyCommand, the -J that stands for it does not
            facts.pop("proxycommand", None)
        return facts

    return ask


def _reading(config: str) -> Ask:
    """Facts from nbkit's own reader, in the shape of `ssh -G`'s."""
    if config and config.lower() == "none":
        paths = []
    elif config:
        if not Path(config).is_file():
            raise SshConfigError(f"{config}: there is no such file.", hint="check the path given as config")
        paths = [(Path(config), True)]
    else:
        both = ((Path(home(), ".ssh", "config"), True), (Path("/etc/ssh/ssh_config"), False))
        paths = [(path, users) for path, users in both if path.exists()]

    def ask(wanted: Destination, proxied: bool) -> Facts:
        found = own.read(wanted.host, paths, user=wanted.user, port=wanted.port)
        facts: Facts = {name: [value] for name, value in found.values.items()}
        facts |= {
            name: list(values) for name, values in found.lists.items() if name in {"identityfile", "certificatefile"}
        }
        hostname = expand(found.values.get("hostname", "%h"), {"h": wanted.host, "%": "%"}, what="HostName").lower()
        facts["hostname"] = [hostname]
        facts.setdefault("user", [local_user()])
        facts.setdefault("port", ["22"])
        if proxied:
            facts["proxyjump"] = [found.jump]
            facts["proxycommand"] = [found.proxy_command]
        for name in ("userknownhostsfile", "globalknownhostsfile"):
            if name in found.lists:
                facts[name] = ["\0".join(found.lists[name])]
        return facts

    return ask


def _hop(wanted: Destination, facts: Facts, already_expanded: bool) -> Hop:
    def one(name: str, default: str = "") -> str:
        value = facts.get(name, [default])[0]
        return "" if value.lower() == "none" else value

    def yes(name: str, default: bool = False) -> bool:
        return one(name, "yes" if default else "no").lower() in {"yes", "true", "unbound", "host-bound"}

    hostname, user, port = one("hostname", wanted.host), one("user", local_user()), int(one("port", "22"))
    for name, good in ((hostname, valid_host(hostname)), (user, valid_user(user))):
        if not good:
            raise HostNameError(
                f"{wanted.host}: the configuration gives {name!r}, which holds a character that a shell would act on.",
                hint=f"mend HostName and User; ssh -G {wanted.host} shows them",
            )
    key_alias = one("hostkeyalias").lower()
    tokens = table(alias=wanted.host, hostname=hostname, port=port, user=user, host_key_alias=one("hostkeyalias"))

    def files(name: str, *, expanded: bool, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        texts = [text for value in facts.get(name, list(default)) for text in _names(value, name, expanded)]
        chosen = [expand_path(text, None if expanded else tokens, what=f"{wanted.host}: {name}") for text in texts]
        return tuple(dict.fromkeys(path for path in chosen if path.lower() != "none"))

    hop = Hop(
        alias=wanted.host, hostname=hostname, port=port, user=user,
        identity_files=files("identityfile", expanded=False, default=_SAFE_DEFAULT_KEYS),
        certificate_files=files("certificatefile", expanded=False),
        identities_only=yes("identitiesonly"),
        agent=_agent(facts.get("identityagent", ["SSH_AUTH_SOCK"])[0], tokens, wanted.host),
        host_key_alias=key_alias,
        known_hosts=files("userknownhostsfile", expanded=already_expanded,
                          default=("~/.ssh/known_hosts\0~/.ssh/known_hosts2",)),
        global_known_hosts=files("globalknownhostsfile", expanded=already_expanded,
                                 default=("/etc/ssh/ssh_known_hosts\0/etc/ssh/ssh_known_hosts2",)),
        revoked_keys=next(iter(files("revokedhostkeys", expanded=False)), ""),
        hash_known_hosts=yes("hashknownhosts"), check_host_ip=yes("checkhostip"),
        proxy_command=_proxy_command(one("proxycommand"), tokens, wanted.host),
        address_family=_family(one("addressfamily", "any")),
        connect_timeout_s=float(one("connecttimeout") or 0) if one("connecttimeout").isdigit() else 0.0,
        methods=tuple(name for name, option in (("publickey", "pubkeyauthentication"),
                                               ("keyboard-interactive", "kbdinteractiveauthentication"),
                                               ("password", "passwordauthentication")) if yes(option, default=True)),
        unsupported=tuple(_unsupported(one)), control_path=_open_socket(one("controlpath")),
    )  # fmt: skip
    return replace(hop, needs_ssh=tuple(_needs_ssh(hop, one)))


def _names(value: str, name: str, expanded: bool) -> list[str]:
    """The files of one value: ssh -G joins lists with spaces, so a name with a space is found by what exists."""
    if "\0" in value:
        return value.split("\0")
    if not expanded or name not in {"userknownhostsfile", "globalknownhostsfile"}:
        return [value]
    words, names = value.split(" "), []
    while words:
        longest = next((n for n in range(len(words), 1, -1) if Path(" ".join(words[:n])).exists()), 1)
        names.append(" ".join(words[:longest]))
        words = words[longest:]
    return names


def _agent(text: str, tokens: dict[str, str], host: str) -> str:
    if text.lower() == "none":
        return ""
    if text == "SSH_AUTH_SOCK":
        return os.environ.get("SSH_AUTH_SOCK", "")
    if text.startswith("$") and not text.startswith("${"):
        return os.environ.get(text[1:], "")
    return expand_path(text, tokens, what=f"{host}: IdentityAgent")


def _proxy_command(text: str, tokens: dict[str, str], host: str) -> str:
    return expand(text, {name: tokens[name] for name in "%hnprk"}, what=f"{host}: ProxyCommand") if text else ""


def _family(text: str) -> Literal["any", "inet", "inet6"]:
    return "inet" if text == "inet" else "inet6" if text == "inet6" else "any"


def _unsupported(one: Callable[[str], str]) -> list[str]:
    """What paramiko cannot do of this configuration; the first group would weaken trust and is refused on connect."""
    found = []
    if one("knownhostscommand"):
        found.append("KnownHostsCommand is not run, so what it would revoke is not known")
    if one("pkcs11provider"):
        found.append("PKCS11Provider: load the token into an agent (ssh-add -s)")
    return found


def _needs_ssh(hop: Hop, one: Callable[[str], str]) -> Iterator[str]:
    """What paramiko cannot do and ssh can."""
    if hop.control_path:
        yield f"its connection at {hop.control_path} is open already (ControlMaster)"
    if one("pkcs11provider"):
        yield "PKCS11Provider"
    if one("gssapiauthentication") == "yes" and _has_ticket():  # distributions switch it on for everybody
        yield "GSSAPIAuthentication, with a Kerberos ticket here"
    for path in hop.identity_files:
        if _public_type(path).startswith("sk-"):
            yield f"the key {path} is on a security key"
    if only_certified(hop.hostname, hop.port, (*hop.known_hosts, *hop.global_known_hosts), alias=hop.host_key_alias):
        yield "the host is known by a certificate authority"


def _open_socket(path: str) -> str:
    return path if path and Path(path).is_socket() else ""


def _has_ticket() -> bool:
    cache = os.environ.get("KRB5CCNAME", "")
    kind, colon, path = cache.partition(":")
    if cache and colon and kind not in {"FILE", "DIR"}:
        return True
    return Path((path if colon else cache) or f"/tmp/krb5cc_{os.getuid()}").exists()  # noqa: S108 - Kerberos' own place


def _public_type(path: str) -> str:
    try:
        return Path(f"{path}.pub").read_text(errors="replace").partition(" ")[0] if Path(path).exists() else ""
    except OSError:
        return ""
