"""Verbs that move files: push, pull, sync."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from nbkit.cli._base import HOST, complete_places, host_options, json_option, terminated_as_interrupted
from nbkit.cli._moved import Meter, report, size_text
from nbkit.cli._remote import on_option, opened

if TYPE_CHECKING:
    from nbkit.remote import Transferred

_PLACE = re.compile(r"((?:[^:/]*@)?(?:\[[^]/]*\]|[^:/]*)(?::\d+(?=:))?):(.*)", re.DOTALL)
_HOST = f"{HOST[:-1]}, the path behind a colon, or as in ssh://USER@HOST:PORT/PATH."
_BETWEEN = "both are HOST:PATH: from a host to another is nbkit pull and then nbkit push"
_CHECKED = (
    "Each file is checked by sha256 at both ends and takes its name only when it is whole. After a cut, the same command "
    "goes on where it stopped."
)


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--links",
            type=click.Choice(["copy", "follow", "skip"]),
            default="copy",
            show_default=True,
            help="Symbolic links: the same link (if it stays inside), what it leads to, or neither.",
        ),
        click.option("--check", is_flag=True, help="Compare what is there by sha256, not by size and time."),
        click.option("-n", "--dry-run", is_flag=True, help="Say what would be done; write nothing."),
        host_options,
        json_option,
    ):
        command = option(command)
    return command


_PARENTS = click.option("--parents", is_flag=True, help="Make the folders that DST lacks.")


@click.command(
    help=f"Send files and folders to a host.\n\n{_HOST} DST is a folder that they go into, or the new name of the only one; "
    f"it starts at the home folder. {_CHECKED}\n\n\b\nExamples:\n  nbkit push data.jsonl gpu-box:\n"
    "  nbkit push models/base gpu-box:models/ --parents\n"
    "  nbkit push hf://ORG/MODEL@COMMIT gpu-box:\n\n"
    "hf://ORG/MODEL and hf://datasets/ORG/NAME go into the hub's cache on the host (DST: another one), downloaded there "
    "where it has a network, else here. Each file is checked against the hub's digest; pickled weights are left out. "
    "s3://, gs:// and gdrive:// are read by the host with its own credentials, else here; file:///PATH is a mount there. What "
    "stands in these comes as it is, pickles too; each object is checked by the md5 that its store tells."
)
@click.argument("words", nargs=-1, required=True, metavar="SRC... HOST:DST", shell_complete=complete_places)
@_PARENTS
@click.option("--allow-pickle", is_flag=True, help="With hf://: pickled weights too. Loading one can run code.")
@_options
def push(
    words: tuple[str, ...],
    config: str | None,
    python: str,
    as_json: bool,
    allow_pickle: bool,
    **options: Any,
) -> None:
    from nbkit import remote
    from nbkit.remote.references import is_reference

    *sources, dst = words
    if not sources:
        raise click.UsageError("Missing argument 'SRC...'." if _is_place(dst) else "Missing argument 'HOST:DST'.")
    if not _is_place(dst) and any(map(_is_place, sources)) and not any(map(is_reference, sources)):
        raise click.UsageError(f"{dst!r} is not HOST:PATH: from a host to here is nbkit pull")
    if _is_place(dst) and any(_is_place(one) and not is_reference(one) and not Path(one).exists() for one in sources):
        raise click.UsageError(_BETWEEN)
    host, path = _place(dst)
    if any(is_reference(source) for source in sources):
        _refuse_given(options, "files and folders of this machine")
        _push_reference(host, path, tuple(sources), config, python, as_json, allow_pickle)
        return
    _refuse_given(["allow_pickle"], "hf:// references")
    _run(host, config, python, as_json, options, lambda box, more: remote.push(box, sources, path, **more))


@click.command(
    help=f"Fetch files and folders from a host, or what a run wrote there.\n\n{_HOST} DST is a folder that they go into, or the "
    f"new name of the only one. A quoted pattern is filled in on the host. {_CHECKED}\n\n"
    "RUN is what nbkit run began, by its id, the start of one or the name of its file: "
    "what it wrote, its executed notebook and its log go into DST/RUN  [default: here], what it trained to the runs that "
    "nbkit runs lists. What was sent stays there.\n\n"
    "\b\nExamples:\n  nbkit pull gpu-box:runs/20261130-tickets/adapter .\n"
    "  nbkit pull gpu-box:a.log gpu-box:b.log logs/ --parents\n"
    "  nbkit pull 'gpu-box:results/*.jsonl' .\n"
    "  nbkit pull train --on gpu-box"
)
@click.argument("words", nargs=-1, required=True, metavar="HOST:SRC... DST | RUN [DST]", shell_complete=complete_places)
@on_option
@_PARENTS
@_options
def pull(words: tuple[str, ...], host: str, config: str | None, python: str, as_json: bool, **options: Any) -> None:
    if not host and not _is_place(words[0]) and _is_place(words[-1]):
        raise click.UsageError(f"{words[0]!r} is not HOST:PATH: from here to a host is nbkit push")
    if host or not _is_place(words[0]):
        _refuse_given(options, "HOST:SRC")
        _pull_run(words, host, config, python, as_json=as_json)
        return
    from nbkit import remote

    *sources, dst = words
    if not sources:
        raise click.UsageError("Missing argument 'DST'.")
    if _is_place(dst):
        raise click.UsageError(f"{_BETWEEN} (a name here that has a colon: ./{dst})")
    places = [_place(source) for source in sources]
    if len({host for host, _ in places}) > 1:
        raise click.UsageError("all sources must be on one host")
    paths = [path or "." for _, path in places]
    _run(places[0][0], config, python, as_json, options, lambda box, more: remote.pull(box, paths, dst, **more))


def _pull_run(words: tuple[str, ...], host: str, config: str | None, python: str, *, as_json: bool) -> None:
    from nbkit.remote import begun
    from nbkit.training import runs_dir

    if len(words) > 2 or (not host and begun.find(words[0]) is None):
        raise click.BadParameter(
            f"{words[0]!r} is neither HOST:PATH nor a run that this machine began (name its box: --on HOST)",
            param_hint="HOST:SRC",
        )
    meter = Meter()
    with opened(words[0], host, config, python) as work:
        into = Path(words[1] if len(words) > 1 else ".", work.id)
        runs = Path(words[1], "runs") if len(words) > 1 else runs_dir()
        if work.active:
            click.echo(f"{work.id} is still at work: this is what there is now.", err=True)
        try:
            done = work.pull(into, runs, meter.tell)
        finally:
            meter.end()
    files, size = sum(each.files for each in done), sum(each.bytes for each in done)
    trained = [str(runs / run["id"]) for run in work.about["runs"]]
    if as_json:
        click.echo(
            json.dumps({"run": work.id, "into": str(into), "runs": trained, "files": files, "bytes": size}, indent=2)
        )
        return
    click.echo(f"{files} {'file' if files == 1 else 'files'}, {size_text(size)}: {', '.join([str(into), *trained])}")


@click.command(
    help=f"Make the folder DST hold what the folder SRC holds; one of them is HOST:PATH.\n\n{_HOST} Only what differs is "
    f"sent, of a changed file too. {_CHECKED}\n\n\b\nExamples:\n  nbkit sync data gpu-box:data\n"
    "  nbkit sync gpu-box:runs runs --dry-run\n"
    "  nbkit sync project gpu-box:project --watch      beside a kernel: nbkit kernel add gpu-box --dir project"
)
@click.argument("source", metavar="SRC", shell_complete=complete_places)
@click.argument("dst", metavar="DST", shell_complete=complete_places)
@click.option("--delete", is_flag=True, help="Remove from DST what SRC does not have, and what is in its way.")
@click.option(
    "-w", "--watch", is_flag=True, help="Again whenever something changes here, through lost links, until Ctrl-C."
)
@_options
def sync(source: str, dst: str, config: str | None, python: str, as_json: bool, watch: bool, **options: Any) -> None:
    from nbkit import remote

    down = _is_place(source)
    if down == _is_place(dst):
        raise click.UsageError("one of SRC and DST is HOST:PATH, the other a path here")
    host, path = _place(source if down else dst)
    pair = (path or ".", dst) if down else (source, path)
    if watch:
        if down or options["dry_run"]:
            raise click.UsageError("--watch goes from here to HOST:PATH, and writes")
        _watch(host, config, python, as_json, pair, options)
        return
    _run(host, config, python, as_json, options, lambda box, more: remote.sync(box, *pair, down=down, **more))


def _watch(
    host: str, config: str | None, python: str, as_json: bool, pair: tuple[str, str], options: dict[str, Any]
) -> None:
    from dataclasses import asdict

    from nbkit import remote
    from nbkit.errors import NbkitError
    from nbkit.remote.watching import keep

    known: set[str] = set()  # what was said is not said again each time
    trouble = ""

    def done(moved: Transferred) -> None:
        nonlocal trouble
        trouble = ""
        if as_json:
            click.echo(json.dumps(asdict(moved)))
            return
        for note in moved.notes:
            if note not in known:
                click.echo(f"note: {note}", err=True)
        known.update(moved.notes)
        click.echo(f"{time.strftime('%H:%M:%S')}  ", nl=False)
        report(moved, dry_run=False, known=known)

    def failed(error: NbkitError) -> None:
        nonlocal trouble
        if str(error) != trouble:
            trouble = str(error)
            click.echo(
                f"{time.strftime('%H:%M:%S')}  {error.message} It is tried again.\n  Fix:  {error.hint}", err=True
            )

    with terminated_as_interrupted():
        try:
            with remote.connect(host, config=config, python=python) as box:
                click.echo(f"Watching {pair[0]}; Ctrl-C ends.", err=True)
                keep(box, *pair, done=done, failed=failed, **{**options, "dry_run": False})
        except KeyboardInterrupt:
            sys.exit(130)


def _is_place(text: str) -> bool:
    """HOST:PATH, as scp tells it from a name with a colon: no slash before the colon."""
    return text.startswith("ssh://") or ":" in text.partition("/")[0]


def _place(text: str) -> tuple[str, str]:
    """Host and path of HOST:PATH, HOST:PORT:PATH (a path that begins so is `./22:path`) or ssh://HOST:PORT/PATH.

    Raises: BadParameter.
    """
    if text.startswith("ssh://"):
        host, _, path = text[6:].partition("/")
        host = f"ssh://{host}"
    else:
        found = _PLACE.fullmatch(text)
        host, path = (found[1], found[2]) if found else ("", "")
    if host in {"", "ssh://"}:
        raise click.BadParameter(f"{text!r} is not HOST:PATH", param_hint="HOST:PATH")
    return host, path


def _run(
    host: str, config: str | None, python: str, as_json: bool, options: dict[str, Any], move: Callable[..., Transferred]
) -> None:
    from nbkit import remote

    meter = Meter()
    with remote.connect(host, config=config, python=python) as box:
        try:
            meter.begin()
            done = move(box, {**options, "progress": meter.tell})
        except KeyboardInterrupt:
            meter.end()
            click.echo(
                "Interrupted. What has come over is kept, and the same command goes on from there.\n"
                "To give it up, remove what ends in .nbkit-part at the destination.",
                err=True,
            )
            sys.exit(130)
        finally:
            meter.end()
    if as_json:
        from dataclasses import asdict

        click.echo(json.dumps(asdict(done), indent=2))
    else:
        report(done, dry_run=options["dry_run"])


def _refuse_given(names: Iterable[str], use: str) -> None:
    """An option that would change nothing is an error, not ignored.

    Raises: UsageError.
    """
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} is for {use}")


def _push_reference(
    host: str,
    path: str,
    sources: tuple[str, ...],
    config: str | None,
    python: str,
    as_json: bool,
    allow_pickle: bool,
) -> None:
    from nbkit import remote
    from nbkit.remote import hub, references, stores

    if len(sources) > 1:
        raise click.UsageError("a reference is pushed alone")
    reference, meter = references.parse(sources[0]), Meter()
    if not isinstance(reference, references.HubReference):
        _refuse_given(["allow_pickle"], "hf:// references")
    with remote.connect(host, config=config, python=python) as box:
        try:
            done: hub.Fetched | stores.Stored
            if isinstance(reference, references.HubReference):
                done = hub.push(box, reference, path, allow_pickle=allow_pickle, progress=meter.tell)
            else:
                done = stores.push(box, reference, path, progress=meter.tell)
        finally:
            meter.end()
    click.echo(json.dumps(done.as_dict(), indent=2) if as_json else str(done))


VERBS = (push, pull, sync)
