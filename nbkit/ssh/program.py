"""A Python program run on a host: its text and its request go over stdin, its answer comes as JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from importlib import resources
from typing import Any

from nbkit.errors import RemoteCommandError
from nbkit.ssh.session import Session
from nbkit.ssh.text import plain

OLDEST = (3, 8)
_TOO_OLD = (
    '{"error": "Python %d.%d is too old: nbkit needs 3.8 there", '
    '"hint": "name a newer one: --python PATH      or: nbkit setup HOST, which looks for one (--base PATH: on that)"}'
)
# Python 2 can read it too, and the folder where it runs cannot shadow a module. One line, without "!": csh takes no other.
_BOOT = "; ".join(
    (
        "import sys",
        f"sys.version_info < {OLDEST} and (sys.stdout.write('{_TOO_OLD}' % sys.version_info[:2]), sys.exit())",
        "sys.path = [p for p in sys.path if p]",
        "take = sys.stdin.buffer.read",
        "text, request = [take(int(sys.stdin.buffer.readline())) for _ in range(2)]",
        "import json",
        "exec(compile(text, 'nbkit-program', 'exec'), {'__name__': '__main__', 'REQUEST': json.loads(request.decode())})",
    )
)


def text_of(name: str, package: str = "nbkit.ssh.there") -> str:
    """The source of the program `name`."""
    return resources.files(package).joinpath(f"{name}.py").read_text(encoding="utf-8")


def command(python: str = "python3") -> str:
    """The line for the host's login shell, whichever that is, that waits for a program on stdin.

    Args:
        python: Shell words for `sh` that start a Python: a path, quoted, or for example "module load python; python3".
    """
    return shlex.join(["sh", "-c", f"{python} -c {shlex.quote(_BOOT)}"])


def opening(source: str, request: Mapping[str, Any]) -> bytes:
    """What goes to stdin first: the program and its request, each behind its length. The program reads what follows."""
    parts = (source.encode(), json.dumps(request).encode())
    return b"".join(b"%d\n" % len(part) + part for part in parts)


def call(
    session: Session, source: str, request: Mapping[str, Any], *, python: str = "python3", timeout_s: float = 60.0
) -> dict[str, Any]:
    """Run `source` on the host and return the JSON object it prints as its last line.

    The program finds `request` as REQUEST. It reports a failure as {"error": sentence, "hint": fix}.

    Raises: RemoteCommandError with what the program said, or where there is no Python to run it; UnreachableError.
    """
    result = session.run(command(python), input=opening(source, request), timeout_s=timeout_s)
    return answer(session, result.stdout, result.stderr, result.status, python)


def answer(session: Session, stdout: bytes, stderr: bytes, status: int, python: str) -> dict[str, Any]:
    """The JSON object in the last line of `stdout`; what start-up files print without a line's end may stand before it.

    Raises: RemoteCommandError.
    """
    host = session.route.asked
    last = stdout.rstrip().rpartition(b"\n")[2]
    last = last[max(0, last.find(b'{"')) :]
    try:
        found = json.loads(last)
    except ValueError:
        found = None
    if isinstance(found, dict) and "error" not in found:
        return found
    if isinstance(found, dict):
        raise RemoteCommandError(
            f"{host}: {plain(str(found['error']), 400)}.", hint=plain(str(found.get("hint") or "look there"), 400)
        )
    try_it = f"try: {session.route.ssh} {_one_word(f'{python} --version')}"
    if b"invalid literal for int()" in stderr:  # the first thing that our program reads is a length
        raise RemoteCommandError(
            f"{host}: the login shell there reads what is meant for our program.",
            hint=f"is there a `read` in its start-up files (~/.bashrc)? it belongs behind: [[ $- == *i* ]]      {try_it}",
        )
    said = _last(stderr) or _last(stdout) or f"exit status {status}"
    if status in {126, 127}:
        raise RemoteCommandError(
            f"{host} has no Python at {python!r}: {said}.",
            hint="install python3 there, or name one: --python PATH (a module line works too: 'module load python; python3')",
        )
    raise RemoteCommandError(f"A program of nbkit failed on {host}: {said}.", hint=try_it)


def _one_word(line: str) -> str:
    """A command for the shell there; in quotes where the shell here would act on it."""
    try:
        plain_words = shlex.join(shlex.split(line)) == line
    except ValueError:
        plain_words = False
    return line if plain_words else shlex.quote(line)


def _last(output: bytes) -> str:
    """The last line, harmless, without its full stop."""
    return plain(output.decode("utf-8", "replace").strip().rpartition("\n")[2], 300).rstrip(".")
