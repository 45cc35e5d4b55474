"""Start a run and watch it: a dashboard in a notebook, a picture where widgets do not work, a line elsewhere."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from nbkit import training
from nbkit.display import mode
from nbkit.training import Run, latest
from nbkit.widgets.feed import Feed
from nbkit.widgets.frozen import Frozen
from nbkit.widgets.picture import picture

_PICTURE_EVERY_S = 0.5


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

    Use it after a reload, a kernel restart, or from a second notebook. When the run ends its view becomes a picture and a
    table that stay in the saved notebook; a run that has ended already shows as that.

    Raises: RunError when there is no such run.
    """
    run = run if isinstance(run, Run) else latest(run)
    how = mode()
    if how == "text":
        print(f"{run.id}: {run.headline()}")
        return run
    feed = Feed(run)
    feed.poll()
    if not feed.status.active:
        from IPython.display import display

        display(Frozen(feed))
    elif how == "widget":
        _show_dashboard(feed)
    else:
        _show_pictures(feed)
    return run


def _show_dashboard(feed: Feed) -> None:
    from IPython.display import display

    from nbkit.widgets.dashboard import Dashboard

    dashboard = Dashboard(feed)
    handle = display(dashboard, display_id=True)

    def freeze() -> None:
        """Put the picture in the widget's place, so that the notebook needs no kernel to show it."""
        handle.update(Frozen(feed))
        # A page that was reloaded does not know the output's id: there the widget stays, and says how the run ended.
        if dashboard.pages < 2:
            dashboard.close()

    dashboard.pump(freeze)


def _show_pictures(feed: Feed) -> None:
    from IPython.display import HTML, display

    handle = display(HTML(picture(feed, inline=True)), display_id=True)

    def pump() -> None:
        while feed.status.active:
            threading.Event().wait(_PICTURE_EVERY_S)
            if feed.poll().message():
                handle.update(HTML(picture(feed, inline=True)))
        handle.update(Frozen(feed))

    threading.Thread(target=pump, name=f"watch {feed.run.id}", daemon=True).start()


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
