"""known_hosts files, hand-made and generated, each judged by the real ssh against a real sshd and by nbkit."""

from __future__ import annotations

import base64
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

from nbkit.ssh.known_hosts import Key, Verdict, hashed, judge
from tests.sshd import Sshd

ALIASES = ("gpu.lab", "gpu", "Box.Lab", "10.0.0.9")


def public(path: Path) -> Key:
    """The key of a .pub file."""
    kind, text = path.with_name(path.name + ".pub").read_text().split()[:2]
    return Key(kind, base64.b64decode(text))


def ask_ssh(box: Sshd, files: list[Path], host: str, alias: str = "", more: tuple[str, ...] = ()) -> Verdict:
    """The verdict of the real ssh, which comes no further than authentication."""
    command = ["ssh", "-F", "none", "-p", str(box.port), "-o", "BatchMode=yes", "-o", "HostKeyAlgorithms=ssh-ed25519",
               "-o", f"UserKnownHostsFile={' '.join(map(str, files))}", "-o", "GlobalKnownHostsFile=none",
               "-o", "IdentityFile=none", "-o", "IdentityAgent=none", "-o", "UpdateHostKeys=no",
               *(["-o", f"HostKeyAlias={alias}"] if alias else []), *more, "--", host, "true"]  # fmt: skip
    said = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace", timeout=60,
                          stdin=subprocess.DEVNULL).stderr  # fmt: skip
    for words, verdict in (("Permission denied", Verdict.OK), ("REVOKED", Verdict.REVOKED), ("HAS CHANGED", Verdict.CHANGED),
                           ("verification failed", Verdict.UNKNOWN)):  # fmt: skip
        if words in said:
            return verdict
    raise AssertionError(f"ssh said neither yes nor no: {said}")


def ask_nbkit(box: Sshd, files: list[Path], host: str, alias: str = "") -> Verdict:
    """nbkit's verdict on the same."""
    key = public(box.host_keys[0])
    return judge(key, host.lower(), box.port, [str(f) for f in files], alias=alias.lower()).verdict


# Name, the lines (made from: good key, another ed25519, an RSA key, `[host]:port`), and the verdict. Facts: the 20 cases
# of which paramiko took 3 that ssh refuses, and refused 5 that ssh takes.
Lines = Callable[[Key, Key, Key, str], str]
CASES: list[tuple[str, Lines, Verdict]] = [
    ("empty file", lambda g, o, r, n: "", Verdict.UNKNOWN),
    ("the key", lambda g, o, r, n: g.line(n), Verdict.OK),
    ("another key", lambda g, o, r, n: o.line(n), Verdict.CHANGED),
    ("a key of another type only", lambda g, o, r, n: r.line(n), Verdict.CHANGED),
    ("two keys of one type", lambda g, o, r, n: o.line(n) + "\n" + g.line(n), Verdict.OK),
    ("hashed", lambda g, o, r, n: g.line(hashed(n)), Verdict.OK),
    ("hashed, of another host", lambda g, o, r, n: g.line(hashed("elsewhere")), Verdict.UNKNOWN),
    ("wildcard", lambda g, o, r, n: g.line("[127.0.0.*]:*"), Verdict.OK),
    ("negated", lambda g, o, r, n: g.line(f"*,!{n},!127.0.0.1"), Verdict.UNKNOWN),
    ("negated first", lambda g, o, r, n: g.line(f"!{n},{n}"), Verdict.UNKNOWN),
    ("list", lambda g, o, r, n: g.line(f"elsewhere,{n}"), Verdict.OK),
    ("host without the port", lambda g, o, r, n: g.line("127.0.0.1"), Verdict.OK),
    ("another port", lambda g, o, r, n: g.line("[127.0.0.1]:1"), Verdict.UNKNOWN),
    ("revoked", lambda g, o, r, n: f"@revoked {g.line(n)}", Verdict.REVOKED),
    ("revoked for all, and known", lambda g, o, r, n: g.line(n) + f"\n@revoked {g.line('*')}", Verdict.REVOKED),
    ("another revoked", lambda g, o, r, n: g.line(n) + f"\n@revoked {o.line('*')}", Verdict.OK),
    ("an authority is not the key", lambda g, o, r, n: f"@cert-authority {g.line('*')}", Verdict.UNKNOWN),
    ("a marker nobody knows", lambda g, o, r, n: f"@trusted {g.line(n)}", Verdict.UNKNOWN),
    ("garbage line before", lambda g, o, r, n: "x\n" + g.line(n), Verdict.OK),
    ("a truncated key before", lambda g, o, r, n: g.line(n)[:-8] + "\n" + g.line(n), Verdict.OK),
    ("only a truncated key", lambda g, o, r, n: g.line(n)[:-8], Verdict.UNKNOWN),
    ("comment and spaces", lambda g, o, r, n: f" \t{g.line(n)}  a comment\r", Verdict.OK),
    ("upper case", lambda g, o, r, n: g.line(n.replace("127", "127").upper()), Verdict.OK),
    ("type and key differ", lambda g, o, r, n: g.line(n).replace("ssh-ed25519", "ssh-rsa"), Verdict.UNKNOWN),
]  # fmt: skip


