"""Who is at the other end of a local connection: the uid that owns a TCP socket, from Linux's own table."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

_TABLE = Path("/proc/net/tcp")
Address = tuple[str, int]


def can_tell() -> bool:
    """True where the table exists; elsewhere local users cannot be told apart."""
    return sys.platform == "linux" and _TABLE.exists()


def ours(peers: Iterable[Address]) -> set[Address]:
    """Those of `peers` (connected to a listener of ours on 127.0.0.1) whose socket belongs to this user.

    One reading of the table for all of them. A socket that its owner has already closed has no inode and the uid 0,
    whoever made it: it does not count as ours, not even for root.
    """
    wanted = {_coded(peer): peer for peer in peers}
    uid = str(os.geteuid())
    found = set()
    with _TABLE.open() as table:
        next(table)
        for line in table:
            fields = line.split()
            peer = wanted.get(fields[1])
            if peer is not None and fields[7] == uid and fields[9] != "0":
                found.add(peer)
    return found


def _coded(address: Address) -> str:
    """`0100007F:1F90`: the address as this machine's integer, the port in network order."""
    number = int.from_bytes(bytes(map(int, address[0].split("."))), sys.byteorder)
    return f"{number:08X}:{address[1]:04X}"
