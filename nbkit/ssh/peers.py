"""Who is at the other end of a local connection: the uid that owns a TCP socket, as Linux tells it."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_TABLE = Path("/proc/net/tcp")
_SOCK_DIAG = 4  # protocol of a netlink socket
_BY_FAMILY = 20  # type of its messages
_REQUEST = 1
_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_QUERY = struct.Struct("=BBBxI")  # the start of inet_diag_req_v2: family, protocol, extensions, states
_ID = struct.Struct("=2s2s4s12x4s12xIQ")  # inet_diag_sockid: ports and addresses of both ends, interface, cookie
_ANSWER = struct.Struct(f"=4x{_ID.size}s12xII")  # inet_diag_msg as far as uid and inode
_ANY_COOKIE = 2**64 - 1
Address = tuple[str, int]


def can_tell() -> bool:
    """True where Linux tells; elsewhere local users cannot be told apart."""
    return sys.platform == "linux" and _TABLE.exists()


def ours(peers: Iterable[Address], listener: Address) -> set[Address]:
    """Those of `peers` (connected to `listener`, of ours, on 127.0.0.1) whose socket belongs to this user.

    A socket that its owner has already closed has no inode and the uid 0, whoever made it: it does not count as ours,
    not even for root.

    Source: sock_diag(7). A kernel without it is asked through /proc/net/tcp, which takes it milliseconds however few ask.
    """
    peers = list(peers)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _SOCK_DIAG) as kernel:
            kernel.settimeout(1.0)
            kernel.connect((0, 0))
            return {peer for peer in peers if _owner(kernel, peer, listener) == os.geteuid()}
    except OSError:
        return _in_table(peers)


def _owner(kernel: socket.socket, peer: Address, listener: Address) -> int | None:
    """The uid of the socket that goes from `peer` to `listener`; None where it is closed.

    Raises: OSError where the kernel does not answer such questions.
    """
    ends = (_port(peer), _port(listener), socket.inet_aton(peer[0]), socket.inet_aton(listener[0]))
    query = _QUERY.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, 0xFFFFFFFF) + _ID.pack(*ends, 0, _ANY_COOKIE)
    kernel.send(_HEADER.pack(_HEADER.size + len(query), _BY_FAMILY, _REQUEST, 0, 0) + query)
    answer = kernel.recv(4096)
    kind = _HEADER.unpack_from(answer)[1]
    if kind != _BY_FAMILY:
        number = -struct.unpack_from("=i", answer, _HEADER.size)[0]
        if number == 2:  # ENOENT: there is no such socket
            return None
        raise OSError(number, os.strerror(number))
    found, uid, inode = _ANSWER.unpack_from(answer, _HEADER.size)
    same = _ID.unpack(found)[:4] == ends  # a listener on the peer's port would be found as well
    return int(uid) if same and inode else None


def _port(address: Address) -> bytes:
    return address[1].to_bytes(2)


def _in_table(peers: Iterable[Address]) -> set[Address]:
    """As `ours`, from one reading of the table for all."""
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
