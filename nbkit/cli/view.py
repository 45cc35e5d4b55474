"""Verbs that look at runs: follow one, compare several."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nbkit.cli._base import host_options, json_option
from nbkit.cli._remote import began_on_a_box, on_option, opened, say

if TYPE_CHECKING:
    from nbkit.training import Run
    from nbkit.widgets.feed import Feed

_LINE_EVERY_S = 10.0
_SCREEN_EVERY_S = 0.5
_LOOK_EVERY_S = 0.2


@click.command()
@click.argument("run", required=False)
@click.option("--samples", is_flag=True, help="With the answers to the fixed prompts at the last evaluation.")
@on_option
@host_options
@json_option
def watch(run: str | None, samples: bool, host: str, config: str | None, python: str, as_json: bool) -> None:
    """Follow a run until it ends, from any terminal; Ctrl-C leaves it running.

    In a terminal a few lines are redrawn: state, step, loss, speed, memory, time left, and curves. Into a file or a pipe
    goes a line every ten seconds. --json streams every row, reading of the machine, sample and change of state.

    RUN is a run's id, the start of one, or its directory; the newest run when left out. With --on, or for a run that this
    machine began on a box: what it trains there, once it has begun to.

    \b
    Examples:
      nbkit watch
      nbkit watch --on gpu-box
      nbkit watch 20261130 --samples
      nbkit watch --json | jq 'select(.kind == "row") | .loss'
    """
    if host or (run and began_on_a_box(run)):
        from nbkit.remote import mirror

        with opened(run, host, config, python) as work:
            trains = [one for one in work.about["runs"] if run and one["id"].startswith(run)]
            if work.active and not trains:
                say(f"{work.id} on {work.box.host}; it is shown once it trains.")
            name = str(trains[-1]["id"]) if trains else work.id
            found = mirror.watch(work.box, name if run or work.active else "")
            _follow(found, work.named, samples=samples, as_json=as_json)
        return
    if config or python:
        raise click.UsageError("-F and --python are for a box: name it with --on HOST")
    from nbkit.training import latest

    chosen = latest(run)
    _follow(chosen, chosen.named, samples=samples, as_json=as_json)


def _follow(chosen: Run, named: str, *, samples: bool, as_json: bool) -> None:
    try:
        if as_json:
            _stream(chosen)
        elif sys.stdout.isatty():
            _redraw(chosen, samples=samples)
        else:
            _log(chosen)
    except KeyboardInterrupt:
        status = chosen.status
        goes_on = (
            f"{chosen.id} goes on. Stop it with: nbkit stop {named}" if status.active else f"{chosen.id} has ended."
        )
        click.echo(f"\nNot watching any more; {goes_on}", err=True)
        sys.exit(130)


def _feed(run: Run) -> Feed:
    from nbkit.widgets.feed import Feed

    return Feed(run)


def _log(run: Run) -> None:
    """A line at once, every ten seconds, at each change of state, and at the end."""
    from nbkit.widgets.head import Head

    feed, shown, due, state = _feed(run), "", 0.0, ""
    while True:
        feed.poll()
        head = feed.head or Head()
        if head.line != shown and (time.monotonic() >= due or head.state != state):
            click.echo(f"{run.title} · {head.line}")
            shown, state, due = head.line, head.state, time.monotonic() + _LINE_EVERY_S
        if not feed.status.active:
            return
        _require_seen(run)
        time.sleep(_LOOK_EVERY_S)


def _redraw(run: Run, *, samples: bool) -> None:
    """A few lines in their place, until the run ends; the last ones stay."""
    import os

    from nbkit.widgets.terminal import can_show_blocks, screen

    feed, drawn = _feed(run), 0
    plain, colour = not can_show_blocks(sys.stdout), "NO_COLOR" not in os.environ
    while True:
        feed.poll()
        width = min(shutil.get_terminal_size().columns, 110) - 1
        lines = [run.title[:width], *screen(feed, width, plain=plain, colour=colour, samples=samples)]
        up = f"\x1b[{drawn}A" if drawn else ""
        sys.stdout.write(up + "".join(f"\x1b[2K{line}\n" for line in lines) + "\x1b[J")
        sys.stdout.flush()
        drawn = len(lines)
        if not feed.status.active:
            return
        _require_seen(run)
        time.sleep(_SCREEN_EVERY_S)


def _stream(run: Run) -> None:
    """JSON lines, flushed as they come."""
    from nbkit.widgets.terminal import Stream

    stream = Stream(run)
    while True:
        for value in stream.read():
            click.echo(json.dumps(value, ensure_ascii=False))
        if not stream.active:
            return
        _require_seen(run)
        time.sleep(_LOOK_EVERY_S)


def _require_seen(run: Run) -> None:
    """Raises: what ended the view of a run on a box."""
    error = getattr(run, "error", None)
    if error is not None:
        raise error


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="A B...")
@click.option(
    "-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="Also draw the losses into this SVG."
)
@json_option
def compare(runs: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Compare runs: results side by side, what differs in their recipes, and their losses in one picture.

    Each of A, B... is a run's id (or the start of one), a run directory, a notebook that holds finished runs in its saved
    outputs, or an SVG of one; a notebook needs no run directory and no kernel.

    \b
    Examples:
      nbkit compare 20261130-0102 20261130-0304
      nbkit compare monday.ipynb tuesday.ipynb -o losses.svg
      nbkit compare runs/* --json
    """
    from nbkit import atomic
    from nbkit.widgets.overlay import overlay

    found = overlay(*runs)
    if out is not None:
        atomic.write_text(out, found.svg())
        click.echo(f"Wrote {out}.", err=True)
    click.echo(json.dumps(found.as_dict(), indent=2, ensure_ascii=False) if as_json else str(found))


VERBS = (watch, compare)
