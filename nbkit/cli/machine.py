"""Verbs about machines: what is here, what is wrong with it, what fits, what could be rented."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from nbkit.cli._base import complete_hosts, host_options, json_option, patience


@click.command()
@click.argument("host", required=False, default="", shell_complete=complete_hosts)
@host_options
@json_option
def check(host: str, config: str | None, python: str, as_json: bool) -> None:
    """Show a machine's hardware, its disks, the usual advice against it, and which model fits with which method.

    With HOST (an alias from ~/.ssh/config or USER@HOST[:PORT]) that box, else this machine. Looks at GPUs through NVML,
    at CPU, RAM, disks and installed packages, and reads from the disks for a second to measure them (nothing is written).
    Loads neither torch nor CUDA.

    \b
    Examples:
      nbkit check
      nbkit check gpu-box
      nbkit check --json | jq '.gpus[].name'
    """
    from nbkit.hardware import probe
    from nbkit.memory import fits

    if host:
        from nbkit.remote import connect

        with connect(host, config=config, python=python) as box, patience(f"Looking at {host}"):
            machine = box.check(read_speed=True)
    else:
        machine = probe(read_speed=True)
    if as_json:
        click.echo(json.dumps(machine.as_dict(), indent=2))
        return
    for part in (machine.table(), machine.storage(), machine.advice(), fits(machine)):
        click.echo(f"{part}\n")


@click.command()
@click.argument("host", required=False, default="", shell_complete=complete_hosts)
@click.option(
    "--fast", is_flag=True, help="Leave out torch and bitsandbytes, and the disks' speed: a fraction of a second."
)
@click.option("--log", type=click.Path(exists=True, dir_okay=False), help="Output of a failed run: explain its error.")
@click.option(
    "--timeout",
    type=click.IntRange(min=1),
    default=120,
    show_default=True,
    help="Seconds that importing torch and bitsandbytes may take.",
)
@host_options
@json_option
def doctor(
    host: str, fast: bool, log: str | None, timeout: int, config: str | None, python: str, as_json: bool
) -> None:
    """Find what is wrong with a machine and its training stack, and print the fix.

    With HOST (an alias from ~/.ssh/config or USER@HOST[:PORT]) that box, and the path to it hop by hop: round trips,
    bandwidth, login, the first hop that fails and its fix.

    torch and bitsandbytes are imported in a child process with a time limit, so a broken stack is a finding and not a
    crash.

    Exit codes: 0 nothing blocks, 3 HOST cannot be reached, 4 it does not let us in or its key is not trusted, 5 a blocker.

    \b
    Examples:
      nbkit doctor                    everything, some seconds
      nbkit doctor gpu-box            that box, and the path to it
      nbkit doctor --fast             without importing torch
      nbkit doctor --log train.log    what the error in a log means
      nbkit doctor --json | jq -r '.findings[] | .id + ": " + .fix'
    """
    from nbkit.hardware import doctor as examine
    from nbkit.remote import doctor as examine_host

    text = Path(log).read_text(encoding="utf-8", errors="replace") if log else None
    if not fast and sys.stderr.isatty():
        click.echo("Importing torch and bitsandbytes in a child process ...", err=True)
    found: Any
    if host:
        found = examine_host(host, config=config, python=python, error=text, fast=fast, timeout_s=timeout)
    else:
        found = examine(error=text, fast=fast, timeout_s=timeout)
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else str(found))
    sys.exit(found.exit_code)


VERBS = (check, doctor)
