"""What a forward rides on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from nbkit.errors import NbkitError

if TYPE_CHECKING:
    from nbkit.ssh.stream import Sink


class Carrier(Protocol):
    """A Session, whose connections end with the link, or Streams, whose connections do not."""

    @property
    def error(self) -> NbkitError | None:
        """Why it is over for good."""

    def reach(
        self, remote: int | str, opened: Callable[[Exception | None], None], sink: Sink, *, keep: bool = False
    ) -> Any:
        """Open a connection; see Session and Streams."""

    def hold(self, changed: Callable[[], None]) -> None:
        """Keep it open, and be told when it comes and goes."""

    def release(self, changed: Callable[[], None]) -> None:
        """The counterpart of `hold`."""
