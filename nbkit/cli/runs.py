"""Verbs about runs: list, pause, stop."""

from __future__ import annotations

import json

import click

from nbkit.cli._base import HOST, host_options, json_option

_RUN_HELP = "RUN is a run's id, the start of one, or its directory; the newest run when left out."


@click.command()
@json_option
def runs(as_json: bool) -> None:
    """List the runs in ./runs (or NBKIT_RUNS), the newest first."""
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


@click.command(
    help="Ask a run to finish its step, save a checkpoint and the adapter, and end; or end all that nbkit runs on a box.\n\n"
    f"{_RUN_HELP} {HOST} On a box, Jupyter and its kernels end, and the tunnels to it; what people started from them goes on."
    "\n\n\b\nExamples:\n  nbkit stop               the newest run\n  nbkit stop 20261124      a run\n"
    "  nbkit stop gpu-box       Jupyter and kernels on a box"
)
@click.argument("what", metavar="[RUN|HOST]", required=False)
@click.option("--host", "is_host", is_flag=True, help="It is a host, whatever else has that name.")
@host_options
def stop(what: str | None, is_host: bool, config: str | None, python: str) -> None:
    if what is not None and (is_host or config or python or _is_host(what)):
        _stop_box(what, config, python)
        return
    from nbkit.training import latest

    chosen = latest(what)
    chosen.stop()
    click.echo(f"Asked {chosen.id} to stop after its step; nbkit watch {chosen.id} shows when it has.", err=True)


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
    raise click.UsageError(f"{name!r} is a host, and a run: say nbkit stop --host {name}, or nbkit stop {run.path}")


def _stop_box(host: str, config: str | None, python: str) -> None:
    from nbkit.remote.status import stop as end

    done = end(host, config=config, python=python)
    for each in done.box.ended:
        click.echo(f"Ended {each['what']} (pid {each['pid']}) on {host}.", err=True)
    if not done.box.ended:
        click.echo(f"Nothing of nbkit ran on {host}.", err=True)
    if done.tunnels:
        click.echo(f"Ended {done.tunnels} tunnel{'s' if done.tunnels > 1 else ''} here.", err=True)
    for each in done.box.rest:
        click.echo(
            f"Left alone, started from a kernel or terminal there: {each['command'][:80]} (pid {each['pid']}).",
            err=True,
        )


@click.command(help=f"Let a run finish its step, save a checkpoint and hold; its model stays in memory.\n\n{_RUN_HELP}")
@click.argument("run", required=False)
def pause(run: str | None) -> None:
    from nbkit.training import latest

    chosen = latest(run)
    chosen.pause()
    click.echo(f"Asked {chosen.id} to pause after its step; it goes on with: nbkit unpause {chosen.id}", err=True)


@click.command(help=f"Let a paused run go on.\n\n{_RUN_HELP}")
@click.argument("run", required=False)
def unpause(run: str | None) -> None:
    from nbkit.training import latest

    chosen = latest(run)
    chosen.unpause()
    click.echo(f"{chosen.id} goes on; nbkit watch {chosen.id} shows it.", err=True)


VERBS = (runs, pause, unpause, stop)
