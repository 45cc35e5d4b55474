"""Two things done with the same bytes at once, and how the threads that do them share the processors; runs on either side."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from typing import Any, Callable, Iterator, Optional, Tuple, Union

Bytes = Union[bytes, bytearray, memoryview]
_LONG = 64 * 1024  # bytes with which there is more to do than it takes to have a thread do it


class Aside:
    """Does a piece of its caller's work in a thread of its own, while the caller does another with the same bytes."""

    def __init__(self) -> None:
        self._given: queue.SimpleQueue[Tuple[Callable[..., Any], Bytes, Tuple[Any, ...]]] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._started = self._busy = False
        self._error: Optional[BaseException] = None

    @contextlib.contextmanager
    def doing(self, work: Callable[..., Any], content: Bytes, *more: Any) -> Iterator[None]:
        """Have `work(content, *more)` done at the end of the block, in which `content` may be read, too.

        Raises: at the end what `work` raised, unless the block raises.
        """
        if len(content) < _LONG:
            work(content, *more)
            yield
            return
        if not self._started:
            self._started = True
            threading.Thread(target=self._run, name="nbkit-transfer-aside", daemon=True).start()
        self._busy, self._error = True, None
        self._given.put((work, content, more))
        try:
            yield
        finally:
            self._wait()
        if self._error is not None:
            raise self._error

    def _wait(self) -> None:
        """Wait for the other thread, whatever interrupts: it may write to a file that its caller is about to close."""
        interrupt: Optional[KeyboardInterrupt] = None
        while self._busy:  # an interrupt may take an answer along, or leave one behind
            try:
                self._done.get()
            except KeyboardInterrupt as raised:
                interrupt = raised
        if interrupt is not None:
            raise interrupt

    def _run(self) -> None:
        while True:
            work, content, more = self._given.get()
            try:
                work(content, *more)
            except BaseException as error:  # the caller's thread raises it
                self._error = error
            del work, content, more
            self._busy = False
            self._done.put(None)


@contextlib.contextmanager
def batch(thread: int = 0) -> Iterator[None]:
    """Have a thread, and those that it starts, scheduled as a batch job (Linux, sched(7)).

    One that wakes up takes no processor from another that is at work: it finds more bytes when its turn comes, and all
    together take fewer turns. Where the thread is scheduled in another than the usual way, that stays.

    Args:
        thread: Its number for the system (`native_id`); 0 for the calling thread.
    """
    usual = getattr(os, "SCHED_OTHER", 0)
    changed = False
    with contextlib.suppress(OSError, AttributeError):
        if os.sched_getscheduler(thread) == usual:
            os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
            changed = True
    try:
        yield
    finally:
        if changed:
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setscheduler(thread, usual, os.sched_param(0))
