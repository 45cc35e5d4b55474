"""The demo."""

from __future__ import annotations

import json
from pathlib import Path

import click

from nbkit.cli._base import json_option


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs/demo"), show_default=True,
              help="Where the executed notebooks and result.json go.")  # fmt: skip
@click.option("--notebooks", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path("notebooks"),
              show_default=True, help="Folder with the four notebooks.")  # fmt: skip
@json_option
def demo(out: Path, notebooks: Path, as_json: bool) -> None:
    """Execute the four notebooks end to end on the embedded model, and say what it achieved.

    Takes about ten minutes on two cores without a GPU. Needs the train and lab extras (make setup).

    \b
    Examples:
      nbkit demo                           in a clone of the repository
      nbkit demo --json --out demo-runs

    Exit codes: 0 each notebook ran, 1 one of them failed.
    """
    from nbkit.demo import run_demo

    result = run_demo(notebooks, out, say=lambda text: click.echo(text, err=True))
    click.echo(json.dumps(result.as_dict(), indent=2) if as_json else str(result))


VERBS = (demo,)
