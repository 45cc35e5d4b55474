"""Writes down what a kernel says: `python - BASE PID STARTED`, its program on stdin; started beside each kernel of ours.

A Jupyter that has gone away hears nothing, and ZeroMQ keeps nothing for whoever is not there; so what cells print, show and
raise goes into BASE.said, a line of JSON for each message, 0600, until the kernel has ended. It needs pyzmq, as the kernel
does.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

KINDS = ("execute_input", "stream", "execute_result", "display_data", "error")
LONGEST, MOST = 256 << 10, 64 << 20  # bytes of one message; of all
POLL_MS = 1000
# What a text cannot show stays out: pictures, and what widgets are made of.
TEXTS = ("text/plain", "text/markdown", "text/latex")


def alive(pid: int, started: int) -> bool:
    """Whether the kernel runs."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return False
    return fields[0] not in (b"Z", b"X") and int(fields[19]) == started


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


def line(parts: list[bytes]) -> bytes:
    """One message as a line; empty for one that is not kept."""
    start = parts.index(b"<IDS|MSG>")
    header, parent, content = (json.loads(parts[start + at].decode("utf-8")) for at in (2, 3, 5))
    kind = header["msg_type"]
    if kind not in KINDS:
        return b""
    about = {"at": header["date"], "type": kind, "request": parent.get("msg_id", "")}
    size = len(parts[start + 5])
    kept = shortened(kind, content)
    text = json.dumps(dict(about, content=kept))
    if len(text) > LONGEST:
        text = json.dumps(dict(about, omitted=size))
    return text.encode("utf-8") + b"\n"


def main(base: str, pid: int, started: int) -> None:
    import zmq

    context = zmq.Context()
    line_in = context.socket(zmq.SUB)
    line_in.setsockopt(zmq.RCVHWM, 0)
    line_in.setsockopt(zmq.SUBSCRIBE, b"")
    line_in.connect("ipc://%s-ipc-2" % base)
    out = os.open(base + ".said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    written, full = 0, False
    while True:
        if not line_in.poll(POLL_MS):
            if not alive(pid, started):
                return
            continue
        try:
            text = line(line_in.recv_multipart())
        except (ValueError, KeyError, IndexError):
            continue  # no message of Jupyter's
        if full or not text:
            continue
        if written + len(text) > MOST:
            full, text = True, json.dumps({"type": "full", "limit": MOST}).encode("utf-8") + b"\n"
        try:
            written += os.write(out, text)
        except OSError as error:
            full = True
            sys.stderr.write("what the kernel says is no longer kept: %s\n" % error.strerror)


main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
