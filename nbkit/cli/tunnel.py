"""Verbs about the Jupyter of a box: bring it here, see what runs there."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from nbkit.cli._base import HOST, complete_hosts, host_options, json_option, patience, terminated_as_interrupted
from nbkit.cli._remote import say_blind
from nbkit.cli.ssh import port_pair, stay

if TYPE_CHECKING:
    from nbkit.remote.tunnel import Tunnel


@click.command(
    help=f"Start (or re-attach to) Jupyter on a box and bring it here, with its kernels, until Ctrl-C.\n\n{HOST} Jupyter "
    "runs on there when the tunnel ends: nbkit stop HOST ends it. It listens on a Unix socket that only you can open; here "
    "only you may connect (Linux). Its kernels can be chosen in the JupyterLab of this machine, too; the URL also serves "
    "VS Code's 'Existing Jupyter Server'.\n\n\b\nExamples:\n  nbkit tunnel gpu-box\n"
    "  nbkit tunnel gpu-box -p 6006             with TensorBoard, on a free port here\n"
    "  nbkit tunnel gpu-box -p 6006:16006       on port 16006 here\n"
    "  nbkit tunnel gpu-box --python ~/miniconda3/envs/llm/bin/python"
)
@click.argument("host", shell_complete=complete_hosts)
@click.option("-p", "ports", multiple=True, metavar="REMOTE[:LOCAL]", help="One more port or socket; again for more.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=None, help="For Jupyter here.  [default: as last time, or any]"
)
@click.option("--dir", "root", default="", metavar="PATH", help="Folder there that it shows.  [default: home]")
@host_options
@json_option
def tunnel(
    host: str, ports: tuple[str, ...], port: int | None, root: str, config: str | None, python: str, as_json: bool
) -> None:
    from nbkit.remote import connect
    from nbkit.remote.tunnel import tunnel as open_tunnel
    from nbkit.ssh.route import to_paste

    wanted = [port_pair(text) for text in ports]
    opened = None
    with terminated_as_interrupted():
        try:
            with connect(host, config=config, python=python) as box:
                with patience(f"Starting Jupyter on {host}, or finding it"):
                    opened = open_tunnel(box, wanted, port=port or 0, root=root, config=config)
                with opened:
                    _show(opened, as_json=as_json)
                    stay(box.session, lambda: opened.ended, opened.news)
        except KeyboardInterrupt:
            click.echo(_detached(opened.box.named if opened else to_paste(host, config, python), opened), err=True)
            sys.exit(130)
    click.echo(f"Ended by nbkit stop {host}.", err=True)


def _detached(named: str, opened: Tunnel | None) -> str:
    if opened is None:
        return f"\nInterrupted. Jupyter may be running there; see: nbkit status {named}"
    return (
        f"\nDetached. Jupyter (pid {opened.server.pid}) and its kernels run on, on {opened.box.host}.\n"
        f"  Back:  nbkit tunnel {named}\n  End:   nbkit stop {named}"
    )


def _show(opened: Tunnel, *, as_json: bool) -> None:
    host, server = opened.box.host, opened.server
    for note in opened.notes:
        click.echo(f"Note: {note}", err=True)
    if as_json:
        click.echo(json.dumps(opened.as_dict()))
        return
    what = "Started" if server.fresh else "Found"
    click.echo(f"{what} Jupyter (server {server.version}) in {server.root} on {host}. Open:", err=True)
    click.echo(opened.url)
    for forward in opened.forwards:
        click.echo(f"http://127.0.0.1:{forward.local_port}  ->  {host}  {forward.remote}")
    if opened.kernels:
        click.echo(f"In JupyterLab here, once reloaded: {', '.join(opened.kernels)}.", err=True)
        say_blind()
    click.echo("Ctrl-C detaches; Jupyter and its kernels run on there.", err=True)


@click.command(
    help=f"Show open tunnels, and what of nbkit runs on boxes: Jupyter, kernels, and what was started from them.\n\n{HOST} "
    "Without it: every box that had a tunnel and no nbkit stop since.\n\n\b\nExamples:\n  nbkit status\n  nbkit status gpu-box"
)
@click.argument("host", required=False, shell_complete=complete_hosts)
@host_options
@json_option
def status(host: str | None, config: str | None, python: str, as_json: bool) -> None:
    from nbkit.remote.status import status as ask

    found = [each.as_dict() for each in ask(host or "", config=config, python=python)]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif not found:
        click.echo("No tunnel is open, and no box has had one since its last nbkit stop.", err=True)
    else:
        click.echo("\n\n".join(map(_described, found)))


def _described(box: dict[str, Any]) -> str:
    lines = [box["host"]]
    for each in box["tunnels"]:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(each["since"]))
        lines.append(f"  tunnel   {each['address']}   pid {each['pid']} here, since {since}")
        lines += [f"           127.0.0.1:{f['local']} -> {f['remote']}" for f in each["forwards"]]
    if box["error"]:
        return "\n".join([*lines, f"  box      {box['error']}"])
    server = box["server"]
    if server is None:
        lines.append("  jupyter  none")
    elif "problem" in server:
        lines.append(f"  jupyter  {server['problem']}")
    else:
        lines.append(f"  jupyter  {server['version']} in {server['root']}   pid {server['pid']}")
    lines += [
        f"  kernel   {each['name'] or each.get('of') or 'of a Jupyter elsewhere'}   {each['state'] or 'running'}"
        f"   pid {each['pid']}"
        for each in box["kernels"]
    ]
    lines += [f"  run      {each['id']}   {each['state']}" for each in box["runs"]]
    lines += [f"  relay    of {_counted(each['clients'], 'connection')}   pid {each['pid']}" for each in box["relays"]]
    lines += [f"  started from those: {each['command'][:80]}   pid {each['pid']}" for each in box["rest"]]
    return "\n".join(lines)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


VERBS = (tunnel, status)
