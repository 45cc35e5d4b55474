"""Packets on the wire: paramiko's packet layer with its own buffering, bounded sizes and a short way for AES-GCM.

Stock paramiko reads a packet in two to four system calls and copies it six times. Here one read takes what the kernel
has into one buffer, a packet is decrypted straight out of it into another, and channel data is handed on from there.
Every other cipher goes paramiko's own way, over the same buffer.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from cryptography.exceptions import InvalidTag
from paramiko.message import Message
from paramiko.packet import NeedRekeyException, Packetizer
from paramiko.ssh_exception import SSHException

_LARGEST_PACKET = 256 * 1024  # OpenSSH's PACKET_MAX_SIZE
_LEAST_READ = 64 * 1024  # room for it is made before a read
_LONGEST_LINE = 8192  # of the version banner
_TAG = 16
_CHANNEL_DATA = 94
_DATA_HEAD = 9  # number, channel, length
_BLOCK = 16
_SIZE, _HEAD = struct.Struct(">I"), struct.Struct(">BBII")  # of a packet; padding, number, channel, length
_CHANGED = "A packet was changed on its way (AES-GCM tag)"
_PROMPT_READS = 64  # a connection's first: its login, and the start of a command


class Wire(Packetizer):  # type: ignore[misc]  # paramiko is not typed
    """What paramiko's Transport reads and writes packets with.

    Attributes:
        heard: Raised at each read that brought bytes; a peer that says nothing leaves it as it is.
        banner_text: Lines that the server sent before its version, cut short.
        deliver: Takes channel data, as the channel's number and a view that holds only while it runs; False where it
            wants the packet to go paramiko's way.
    """

    # paramiko asks for new keys each 512 MB, and a channel that closes meanwhile can stop its thread for ever. AES-GCM
    # is good for 2**32 blocks of 16 bytes (64 GiB, where OpenSSH rekeys); half of that is ours.
    REKEY_BYTES = 2**35
    REKEY_PACKETS = 2**31

    def __init__(self, sock: Any) -> None:
        super().__init__(sock)
        self._socket = sock
        self.deliver: Callable[[int, memoryview], bool] = lambda *_: False
        self._buffer = bytearray(3 * _LARGEST_PACKET)
        self._view = memoryview(self._buffer)
        self._at = self._end = 0  # what was read and not taken yet
        self._plain = bytearray(2 * _LARGEST_PACKET)  # of a packet, or of several of one channel
        self._plain_view = memoryview(self._plain)
        self._ahead = b""  # a packet that was decrypted and not taken yet
        self.heard = 0
        self.banner_text = ""
        self._open_engine: Any = None
        self._open_iv: tuple[bytes, int] = (b"", 0)
        self._seal_engine: Any = None
        self._seal_iv: tuple[bytes, int] = (b"", 0)
        self._seal_lock = threading.Lock()
        self._sealed = bytearray()
        self._in_number = self._in_bytes = self._in_packets = self._out_bytes = self._out_packets = 0

    # -- reading

    def _fill(self, n: int, *, check_rekey: bool = False) -> None:
        """Have at least `n` unread bytes.

        Raises: EOFError when the socket ended or was closed, or the handshake took too long.
        """
        while self._end - self._at < n:
            if self.handshake_timed_out():
                raise EOFError
            try:
                self._read(len(self._buffer))
            except TimeoutError:
                if self.closed:
                    raise EOFError from None
                if check_rekey and self._at == self._end and self.need_rekey():
                    raise NeedRekeyException from None
            except OSError:
                if self.closed:
                    raise EOFError from None
                raise

    def _read(self, most: int) -> None:
        if len(self._buffer) - self._end < _LEAST_READ or self._at == self._end:
            left = self._end - self._at
            self._view[:left] = self._view[self._at : self._end]
            self._at, self._end = 0, left
        got = self._socket.recv_into(self._view[self._end : self._end + most])
        if not got:
            raise EOFError
        if self.heard < _PROMPT_READS:
            self._acknowledge()
        self.heard += 1
        self._end += got

    def _acknowledge(self) -> None:
        """Have what came acknowledged now: until a command runs, sshd holds its next packet back for up to 40 ms else."""
        if hasattr(socket, "TCP_QUICKACK") and isinstance(self._socket, socket.socket):
            with contextlib.suppress(OSError):  # it is no TCP connection, or is closed
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def read_all(self, n: int, check_rekey: bool = False) -> bytes:
        """`n` bytes; paramiko's own reading of packets comes through here."""
        if n > _LARGEST_PACKET + 1024 or n < 0:
            raise SSHException(f"The server announced a packet of {n} bytes; the limit is {_LARGEST_PACKET}")
        self._fill(n, check_rekey=check_rekey)
        taken = bytes(self._view[self._at : self._at + n])
        self._at += n
        return taken

    def readline(self, timeout: float) -> str:
        """A line of the version exchange, without its end.

        Raises: TimeoutError, SSHException for a line that does not end.
        """
        end = time.monotonic() + timeout
        while (stop := self._buffer.find(b"\n", self._at, self._end)) < 0:
            if self._end - self._at > _LONGEST_LINE:
                raise SSHException(f"The server's banner has a line of more than {_LONGEST_LINE} bytes")
            if time.monotonic() > end:
                raise TimeoutError
            self._more(end)
        line = bytes(self._view[self._at : stop]).rstrip(b"\r")
        self._at = stop + 1
        if len(line) > _LONGEST_LINE:
            raise SSHException(f"The server's banner has a line of more than {_LONGEST_LINE} bytes")
        text = line.decode("utf-8", "replace")
        if not text.startswith("SSH-"):
            self.banner_text = (self.banner_text + text + "\n")[:2000]
        return text

    def _more(self, end: float) -> None:
        while True:
            try:
                self._read(4096)
            except TimeoutError:
                if self.closed:
                    raise EOFError from None
                if time.monotonic() > end:
                    raise
            else:
                return

    def read_message(self) -> tuple[int, Message]:
        """The next packet that is not channel data on its way to a sink: its number and the rest of it."""
        if self._open_engine is None:
            return super().read_message()  # type: ignore[no-any-return]  # same
        while True:
            payload = self._payload()
            if payload[0] == _CHANNEL_DATA:
                payload = self._joined(payload)
                if self.deliver(int.from_bytes(payload[1:5]), payload[_DATA_HEAD:]):
                    if self.need_rekey():
                        raise NeedRekeyException
                    continue
            message = Message(bytes(payload[1:]))
            message.seqno = (self._in_number - 1) & 0xFFFFFFFF
            return payload[0], message

    def _payload(self) -> memoryview:
        """The next packet, from the second byte of the plain buffer: its number and the rest."""
        if not self._ahead:
            return self._open()
        payload = self._plain_view[1 : 1 + len(self._ahead)]
        payload[:] = self._ahead
        self._ahead = b""
        return payload

    def _joined(self, payload: memoryview) -> memoryview:
        """A packet of channel data, and the data of those of its channel that were read behind it, as one packet.

        Each is decrypted to where its data follows the data before. Its head lies on the end of that, which is put back.
        The loop does itself what `_open` does: a GB is 32,000 packets.
        """
        _check_length(int.from_bytes(payload[5:9]), len(payload) - _DATA_HEAD)
        plain, view, at, last = self._plain_view, self._view, self._at, self._end
        end, channel = 1 + len(payload), int.from_bytes(payload[1:5])
        (fixed, counter), decrypt, packets, joins = self._open_iv, self._open_engine.decrypt_into, 0, True
        while joins and end < _LARGEST_PACKET and last - at > 4:
            size = _SIZE.unpack_from(view, at)[0]
            whole = 4 + size + _TAG
            if last - at < whole or _is_wrong(size):
                break
            to = end - 1 - _DATA_HEAD
            covered = bytes(plain[to:end])
            try:
                decrypt(
                    fixed + counter.to_bytes(8), view[at + 4 : at + whole], view[at : at + 4], plain[to : to + size]
                )
            except InvalidTag as error:
                raise SSHException(_CHANGED) from error
            at, counter, packets = at + whole, (counter + 1) % 2**64, packets + 1
            padding, kind, number, length = _HEAD.unpack_from(plain, to)
            _check_padding(padding, size)
            stop = to + size - padding
            joins = kind == _CHANNEL_DATA and number == channel
            if joins:
                _check_length(length, stop - end)
            else:
                self._ahead = bytes(plain[to + 1 : stop])
            plain[to:end] = covered
            end = stop if joins else end
        self._open_iv = fixed, counter
        self._took(at, packets)
        payload = plain[1:end]
        payload[5:9] = (end - 1 - _DATA_HEAD).to_bytes(4)
        return payload

    def _open(self) -> memoryview:
        """Decrypt the next packet to the start of the plain buffer; returns its number and the rest of it there."""
        if self._end - self._at < 4:
            self._fill(4, check_rekey=True)
        size = _SIZE.unpack_from(self._view, self._at)[0]
        if _is_wrong(size):
            raise SSHException(f"The server announced a packet of {size} bytes; it is damaged or hostile")
        whole = 4 + size + _TAG
        if self._end - self._at < whole:
            self._fill(whole)
        at = self._at
        fixed, counter = self._open_iv
        try:
            self._open_engine.decrypt_into(
                fixed + counter.to_bytes(8),
                self._view[at + 4 : at + whole],
                self._view[at : at + 4],
                self._plain_view[:size],
            )
        except InvalidTag as error:
            raise SSHException(_CHANGED) from error
        padding = self._plain[0]
        _check_padding(padding, size)
        self._open_iv = (fixed, (counter + 1) % 2**64)
        self._took(at + whole, 1)
        return self._plain_view[1 : size - padding]

    def _took(self, at: int, packets: int) -> None:
        """So many packets, up to there, are read; new keys are asked for in time."""
        self._in_bytes += at - self._at
        self._at = at
        self._in_packets += packets
        if (self._in_bytes >= self.REKEY_BYTES or self._in_packets >= self.REKEY_PACKETS) and not self.need_rekey():
            self._trigger_rekey()
        self._in_number = (self._in_number + packets) & 0xFFFFFFFF

    def reset_seqno_in(self) -> None:
        """Strict key exchange counts packets from nought again."""
        super().reset_seqno_in()
        self._in_number = 0

    def set_inbound_cipher(self, block_engine: Any, *args: Any, **kwargs: Any) -> None:
        """paramiko changes the keys it reads with."""
        super().set_inbound_cipher(block_engine, *args, **kwargs)
        self._open_engine = block_engine if kwargs.get("aead") else None
        self._open_iv = _split_iv(kwargs.get("iv_in"))
        self._in_bytes = self._in_packets = 0

    # -- writing

    def set_outbound_cipher(self, block_engine: Any, *args: Any, **kwargs: Any) -> None:
        """paramiko changes the keys it writes with."""
        super().set_outbound_cipher(block_engine, *args, **kwargs)
        with self._seal_lock:
            self._seal_engine = block_engine if kwargs.get("aead") else None
            self._seal_iv = _split_iv(kwargs.get("iv_out"))
            self._out_bytes = self._out_packets = 0

    def send_message(self, data: Message) -> None:
        """One packet."""
        if self._seal_engine is None:
            super().send_message(data)
        else:
            self.send_payloads([[data.asbytes()]])

    def send_payloads(self, payloads: Sequence[Sequence[bytes | memoryview]]) -> None:
        """Several packets, each in pieces, in one write; only while `fast`."""
        with self._seal_lock:
            self.write_all(self._seal(payloads))
        self._ask_for_keys()

    def try_payload(self, payload: bytes) -> bool:
        """Send a small packet if that makes nobody wait; False where it would, and nothing was sent."""
        if not self.fast or not isinstance(self._socket, socket.socket) or not self._seal_lock.acquire(blocking=False):
            return False
        try:
            ready = select.poll()
            ready.register(self._socket, select.POLLOUT)
            if not ready.poll(0):
                return False
            self.write_all(self._seal([[payload]]))
        finally:
            self._seal_lock.release()
        self._ask_for_keys()
        return True

    def _seal(self, payloads: Sequence[Sequence[bytes | memoryview]]) -> memoryview:
        """Encrypted packets, one after the other; call with the lock held, the result is overwritten by the next."""
        fixed, counter = self._seal_iv
        noise = os.urandom(2 * _BLOCK)
        at = 0
        room = sum(sum(map(len, pieces)) + 3 * _BLOCK + _TAG for pieces in payloads)
        if len(self._sealed) < room:
            self._sealed = bytearray(room)
        out = memoryview(self._sealed)
        for pieces in payloads:
            size = sum(map(len, pieces)) + 1
            padding = _BLOCK - size % _BLOCK
            if padding < 4:
                padding += _BLOCK
            size += padding
            header = size.to_bytes(4)
            out[at : at + 4] = header
            plain = b"".join((padding.to_bytes(1), *pieces, noise[:padding]))
            end = at + 4 + size + _TAG
            self._seal_engine.encrypt_into(fixed + counter.to_bytes(8), plain, header, out[at + 4 : end])
            counter = (counter + 1) % 2**64
            at = end
        self._seal_iv = (fixed, counter)
        self._out_bytes += at
        self._out_packets += len(payloads)
        return out[:at]

    def _ask_for_keys(self) -> None:
        if (self._out_bytes >= self.REKEY_BYTES or self._out_packets >= self.REKEY_PACKETS) and not self.need_rekey():
            self._trigger_rekey()

    @property
    def fast(self) -> bool:
        """True while packets go the short way (AES-GCM)."""
        return self._seal_engine is not None

    def write_all(self, out: bytes | memoryview) -> None:
        """Write every byte, or EOFError when the socket is closed meanwhile."""
        view = memoryview(out)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except TimeoutError:
                if self.closed:
                    raise EOFError from None
            except OSError as error:
                raise EOFError from error

    def release(self) -> None:
        """Let go of the buffers, once nobody reads any more: what is left of a connection may be held for a while."""
        self._at = self._end = 0
        self._view = self._plain_view = memoryview(b"")
        self._buffer, self._plain = bytearray(), bytearray()
        with self._seal_lock:
            self._sealed = bytearray()

    def close(self) -> None:
        """Close the socket; wakes whoever reads or writes it (close alone does not)."""
        sock = self._socket
        if isinstance(sock, socket.socket):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        super().close()


def _is_wrong(size: int) -> bool:
    return size > _LARGEST_PACKET or size < _BLOCK or size % _BLOCK != 0


def _check_padding(padding: int, size: int) -> None:
    if padding < 4 or padding + 2 > size:
        raise SSHException("A packet has wrong padding")


def _check_length(told: int, found: int) -> None:
    if told != found or found < 0:
        raise SSHException("A packet of channel data has a wrong length")


def _split_iv(iv: bytes | None) -> tuple[bytes, int]:
    """The fixed part of a GCM nonce and the counter (RFC 5647, section 7.1)."""
    return (iv[:4], int.from_bytes(iv[4:])) if iv else (b"", 0)
