"""What is wished of a run on a box, told to it in order, from a thread of its own: nobody is held up by a lost link."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from nbkit.errors import NbkitError, UnreachableError
from nbkit.remote.work import Work

TELL_S = 1.5  # a dashboard says after two seconds that its click was not heard
_BACK_S, _AGAIN_S = 5.0, 0.2


class Asker:
    """Asks one run on a box to stop, pause or go on.

    Args:
        seen: Whether the run is watched still, so that a lost link is made again.
    Attributes:
        waiting: What is not told yet, oldest first: stop, pause, go on.
        refused: What the box answered to a wish that nobody waited for any more.
    """

    def __init__(self, work: Work, seen: Callable[[], bool]) -> None:
        self._work, self._seen = work, seen
        self.waiting: list[str] = []
        self.refused = ""
        self._wishes: queue.SimpleQueue[tuple[str, bool, str, Future[None]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def ask(self, what: str, *, on: bool, run: str) -> None:
        """Tell it. While the link is away this returns after 1.5 s, and it is told when the link is back.

        Args:
            what: stop or pause; with `on=False` that is taken back.
            run: The id of the training run.

        Raises: UnreachableError when the link will not come back; RemoteCommandError.
        """
        told: Future[None] = Future()
        self.refused = ""
        self.waiting.append(what if on else "go on")
        self._wishes.put((what, on, run, told))
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work_off, name=f"ask {self._work.id}", daemon=True)
                self._thread.start()
        try:
            told.result(TELL_S)
        except TimeoutError:
            return

    def _work_off(self) -> None:
        while True:
            what, on, run, told = self._wishes.get()
            began = time.monotonic()
            try:
                self._tell(what, on, run)
                told.set_result(None)
            except Exception as error:  # a box that answers nonsense: said, and the next wish is told
                if time.monotonic() - began > TELL_S:
                    words = error.message if isinstance(error, NbkitError) else f"{type(error).__name__}: {error}"
                    self.refused = f"not asked to {self.waiting[0]}: {words}"
                told.set_exception(error)
            finally:
                self.waiting.pop(0)

    def _tell(self, what: str, on: bool, run: str) -> None:
        while True:
            try:
                self._work.wish(what, on=on, run=run)
            except UnreachableError:
                if not self._seen() or self._work.box.session.error is not None:
                    raise
                self._work.box.session.wait(_BACK_S)
                time.sleep(_AGAIN_S)
            else:
                return
