"""Knows bytes: how to reach a host, whether to trust it, and a port of it made local. Nothing of Jupyter or training.

`resolve(host)` says how, `connect(host)` opens a session, `forward(session, port)` brings a port here; `Streams(session)`
is what a forward rides on to outlive a break. paramiko is loaded when the first connection is made, not before.
"""

from nbkit.ssh.connect import connect
from nbkit.ssh.forward import Forward, forward
from nbkit.ssh.process import Process, TooLateError
from nbkit.ssh.resolve import resolve
from nbkit.ssh.route import Hop, Route
from nbkit.ssh.session import Result, Session
from nbkit.ssh.streams import Streams
from nbkit.ssh.trust import Seen, trust

__all__ = [
    "Forward",
    "Hop",
    "Process",
    "Result",
    "Route",
    "Seen",
    "Session",
    "Streams",
    "TooLateError",
    "connect",
    "forward",
    "resolve",
    "trust",
]
