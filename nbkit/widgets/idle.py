"""How long a kernel has been waiting for its next cell."""

from __future__ import annotations

import time
from typing import Any


class Idle:
    """Counts from the end of the last cell; nought while one runs. What a page says is heard only in between.

    Must be made inside a cell. `close` takes its hooks out of IPython again.
    """

    def __init__(self) -> None:
        from IPython import get_ipython

        self._since: float | None = None
        self._events = get_ipython().events
        self._events.register("pre_run_cell", self._begun)
        self._events.register("post_run_cell", self._ended)

    @property
    def seconds(self) -> float:
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def close(self) -> None:
        self._events.unregister("pre_run_cell", self._begun)
        self._events.unregister("post_run_cell", self._ended)

    def _begun(self, _: Any) -> None:
        self._since = None

    def _ended(self, _: Any) -> None:
        self._since = time.monotonic()
