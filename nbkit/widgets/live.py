"""The plain live view: in a notebook one output that is updated in place, elsewhere a line now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nbkit import training
from nbkit.display import mode
from nbkit.training import Run, latest
from nbkit.widgets.picture import picture

_EVERY_S = 0.5
_LINE_EVERY_S = 10.0


def start(trainer: Any, *, name: str = "", resume: str | Path | Run | None = None) -> Run:
    """`training.start`, with a live view in the cell that started it; the cell returns at once."""
    run = training.start(trainer, name=name, resume=resume)
    _say_notes(run)
    if run.status.active:
        watch(run)
    return run


start.__doc__ = training.start.__doc__


def watch(run: Run | str | Path | None = None) -> Run:
    """Show a run live: the newest one, or the one named; it may belong to another kernel. Returns at once.

    Raises: RunError when there is no such run.
    """
    run = run if isinstance(run, Run) else latest(run)
    if mode() == "html":
        _show(run)
    else:
        print(f"{run.id}: {run.headline()}")
    return run


def lines(run: Run) -> Iterator[str]:
    """The headline of `run` every ten seconds and at its end, for a terminal or a log."""
    last = ""
    while True:
        status = run.status
        line = run.headline()
        if line != last:
            yield line
            last = line
        if not status.active:
            return
        until = time.monotonic() + _LINE_EVERY_S
        while time.monotonic() < until and run.status.active:
            time.sleep(0.2)


def _show(run: Run) -> None:
    from IPython.display import HTML, display

    handle = display(HTML(picture(run)), display_id=True)

    def pump() -> None:
        """Update until the run has ended; the last update stays in the notebook as its result."""
        shown = ""
        while True:
            active = run.status.active
            drawn = picture(run)
            if drawn != shown:
                handle.update(HTML(drawn))
                shown = drawn
            if not active:
                return
            time.sleep(_EVERY_S)

    threading.Thread(target=pump, name=f"watch {run.id}", daemon=True).start()


def _say_notes(run: Run) -> None:
    begun = [event for event in run.events() if event["event"] in {"started", "resumed"}]
    if not begun:
        return
    for note in begun[-1]["notes"]:
        print(note)
    if begun[-1]["event"] == "resumed" and run.status.active:
        print(f"Resumed {run.id} from {begun[-1]['checkpoint']}.")
    if not run.status.active:
        print(f"{run.id} has already finished; to train it anew: nbkit.start(trainer)")
