"""Verbs about connections: which key a host has, and a port of one made local."""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from nbkit.cli._base import HOST, complete_hosts, config_option, json_option, terminated_as_interrupted

if TYPE_CHECKING:
    from nbkit.ssh import Forward, Session


@click.command(
    help=f"Trust a host's key, named by its fingerprint.\n\n{HOST} Without FINGERPRINT, shows the key and the line that "
    "trusts it; compare it with what the host itself says (its console, its owner). Jump hosts on the way come first, each "
    "by its own name. A key that changed or was revoked is refused, whatever is given.\n\n\b\nExamples:\n"
    "  nbkit trust gpu-box\n  nbkit trust gpu-box SHA256:n7+...\n\nExit codes: 0 trusted, 4 not trusted."
)
@click.argument("host", shell_complete=complete_hosts)
@click.argument("fingerprint", required=False, default="")
@click.option("-J", "--jump", default="", metavar="HOSTS", help="Reach it through these, as ssh -J does: a jump host "
              "behind another has no way of its own.")  # fmt: skip
@config_option
@json_option
def trust(host: str, fingerprint: str, jump: str, config: str | None, as_json: bool) -> None:
    from nbkit.ssh import trust as trust_host

    seen = trust_host(host, fingerprint, config=config, jump=jump)
    click.echo(json.dumps(seen.as_dict(), indent=2) if as_json else str(seen))
    if not seen.written and seen.verdict.value != "ok":
        sys.exit(4)


@click.command(
    help=f"Open ports on 127.0.0.1 that reach ports or Unix sockets of a host, until Ctrl-C.\n\n{HOST} The ports stay "
    "bound while a lost link is made again. Only this user may connect to them (Linux).\n\n\b\nExamples:\n"
    "  nbkit forward gpu-box -p 6006              TensorBoard there, on a free port here\n"
    "  nbkit forward gpu-box -p 6006:16006        on port 16006 here\n"
    "  nbkit forward gpu-box -p /run/user/1000/x.sock"
)
@click.argument("host", shell_complete=complete_hosts)
@click.option(
    "-p",
    "ports",
    multiple=True,
    required=True,
    metavar="REMOTE[:LOCAL]",
    help="A port or a socket's path; again for more.",
)
@config_option
@json_option
def forward(host: str, ports: tuple[str, ...], config: str | None, as_json: bool) -> None:
    from nbkit.ssh import connect
    from nbkit.ssh import forward as open_forward

    wanted = [port_pair(text) for text in ports]
    with contextlib.ExitStack() as stack:
        stack.enter_context(terminated_as_interrupted())
        session = stack.enter_context(connect(host, config=config))
        forwards = [stack.enter_context(open_forward(session, remote, local)) for remote, local in wanted]
        for need in session.facts["why"]:
            click.echo(f"The system's ssh carries it: {need}.", err=True)
        rows = [{"local": f"127.0.0.1:{f.local_port}", "port": f.local_port, "remote": f.remote} for f in forwards]
        try:
            if as_json:
                click.echo(json.dumps({"host": str(session.route.target), "forwards": rows}))
            else:
                for row in rows:
                    click.echo(f"http://{row['local']}  ->  {session.route.target}  {row['remote']}")
                click.echo("Ctrl-C closes them; nothing of ours runs on the host.", err=True)
            stay(session, news=_failures(session.route.named, forwards))
        except KeyboardInterrupt:
            click.echo("\nClosed.", err=True)
            sys.exit(130)


def _failures(named: str, forwards: Sequence[Forward]) -> Callable[[], list[str]]:
    """What says of each forward why a connection did not get there, once for each cause."""
    told: set[tuple[int | str, str]] = set()

    def news() -> list[str]:
        failed = [(each.remote, each.failed) for each in forwards if each.failed]
        new = [each for each in failed if each not in told]
        told.update(new)
        return [f"No connection to {remote} there: {why}.{_hint(named, remote, why)}" for remote, why in new]

    return news


def _hint(named: str, remote: int | str, why: str) -> str:
    if (
        "open failed" not in why
    ):  # what sshd says of a forward that it does not grant, and of a socket that is not there
        return ""
    return f" Where sshd forbids forwards: nbkit tunnel {named} -p {remote}      (does without them)"


def stay(session: Session, ended: Callable[[], bool] = lambda: False, news: Callable[[], list[str]] = list) -> None:
    """Say when the link goes and comes, and what `news()` has, until `ended()`.

    Raises: KeyboardInterrupt at Ctrl-C; what ended the session for good.
    """
    sys.stdout.flush()
    gc.freeze()  # what was imported stays: a crowd of connections does not have it searched for garbage again and again
    alive = True
    while session.error is None:
        if ended():
            return
        time.sleep(0.5)
        for text in news():
            click.echo(f"Note: {text}", err=True)
        if session.alive != alive:
            alive = session.alive
            click.echo("The link is back." if alive else "The link is lost; connecting again.", err=True)
    raise session.error


def port_pair(text: str) -> tuple[int | str, int]:
    """A port or path, and the local port or 0.

    Raises: BadParameter.
    """
    remote, colon, local = text.rpartition(":") if text.rpartition(":")[2].isdigit() and ":" in text else (text, "", "")
    if colon and not remote:
        raise click.BadParameter(f"{text!r} has no remote port", param_hint="-p")
    if remote.startswith("/"):
        return remote, int(local or 0)
    if not remote.isdigit() or not 0 < int(remote) < 65536 or int(local or 0) > 65535:
        raise click.BadParameter(f"{text!r} is not REMOTE[:LOCAL] with ports from 1 to 65535", param_hint="-p")
    return int(remote), int(local or 0)


VERBS = (trust, forward)
