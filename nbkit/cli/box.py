"""Verbs about boxes: which there are, and setting one up."""

from __future__ import annotations

import json

import click

from nbkit.cli._base import config_option, json_option


@click.command()
@click.option("--try/--no-try", "look", default=True, help="Connect to each and look at its GPUs.  [default: try]")
@config_option
@json_option
def hosts(look: bool, config: str | None, as_json: bool) -> None:
    """Show the hosts of ~/.ssh/config: how each is reached, whether it lets us in, its GPUs and their free memory.

    Nobody is asked for a password meanwhile. Hosts with a wildcard stand for many and are left out.

    \b
    Examples:
      nbkit hosts
      nbkit hosts --no-try      what the configuration says, without connecting
    """
    from nbkit.remote.hosts import table

    found = table(config=config, look=look)
    if as_json:
        click.echo(json.dumps(found.as_dicts(), indent=2))
    elif found.rows:
        click.echo(str(found))
    else:
        click.echo("No hosts with a name of their own in ~/.ssh/config.", err=True)


VERBS = (hosts,)
