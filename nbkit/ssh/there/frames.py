"""The wire format of the relay, used at both ends. A frame is a kind, a stream, a position in that stream, the size of its body.

Kinds: HELLO and WELCOME (JSON, of the session), READY (all has been said that the other end must know), OPEN (JSON, of a new
stream), DATA and FIN (numbered, sent again after a break), ACK (how far we are, and how far you may go), STOP (we read no
more), PING, PONG, NOTE (a sentence for a person), BYE (the session is over), ASK (JSON, of the relay itself).
"""

from __future__ import annotations

import struct
from typing import Any

PROTOCOL = 1
HEAD = struct.Struct(">BIQI")
HELLO, WELCOME, READY, OPEN, DATA, FIN, STOP, ACK, PING, PONG, NOTE, BYE, ASK = range(1, 14)
CHUNK = 1 << 18  # bytes of one frame of data, at most
_LARGEST = 1 << 20  # body of a frame that is no data
_LIMIT = struct.Struct(">Q")


class BrokenError(Exception):
    """The other end does not keep to what is said here; the line is of no more use."""


class Reader:
    """Takes a line apart: `frame(kind, stream, position, body)` and, for data, `piece(stream, position, view)` are called."""

    def __init__(self, target: Any) -> None:
        self.target = target
        self._head, self._body = bytearray(), bytearray()
        self._now: Any = None  # the frame whose body is being read
        self._left = 0

    def feed(self, view: memoryview) -> None:
        """Whatever came, whole frames or not; the view is used only during the call.

        Raises: BrokenError.
        """
        while view or (self._now and not self._left):
            if self._now is None:
                view = self._begin(view)
                continue
            kind, stream, position = self._now
            piece = view[: self._left]
            view = view[len(piece) :]
            self._left -= len(piece)
            if kind == DATA:
                self._now = (kind, stream, position + len(piece)) if self._left else None
                if piece:
                    self.target.piece(stream, position, piece)
                continue
            self._body += piece
            if not self._left:
                body, self._body, self._now = bytes(self._body), bytearray(), None
                self.target.frame(kind, stream, position, body)

    def _begin(self, view: memoryview) -> memoryview:
        if self._head or len(view) < HEAD.size:
            more = HEAD.size - len(self._head)
            self._head += view[:more]
            view = view[more:]
            if len(self._head) < HEAD.size:
                return view
            kind, stream, position, size = HEAD.unpack(self._head)
            self._head = bytearray()
        else:
            kind, stream, position, size = HEAD.unpack_from(view)
            view = view[HEAD.size :]
        if not HELLO <= kind <= ASK or size > (CHUNK if kind == DATA else _LARGEST):
            raise BrokenError("what came is no frame")
        self._now, self._left = (kind, stream, position), size
        return view


def frame(kind: int, stream: int = 0, position: int = 0, body: bytes = b"") -> bytes:
    """A frame, whole."""
    return HEAD.pack(kind, stream, position, len(body)) + body


def ack(stream: int, position: int, limit: int) -> bytes:
    """All before `position` has come; all before `limit` may be sent."""
    return frame(ACK, stream, position, _LIMIT.pack(limit))


def limit_of(body: bytes) -> int:
    """The limit in the body of an ACK.

    Raises: BrokenError.
    """
    if len(body) != _LIMIT.size:
        raise BrokenError("an acknowledgement has a wrong size")
    return int(_LIMIT.unpack(body)[0])
