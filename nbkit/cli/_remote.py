"""What verbs about runs on boxes share: where a run is, what it prints, and what is said when one lets go of it."""

from __future__ import annotations

import codecs
import contextlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from nbkit.cli._base import complete_hosts

if TYPE_CHECKING:
    from nbkit.remote.work import Work

RUN_THERE = (
    "RUN is an id that nbkit runs --on HOST shows, the start of one, or the name of its file; the newest when left out. "
    "Without --on: a run that this machine began."
)
_CUT = re.compile(r"(\x1b(\[[0-9;?]*)?|\r)\Z")
_LONGEST = 1 << 20  # of a line that is held until it is whole
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--on", "host", default="", metavar="HOST", shell_complete=complete_hosts, help="The box it is on."
    )(command)


@contextlib.contextmanager
def opened(run: str | None, host: str, config: str | None, python: str) -> Iterator[Work]:
    """The run, with its box connected while the block lasts.

    Raises: NbkitError when it cannot be found; what keeps the box from being reached.
    """
    from nbkit.errors import RunError
    from nbkit.remote import begun, connect, work

    name = run or ""
    if host:  # as its id was written down with its box, in a notebook that has no options
        known = next((one for one in begun.every() if (one.id, one.host) == (name, host)), None)
        config, python = config or (known and known.config) or None, python or (known.python if known else "")
    else:
        known = begun.find(name)
        if known is None:
            which = f"no run {name!r}" if name else "no run on a box"
            raise RunError(f"This machine began {which}.", hint="name the box: --on HOST      nbkit runs --on HOST")
        name, host = known.id, known.host
        config, python = config or known.config or None, python or known.python
    with connect(host, config=config, python=python) as box:
        yield work.find(box, name)


def began_on_a_box(name: str) -> bool:
    """True for a run that this machine began on a box, where no run here has that name.

    Raises: UsageError when there is one here too; RunError when several fit.
    """
    from nbkit.errors import NbkitError
    from nbkit.remote import begun
    from nbkit.training import latest

    known = begun.find(name)
    if known is None:
        return False
    try:
        run = latest(name)
    except NbkitError:
        return True
    raise click.UsageError(f"{name!r} is {known.id} on {known.host}, and {run.id} here: write more of the id")


def say(line: str) -> None:
    click.echo(line, err=True)


def say_blind() -> None:
    """Say it where a person's own Jupyter would not show the kernels of a box."""
    from nbkit.remote import kernels

    jupyter = kernels.blind()
    if jupyter:
        here = f"      or start {sys.executable} -m jupyter lab" if importlib.util.find_spec("jupyterlab") else ""
        say(f"Note: {jupyter} is of an environment without nbkit and leaves these kernels out.")
        say(f"  Fix:  install nbkit there{here}")


class Shown:
    """The bytes that a run printed, as text for a terminal or a file: no colours, no control characters.

    On a terminal a line may be drawn anew (progress bars); elsewhere the last of its states is written, when it is whole.
    """

    def __init__(self, *, terminal: bool) -> None:
        self.terminal = terminal
        self._at_start = True
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._held = ""

    def own(self, line: str) -> str:
        """A line of our own, on a line of its own; not behind a progress bar that has none yet."""
        before, self._at_start = "" if self._at_start else "\n", True
        return before + line

    def text(self, data: bytes, *, last: bool = False) -> str:
        """What can be shown now; `last` gives what was held back."""
        text = self._text(data, last=last)
        self._at_start = text.endswith("\n") if text else self._at_start
        return text

    def _text(self, data: bytes, *, last: bool) -> str:
        text = self._held + self._decode(data, last)
        cut = None if last else _CUT.search(text)
        self._held = text[cut.start() :] if cut else ""
        text = _ANSI.sub("", text[: cut.start()] if cut else text).replace("\r\n", "\n")
        if self.terminal:
            return "\r".join(map(_harmless, text.split("\r")))
        if not last:
            whole = text.rfind("\n") + 1
            whole = len(text) if len(text) - whole > _LONGEST else whole
            text, part = text[:whole], text[whole:]
            self._held = part[part.rfind("\r") + 1 :] + self._held
        return "\n".join(_harmless(line.rpartition("\r")[2]) for line in text.split("\n"))


def _harmless(text: str) -> str:
    from nbkit.ssh.text import plain

    return plain(text, len(text), lines=True)


def follow(work: Work, *, wait: bool = True, tail: int | None = None, err: bool = False) -> Work:
    """Print what the run prints until it has ended; the run as it is then.

    Raises: KeyboardInterrupt; UnreachableError.
    """
    stream = sys.stderr if err else sys.stdout
    shown = Shown(terminal=stream.isatty())

    def write(data: bytes) -> None:
        stream.write(shown.text(data))
        stream.flush()

    if work.removed:
        say(f"The folder of {work.id} was deleted there: what it prints is lost. It ends with: nbkit stop {work.named}")
    ended = work.follow(write, lines=tail, wait=wait, say=lambda line: say(shown.own(line)))
    stream.write(shown.text(b"", last=True))
    stream.flush()
    return ended


def detached(work: Work) -> str:
    """What is said when one lets go of a run."""
    box = work.box.host
    return (
        f"\nDetached. {work.about['file']} goes on, on {box}.\n  Back:  nbkit attach {work.named}\n"
        f"  End:   nbkit stop {work.named}"
    )
