"""What goes on when the link is lost: the session makes it again, and what was asked is asked anew."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from nbkit import ssh
from nbkit.errors import UnreachableError
from nbkit.remote import program
from nbkit.remote.box import Box
from nbkit.ssh.process import TooLateError
from nbkit.ssh.text import plain

T = TypeVar("T")
FOREVER_S = 10 * 365 * 86400.0
_CALL_S = 60.0
_SILENT_S = 30.0  # there/tail.py says something every two seconds
_BACK_S = 600.0  # for the link, while somebody looks on
_PAUSE_S = 0.5  # where the link stands and what was asked for breaks all the same


@contextlib.contextmanager
def held(session: ssh.Session) -> Iterator[None]:
    """While this lasts, a lost link is made again: with longer and longer pauses, never after a refusal."""

    def changed() -> None:
        """Nothing is to do: whoever needs the link waits for it."""

    session.hold(changed)
    try:
        yield
    finally:
        session.release(changed)


def through(
    session: ssh.Session, ask: Callable[[], T], *, back_s: float = FOREVER_S, lost: Callable[[], None] = lambda: None
) -> T:
    """What `ask` returns, asked again each time that the link comes back; to be used where the session is `held`.

    Args:
        back_s: How long to wait for the link, each time.
        lost: Called each time that it is lost.

    Raises: UnreachableError when the link does not come back; AuthenticationError or HostKeyError when it is refused.
    """
    while True:
        try:
            return ask()
        except UnreachableError:
            lost()
            if not session.wait(back_s):
                if session.error is not None:
                    raise session.error from None
                raise
            time.sleep(_PAUSE_S)


def stream(
    box: Box,
    request: Callable[[], dict[str, Any]],
    take: Callable[[dict[str, Any]], bool],
    *,
    say: Callable[[str], None] = print,
) -> None:
    """Give each object that `there/tail.py` says to `take`, until that returns True. A lost link is made again, and the
    program started anew with what `request` says then.

    Raises: UnreachableError when the link does not come back in ten minutes; RemoteCommandError.
    """
    source = program.bundle("work", "tail")
    with held(box.session):
        while True:
            try:
                if _streamed(box, program.opening(source, request()), take):
                    return
            except TooLateError:
                say(f"{box.host} is silent; asking again")
            except UnreachableError:
                say(f"the link to {box.host} is lost; what runs there goes on, connecting again")
                if not box.session.wait(_BACK_S):
                    raise
                say("the link is back")


def _streamed(box: Box, opening: bytes, take: Callable[[dict[str, Any]], bool]) -> bool:
    with box.session.start(program.command(box.python)) as process:
        process.write(opening)
        process.close_stdin()
        rest = b""
        while data := process.read(256 * 1024, _SILENT_S):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                try:
                    told = json.loads(line)
                except ValueError:  # a login shell may print before our program starts
                    continue
                if isinstance(told, dict) and "error" in told:
                    program.answer(box.session, line, b"", 0, box.python)
                if isinstance(told, dict) and take(told):
                    return True
        program.answer(box.session, rest, process.stderr, process.wait(_SILENT_S), box.python)
    return False


class Log:
    """The lines of a job on a box (`there/job.py`), read on from the byte where the last reading ended.

    Attributes:
        offset: Bytes that have been read.
    """

    def __init__(self, box: Box, name: str) -> None:
        self.box, self.name, self.offset = box, name, 0

    def read(self, wait_s: float = 0.0) -> dict[str, Any]:
        """What is new: `text`, whole lines of it; whether the job is `running`; its `result` when it is not.

        Args:
            wait_s: How long to wait there for the first line.

        Raises: RemoteCommandError, UnreachableError.
        """
        asked = {"verb": "read", "name": self.name, "offset": self.offset, "wait_s": wait_s}
        told = self.box.call("job", asked, timeout_s=_CALL_S)
        self.offset = int(told["offset"])
        return told

    def follow(
        self, say: Callable[[str], object], *, wait_s: float, back_s: float, lost: Callable[[], None]
    ) -> dict[str, Any] | None:
        """Hand on its lines until it ends, through lost links; its result.

        Raises: as `through`.
        """
        with held(self.box.session):
            while True:
                told = through(self.box.session, lambda: self.read(wait_s), back_s=back_s, lost=lost)
                for line in told["text"].splitlines():
                    say(plain(line))
                if not told["running"] and not told["text"]:
                    found: dict[str, Any] | None = told["result"]
                    return found
