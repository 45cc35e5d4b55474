"""Verbs about boxes: which there are, and setting one up."""

from __future__ import annotations

import json

import click

from nbkit.cli._base import complete_hosts, config_option, json_option, patience


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
      nbkit hosts --json | jq -r '.[] | select(.answers) | .host'
    """
    from nbkit.remote import hosts as known

    with patience("Asking the hosts; one that does not answer is waited for"):
        found = known.hosts(config=config, look=look)
    if as_json:
        click.echo(json.dumps([one.as_dict() for one in found], indent=2))
    elif found:
        click.echo(str(known.table(found, look=look, config=config)))
    else:
        click.echo(f"No hosts with a name of their own in {config or '~/.ssh/config'}.", err=True)


@click.command()
@click.argument("host", shell_complete=complete_hosts)
@click.option("--python", default="", metavar="WORDS",
              help="Use this Python there instead: a path, or shell words that start it.")  # fmt: skip
@click.option("--base", default="", metavar="WORDS", help="Build from this Python there.  [default: python3, or newer]")
@click.option("--path", default="", help="Folder of the environment there.  [default: ~/.local/share/nbkit/env]")
@click.option("--without", type=click.Choice(["train", "lab"]), multiple=True,
              help="Leave out torch and the training stack, or JupyterLab.")  # fmt: skip
@click.option("--torch", default="", metavar="BUILD",
              help="cpu, cu126, cu128, cu129, cu130 or cu132.  [default: chosen for the driver]")  # fmt: skip
@click.option("--stop", is_flag=True, help="End a setup that is at work there; the next one goes on from what it left.")
@config_option
@json_option
def setup(
    host: str,
    python: str,
    base: str,
    path: str,
    without: tuple[str, ...],
    torch: str,
    stop: bool,
    config: str | None,
    as_json: bool,
) -> None:
    """Set HOST up for training: an environment with nbkit's locked versions, and the torch that fits its driver.

    HOST is an alias from ~/.ssh/config, USER@HOST[:PORT] or ssh://USER@HOST:PORT. Needs Python 3.11 or newer there, pip's
    index, no root. The work goes on there when the link is lost or Ctrl-C is pressed; the same command re-attaches, and
    goes on from what an ended one left. From then on nbkit uses that Python on HOST.

    \b
    Examples:
      nbkit setup gpu-box
      nbkit setup gpu-box --without train                   kernels only: no torch
      nbkit setup gpu-box --path /scratch/me/nbkit-env      where the home folder is small
      nbkit setup gpu-box --python ~/miniconda3/envs/train/bin/python
      nbkit setup gpu-box --python "module load python/3.12; python3"
    """
    from nbkit.errors import NbkitError
    from nbkit.hardware.builds import asked_build
    from nbkit.remote import connect, locked
    from nbkit.remote import setup as box_setup

    if python and (base or path or without or torch):
        raise click.UsageError(
            "--python uses a Python as it is; --base, --path, --without and --torch are for a new one."
        )

    if torch and "train" in without:
        raise click.UsageError("--without train leaves torch out; --torch is for one that is put in")
    if torch:
        asked_build(torch)

    def say(line: str) -> None:
        click.echo(line, err=True)

    with connect(host, config=config, python=base or box_setup.FIRST) as box:
        where = path or box_setup.ENV
        if stop:
            say("Stopped." if box_setup.stop(box, path=where) else "No setup is at work there.")
            return
        try:
            if python:
                found = box_setup.adopt(box, python)
            else:
                extras = [name for name in locked.EXTRAS if name not in without]
                found = box_setup.setup(box, path=where, extras=extras, torch=torch, say=say)
        except KeyboardInterrupt:
            raise NbkitError(
                f"Left {host}; a setup that was started goes on there.",
                hint=f"nbkit setup {box.session.route.named}      re-attaches; with --stop it ends",
                exit_code=130,
            ) from None
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else str(found))


VERBS = (hosts, setup)
