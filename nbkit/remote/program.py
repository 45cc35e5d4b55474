"""Run one of our programs on the box: its text and its request go over stdin, its answer comes as JSON."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from typing import Any

from nbkit.errors import RemoteCommandError
from nbkit.ssh import Session
from nbkit.ssh.text import plain

OLDEST = (3, 8)
# Python 2 can read it too, and the folder where it runs cannot shadow a module.
_BOOT = f"""
import sys
if sys.version_info < {OLDEST}:
    print('{{"error": "Python %d.%d is too old"}}' % sys.version_info[:2])
    sys.exit()
sys.path = [p for p in sys.path if p]
take = sys.stdin.buffer.read
text, request = [take(int(sys.stdin.buffer.readline())) for _ in range(2)]
import json
exec(compile(text, 'nbkit-program', 'exec'), {{'__name__': '__main__', 'REQUEST': json.loads(request.decode())}})
"""
# A program of several modules, which import each other as they do here.
_LOAD = """
import sys, types
package = sys.modules["nbkit.remote.there"] = types.ModuleType("nbkit.remote.there")
for name, text in {texts!r}.items():
    module = types.ModuleType("nbkit.remote.there." + name)
    sys.modules[module.__name__] = module
    setattr(package, name, module)
    exec(compile(text, name, "exec"), module.__dict__)
module.main(REQUEST)
"""


def text(name: str, package: str = "nbkit.remote.there") -> str:
    """The source of the program `name`."""
    return resources.files(package).joinpath(f"{name}.py").read_text(encoding="utf-8")


def bundle(*names: str) -> str:
    """One program of several modules of `there`, each after those that it imports; the last has `main(request)`."""
    return _LOAD.format(texts={name: text(name) for name in names})


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


def follow(
    session: Session,
    source: str,
    request: Mapping[str, Any],
    tell: Callable[[dict[str, Any]], None],
    *,
    python: str = "python3",
) -> dict[str, Any]:
    """As `call`, for a program that takes long: each object that it prints before its answer is given to `tell`.

    Raises: as `call`; without a time limit, for a dead link is noticed.
    """
    with session.start(command(python)) as process:
        process.write(opening(source, request))
        process.close_stdin()
        last = _told(iter(lambda: process.read(65536), b""), tell)
        return answer(session, last, process.stderr, process.wait(), python)


def here(source: str, request: Mapping[str, Any], tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run a program of ours on this machine and return its answer, an {"error": ...} too; see `follow`."""
    line = ["sh", "-c", command(shlex.quote(sys.executable))]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(opening(source, request))
            process.stdin.close()
            found: dict[str, Any] = json.loads(_told(process.stdout, tell))
        except BaseException:
            process.kill()
            raise
        return found


def _told(pieces: Iterable[bytes], tell: Callable[[dict[str, Any]], None]) -> bytes:
    """The last line of an output that arrives in pieces; each line before it that holds an object goes to `tell`."""
    last = rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):  # a line of the login shell's start-up files, or no line yet
                tell(dict(json.loads(last)))
            last = line
    return rest or last


def answer(session: Session, stdout: bytes, stderr: bytes, status: int, python: str) -> dict[str, Any]:
    """The JSON object in the last line of `stdout`.

    Raises: RemoteCommandError.
    """
    host = session.route.target
    last = stdout.rstrip().rpartition(b"\n")[2]
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
    said = plain(stderr.decode("utf-8", "replace").strip().rpartition("\n")[2], 300) or f"exit status {status}"
    if status in {126, 127}:
        raise RemoteCommandError(
            f"{host} has no Python at {python!r}: {said}.",
            hint="install python3 there, or name one: --python PATH (a module line works too: 'module load python; python3')",
        )
    raise RemoteCommandError(
        f"A program of nbkit failed on {host}: {said}.", hint=f"try: ssh {host} {python} --version"
    )
