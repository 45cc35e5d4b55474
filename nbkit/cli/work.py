"""Verbs about work that a box does on its own: run something there, come back to it, see what it printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nbkit.cli._base import HOST, complete_hosts, host_options, json_option, terminated_as_interrupted
from nbkit.cli._remote import RUN_THERE, detached, follow, on_option, opened, say

if TYPE_CHECKING:
    from nbkit.remote.work import Work


@click.command(
    help=f"Run a notebook, a Python script or a recipe on a box, and show here what it prints.\n\n{HOST} FILE goes there, "
    "with the modules beside it that it imports, what --with names and, where that Python lacks it, nbkit itself, into a "
    "folder of its own, where it works. The run needs no connection: Ctrl-C, a cut or a closed laptop leave it running, and "
    "nbkit attach returns to it, from any machine. Nothing is typed to it: input() ends with EOFError. What --with names keeps "
    "its place if that is below FILE's folder; else it comes to lie beside FILE.\n\n"
    "A notebook (.ipynb) is executed with nbclient, there; the file is written after each cell and brought back at the "
    "end. A recipe (.yaml) is what `trl sft --config` reads: a run's config.yaml with dataset_name added.\n\n"
    "\b\nExamples:\n  nbkit run train.ipynb --on gpu-box --param STEPS=200 --param LR=1e-4\n"
    "  nbkit run train.py --on gpu-box --with data --detach\n"
    "  nbkit run train.py --on gpu-box -- --epochs 3\n"
    "  nbkit run recipe.yaml --on gpu-box\n\n"
    "Exit code: that of the run; 130 when you detached."
)
@click.argument("file", type=click.Path())
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGS...]")
@click.option("--on", "host", required=True, metavar="HOST", shell_complete=complete_hosts, help="The box.")
@click.option("-d", "--detach", is_flag=True, help="Return as soon as it has begun.")
@click.option("-p", "--param", "params", multiple=True, metavar="K=V",
              help="A parameter of the notebook, as papermill gives it, or a key of the recipe; again for more.")  # fmt: skip
@click.option(
    "--with", "needs", multiple=True, metavar="PATH", help="A file or folder that goes along; again for more."
)
@host_options
@json_option
def run(
    file: str,
    arguments: tuple[str, ...],
    host: str,
    detach: bool,
    params: tuple[str, ...],
    needs: tuple[str, ...],
    config: str | None,
    python: str,
    as_json: bool,
) -> None:
    from nbkit.remote import connect, parameters, parcel, work
    from nbkit.ssh.route import absolute

    values = parameters.parse(params)
    parcel.prepare(file, values, needs, arguments)  # what is wrong with it is said before anything is dialled
    given: dict[str, Any] = {"parameters": values, "arguments": arguments, "needs": needs}
    config = absolute(config)
    with terminated_as_interrupted(), connect(host, config=config or None, python=python) as box:
        try:
            begun = work.begin(box, file, config=config, say=lambda line: say(f"Note: {line}"), **given)
        except KeyboardInterrupt as interrupted:
            say("\nInterrupted." if interrupted.args else "\nInterrupted before it began.")
            sys.exit(130)
        say(f"{begun.about['file']} runs on {host} as {begun.id}.")
        if detach:
            _end(begun, as_json=as_json)
            say(
                f'  Watch: nbkit watch {begun.named}      or in a notebook: nbkit.watch("{begun.id}")\n'
                f"  Back:  nbkit attach {begun.named}\n  End:   nbkit stop {begun.named}"
            )
            return
        sys.exit(_attached(begun, as_json=as_json))


def _attached(work: Work, *, as_json: bool) -> int:
    """Follow to the end; the exit code."""
    try:
        ended = follow(work, err=as_json)
        _brought(ended)
    except KeyboardInterrupt:
        say(detached(work))
        return 130
    _end(ended, as_json=as_json)
    return ended.exit_code


def _brought(work: Work) -> None:
    notebook = work.pull_notebook(Path(work.id))
    if notebook is not None:
        say(f"The executed notebook: {notebook}")


def _end(work: Work, *, as_json: bool) -> None:
    about, end = dict(work.about), work.about.get("end")
    if as_json:
        click.echo(json.dumps({**about, "on": work.box.host, "failed_cell": work.failed_cell}, indent=2))
    if work.active:
        return
    took = f" after {_clock(end['ended'] - end['began'])}" if end else ""
    words = {"done": "is done", "stopped": "was stopped", "failed": f"failed (exit code {work.exit_code})",
             "lost": "ended without a word: killed, or the box was restarted"}  # fmt: skip
    say(f"{about['file']} {words[work.state]}{took}.")
    if work.failed_cell:
        say(f"  Where: {work.failed_cell}")
    if work.why:
        say(f"  Why:   {work.why}")
    if work.filled:
        say(f"  Note:  {work.filled}")
    if work.left:
        one = work.left == 1
        say(f"  Note:  {work.left} process{'' if one else 'es'} that it started go{'es' if one else ''} on there, until: "
            f"nbkit stop {work.named}")  # fmt: skip
    if work.state in {"failed", "lost"}:
        say(f"  Look:  nbkit doctor {work.box.named}; nbkit logs {work.named}")
    say(f"  Fetch: nbkit pull {work.named}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


@click.command(
    help=f"Return to a run on a box: all that it printed, then what it prints, until it ends.\n\n{RUN_THERE} Ctrl-C leaves "
    "it running. Any machine that reaches the box can.\n\n\b\nExamples:\n  nbkit attach\n"
    "  nbkit attach 20261130-101500 --on gpu-box\n\nExit code: that of the run; 130 when you detached."
)
@click.argument("run", required=False)
@on_option
@host_options
@json_option
def attach(run: str | None, host: str, config: str | None, python: str, as_json: bool) -> None:
    with terminated_as_interrupted(), opened(run, host, config, python) as found:
        sys.exit(_attached(found, as_json=as_json))


@click.command(
    help=f"Print what a run on a box has printed.\n\n{RUN_THERE}\n\n\b\nExamples:\n  nbkit logs\n  nbkit logs -f train\n"
    "  nbkit logs 20261130-101500 --on gpu-box --tail 20"
)
@click.argument("run", required=False)
@on_option
@click.option("-f", "--follow", "wait", is_flag=True, help="Go on until it ends; Ctrl-C leaves it running.")
@click.option("--tail", type=click.IntRange(min=0), default=None, metavar="N", help="The last N lines only.")
@host_options
def logs(run: str | None, host: str, wait: bool, tail: int | None, config: str | None, python: str) -> None:
    with opened(run, host, config, python) as found:
        try:
            follow(found, wait=wait, tail=tail)
        except KeyboardInterrupt:
            say(detached(found))
            sys.exit(130)


VERBS = (run, attach, logs)
