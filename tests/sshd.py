"""A throwaway sshd on 127.0.0.1: keys in a temporary folder, a free port, always ended."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nbkit.ssh.tokens import local_user
from tests.waiting import until

SSHD = shutil.which("sshd") or next((p for p in ("/usr/sbin/sshd", "/usr/local/sbin/sshd") if Path(p).exists()), "")
READY_S = 60.0
FIRST_OUTGOING = 32_768  # of Linux's ports for outgoing connections, unless somebody changed that


def need(*programs: str) -> None:
    """Skip, and name the package, where a program is absent."""
    packages = {"sshd": "openssh-server", "ssh": "openssh-client", "ssh-keygen": "openssh-client",
                "ssh-agent": "openssh-client", "ssh-add": "openssh-client"}  # fmt: skip
    for program in programs:
        found = SSHD if program == "sshd" else shutil.which(program)
        if not found:
            pytest.skip(f"{program} is absent: apt install {packages[program]}")


def keygen(path: Path, kind: str = "ed25519", *, passphrase: str = "", more: tuple[str, ...] = ()) -> Path:
    """A new key pair at `path` and `path`.pub."""
    more = (*more, "-b", "2048") if kind == "rsa" else more
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "test", "-f", str(path), *more],
                   check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)  # fmt: skip
    return path


@dataclass
class Sshd:
    """A running server.

    Attributes:
        key: A private key that lets the user in.
        config: An ssh_config with the alias `box` for it.
    """

    folder: Path
    port: int
    options: tuple[str, ...] = ()
    host_keys: tuple[Path, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    user: str = field(default_factory=local_user)

    @property
    def key(self) -> Path:
        return self.folder / "id_ed25519"

    @property
    def config(self) -> Path:
        return self.folder / "config"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    @property
    def log(self) -> str:
        path = self.folder / "sshd.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start, and wait until the port answers."""
        lines = ["ListenAddress 127.0.0.1", f"Port {self.port}", "PidFile none", "UsePAM no", "StrictModes no",
                 "LogLevel VERBOSE", f"AuthorizedKeysFile {self.folder}/authorized_keys", "PasswordAuthentication no",
                 "KbdInteractiveAuthentication no", "PermitRootLogin yes", "MaxStartups 200:30:400",
                 # A login shell reads what this user has in the home folder, which may take any time.
                 f"SetEnv HOME={self.folder}", "MaxSessions 100",
                 *(f"HostKey {key}" for key in self.host_keys), *self.options]  # fmt: skip
        first: dict[str, str] = {}
        for line in reversed(lines):  # sshd takes the first value: what the test asks for goes before the defaults
            word = line.split()[0].lower()
            first.setdefault(line if word in {"hostkey", "acceptenv"} else word, line)
        (self.folder / "sshd_config").write_text("\n".join(reversed(first.values())) + "\n")
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.process = subprocess.Popen(
            [SSHD, "-D", "-f", str(self.folder / "sshd_config"), "-E", str(self.folder / "sshd.log")],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5) as probe:
                probe.settimeout(5)
                if probe.recv(4) == b"SSH-":
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        self.stop()
        raise RuntimeError(f"sshd did not start: {self.log[-2000:]}")

    def children(self) -> list[int]:
        """The processes that serve connections, at any depth."""
        if self.process is None:
            return []
        parents: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                parents.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(
                    int(stat.parent.name)
                )
        found, left = [], [self.process.pid]
        while left:
            young = parents.get(left.pop(), [])
            found += young
            left += young
        return found

    def signal(self, number: int) -> None:
        """Send a signal to every process that serves a connection."""
        for pid in self.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def cut(self) -> None:
        """End every connection; the server goes on."""
        self.signal(signal.SIGKILL)

    def stop(self) -> None:
        """End the server and its connections."""
        if self.process is None:
            return
        children = self.children()
        self.process.kill()
        self.process.wait(timeout=10)
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process = None

    def end_relays(self) -> None:
        """End the relays that were started with this server's folder as home; they are gone when this returns."""
        home, ending = f"HOME={self.folder}".encode(), []
        for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = cmdline.read_bytes().split(b"\0")
                if b"nbkit-relay" in words and home in (cmdline.parent / "environ").read_bytes().split(b"\0"):
                    os.kill(int(cmdline.parent.name), signal.SIGTERM)
                    ending.append(cmdline)
        until(lambda: not any(has_words(cmdline) for cmdline in ending), "a relay does not end")

    def trust(self, *keys: Path, name: str = "") -> None:
        """Write known_hosts so that the server is known by `keys` (its first host key when none is given)."""
        names = name or f"[127.0.0.1]:{self.port}"
        lines = [f"{names} {' '.join((key.parent / (key.name + '.pub')).read_text().split()[:2])}\n"
                 for key in keys or self.host_keys[:1]]  # fmt: skip
        self.known_hosts.write_text("".join(lines))

    def write_config(
        self, *lines: str, path: Path | None = None, alias: str = "box", known: Path | None = None
    ) -> Path:
        """Add `alias` for this server to the ssh_config at `path`, with more `lines` before the defaults."""
        path = path or self.config
        body = [f"Host {alias}", *lines, "HostName 127.0.0.1", f"Port {self.port}", f"User {self.user}",
                *([] if any(line.startswith("IdentityFile") for line in lines) else [f"IdentityFile {self.key}"]),
                "IdentityAgent none", f"UserKnownHostsFile {known or self.known_hosts}",
                "GlobalKnownHostsFile /dev/null"]  # fmt: skip
        with path.open("a") as file:
            file.write("\n  ".join(body) + "\n")
        path.chmod(0o600)
        return path


def has_words(cmdline: Path) -> bool:
    """True while a process runs: one that has ended, and was not waited for, has none."""
    with contextlib.suppress(OSError):
        return bool(cmdline.read_bytes())
    return False


def free_port() -> int:
    """A port that was free a moment ago, and that the system gives to no outgoing connection: a server that is away for a
    while finds it free again, and who dials it meanwhile is not connected to himself.
    """
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", 10_000 + secrets.randbelow(FIRST_OUTGOING - 10_000)))
            return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(folder: Path, *options: str, kinds: tuple[str, ...] = ("ed25519",)) -> Iterator[Sshd]:
    """An sshd with a host key of each of `kinds`, that lets this user in with `box.key`, and is known."""
    need("sshd", "ssh-keygen")
    folder.mkdir(parents=True, exist_ok=True)
    keys = tuple(keygen(folder / f"host_{kind}", kind) for kind in kinds)
    keygen(folder / "id_ed25519")
    shutil.copy(folder / "id_ed25519.pub", folder / "authorized_keys")
    box = Sshd(folder, free_port(), options, keys)
    try:
        box.start()
        box.trust()
        box.write_config()
        yield box
    finally:
        box.stop()
        box.end_relays()
