"""What fits: one model on one machine or card, with what would mend a misfit, how long it takes and what it costs."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nbkit.cli._base import complete_hosts, host_options, json_option

if TYPE_CHECKING:
    from nbkit.hardware import Machine
    from nbkit.memory import Plan

_METHODS = click.Choice(["full", "lora", "qlora"])


@click.command()
@click.argument("model")
@click.option("--gpu", help='A card, or several: "RTX 4090", "2x A100-40GB". Default: this machine.')
@click.option("--on", "host", default="", metavar="HOST", shell_complete=complete_hosts,
              help="A box, as it is now: its GPUs and what is free of them.")  # fmt: skip
@click.option("--seq", type=click.IntRange(min=1), help="Tokens of the longest row.  [default: the data's, else 1024]")
@click.option("--batch", type=click.IntRange(min=1), help="Rows of a micro-batch.  [default: the largest that fits]")
@click.option("--rank", type=click.IntRange(min=1), default=16, show_default=True, help="Rank of the LoRA adapters.")
@click.option("--method", type=_METHODS, help="Only this one; also shows where its memory goes and the code to paste.")
@click.option("--data", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Rows to train on: their lengths decide time, cost, and which of them would run out of memory.")  # fmt: skip
@click.option("--market", is_flag=True, help="Cost and time on rented machines, with those that nobody beats in both.")
@click.option("--measure", is_flag=True, help="Run fake steps where the formula cannot decide (needs torch; seconds).")
@host_options
@json_option
def fit(
    model: str,
    gpu: str | None,
    host: str,
    seq: int | None,
    batch: int | None,
    rank: int,
    method: Any,
    data: Path | None,
    market: bool,
    measure: bool,
    config: str | None,
    python: str,
    as_json: bool,
) -> None:
    """Say which ways of training MODEL fit, and what would make the others fit.

    MODEL is a well-known name (Mistral-7B), a hub id, a folder with a config.json, or `embedded`. Needs neither torch nor
    a GPU: without them memory is a formula's, with its range.

    \b
    Examples:
      nbkit fit Mistral-7B                             on this machine
      nbkit fit Mistral-7B --gpu "RTX 4090" --seq 4096
      nbkit fit Mistral-7B --on gpu-box                with what is free there now
      nbkit fit Llama-2-13B --gpu "2x RTX 4090" --method qlora
      nbkit fit Llama-2-70B --gpu A100-80GB --market   and what it costs elsewhere
      nbkit fit embedded --data train.jsonl --json     times for your rows, for a script

    \b
    Exit codes: 0 something fits (of --method, if given), 1 nothing does, 2 usage; 3 and 4 where HOST cannot be reached or
    does not let us in.
    """
    from nbkit.memory import plan

    if host and gpu:
        raise click.UsageError("--gpu and --on are two places: name one")
    if (config or python) and not host:
        raise click.UsageError("-F and --python are for a box: name it with --on HOST")
    started = time.monotonic()
    stats = None if data is None else _stats(data, model)
    if measure:
        click.echo("running fake steps where the formula cannot decide ...", err=True)
    where = _machine(host, config, python) if host else gpu
    found = plan(model, where, stats, seq=seq, rank=rank, batch=batch, measure=measure)
    deals = found.market(method) if market else None
    if time.monotonic() - started > 2:
        click.echo(f"done in {time.monotonic() - started:.0f} s", err=True)
    show = _as_json if as_json else _as_text
    click.echo(show(found, method, with_data=stats is not None, deals=deals))
    wanted = [one for one in found.options if method in {None, one.method}]
    if all(one.verdict == "no" for one in wanted):
        sys.exit(1)


def _machine(host: str, config: str | None, python: str) -> Machine:
    from nbkit.remote import connect

    with connect(host, config=config, python=python) as box:
        return box.check()


def _as_json(found: Plan, method: Any, *, with_data: bool, deals: Any) -> str:
    said = found.as_dict()
    if method:
        said["options"] = [one for one in said["options"] if one["method"] == method]
    if with_data:
        said["prophecy"] = found.prophecy(method=method).as_dict()
    if deals is not None:
        said["market"] = deals.as_dict()
    return json.dumps(said, indent=2)


def _as_text(found: Plan, method: Any, *, with_data: bool, deals: Any) -> str:
    shown = [str(found)]
    if method:
        shown += [_parts(found, method), str(found.disk(method)), found.code(method)]
    if with_data:
        shown.append(str(found.prophecy(method=method)))
    if deals is not None:
        shown.append(str(deals))
    return "\n\n".join(shown)


def _parts(found: Plan, method: Any) -> str:
    """Where the memory of the option goes, as a bar of letters."""
    from nbkit.memory.view import Bar

    option = found.chosen(method)
    memory, room = option.memory, found.place.room_gib
    bar = Bar(memory.parts, low_gib=memory.low_gib, high_gib=memory.high_gib, room_gib=room, room_name=found.place.name)
    return f"{option.name}, {option.batch} x {found.wish.seq:,} tokens\n{bar}"


def _stats(path: Path, model: str) -> Any:
    """Tokens of each row: with the model's tokenizer where it is at hand, else estimated from the characters."""
    from nbkit import data
    from nbkit.errors import NbkitError

    rows = data.read(path)
    if data.detect(rows).name in {"alpaca", "sharegpt"}:  # as the trainer will be given them
        rows = data.convert(rows)
    try:
        from nbkit.models import resolve

        name = resolve(model)
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(name)
    except (NbkitError, ImportError, OSError, ValueError) as error:
        first = str(error).splitlines()[0].rstrip(".")
        click.echo(f"No tokenizer for {model} here ({first}): tokens are estimated as characters / 3.5.", err=True)
        return [max(1, round(len(json.dumps(list(row.values()), ensure_ascii=False)) / 3.5)) for row in rows]
    return data.token_stats(rows, tokenizer)


VERBS = (fit,)
