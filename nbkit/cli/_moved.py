"""What is said about files that move: how far it is, and what came of it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nbkit.remote import Progress, Transferred

_LINE_S = 10.0  # between lines of progress where there is no terminal
_SHOWN = 20  # names and notes


class Meter:
    """Progress on stderr: a line that changes on a terminal, a new line now and then elsewhere."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._last = time.monotonic()
        self._open = False

    def tell(self, now: Progress) -> None:
        """Show how far it is."""
        if not self._tty and time.monotonic() - self._last < _LINE_S:
            return
        self._last = time.monotonic()
        share = 100 * now.done // now.total if now.total else 100
        left = f"{now.left_s:.0f} s left" if now.speed else ""
        line = f"{share:3d} %  {size_text(now.done)} of {size_text(now.total)}  {size_text(now.speed)}/s  {left}"
        if self._tty:
            click.echo(f"\r\x1b[K{line}  {now.name[-40:]}", err=True, nl=False)
            self._open = True
        else:
            click.echo(line, err=True)

    def end(self) -> None:
        """Leave the line."""
        if self._open:
            click.echo("\r\x1b[K", err=True, nl=False)
            self._open = False


def report(done: Transferred, *, dry_run: bool) -> None:
    """What came of it: a line on stdout, the notes on stderr; of a dry run the names."""
    for note in _some(done.notes):
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


def size_text(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
