"""Questions that the other side answers in the order in which they come, and how long that takes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable


class Pings:
    """See above.

    Args:
        send: Sends one.

    Attributes:
        rtt_s: The shortest round trip seen; 0 before the first.
        answers: How many have come.
    """

    def __init__(self, send: Callable[[], None]) -> None:
        self.rtt_s, self.answers = 0.0, 0
        self._send, self._lock = send, threading.Lock()
        self._waiting: deque[tuple[threading.Event, float]] = deque()
        self._over = False

    def ask(self) -> threading.Event:
        """Send one. Returns: What is set when the answer is here, or none will come.

        Raises: What `send` raises.
        """
        event = threading.Event()
        with self._lock:  # answers carry no number
            if self._over:
                event.set()
                return event
            self._waiting.append((event, time.perf_counter()))
            self._send()
        return event

    def answered(self) -> bool:
        """An answer is here; False when nothing was asked."""
        with self._lock:
            event, asked = self._waiting.popleft() if self._waiting else (threading.Event(), 0.0)
        if asked:
            took = time.perf_counter() - asked
            self.rtt_s = min(self.rtt_s or took, took)
            self.answers += 1
        event.set()
        return bool(asked)

    def end(self) -> None:
        """No more answers come: let go of all who wait."""
        with self._lock:
            self._over = True
            while self._waiting:
                self._waiting.popleft()[0].set()

    def round_trip(self, timeout_s: float) -> float:
        """Seconds until an answer was here.

        Raises: TimeoutError.
        """
        start = time.perf_counter()
        if not self.ask().wait(timeout_s):
            raise TimeoutError(f"no answer within {timeout_s:.1f} s")
        return time.perf_counter() - start
