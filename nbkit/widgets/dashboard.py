"""The live dashboard of a run: an anywidget that draws on a canvas what a pump reads from the run directory.

Loads anywidget when imported; `nbkit.widgets` imports it only to show one.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from nbkit.errors import NbkitError
from nbkit.training import Run
from nbkit.widgets.feed import Feed
from nbkit.widgets.frozen import Frozen

EVERY_S = 0.2
_HEARTBEAT_S = 5.0  # so that a page knows a kernel that has nothing new from one that is gone
# A page that is still loading the widget's script misses messages; the whole is sent again, once or twice, until it answers.
_AGAIN_AFTER_S = (1.5, 5.0)

_ASKS: dict[str, Callable[[Run], None]] = {
    "stop": lambda run: run.stop(), "pause": lambda run: run.pause(), "resume": lambda run: run.unpause(),
}  # fmt: skip


def _asset(name: str) -> str:
    # As text: anywidget keeps every widget alive whose script is a path (manzt/anywidget#929).
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


class Dashboard(anywidget.AnyWidget):  # type: ignore[misc]  # anywidget has no types
    """One view of one run; it only reads the run directory, and asks for a stop or a pause as anyone may.

    JSON only: Colab drops binary buffers. `history` is made when a page asks for it, so that a reconnection costs one
    message and the steady state sends what is new.
    """

    _esm = _asset("dashboard.js")
    _css = _asset("dashboard.css")
    history = traitlets.Any(None).tag(sync=True, to_json=lambda _, widget: widget.whole())

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.pages = 0  # pages that said they show it
        self._sent = 0
        self._frozen: dict[str, Any] | None = None
        self._said = 0.0
        self._sending = threading.RLock()
        feed.poll()
        super().__init__()
        self.on_msg(self._heard)
        _route_past_a_busy_cell(self.comm)

    def __repr__(self) -> str:
        # What a notebook saved in mid-run shows on GitHub, and what notebooks are compared by: no address.
        return f"{self.feed.run.title}: a live view; {self.feed.run.again} in a cell shows the run as it is now"

    def whole(self) -> dict[str, Any]:
        """Everything so far, as a page takes it; when frozen, what takes the widget's place."""
        with self._sending:
            whole = {"frozen": self._frozen} if self._frozen else {"history": self.feed.snapshot()}
            return {"n": self._sent, **whole}

    def refresh(self) -> bool:
        """Send what is new, if anything; False when the run has ended."""
        with self._sending:
            message = self.feed.poll().message()
            if message:
                self._sent += 1
            if message or time.monotonic() - self._said > _HEARTBEAT_S:
                self._said = time.monotonic()
                self.send({"n": self._sent, **message})
        return self.feed.status.active

    def freeze(self, result: Frozen) -> None:
        """Hand `result` to every page that shows the widget, now or later, to put in the widget's place.

        The widget stays open: a notebook that was saved in mid-run and is opened after the end asks for it.
        """
        with self._sending:
            self._sent += 1
            data = {"text/html": result._repr_html_(), "text/plain": repr(result)}
            self._frozen = {"model_id": self.model_id, "data": data}
            self.send(self.whole())

    def pump(self, ended: Callable[[], None], unseen: Callable[[], bool] = lambda: False) -> threading.Thread:
        """Refresh five times a second from a daemon thread until the run has ended, then call `ended`.

        Ends early when the widget is closed, or when no page has ever shown it and `unseen()` says it has taken over.
        """

        def work() -> None:
            again = [round(after / EVERY_S) for after in _AGAIN_AFTER_S]
            beats = 0
            while self.comm is not None:
                time.sleep(EVERY_S)
                beats += 1
                if not self.pages and beats in again:
                    self.send(self.whole())
                if not self.pages and unseen():
                    return
                if not self.refresh():
                    ended()
                    return

        thread = threading.Thread(target=work, name=f"dashboard {self.feed.run.id}", daemon=True)
        thread.start()
        return thread

    def _heard(self, _: Any, content: Any, __: Any) -> None:
        """A word from a page: `ready` with the last number it saw, or `stop`, `pause`, `resume`."""
        kind = content.get("kind") if isinstance(content, dict) else None
        if kind == "ready":
            self.pages += content.get("n", -1) >= 0
            with self._sending:
                if content.get("n") != self._sent:
                    self.send(self.whole())
        elif kind in _ASKS:
            try:
                _ASKS[kind](self.feed.run)
                self.send({"ack": kind})
            except NbkitError as error:
                self.send({"ack": kind, "error": error.message})


def _route_past_a_busy_cell(comm: Any) -> None:
    """Let a click be handled where the front end asked for, on a subshell, while a cell blocks the main one.

    ipykernel 7.4 sends a widget's messages to the shell that last used its comm instead: the busy one, so that no click
    is heard before the cell ends. Earlier kernels have no such method and are left alone.
    """
    if hasattr(comm, "_reply_subshell_for"):
        with contextlib.suppress(AttributeError):
            comm._reply_subshell_for = lambda _, default: default  # noqa: SLF001 - there is no public switch
