"""A practice box: an sshd on this machine with keys of its own and an empty home folder, gone with its process."""

from __future__ import annotations

import atexit
import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbkit.closing import Closing
from nbkit.errors import RemoteCommandError
from nbkit.ssh.tokens import local_user

_READY_S = 20.0
# When its stdin ends, with our process, however that ends: ends sshd, ends what was started on the box (known by its
# home folder; detached jobs too, which would write on into a folder that is gone), removes the folder.
_KEEPER = """
"$1" -D -f "$2/sshd_config" -E "$2/sshd.log" & read -r _; kill $!; wait $!
while left=$(grep -lsxzF "HOME=$2/home" /proc/[0-9]*/environ | cut -d / -f 3); [ "$left" ]; do
  kill -9 $left; sleep 0.05
done
rm -rf "$2"
"""


@dataclass
class Practice(Closing):
    """A running practice box; a context manager, `close()` is idempotent.

    Attributes:
        folder: Everything of it: keys, configuration, log, and `home`, where a login starts.
        fingerprint: Of its host key, as its console would show it.
    """

    folder: Path
    fingerprint: str
    keeper: subprocess.Popen[bytes]
    host = "practice"

    @property
    def options(self) -> dict[str, Any]:
        """For `nbkit.connect(box.host, **box.options)`: its ssh_config, and the Python of this process."""
        return {"config": self.folder / "config", "python": shlex.quote(sys.executable)}

    def close(self) -> None:
        """End the server and, on Linux, what was started on it; remove its folder."""
        atexit.unregister(self.close)
        if self.keeper.stdin is not None:
            self.keeper.stdin.close()
        self.keeper.wait(timeout=_READY_S)


def sshd_program() -> str:
    """The path of sshd; empty where it is not installed. It is in no ordinary user's PATH."""
    return (
        shutil.which("sshd", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))) or ""
    )


def practice() -> Practice:
    """Start a practice box: what works there works on a GPU box, over the same ssh.

    It listens on 127.0.0.1 alone, on a free port, lets in one key made for it, and knows no password. Its host key is
    not trusted yet: `nbkit.ssh.trust(box.host, box.fingerprint, config=...)`.

    Raises: RemoteCommandError where sshd or ssh-keygen is not installed, or does not start.
    """
    sshd, keygen = sshd_program(), shutil.which("ssh-keygen")
    if not sshd or not keygen:
        raise RemoteCommandError(
            f"A practice box needs {'sshd' if not sshd else 'ssh-keygen'}, which is not installed here.",
            hint="sudo apt install openssh-server      or set HOST to a box of yours",
        )
    folder = Path(tempfile.mkdtemp(prefix="nbkit-practice-"))
    try:
        for name in ("host_key", "user_key"):
            line = [keygen, "-q", "-t", "ed25519", "-N", "", "-C", "practice", "-f", str(folder / name)]
            subprocess.run(line, check=True, stdin=subprocess.DEVNULL, capture_output=True)
        shown = subprocess.run(
            [keygen, "-l", "-f", folder / "host_key.pub"], check=True, capture_output=True, text=True
        )
        port = _configure(folder)
        command = ["sh", "-c", _KEEPER, "practice", sshd, str(folder)]
        keeper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
        box = Practice(folder, shown.stdout.split()[1], keeper)
        atexit.register(box.close)
        _await(box, port)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return box


def _configure(folder: Path) -> int:
    """Write what sshd and the client read; the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    home = folder / "home"
    home.mkdir()
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    # A session starts in the box's own home folder; without a command it is a shell.
    command = 'cd "$HOME" && exec sh -c "${SSH_ORIGINAL_COMMAND:-sh -i}"'
    server = (
        "ListenAddress 127.0.0.1", f"Port {port}", f"HostKey {folder}/host_key", "PidFile none", "UsePAM no",
        f"AllowUsers {local_user()}", f"AuthorizedKeysFile {folder}/authorized_keys", "PasswordAuthentication no",
        "KbdInteractiveAuthentication no", "PermitRootLogin prohibit-password", "AllowAgentForwarding no",
        "X11Forwarding no", "MaxSessions 100", f"SetEnv HOME={home}", f"ForceCommand {command}",
        "StrictModes no",  # the folder is 0700, and what it lies in belongs to root
    )  # fmt: skip
    (folder / "sshd_config").write_text("\n".join(server) + "\n")
    client = (
        f"Host {Practice.host}", "HostName 127.0.0.1", f"Port {port}", f"User {local_user()}",
        f"IdentityFile {folder}/user_key", "IdentitiesOnly yes", "IdentityAgent none",
        f"UserKnownHostsFile {folder}/known_hosts", "GlobalKnownHostsFile /dev/null",
    )  # fmt: skip
    (folder / "config").write_text("\n  ".join(client) + "\n")
    return port


def _await(box: Practice, port: int) -> None:
    """Wait until it answers.

    Raises: RemoteCommandError with the end of its log.
    """
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where a root sshd shuts its children in
    end = time.monotonic() + _READY_S
    log = box.folder / "sshd.log"
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as probe:
            if probe.recv(4) == b"SSH-":
                return
        time.sleep(0.02)
    said = log.read_text(errors="replace")[-300:] if log.exists() else "nothing"
    box.close()
    raise RemoteCommandError(f"The practice box did not start; sshd said: {said}", hint="is /run/sshd there?")
