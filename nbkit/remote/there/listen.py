"""Writes down what a kernel says, and says a last word in its place.

A Jupyter that has gone away hears nothing, and ZeroMQ keeps nothing for whoever is not there; so what cells print, show and
raise goes into BASE.said, a line of JSON for each message, 0600, until the kernel has ended. It needs pyzmq, as the kernel
does.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import sys
import time
import uuid
from typing import Any

KINDS = ("execute_input", "stream", "execute_result", "display_data", "error")
LONGEST, MOST = 256 << 10, 64 << 20  # bytes of one message; of all
# What a text cannot show stays out: pictures, and what widgets are made of.
TEXTS = ("text/plain", "text/markdown", "text/latex")
COME_MS, MORE_S = 2000, 0.5  # so long a last word waits for the first who listens, and then for others


def shortened(kind: str, content: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a message's content."""
    if kind == "execute_input":
        return {"code": content["code"]}
    if kind == "stream":
        return {"name": content["name"], "text": content["text"]}
    if kind == "error":
        return {"traceback": content["traceback"]}
    data = content["data"]
    return {"data": {name: data[name] for name in TEXTS if name in data}, "also": sorted(set(data) - set(TEXTS))}


def line(header: dict[str, Any], parent: dict[str, Any], content: bytes) -> bytes:
    """One message as a line."""
    kind = header["msg_type"]
    about = {"at": header["date"], "type": kind, "request": parent.get("msg_id", "")}
    text = json.dumps(dict(about, content=shortened(kind, json.loads(content.decode("utf-8")))))
    if len(text) > LONGEST:
        text = json.dumps(dict(about, omitted=len(content)))
    return text.encode("utf-8") + b"\n"


def now() -> str:
    """As Jupyter writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def all_but(topic: bytes) -> list[bytes]:
    """Subscriptions to everything that does not begin with `topic`: ZeroMQ has no other word for it."""
    return [topic[:at] + bytes([byte]) for at in range(len(topic)) for byte in range(256) if byte != topic[at]]


class Listener:
    """Hears the kernel at BASE.

    Args:
        comms: Whether it is to be sent what widgets say to each other, too, which is not kept: arrays of any size.

    Attributes:
        parent: Header of the request for the cell that the kernel is at; None while it is at none.
    """

    def __init__(self, base: str, *, comms: bool = True) -> None:
        import zmq

        self.zmq, self.base = zmq, base
        self.context = zmq.Context()
        self.ear = self.context.socket(zmq.SUB)
        self.ear.setsockopt(zmq.RCVHWM, 0)
        self.ear.setsockopt(zmq.SNDHWM, 0)  # of subscriptions
        for topic in [b""] if comms else all_but(b"comm-"):
            self.ear.setsockopt(zmq.SUBSCRIBE, topic)
        self.ear.connect("ipc://%s-ipc-2" % base)
        self.out = os.open(base + ".said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.written = self.lost = 0
        self.full = False
        self.parent: Any = None

    def hear(self, wait_ms: int, wake: Any = None) -> bool:
        """Take what has come, or comes within `wait_ms`, or until `wake` can be read; False when there was nothing."""
        poller = self.zmq.Poller()
        poller.register(self.ear, self.zmq.POLLIN)
        if wake is not None:
            poller.register(wake, self.zmq.POLLIN)
        if self.ear not in dict(poller.poll(wait_ms)):
            return False
        with contextlib.suppress(ValueError, KeyError, IndexError):  # no message of Jupyter's
            self.take(self.ear.recv_multipart())
        return True

    def take(self, parts: list[bytes]) -> None:
        start = parts.index(b"<IDS|MSG>")
        header, parent = (json.loads(parts[start + at].decode("utf-8")) for at in (2, 3))
        kind = header["msg_type"]
        if (
            kind == "status" and parent.get("msg_type") == "execute_request"
        ):  # others come in between, on other channels
            state = json.loads(parts[start + 5].decode("utf-8"))["execution_state"]
            if state == "busy":
                self.parent = parent
            elif self.parent is not None and parent["msg_id"] == self.parent["msg_id"]:
                self.parent = None
        elif kind in KINDS and not self.full:
            self.keep(line(header, parent, parts[start + 5]))

    def keep(self, text: bytes) -> None:
        """Add a line, unless all is full; a disk that has room again is used again, and the gap is told."""
        if self.written + len(text) > MOST:
            self.full, text = True, json.dumps({"type": "full", "limit": MOST}).encode("utf-8") + b"\n"
        if self.lost:
            text = json.dumps({"type": "lost", "at": now(), "count": self.lost}).encode("utf-8") + b"\n" + text
        try:
            done = os.write(self.out, text)
        except OSError as error:
            done = 0
            if not self.lost:
                sys.stderr.write("what the kernel says is not kept: %s\n" % error.strerror)
        if done == len(text):
            self.written, self.lost = self.written + done, 0
        else:  # a piece of a line is none
            os.ftruncate(self.out, self.written)
            self.lost += 1

    def last_word(self, text: str, key: str) -> None:
        """Say what became of the kernel in its place, below the cell that it was at: to those who come within a moment."""
        zmq, parent = self.zmq, self.parent
        self.ear.close(0)
        mouth = self.context.socket(zmq.XPUB)
        try:
            mouth.bind("ipc://%s-ipc-2" % self.base)
            if not mouth.poll(COME_MS):
                return
            time.sleep(MORE_S)
            session = uuid.uuid4().hex
            header = {"msg_id": uuid.uuid4().hex, "session": session, "username": "nbkit", "date": now(),
                      "msg_type": "stream", "version": "5.3"}  # fmt: skip
            content = {"name": "stderr", "text": "\n%s\n" % text}
            parts = [json.dumps(part).encode("utf-8") for part in (header, parent or {}, {}, content)]
            signed = hmac.new(key.encode("utf-8"), b"".join(parts), hashlib.sha256).hexdigest()
            mouth.send_multipart([b"stream", b"<IDS|MSG>", signed.encode("ascii"), *parts])
        finally:
            mouth.close(1000)
            self.context.term()
