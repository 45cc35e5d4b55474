"""SIGINT and SIGTERM in a script: the step is finished, all is saved, and the process ends with 130 or 143.

A notebook's kernel has its own ways (■ interrupts `run.wait()`), and a program that set a handler of its own keeps it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from nbkit.display import in_notebook

_WATCHED = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


def in_script() -> bool:
    """True in the main thread of a program that runs from a file or `-c`: not in a kernel, IPython or a Python prompt."""
    if threading.current_thread() is not threading.main_thread() or in_notebook() or hasattr(sys, "ps1"):
        return False
    ipython = sys.modules.get("IPython")
    ask = getattr(ipython, "get_ipython", None)
    return ask is None or ask() is None


class Signals:
    """From `install` to `finish`, the first signal calls `stop`; a second one leaves at once.

    Args:
        stop: Asks the run to end well; called in the main thread, between two instructions of it.
        name: The run's, for what is said.
    """

    def __init__(self, stop: Callable[[], None], name: str) -> None:
        self._stop, self._name = stop, name
        self._replaced: dict[int, Any] = {}
        self._over = False
        self.received = 0

    def install(self) -> Signals:
        """Take both signals, where nobody else has. Must be called in the main thread."""
        for number, usual in _WATCHED.items():
            if signal.getsignal(number) is usual:
                self._replaced[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._over and self.received:
            self.restore()
            raise SystemExit(128 + self.received)
        if self._over:  # the run had ended before: this signal is for the program
            self.restore()
            signal.raise_signal(number)
        elif self.received:
            _say(
                f"Leaving at once; nbkit.start(trainer, resume='auto') goes on from the last checkpoint of {self._name}."
            )
            os._exit(128 + number)
        else:
            self.received = number
            _say(
                f"Stopping {self._name} after this step; it saves a checkpoint and the adapter (again: leave at once)."
            )
            self._stop()

    def finish(self) -> None:
        """The run has ended, and this is its thread: the main thread leaves with 128 + the signal, if one came."""
        self._over = True
        if not self.received:
            return
        main = threading.main_thread()
        if main.is_alive() and main.ident is not None:
            signal.pthread_kill(main.ident, self.received)
        else:  # the script's end was reached, and Python waited for this thread only
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(128 + self.received)

    def restore(self) -> None:
        """Give the signals back; in the main thread only, elsewhere nothing happens."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, before in self._replaced.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, before)
        self._replaced.clear()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
