"""Run one of our programs on the box: its text and its request go over stdin, its answer comes as JSON."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nbkit.ssh import Session
from nbkit.ssh.program import OLDEST, answer, call, command, opening, text_of

__all__ = ["OLDEST", "answer", "bundle", "call", "command", "follow", "here", "opening", "text"]

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
    return text_of(name, package)


def bundle(*names: str) -> str:
    """One program of several modules of `there`, each after those that it imports; the last has `main(request)`."""
    return _LOAD.format(texts={name: text(name) for name in names})


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
