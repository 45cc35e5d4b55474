"""Hands this command's stdin to the transfer that listens at a socket, and lives as long as it does."""

import array
import socket

with socket.socket(socket.AF_UNIX) as peer:
    peer.connect(REQUEST["path"])  # type: ignore[name-defined]  # noqa: F821 - what the program was sent with
    rights = array.array("i", [0])
    peer.sendmsg([bytes([REQUEST["number"]])], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])  # type: ignore[name-defined]  # noqa: F821
    peer.recv(1)
