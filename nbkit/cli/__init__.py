"""The command line: declarations and printing. Every verb imports what it needs when it runs, so that help is quick."""

from __future__ import annotations

import click

from nbkit import __version__
from nbkit.cli import demo, machine, runs, view
from nbkit.cli._base import Commands


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nbkit")
def main() -> None:
    """Fine-tune language models from notebooks, here or on a remote GPU.

    \b
    Examples:
      nbkit check            what this machine has, and what fits on it
      nbkit demo             four notebooks, a real 4-bit model, base against tuned
      nbkit runs             what was trained, the newest first
      nbkit watch            follow the newest run from a terminal
      nbkit compare A B      two runs, or the notebooks they stand in
      nbkit stop 20261124    finish the step, save, end

    \b
    Exit codes: 0 ok, 1 failed, 2 usage, 130 interrupted.
    """


for _verbs in (machine, runs, view, demo):
    for _verb in _verbs.VERBS:
        main.add_command(_verb)
