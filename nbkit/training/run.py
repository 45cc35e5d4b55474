"""A run is a directory: this is the side that reads it, from this kernel, another one, or a terminal.

runs/<id>/config.yaml     what `trl sft --config` reads
          metrics.jsonl   one object a step, appended
          system.jsonl    one object a second: CPU, memory, GPU
          samples.jsonl   what the model answers to fixed prompts at each evaluation
          events.jsonl    what happened: started, repaired, saved, stopped, failed
          status.json     the state word, the step, and the cause of a failure
          STOP, PAUSE     there when someone asked for it
          checkpoints/    see checkpoint.py
          adapter/        the result (model/ after full fine-tuning)
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from nbkit import atomic
from nbkit.display import Table, mode
from nbkit.errors import RunError
from nbkit.training import lines, status
from nbkit.training.lines import Tail
from nbkit.training.status import Status

_STALLED_STEPS = 5  # no row for this many median steps
_STALLED_LEAST_S = 60.0
_LINE_EVERY_S = 10.0


class Run:
    """One run directory, read afresh at every call.

    Args:
        path: The directory; it must hold a status.json.
    Attributes:
        host: The box that it is on, as it was named; empty for a run of this machine.
    Raises: RunError when it is not a run.
    """

    host = ""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "status.json").is_file():
            raise RunError(f"{self.path} is not a run: it has no status.json.", hint="nbkit runs      lists them")

    @property
    def id(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def title(self) -> str:
        """Its id, and the box that it is on."""
        return f"{self.id} on {self.host}" if self.host else self.id

    @property
    def named(self) -> str:
        """What `nbkit stop`, `pause` and `watch` call it."""
        return self.id

    @property
    def again(self) -> str:
        """What shows it anew, in a cell."""
        return "nbkit.watch()"

    @property
    def adapter(self) -> Path:
        """The folder of the result: adapter/ for LoRA and QLoRA, model/ for full fine-tuning."""
        return self.path / ("model" if (self.path / "model").is_dir() else "adapter")

    @property
    def status(self) -> Status:
        """The recorded status, corrected by what can be seen: a process that is gone has failed, a silent one stalled."""
        seen = status.read(self.path)
        return replace(seen, state="stalled") if self._silent(seen) else seen

    def _silent(self, status: Status) -> bool:
        if status.state != "training":
            return False
        times = [row["time"] for row in lines.last(self.path / "metrics.jsonl") if "loss" in row]
        gaps = [b - a for a, b in itertools.pairwise(times)]
        limit = max(_STALLED_LEAST_S, _STALLED_STEPS * statistics.median(gaps)) if gaps else 10 * _STALLED_LEAST_S
        return time.time() - status.updated > limit

    def config(self) -> dict[str, Any]:
        """The recipe: what config.yaml holds."""
        from nbkit.training.recipe import read_yaml

        return read_yaml(self.path / "config.yaml")

    def metrics(self) -> list[dict[str, Any]]:
        """All rows so far: `step`, `time` and what the trainer logged. A line still being written is left out, and of a
        step that was trained again after a resume the later row counts.
        """
        rows: list[dict[str, Any]] = []
        lines.join(rows, lines.read(self.path / "metrics.jsonl"))
        return rows

    def events(self) -> list[dict[str, Any]]:
        """What happened, in order; each with `time`, `event` and its particulars."""
        return lines.read(self.path / "events.jsonl")

    def system(self) -> list[dict[str, Any]]:
        """One reading of the machine a second; see system.Sampler for the keys, and for what an absent one means."""
        return lines.read(self.path / "system.jsonl")

    def samples(self) -> list[dict[str, Any]]:
        """What the model answered: `step`, `index` of the prompt, `prompt`, `text`, and `time`."""
        return lines.read(self.path / "samples.jsonl")

    def tail(self, name: str, offset: int = 0) -> Tail:
        """Follow `metrics`, `system`, `samples` or `events`: each `read()` gives the rows that are new, reading only
        their bytes. Rows of metrics are put together by `lines.join`.
        """
        return Tail(self.path / f"{name}.jsonl", offset)

    def stop(self) -> None:
        """Ask the run to finish its step, save a checkpoint and the adapter, and end. Works from any process, also on
        a paused run.
        """
        self._ask("stop")

    def pause(self) -> None:
        """Ask the run to finish its step, save a checkpoint and hold until `unpause` or `stop`. Its model stays in
        memory. Works from any process.
        """
        self._ask("pause")

    def unpause(self) -> None:
        """Let a paused run go on; nothing happens to one that is not."""
        (self.path / "PAUSE").unlink(missing_ok=True)

    @property
    def pausing(self) -> bool:
        """True when a pause is asked for, whether the run holds already or still finishes its step."""
        return (self.path / "PAUSE").exists()

    def _ask(self, verb: str) -> None:
        now = self.status
        if not now.active:
            raise RunError(f"Run {self.id} is not running: {now.state} at step {now.step}.", hint="nbkit runs")
        self._wish(verb)

    def _wish(self, verb: str) -> None:
        atomic.write_text(self.path / verb.upper(), f"asked to {verb}\n", mode=0o600, durable=False)

    def wait(self, timeout_s: float | None = None) -> Run:
        """Wait until it ends, with a line of progress now and then. An interrupt (■, Ctrl-C) stops the run well.

        Returns: The run itself.
        Raises: RunError with the cause when it failed; TimeoutError after `timeout_s`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        asked = False
        next_line = time.monotonic() + _LINE_EVERY_S
        while self._alive():
            try:
                self._pause(0.2)
                if mode() == "text" and time.monotonic() > next_line:  # in a notebook the live view shows it
                    print(self.headline(), flush=True)
                    next_line = time.monotonic() + _LINE_EVERY_S
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError(f"run {self.id} has not ended within {timeout_s:g} s; it goes on")
            except KeyboardInterrupt:
                if asked:
                    raise
                asked = True
                self.stop()
                print(f"Stopping {self.id} after this step; it saves a checkpoint and the adapter (■ again: leave it).")
        status = self.status
        if status.state == "failed":
            raise RunError(f"Run {self.id} failed at step {status.step}: {status.cause}", hint=status.hint)
        return self

    def _alive(self) -> bool:
        return self.status.active

    def _pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def headline(self) -> str:
        """One line: state, step, loss, speed, time left."""
        return headline(self.status, self.metrics())

    def table(self) -> Table:
        """A summary, for the end of a cell."""
        status, rows = self.status, self.metrics()
        losses = [row["loss"] for row in rows if row.get("loss") is not None]
        evals = [row["eval_loss"] for row in rows if row.get("eval_loss") is not None]
        facts: list[tuple[str, Any]] = [
            ("state", status.state + (f": {status.cause}" if status.cause else "")),
            ("step", f"{status.step} of {status.max_steps}"),
            ("training loss", f"{losses[0]:.3f} to {losses[-1]:.4f}" if losses else None),
            ("evaluation loss", " ".join(f"{value:.4f}" for value in evals[-5:]) or None),
            ("minutes", f"{(status.updated - status.started) / 60:.1f}"),
            ("result", self.adapter.name if self.adapter.is_dir() else None),
        ]
        return Table(["run", self.title], facts)

    def __repr__(self) -> str:
        status = self.status
        return f"Run({self.title}: {status.state}, step {status.step} of {status.max_steps})"

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def headline(status: Status, rows: list[dict[str, Any]]) -> str:
    """`training · step 41/120 · loss 0.2531 · 190 tok/s · ETA 03:12`; parts that are not known yet are left out."""
    parts = [status.words, f"step {status.step}/{status.max_steps or '?'}"]
    trained = [row for row in rows if row.get("loss") is not None]
    if trained:
        parts.append(f"loss {trained[-1]['loss']:.4f}")
    recent = trained[-20:]
    if len(recent) > 1:
        seconds = recent[-1]["time"] - recent[0]["time"]
        steps = recent[-1]["step"] - recent[0]["step"]
        tokens = (recent[-1].get("num_tokens") or 0) - (recent[0].get("num_tokens") or 0)
        if tokens > 0 and seconds > 0:
            parts.append(f"{tokens / seconds:,.0f} tok/s")
        if status.state == "training" and steps > 0:
            left = int((status.max_steps - status.step) * seconds / steps)
            parts.append(f"ETA {left // 60:02d}:{left % 60:02d}")
    if status.cause:
        parts.append(status.cause)
    return " · ".join(parts)


