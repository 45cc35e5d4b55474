"""What verbs share: the group that suggests and explains, common options, how a verb takes a host, and SIGTERM."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from nbkit.errors import NbkitError, debugging


class Commands(click.Group):
    """Suggests the verb that was meant, and shows what failed as product: message, fix, exit code."""

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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each verb with its whole first sentence; click would cut it off at the line's end."""
        verbs = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.get_short_help_str(limit=1000)) for name, verb in verbs if verb])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NbkitError as error:
            if debugging():
                raise
            if _json_wanted():
                click.echo(json.dumps(error.as_dict()))
            click.echo(f"Error: {error}\n  (traceback: NBKIT_DEBUG=1)", err=True)
            ctx.exit(error.exit_code)
        except click.ClickException as error:  # click writes it to stderr
            if ctx.parent is None and _json_wanted():
                told = {
                    "error": type(error).__name__,
                    "message": error.format_message(),
                    "hint": f"{_words(error)} --help",
                }
                click.echo(json.dumps({**told, "exit_code": error.exit_code}))
            raise
        except KeyboardInterrupt:
            click.echo("\nInterrupted.", err=True)
            ctx.exit(130)
        except OSError as error:  # a reader of our output that has gone (`| head`) is click's to end quietly
            if debugging() or error.errno in {None, errno.EPIPE}:
                raise
            what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
            hint = (
                "free space on that disk (df -h)"
                if error.errno in {errno.ENOSPC, errno.EDQUOT}
                else "look with: ls -la"
            )
            click.echo(f"Error: {what}.\n  Fix:  {hint}\n  (traceback: NBKIT_DEBUG=1)", err=True)
            _let_go_of_stdout()
            ctx.exit(1)


def _let_go_of_stdout() -> None:
    """What cannot be written is dropped: Python would try it once more as it ends, and exit with 120."""
    try:
        sys.stdout.flush()
    except OSError:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _json_wanted() -> bool:
    """--json was given, and not to the script that is to run."""
    ours = sys.argv[: sys.argv.index("--")] if "--" in sys.argv else sys.argv
    return "--json" in ours


def _words(error: click.ClickException) -> str:
    """The verb, as it was written."""
    context = getattr(error, "ctx", None)
    return str(context.command_path) if context else "nbkit"


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="JSON on stdout, for scripts.")(command)


HOST = "HOST is an alias from ~/.ssh/config, USER@HOST[:PORT] or ssh://USER@HOST:PORT."


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "-F",
        "--config",
        type=click.Path(dir_okay=False),
        default=None,
        callback=_config_that_is_there,
        help="ssh_config in place of the user's; none for no file at all.",
    )(command)


def _config_that_is_there(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """A name that was mistyped is no empty configuration; `none` stands for one, as ssh has it.

    Raises: BadParameter.
    """
    if value and value.lower() != "none" and not Path(value).exists():
        raise click.BadParameter(f"there is no file {value!r}", ctx, option)
    return value


def complete_hosts(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The hosts of ~/.ssh/config, for a shell that completes: nothing is dialled, an unreadable file completes nothing."""
    from nbkit.ssh.hosts import named

    try:
        return [CompletionItem(name) for name in dict.fromkeys(named()) if name.startswith(incomplete)]
    except (NbkitError, OSError):
        return []


def complete_places(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files here, and `HOST:` of each host."""
    hosts = complete_hosts(ctx, param, incomplete) if incomplete else []
    return [*(CompletionItem(f"{host.value}:") for host in hosts), CompletionItem(incomplete, type="file")]


def host_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every verb that works on a box: `config` and `python`, as nbkit.remote.connect takes them."""
    python = click.option(
        "--python",
        default="",
        metavar="WORDS",
        help="Start Python there with these shell words.  [default: what nbkit setup left, else python3]",
    )
    return config_option(python(command))


@contextlib.contextmanager
def patience(what: str, after_s: float = 2.0) -> Iterator[None]:
    """Where the block takes long, a terminal is told what is waited for; nobody may be asked for anything meanwhile."""
    timer = threading.Timer(after_s, lambda: click.echo(f"{what} ...", err=True))
    timer.daemon = True
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does: ports closed, threads gone."""
    before = signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
