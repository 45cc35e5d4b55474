"""Verbs about runs: list, pause, stop."""

from __future__ import annotations

import json

import click

from nbkit.cli._base import json_option

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


@click.command(help=f"Ask a run to finish its step, save a checkpoint and the adapter, and end.\n\n{_RUN_HELP}")
@click.argument("run", required=False)
def stop(run: str | None) -> None:
    from nbkit.training import latest

    chosen = latest(run)
    chosen.stop()
    click.echo(f"Asked {chosen.id} to stop after its step; nbkit watch {chosen.id} shows when it has.", err=True)


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
