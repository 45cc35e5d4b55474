"""Generated ssh_config and known_hosts files, judged by OpenSSH and by nbkit: `python -m tests.ssh_cases config 2000`.

A seed makes a file; a difference prints the seed, so that it can be made again.
"""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
from pathlib import Path

from nbkit.errors import HostNameError, SshConfigError
from nbkit.ssh.resolve import resolve
from nbkit.ssh.tokens import home
from tests.ssh_known_hosts import Judge
from tests.sshd import running

HOSTS = ["gpu", "gpu1", "GPU2", "box.lab", "h-7", "a", "10.0.0.9"]
PATTERNS = ["*", "gpu*", "gpu?", "!gpu1", "box.*", "*.lab", "a", "h-7", "GPU2", "gpu", "!a", "10.0.*", "none-such"]


def _quoted(rng: random.Random, word: str) -> str:
    return rng.choice([word, word, word, f'"{word}"', f"'{word}'"])


def _value_line(rng: random.Random) -> str:
    """One keyword and its value, mostly right."""
    q = rng.choice
    keyword, value = q([
        ("HostName", q(["%h.example.com", "10.1.2.3", "Real.Example.COM", "::1", "%h", "a%%b"])),
        ("User", q(["ana", "bob", "'a b'", "x\\ y", "ana#1"])),
        ("Port", q(["22", "2222", "65535", "22022", "1", "023"] * 4 + ["0", "70000"])),
        ("IdentityFile", q(["~/.ssh/id_%h", "/keys/%r_%p", "%d/k", '"/k e y"', "none", "~/.ssh/%n-%u-%%"] * 6 + ["/k/%Q"])),
        ("CertificateFile", q(["~/.ssh/%h-cert.pub", "/c/%n", "/c/${HOME}/x"])),
        ("IdentitiesOnly", q(["yes", "no", "true"] * 8 + ["maybe"])),
        ("IdentityAgent", q(["none", "SSH_AUTH_SOCK", "/run/%u.sock", "~/agent", "$NOPE", "${HOME}/a"])),
        ("HostKeyAlias", q(["alias1", "Alias2", '"al3"'])),
        ("UserKnownHostsFile", q(["~/kh", "/kh/a /kh/b", "none", "~/kh/%h", '"/kh/c" ~/d'] * 5 + ["none /x"])),
        ("GlobalKnownHostsFile", q(["/etc/kh", "/etc/kh1 /etc/kh2", "none"])),
        ("ProxyCommand", q(["nc %h %p", "none", "ssh -W [%h]:%p jump # not a comment", "nc -x 'a b' %h %p"])),
        ("ProxyJump", q(["j1", "u@j1:24", "j1,j2", "none", "ssh://u@j3:25", "u@[::1]:26,j2"])),
        ("HashKnownHosts", q(["yes", "no"])),
        ("CheckHostIP", q(["yes", "no"])),
        ("AddressFamily", q(["any", "inet", "inet6"])),
        ("PasswordAuthentication", q(["yes", "no"])),
        ("KbdInteractiveAuthentication", q(["yes", "no"])),
        ("PubkeyAuthentication", q(["yes", "no"])),
        ("RevokedHostKeys", q(["/rev", "~/rev/%n"])),
        ("Compression", "yes"), ("ServerAliveInterval", "5"), ("ForwardAgent", "yes"), ("SendEnv", "LANG LC_*"),
        ("StrictHostKeyChecking", q(["no", "accept-new", "yes"])),
        ("LocalForward", "8080 localhost:80"),
    ])  # fmt: skip
    if rng.random() < 0.01:
        return q(["Frobnicate yes", "User", 'User "ana', "Port 22 23", "User a b", "IdentityFile a b", "HostKeyAlias"])
    if " " not in value and "'" not in value and '"' not in value and "\\" not in value:
        value = _quoted(rng, value) if not keyword.startswith("Proxy") else value
    between = q([" ", " ", " ", "=", " = ", "\t", "  "])
    comment = q(["", "", "", " # said", "  #x", " "]) if not keyword.startswith("Proxy") else q(["", " "])
    return q([keyword, keyword.lower(), keyword.upper()]) + between + value + comment


