"""Verbs about runs: list, pause, stop."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from typing import TYPE_CHECKING, Any

import click

from nbkit.cli._base import HOST, host_options, json_option
from nbkit.cli._remote import began_on_a_box, on_option, opened

if TYPE_CHECKING:
    from nbkit.remote.work import Work

_RUN_HELP = "RUN is a run's id, the start of one, or its directory; the newest run when left out."
_ON_HELP = " With --on, or where this machine began it on a box, it is what nbkit run began there, by id or by its file's name."
_GRACE_S = 120.0


@click.command(
    help="List the runs in ./runs (or NBKIT_RUNS), the newest first; or what nbkit run began on a box, from any machine.\n\n"
    "\b\nExamples:\n  nbkit runs\n  nbkit runs --on gpu-box\n  nbkit runs --on gpu-box --remove 20261130-101500-train"
)
@on_option
@click.option("--remove", multiple=True, metavar="RUN",
              help="With --on: delete one that has ended, with all that it wrote and trained there; again for more.")  # fmt: skip
@host_options
@json_option
def runs(host: str, remove: tuple[str, ...], config: str | None, python: str, as_json: bool) -> None:
    if host or config or python or remove:
        _runs_on(host, remove, config, python, as_json=as_json)
        return
    from nbkit.display import Table
    from nbkit.training import runs as found
    from nbkit.training import runs_dir

    rows = []
    for run in found():
        status, losses = run.status, [row["loss"] for row in run.metrics() if row.get("loss") is not None]
        loss = losses[-1] if losses else None
        rows.append((run.id, status.state, status.step, status.max_steps, loss, status.cause))
    table = Table(["run", "state", "step", "of", "loss", "cause"], rows)
    if as_json:
        click.echo(json.dumps(table.as_dicts(), indent=2))
    elif rows:
        click.echo(str(table))
    else:
        click.echo(f"No runs in {runs_dir().absolute()}.", err=True)


def _runs_on(host: str, remove: tuple[str, ...], config: str | None, python: str, *, as_json: bool) -> None:
    from nbkit.display import Table
    from nbkit.remote import connect, work

    if not host:
        raise click.UsageError("-F, --python and --remove are for a box: name it with --on HOST")
    with connect(host, config=config, python=python) as box:
        for name in remove:
            gone = work.find(box, name)
            gone.remove()
            click.echo(f"Deleted {gone.id} on {host}.", err=True)
        found = work.works(box)
    if as_json:
        click.echo(json.dumps([dict(one.about) for one in found], indent=2))
    elif found:
        click.echo(str(Table(["run", "state", "at", "loss", "started", "cause"], [_row(one) for one in found])))
    else:
        click.echo(f"nbkit run began nothing on {host}.", err=True)


def _row(work: Work) -> tuple[Any, ...]:
    """One run on a box."""
    from nbkit.ssh.text import plain

    about, progress = work.about, work.about.get("progress")
    training = about["runs"][-1] if about["runs"] else None
    at = [f"cell {progress['cell']}/{progress['of']}"] if progress else []
    at += [f"step {training['step']}/{training['max_steps']}"] if training else []
    cause = (
        work.failed_cell
        or ("its folder was deleted there" if work.removed else "")
        or work.filled.partition(":")[0]
        or (training or {}).get("cause")
        or (_exit(work) if work.state == "failed" else "")
    )
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(about["started"]))
    return work.id, work.state, ", ".join(at), (training or {}).get("loss"), started, plain(str(cause), 80)


def _exit(work: Work) -> str:
    """Its exit code, and in a word what ended it."""
    with contextlib.suppress(ValueError):
        name = signal.Signals(work.exit_code - 128).name
        return f"exit {work.exit_code}, {name}" + (": memory ran out" if "memory ran out" in work.why else "")
    return f"exit {work.exit_code}"


@click.command(
    help="Ask a run to finish its step, save a checkpoint and the adapter, and end; or end Jupyter and the kernels on a box.\n\n"
    f"{_RUN_HELP} {HOST} With HOST, nbkit's Jupyter there ends, its kernels, and the tunnels to it; what people started from "
    "them goes on, and so do runs. A run that nbkit run began on a box is named with --on HOST, or by its id alone on the "
    "machine that began it. It saves what it trains; what is still at work after --grace seconds gets SIGTERM, a run that "
    "trains nothing gets it at once, and SIGKILL follows 30 seconds later."
    "\n\n\b\nExamples:\n  nbkit stop               the newest run\n  nbkit stop 20261124      a run\n"
    "  nbkit stop gpu-box       Jupyter and kernels on a box\n"
    "  nbkit stop train --on gpu-box      a run that nbkit run began there"
)
@click.argument("what", metavar="[RUN|HOST]", required=False)
@click.option("--host", "is_host", is_flag=True, help="It is a host, whatever else has that name.")
@on_option
@click.option("--grace", "grace_s", type=click.FloatRange(min=0), default=_GRACE_S, show_default=True, metavar="SECONDS",
              help="On a box: for a training run to finish its step and save.")  # fmt: skip
@host_options
def stop(what: str | None, is_host: bool, host: str, grace_s: float, config: str | None, python: str) -> None:
    if is_host and host:
        raise click.UsageError("--host names a box to end all on, --on the box that a run is on: one of them")
    if what is None and not host and (is_host or config or python):
        raise click.UsageError("--host, -F and --python are for a box: name it")
    if host or (what is not None and not is_host and began_on_a_box(what)):
        _stop_there(what, host, grace_s, config, python)
        return
    if what is not None and (is_host or config or python or _is_host(what)):
        _stop_box(what, config, python)
        return
    from nbkit.errors import RunError
    from nbkit.training import latest

    try:
        chosen = latest(what)
    except RunError as error:
        error.hint += f"      (it is a host: nbkit stop --host {what})" if what else ""
        raise
    chosen.stop()
    click.echo(f"Asked {chosen.id} to stop after its step; nbkit watch {chosen.id} shows when it has.", err=True)


def _stop_there(what: str | None, host: str, grace_s: float, config: str | None, python: str) -> None:
    with opened(what, host, config, python) as work:
        training = work.stop(grace_s)
        first = f": {', '.join(training)} saves first, SIGTERM after {grace_s:g} s" if training else " (SIGTERM)"
        click.echo(
            f"Asked {work.id} on {work.box.host} to stop{first}; nbkit attach {work.named} shows when it has.", err=True
        )


def _is_host(name: str) -> bool:
    """True for a box: one that had a tunnel, one that ~/.ssh/config names, or what only a host can look like.

    Raises: UsageError when there is a run of that name too.
    """
    from nbkit.errors import NbkitError
    from nbkit.remote.tunnels import remembered
    from nbkit.ssh.hosts import named
    from nbkit.training import latest

    host = "@" in name or name.startswith("ssh://") or remembered(name) is not None or name in set(named())
    if not host:
        return False
    try:
        run = latest(name)
    except NbkitError:
        return True
    raise click.UsageError(f"{name!r} is a host, and a run: say nbkit stop --host {name}      or nbkit stop {run.path}")


def _stop_box(host: str, config: str | None, python: str) -> None:
    from nbkit.remote.status import stop as end

    done = end(host, config=config, python=python)
    for each in done.box.ended:
        click.echo(f"Ended {each['what']} (pid {each['pid']}) on {host}.", err=True)
    for pid, clients in done.relays:
        ends = f"The relay (pid {pid}) on {host} ends with the last of its connections: {clients}."
        click.echo(ends if clients else f"Ended relay, which nothing used (pid {pid}) on {host}.", err=True)
    if not done.box.ended and not done.relays:
        what = "No Jupyter and no kernel" if done.left else "Nothing"
        click.echo(f"{what} of nbkit ran on {host}.", err=True)
    if done.tunnels:
        click.echo(f"Ended {done.tunnels} tunnel{'s' if done.tunnels > 1 else ''} here.", err=True)
    for work in done.left:
        click.echo(f"Left alone: {work.id} goes on there. It ends with: nbkit stop {work.named}", err=True)
    for each in done.box.rest:
        click.echo(
            f"Left alone, started from a kernel or terminal there: {each['command'][:80]} (pid {each['pid']}).",
            err=True,
        )


@click.command(
    help=f"Let a run finish its step, save a checkpoint and hold; its model stays in memory.\n\n{_RUN_HELP}{_ON_HELP}\n\n"
    "\b\nExamples:\n  nbkit pause\n  nbkit pause train --on gpu-box"
)
@click.argument("run", required=False)
@on_option
@host_options
def pause(run: str | None, host: str, config: str | None, python: str) -> None:
    if host or (run and began_on_a_box(run)):
        with opened(run, host, config, python) as work:
            asked = work.wish("pause")
            goes_on = f"nbkit unpause {work.named}"
            click.echo(f"Asked {asked} to pause after its step; it goes on with: {goes_on}", err=True)
        return
    _here(config, python)
    from nbkit.training import latest

    chosen = latest(run)
    chosen.pause()
    click.echo(f"Asked {chosen.id} to pause after its step; it goes on with: nbkit unpause {chosen.id}", err=True)


@click.command(
    help=f"Let a paused run go on.\n\n{_RUN_HELP}{_ON_HELP}\n\n\b\nExamples:\n  nbkit unpause\n  nbkit unpause 20261124"
)
@click.argument("run", required=False)
@on_option
@host_options
def unpause(run: str | None, host: str, config: str | None, python: str) -> None:
    if host or (run and began_on_a_box(run)):
        with opened(run, host, config, python) as work:
            click.echo(f"{work.wish('pause', on=False)} goes on; nbkit watch {work.named} shows it.", err=True)
        return
    _here(config, python)
    from nbkit.training import latest

    chosen = latest(run)
    chosen.unpause()
    click.echo(f"{chosen.id} goes on; nbkit watch {chosen.id} shows it.", err=True)


def _here(config: str | None, python: str) -> None:
    """Raises: UsageError where options are given that a run of this machine has no use for."""
    if config or python:
        raise click.UsageError("-F and --python are for a box: name it with --on HOST")


VERBS = (runs, pause, unpause, stop)
