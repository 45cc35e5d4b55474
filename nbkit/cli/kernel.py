"""Verbs about kernels that run on boxes and are chosen here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import click

from nbkit.cli._base import HOST, Commands, complete_hosts, host_options, json_option
from nbkit.cli._remote import say_blind


@click.group(cls=Commands)
def kernel() -> None:
    """Kernels of a GPU box in the JupyterLab of this machine; notebook files stay here.

    \b
    Examples:
      nbkit kernel add gpu-box               choose "Python 3.12 (gpu-box)" in JupyterLab from now on
      nbkit kernel list                      what can be chosen here
      nbkit kernel list gpu-box              what runs there
      nbkit kernel attach gpu-box            return to a kernel that runs there
      nbkit kernel logs gpu-box              what it said meanwhile
      nbkit kernel rm nbkit-gpu-box          no longer a choice here
    """


@kernel.command(
    help="Make the Python of HOST a kernel that JupyterLab here, VS Code, jupyter console, papermill and nbval can choose."
    f"\n\n{HOST} It needs ipykernel there, no Jupyter and no nbkit. When JupyterLab here ends, its kernels go on there "
    "(nbkit kernel attach HOST returns to them) unless --on-close end; shutting a kernel down always ends it, and VS Code does "
    "so when it closes.\n\n\b\nExamples:\n"
    "  nbkit kernel add gpu-box\n  nbkit kernel add gpu-box --python ~/miniconda3/envs/llm/bin/python --name llm\n"
    "  pytest --nbval --nbval-kernel-name nbkit-gpu-box notebook.ipynb"
)
@click.argument("host", shell_complete=complete_hosts)
@click.option("--name", default="", help="For command lines and the launcher.  [default: from the host]")
@click.option("--on-close", type=click.Choice(["leave", "end"]), default="leave", show_default=True,
              help="What becomes of a kernel when the JupyterLab here ends.")  # fmt: skip
@click.option("--dir", "folder", default="", metavar="PATH", help="Folder there that it works in.  [default: home]")
@click.option(
    "--env", multiple=True, metavar="NAME=VALUE", help="A variable that it has there; again for more. No secrets."
)
@host_options
@json_option
def add(
    host: str,
    name: str,
    on_close: Any,
    folder: str,
    env: tuple[str, ...],
    config: str | None,
    python: str,
    as_json: bool,
) -> None:
    from nbkit.remote import connect, kernels

    variables = dict(each.partition("=")[::2] for each in env)
    if not all("=" in each and not each.startswith("=") for each in env):
        raise click.BadParameter("NAME=VALUE is wanted.", param_hint="--env")
    with connect(host, config=config, python=python) as box:
        made = kernels.add(box, name=name, folder=folder, env=variables, on_close=on_close, config=config)
    if as_json:
        click.echo(json.dumps(made.as_dict()))
    else:
        click.echo(f"{made.shown}: choose it in JupyterLab, once reloaded.", err=True)
        say_blind()
        click.echo(made.name)


@kernel.command(
    "list",
    help="Show the kernels of boxes that can be chosen here, or, with HOST, those that run there.\n\n"
    f"{HOST}\n\n\b\nExamples:\n  nbkit kernel list\n  nbkit kernel list gpu-box",
)
@click.argument("host", required=False, shell_complete=complete_hosts)
@host_options
@json_option
def list_(host: str | None, config: str | None, python: str, as_json: bool) -> None:
    from nbkit.display import Table
    from nbkit.remote import connect, jupyter, kernels

    if host is None:
        here = kernels.listed()
        if as_json:
            click.echo(json.dumps([each.as_dict() for each in here], indent=2))
        elif here:
            rows = [(each.name, each.shown, each.host, each.on_close) for each in here]
            click.echo(str(Table(("name", "in the launcher", "host", "when JupyterLab ends"), rows)))
        else:
            click.echo("None. Make one: nbkit kernel add HOST", err=True)
        return
    with connect(host, config=config, python=python) as box:
        found = jupyter.look(box)
        named = box.named
    there = [*found.kernels, *({"pid": None, "name": None, "state": "ended", **each} for each in found.ended)]
    if as_json:
        click.echo(json.dumps(there, indent=2))
        return
    if there:
        running = [(each["id"][:8], str(each["pid"] or ""), *_described(each)) for each in there]
        click.echo(str(Table(("id", "pid", "kernel", "state", "since"), running)))
    else:
        click.echo(f"No kernel of ours runs on {host}.", err=True)
    for each in there:
        if story := each.get("text") or each.get("after"):
            again = " It was started again." if each["pid"] else ""
            click.echo(
                f"{each['id'][:8]}: {story}{again} Its output: nbkit kernel logs {named} {each['id'][:8]}", err=True
            )


def _one_of_a_host(verb: Callable[..., None]) -> Callable[..., None]:
    """HOST and ID as arguments, and how the host is reached."""
    options = (
        click.argument("host", shell_complete=complete_hosts),
        click.argument("kernel_id", metavar="[ID]", default=""),
        host_options,
        json_option,
    )
    for option in reversed(options):
        verb = option(verb)
    return verb


def _described(each: dict[str, Any]) -> tuple[str, str, str]:
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(each["since"])) if each.get("since") else ""
    what = each["name"] or each.get("of") or "of a Jupyter elsewhere"
    return what, each["state"] or ("in use" if each.get("in_use") else "running"), since


@kernel.command()
@click.argument("names", nargs=-1, required=True)
def rm(names: tuple[str, ...]) -> None:
    """Take kernels out of this machine's Jupyter, by NAME as `nbkit kernel list` shows it, or all of a HOST.

    What runs on the box runs on: nbkit stop HOST ends it.

    \b
    Examples:
      nbkit kernel rm nbkit-gpu-box
      nbkit kernel rm gpu-box
    """
    from nbkit.errors import NbkitError
    from nbkit.remote import kernels

    for name in names:
        count = kernels.unregister(name=name) or kernels.unregister(name)
        if not count:
            raise NbkitError(
                f"No kernel is called {name!r}, and none is of a host called so.", hint="nbkit kernel list"
            )
        click.echo(f"Removed {name}" + (f": {count} kernels." if count > 1 else "."), err=True)


@kernel.command(
    help=f"Return to a kernel that runs on HOST: choose it in JupyterLab and its variables are there.\n\n{HOST} "
    "ID, or the beginning of it, is needed where several run; nbkit kernel list HOST shows them.\n\n\b\nExamples:\n"
    "  nbkit kernel attach gpu-box\n  nbkit kernel attach gpu-box 3f2a"
)
@_one_of_a_host
def attach(host: str, kernel_id: str, config: str | None, python: str, as_json: bool) -> None:
    from nbkit.remote import connect, kernels

    with connect(host, config=config, python=python) as box:
        found = kernels.find(box, kernel_id)
        made = kernels.attach(box, found["id"], config=config)
    if as_json:
        click.echo(json.dumps(made.as_dict()))
    else:
        click.echo(f"Choose it in JupyterLab, once reloaded: {made.shown}", err=True)
        if found.get("in_use"):
            click.echo(
                "It is in use already: cells of both run in turn, and who shuts it down ends it for both.", err=True
            )
        click.echo(f"What it has said meanwhile: nbkit kernel logs {box.named} {made.running[:8]}", err=True)
        click.echo(made.name)


@kernel.command(
    help="Print what a kernel on HOST has printed, shown and raised since it began, also while no JupyterLab was there to "
    f"hear it.\n\n{HOST} ID, or the beginning of it, is needed where several run. Texts only; 64 MiB are kept until the "
    "kernel is shut down or restarted; of one that was killed or crashed, for a week.\n\n\b\nExamples:\n"
    "  nbkit kernel logs gpu-box\n  nbkit kernel logs gpu-box 3f2a --json"
)
@_one_of_a_host
def logs(host: str, kernel_id: str, config: str | None, python: str, as_json: bool) -> None:
    from nbkit.remote import connect, jupyter, kernels
    from nbkit.ssh.text import coloured

    with connect(host, config=config, python=python) as box:
        messages = jupyter.said(box, kernels.find(box, kernel_id, ended=True)["id"])
        if as_json:
            for each in messages:
                click.echo(json.dumps(each))
        else:
            for text in kernels.told(messages):
                click.echo(coloured(text), nl=False)


VERBS = (kernel,)