def _line(rng: random.Random, keys: list[Key], names: list[str]) -> str:
    key = rng.choice(keys)
    name = ",".join(rng.choice(names) for _ in range(rng.choice([1, 1, 1, 2, 3])))
    if rng.random() < 0.2:
        name = hashed(rng.choice([n for n in names if n[:1] not in {"!", "*"}]))
    line = key.line(name)
    roll = rng.random()
    if roll < 0.12:
        line = rng.choice(["@revoked ", "@revoked\t", "@cert-authority ", "@Revoked ", "@revoked", "@x "]) + line
    elif roll < 0.24:
        cut = rng.randrange(len(line))
        line = rng.choice([
            line[:cut], line + " comment", "\t " + line, "#" + line, line + "\r", line.replace(" ", "\t"),
            line.replace(" ", "  ", 1), line[:cut] + "\0" + line[cut:], line[:cut] + rng.choice("!*,@ #=A") + line[cut:],
            line.replace("ssh-ed25519", "ssh-rsa"), line.replace("AAAA", "AAAB"), line + "AAAA", line + "=",
        ])  # fmt: skip
    return line


def generated(rng: random.Random, keys: list[Key], name: str) -> str:
    """One known_hosts file about `name` and others."""
    host = name.lstrip("[").split("]")[0]
    names = [name, name, name, host, "*", "*." + host.rpartition(".")[2], host[:3] + "*", "!" + name, "!" + host, name.upper(),
             name[:-1] + "?", f"[{host}]:*", "elsewhere", "", "!elsewhere", f"[{host}]:22", host + "x"]  # fmt: skip
    return "".join(
        _line(rng, keys, names) + rng.choice(["\n"] * 12 + ["\n\n", "\r\n"]) for _ in range(rng.randint(1, 5))
    )


class Judge:
    """A server and the keys to generate from; one for many seeds."""

    def __init__(self, box: Sshd) -> None:
        self.box = box
        good = public(box.host_keys[0])
        self.keys = [good, good, good, *(public(key) for key in box.host_keys[1:]), public(box.key)]

    def difference(self, seed: int, folder: Path) -> tuple[str, str, str]:
        """ "same", "LAXER", "stricter" (ssh takes it, or overlooks a revocation: see `nbkit.ssh.trust`) or "DIFFERENT" (both
        refuse, for another reason), ssh's word and ours.
        """
        rng = random.Random(seed)
        alias = rng.choice(["", "", rng.choice(ALIASES)])
        host = rng.choice(["127.0.0.1", "localhost"])
        name = alias or f"[{host}]:{self.box.port}"
        files = [folder / f"{seed}.a", folder / f"{seed}.b"][: rng.choice([1, 1, 2])]
        for file in files:
            file.write_bytes(generated(rng, self.keys, name).encode())
        theirs, ours = ask_ssh(self.box, files, host, alias), ask_nbkit(self.box, files, host, alias)
        if theirs is ours:
            return "same", theirs.value, ours.value
        kind = (
            "LAXER"
            if ours is Verdict.OK
            else "stricter"
            if Verdict.OK is theirs or Verdict.REVOKED is ours
            else "DIFFERENT"
        )
        return kind, theirs.value, ours.value
