"""The command line: declarations and printing. Every verb is imported when it runs, so that help is quick."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from nbkit import __version__
from nbkit.errors import NbkitError, debugging

_RUN_HELP = "RUN is a run's id, the start of one, or its directory; the newest run when left out."


class _Commands(click.Group):
    """Suggests the verb that was meant, and shows an NbkitError as product: message, fix, exit code."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = get_close_matches(args[0], self.list_commands(ctx), n=1)
            if close and "Did you mean" not in error.message:
                raise click.UsageError(f"{error.message} Did you mean {close[0]!r}?", ctx) from error
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NbkitError as error:
            if debugging():
                raise
            if "--json" in sys.argv:
                click.echo(json.dumps(error.as_dict()))
            click.echo(f"Error: {error}\n  (traceback: NBKIT_DEBUG=1)", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nbkit")
def main() -> None:
    """Fine-tune language models from notebooks, here or on a remote GPU.

    \b
    Examples:
      nbkit check            what this machine has, and what fits on it
      nbkit demo             four notebooks, a real 4-bit model, base against tuned
      nbkit runs             what was trained, the newest first
      nbkit watch            follow the newest run from a terminal
      nbkit stop 20261124    finish the step, save, end

    \b
    Exit codes: 0 ok, 1 failed, 2 usage, 130 interrupted.
    """


def _json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="JSON on stdout, for scripts.")(command)


@main.command()
@_json_option
def check(as_json: bool) -> None:
    """Show this machine's hardware, its disks, and which model fits with which method.

    Looks at GPUs through NVML, at CPU, RAM, disks and installed packages; loads neither torch nor CUDA.
    """
    from nbkit.hardware import probe
    from nbkit.memory import fits

    machine = probe()
    if as_json:
        click.echo(json.dumps(machine.as_dict(), indent=2))
        return
    for part in (machine.table(), machine.storage(), fits(machine)):
        click.echo(f"{part}\n")


@main.command()
@_json_option
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


@main.command(help=f"Follow a run until it ends: a line every ten seconds, from any terminal.\n\n{_RUN_HELP}")
@click.argument("run", required=False)
@_json_option
def watch(run: str | None, as_json: bool) -> None:
    from nbkit.training import latest
    from nbkit.widgets.live import lines

    chosen = latest(run)
    seen = 0
    try:
        for line in lines(chosen):
            if as_json:
                rows = chosen.metrics()
                for row in rows[seen:]:
                    click.echo(json.dumps(row))
                seen = len(rows)
            else:
                click.echo(f"{chosen.id} · {line}")
    except KeyboardInterrupt:
        click.echo(f"\nNot watching any more; {chosen.id} goes on. Stop it with: nbkit stop {chosen.id}", err=True)
        sys.exit(130)


@main.command(help=f"Ask a run to finish its step, save a checkpoint and the adapter, and end.\n\n{_RUN_HELP}")
@click.argument("run", required=False)
def stop(run: str | None) -> None:
    from nbkit.training import latest

    chosen = latest(run)
    chosen.stop()
    click.echo(f"Asked {chosen.id} to stop after its step; nbkit watch {chosen.id} shows when it has.", err=True)


@main.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs/demo"), show_default=True,
              help="Where the executed notebooks and result.json go.")  # fmt: skip
@click.option("--notebooks", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path("notebooks"),
              show_default=True, help="Folder with the four notebooks.")  # fmt: skip
@_json_option
def demo(out: Path, notebooks: Path, as_json: bool) -> None:
    """Execute the four notebooks end to end on the embedded model, and say what it achieved.

    Takes about ten minutes on two cores without a GPU. Needs the train and lab extras (make setup).
    """
    from nbkit.demo import run_demo

    result = run_demo(notebooks, out, say=lambda text: click.echo(text, err=True))
    click.echo(json.dumps(result.as_dict(), indent=2) if as_json else str(result))


if __name__ == "__main__":
    main()
