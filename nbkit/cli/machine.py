"""Verbs about machines: what is here, and what fits on it."""

from __future__ import annotations

import json

import click

from nbkit.cli._base import json_option


@click.command()
@json_option
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


VERBS = (check,)