def runs_dir() -> Path:
    """Where runs live: NBKIT_RUNS, else `runs` in the current folder."""
    return Path(os.environ.get("NBKIT_RUNS") or "runs")


def runs(folder: str | Path | None = None) -> list[Run]:
    """Every run in `folder` (default: `runs_dir()`), the one begun or resumed last first."""
    root = Path(folder) if folder is not None else runs_dir()
    found = [Run(path.parent) for path in root.glob("*/status.json")]
    return sorted(found, key=lambda run: (status.recorded(run.path).started, run.id), reverse=True)


def latest(name: str | Path | None = None, folder: str | Path | None = None) -> Run:
    """The run called `name` (an id, the start of one, or a path), or the newest one.

    Raises: RunError when there is none, or when `name` fits several.
    """
    if name is not None and (Path(name) / "status.json").is_file():
        return Run(name)
    root = Path(folder) if folder is not None else runs_dir()
    found = [run for run in runs(root) if name is None or run.id.startswith(str(name))]
    if not found:
        which = f"no run {str(name)!r}" if name is not None else "no run"
        raise RunError(
            f"There is {which} in {root.absolute()}.",
            hint="nbkit runs      or set NBKIT_RUNS to the folder of runs      (on a box: --on HOST)",
        )
    if name is not None and len(found) > 1 and all(run.id != str(name) for run in found):
        raise RunError(
            f"{name!r} fits {len(found)} runs: {', '.join(run.id for run in found)}.", hint="write more of the id"
        )
    return next((run for run in found if run.id == str(name)), found[0])