def _block_line(rng: random.Random) -> str:
    if rng.random() < 0.7:
        return "Host " + " ".join(_quoted(rng, p) for p in rng.sample(PATTERNS, rng.randint(1, 3)))
    negation = rng.choice(["", "", "!"])
    condition = rng.choice([
        f"{negation}host {rng.choice(['gpu*', '*.example.com', '*,!a', 'real.*', '10.*', 'GPU2'])}",
        f"{negation}originalhost {rng.choice(['gpu*', 'a,h-7', '*,!gpu1'])}",
        f"{negation}user {rng.choice(['ana', 'bob,ana', 'root', '*'])}",
        f"host={rng.choice(['gpu*', '*'])}",
        f"originalhost gpu* {negation}user ana",
    ])  # fmt: skip
    return "Match " + rng.choice([condition, condition, condition, "all", "exec true", "final all", "frob x", "canonical all"]
                                 if rng.random() < 0.3 else [condition, condition, "all"])  # fmt: skip


def config_text(rng: random.Random, include: Path | None) -> str:
    """One ssh_config; `include` is a file it may include."""
    lines = [_value_line(rng) for _ in range(rng.randint(0, 3))]
    for _ in range(rng.randint(1, 5)):
        lines.append(_block_line(rng))
        lines += [rng.choice(["", "  ", "\t"]) + _value_line(rng) for _ in range(rng.randint(0, 5))]
        if include and rng.random() < 0.4:
            lines.append(f"  Include {rng.choice([include, str(include)[:-2] + '*', '/none/such'])}")
        if rng.random() < 0.2:
            lines.append(rng.choice(["", "# words", "   # more", "\t"]))
    return "\n".join(lines) + rng.choice(["\n", "", "\r\n", " \n"])


def shown(host: str, path: Path, engine: str) -> str:
    """A route as text that two engines can be compared by, or why there is none."""
    try:
        route = resolve(host, config=path, engine=engine)  # type: ignore[arg-type]
    except (SshConfigError, HostNameError) as error:
        kind = "OUTSIDE" if "does not guess" in str(error) else "REFUSED"
        return f"{kind} {error.message}"
    default = {f"{home()}/.ssh/id_{n}" for n in ("rsa", "ecdsa", "ecdsa_sk", "ed25519", "ed25519_sk", "xmss", "dsa")}
    lines = []
    for hop in route.hops:
        files = hop.identity_files if not set(hop.identity_files) <= default else ("the defaults",)
        lines.append(repr([hop.alias, hop.hostname, hop.port, hop.user, files, hop.certificate_files,
                           hop.identities_only, hop.agent, hop.host_key_alias, hop.known_hosts, hop.global_known_hosts,
                           hop.revoked_keys, hop.hash_known_hosts, hop.check_host_ip, hop.proxy_command,
                           hop.address_family, hop.methods]))  # fmt: skip
    return "\n".join(lines)


def config_difference(seed: int, folder: Path) -> tuple[str, str, str]:
    """Outcome for one seed: a kind ("same", "both refuse", "outside the subset", "DIFFERENT"), ssh's word and ours."""
    rng = random.Random(seed)
    inner, outer = folder / f"{seed}.inc.1", folder / f"{seed}.conf"
    inner.write_text(config_text(rng, None))
    outer.write_text(config_text(rng, inner))
    inner.chmod(0o600), outer.chmod(0o600)
    host = rng.choice(HOSTS)
    if rng.random() < 0.2:
        host = rng.choice(["ana@", "bob@"]) + host + rng.choice(["", ":2200"])
    theirs, ours = shown(host, outer, "ssh"), shown(host, outer, "own")
    if theirs == ours:
        return "same", theirs, ours
    if ours.startswith("OUTSIDE"):
        return "outside the subset", theirs, ours
    if theirs.startswith("REFUSED") and ours.startswith("REFUSED"):
        return "both refuse", theirs, ours
    return "DIFFERENT", theirs, ours


def main(argv: list[str]) -> int:
    """Run N seeds of a kind; prints the counts, and each difference."""
    kind, count = argv[0], int(argv[1])
    start = int(argv[2]) if len(argv) > 2 else 1
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        judge = config_difference
        if kind == "known_hosts":
            box = stack.enter_context(running(folder / "box", kinds=("ed25519", "ecdsa", "rsa")))
            judge = Judge(box).difference
        for seed in range(start, start + count):
            outcome, theirs, ours = judge(seed, folder)
            counts[outcome] = counts.get(outcome, 0) + 1
            if outcome in {"DIFFERENT", "LAXER", "stricter"}:
                print(f"seed {seed}: {outcome}\n  ssh:   {theirs}\n  nbkit: {ours}")
    print(f"{kind}, seeds {start} to {start + count - 1}: {counts}")
    return int(any(name in counts for name in ("DIFFERENT", "LAXER")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
