"""What is said about files that move: how far it is, and what came of it."""

from __future__ import annotations

import os
import sys
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Collection
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nbkit.remote import Progress, Transferred

_LINE_S = 10.0  # between lines of progress where there is no terminal
_SHOWN = 20  # names and notes
_PATIENCE_S = 2.0  # until it is said what takes so long
_RECENT_S = 10.0  # speed is that of so long: what is found there already goes by much faster than what is sent
_FEW_S = 1.0  # too short to tell a speed


class Meter:
    """Progress on stderr: a line that changes on a terminal, a new line now and then elsewhere."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._last = time.monotonic()
        self._open = self._ended = False
        self._seen: deque[tuple[float, int]] = deque()  # seconds and bytes, lately
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def begin(self) -> None:
        """Where nothing moves for a while, say what is done meanwhile."""
        if self._tty:
            self._timer = threading.Timer(_PATIENCE_S, self._patience)
            self._timer.daemon = True
            self._timer.start()

    def _patience(self) -> None:
        with self._lock:
            if not self._seen and not self._ended:
                self._draw("Looking at what there is, here and there ...")

    def _draw(self, line: str) -> None:
        click.echo(f"\r\x1b[K{fitted(line, _columns())}", err=True, nl=False)
        self._open = True

    def tell(self, now: Progress) -> None:
        """Show how far it is."""
        with self._lock:
            self._seen.append((now.seconds, now.done))
            while len(self._seen) > 1 and now.seconds - self._seen[0][0] > _RECENT_S:
                self._seen.popleft()
            if not self._tty and time.monotonic() - self._last < _LINE_S:
                return
            self._last = time.monotonic()
            line = self._line(now)
            if self._tty:
                self._draw(f"{line}  {now.name[-40:]}")
            else:
                click.echo(line, err=True)

    def _line(self, now: Progress) -> str:
        share = 100 * now.done // now.total if now.total else 100
        line = f"{share:3d} %  {size_text(now.done)} of {size_text(now.total)}"
        then, had = self._seen[0]
        if now.seconds - then < _FEW_S:
            return line
        speed = (now.done - had) / (now.seconds - then)
        left = f"  {time_text((now.total - now.done) / speed)} left" if speed else ""
        return f"{line}  {size_text(speed)}/s{left}"

    def end(self) -> None:
        """Leave the line."""
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            self._ended = True
            if self._open:
                click.echo("\r\x1b[K", err=True, nl=False)
                self._open = False


def report(done: Transferred, *, dry_run: bool, known: Collection[str] = ()) -> None:
    """What came of it: a line on stdout, the notes on stderr, without those that are `known`; of a dry run the names."""
    for note in _some(tuple(note for note in done.notes if note not in known)):
        click.echo(f"note: {note}", err=True)
    if dry_run:
        for name in done.names:
            click.echo(f"send    {name}")
        for name in done.deleted:
            click.echo(f"delete  {name}")
        click.echo(f"{len(done.names)} to send, {done.same} there already; nothing was written.", err=True)
        return
    speed = f", {size_text(done.bytes / done.seconds)}/s" if done.bytes and done.seconds else ""
    more = [f"{done.same} there already"] if done.same else []
    more += [f"{size_text(done.kept)} of it was there"] if done.kept else []
    more += [f"{done.links} links"] if done.links else []
    more += [f"{len(done.deleted)} deleted"] if done.deleted else []
    more += [f"sha256 {done.sha256}"] if done.sha256 else []
    files = "1 file" if done.files == 1 else f"{done.files} files"
    click.echo(
        f"{files}, {size_text(done.bytes)} in {done.seconds:.1f} s{speed}" + "".join(f"; {text}" for text in more)
    )


def _some(lines: tuple[str, ...]) -> list[str]:
    rest = len(lines) - _SHOWN
    return [*lines[:_SHOWN], *([f"and {rest} more"] if rest > 0 else [])]


def _columns() -> int:
    """Of the terminal that stderr is."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def fitted(line: str, columns: int) -> str:
    """As much of a line as fits: what is drawn anew may not reach a second row, which would stay."""
    width = 0
    for at, char in enumerate(line):
        width += 0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1
        if width >= columns:
            return line[:at]
    return line


def time_text(seconds: float) -> str:
    """A time as a person reads it: `45 s`, `2:05 min`, `3:10 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"


def size_text(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
