"""Start a run and watch it: a dashboard in a notebook, a picture where widgets do not work, a line elsewhere."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from nbkit import training
from nbkit.display import choice, in_notebook
from nbkit.errors import RunError
from nbkit.training import Run, latest
from nbkit.widgets.feed import Feed
from nbkit.widgets.frozen import Frozen
from nbkit.widgets.idle import Idle
from nbkit.widgets.picture import picture

if TYPE_CHECKING:
    from nbkit.remote import Box

_PICTURE_EVERY_S = 0.5
_UNSEEN_S = 15.0  # of an idle kernel, without a word from a page: JupyterLab takes about one second
_OVERRIDE = "NBKIT_DISPLAY=widget, html or text overrides"
_Given = ParamSpec("_Given")


def _shown(begin: Callable[_Given, Run]) -> Callable[_Given, Run]:
    """`begin`, with its own signature and docstring, and a live view of its run in the cell that calls it."""

    @functools.wraps(begin)
    def begin_and_watch(*args: _Given.args, **kwargs: _Given.kwargs) -> Run:
        run = begin(*args, **kwargs)
        _say_notes(run)
        if run.status.active:
            watch(run)
        return run

    return begin_and_watch


start = _shown(training.start)


def watch(run: Run | str | Path | None = None, *, on: str | Box | None = None) -> Run:
    """Show a run live: the newest one, or the one named; it may belong to another kernel. Returns at once.

    With `on`, a host or an open box, it is one of what `nbkit run` began there; so is a name of what this machine began so.
    This waits until it trains. Its files are copied here as they grow, through lost links; Stop and Pause reach the box.

    Use it after a reload, a kernel restart, or from a second notebook. When the run ends its view becomes a picture and a
    table that stay in the saved notebook; a run that has ended already shows as that.

    Raises: RunError when there is no such run; with `on` what keeps the box from being reached, too.
    """
    if not isinstance(run, Run):
        run = _found(run, on)
    how, why = choice()
    if how == "text" or not in_notebook():
        print(f"{run.title}: {run.headline()}")
        if in_notebook():
            print(f"as text: {why}; {_OVERRIDE}")
        return run
    from IPython.display import HTML, display

    feed = Feed(run)
    feed.poll()
    if not feed.status.active:
        display(Frozen(feed))
    elif how == "widget":
        _show_dashboard(feed)
    else:
        note = f"pictures, no widget: {why}; {_OVERRIDE}"
        _show_pictures(feed, display(HTML(picture(feed, inline=True, note=note)), display_id=True), note)
    _say_no_more(run)
    return run


def _found(name: str | Path | None, on: str | Box | None) -> Run:
    """The run called so, here or on a box."""
    from nbkit.remote import begun

    if on is not None:
        way = next((one for one in begun.every() if (one.id, one.host) == (name, on)), None)
        return _there(str(name or ""), on, config=way.config or None if way else None, python=way.python if way else "")
    if not isinstance(name, str):
        return latest(name)
    try:
        run = latest(name)
    except RunError:
        known = begun.find(name)
        if known is None:
            raise
        return _there(known.id, known.host, config=known.config or None, python=known.python)
    if run.id != name and (known := begun.find(name)) is not None:
        raise RunError(
            f"{name!r} is {run.id} here, and {known.id} on {known.host}.", hint="write more of the id, or say on=HOST"
        )
    return run


def _there(name: str, on: str | Box, *, config: str | None = None, python: str = "") -> Run:
    from nbkit.remote import connect, mirror

    if not isinstance(on, str):
        return mirror.watch(on, name, say=print)
    box = connect(on, config=config, python=python)
    try:
        return mirror.watch(box, name, owned=True, say=print)
    except BaseException:
        box.close()
        raise


def _show_dashboard(feed: Feed) -> None:
    from IPython.display import display

    from nbkit.widgets.dashboard import Dashboard

    dashboard = Dashboard(feed)
    idle = Idle()
    handle = display(dashboard, display_id=True)

    def freeze() -> None:
        """Put the picture in the widget's place, so that the notebook needs no kernel to show it.

        A page that was reloaded does not know the output's id; it, and one that opens later, has it from the widget.
        """
        idle.close()
        result = Frozen(feed)
        handle.update(result)
        dashboard.freeze(result)

    def unseen() -> bool:
        """True when no page has answered in all the time that it could: this front end shows no widgets."""
        if idle.seconds < _UNSEEN_S:
            return False
        idle.close()
        dashboard.close()
        _show_pictures(feed, handle, f"pictures: no widget answered from this page; {_OVERRIDE}")
        return True

    dashboard.pump(freeze, unseen)


def _show_pictures(feed: Feed, handle: Any, note: str) -> None:
    """Keep an output up to date with pictures, twice a second while something changes; each says why it is one."""
    from IPython.display import HTML

    def pump() -> None:
        handle.update(HTML(picture(feed, inline=True, note=note)))
        while feed.status.active:
            time.sleep(_PICTURE_EVERY_S)
            if feed.poll().message():
                handle.update(HTML(picture(feed, inline=True, note=note)))
        handle.update(Frozen(feed))

    threading.Thread(target=pump, name=f"watch {feed.run.id}", daemon=True).start()


def _say_no_more(run: Run) -> None:
    """The view is in the output: a run that is the last line of the same cell shows nothing more."""
    from IPython import get_ipython
    from IPython.display import display

    shell, cell = get_ipython(), get_ipython().execution_count

    def shown() -> None:
        if shell.execution_count != cell:
            vars(run).pop("_ipython_display_", None)
            display(run)

    vars(run)["_ipython_display_"] = shown


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
