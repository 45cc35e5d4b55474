"""An SSH server in this process, for what sshd will not do: ask questions, misbehave, offer only what is weak."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import paramiko
from paramiko.server import InteractiveQuery


class Doorman(paramiko.ServerInterface):
    """Lets in who knows the password, or the password and then the code."""

    def __init__(self, methods: str = "password", password: str = "open sesame", code: str = "") -> None:
        self.methods, self.password, self.code = methods, password, code
        self.seen: list[str] = []
        self.banner = ""

    def get_allowed_auths(self, username: str) -> str:
        return self.methods

    def get_banner(self) -> tuple[str | None, str | None]:
        return (self.banner, "en") if self.banner else (None, None)

    def check_auth_none(self, username: str) -> int:
        return paramiko.AUTH_FAILED

    def check_auth_publickey(self, username: str, key: Any) -> int:
        self.seen.append("key")
        return paramiko.AUTH_FAILED

    def check_auth_password(self, username: str, password: str) -> int:
        self.seen.append(password)
        return paramiko.AUTH_SUCCESSFUL if password == self.password else paramiko.AUTH_FAILED

    def check_auth_interactive(self, username: str, submethods: Any) -> Any:
        query = InteractiveQuery("Sign\x1b[2Jon", "Two questions")
        query.add_prompt("Password: ", False)
        query.add_prompt("Code\x07: ", True)
        return query

    def check_auth_interactive_response(self, responses: Any) -> int:
        self.seen += responses
        return paramiko.AUTH_SUCCESSFUL if responses == [self.password, self.code] else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: Any, command: bytes) -> bool:
        return True


@contextlib.contextmanager
def serving(
    key: paramiko.PKey, doorman: Doorman, then: Callable[[paramiko.Transport], None] | None = None, **options: Any
) -> Iterator[int]:
    """A server on 127.0.0.1; yields its port. `then` is called with each connection that is let in."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    stop = threading.Event()
    transports: list[paramiko.Transport] = []

    def serve() -> None:
        while not stop.is_set():
            try:
                sock, _ = listener.accept()
            except OSError:
                continue
            transport = paramiko.Transport(sock, **options)
            transports.append(transport)
            transport.add_server_key(key)
            with contextlib.suppress(Exception):
                transport.start_server(server=doorman)
            threading.Thread(target=follow, args=(transport,), daemon=True).start()

    def follow(transport: paramiko.Transport) -> None:
        for _ in range(400):
            if transport.is_authenticated():
                if then:
                    with contextlib.suppress(Exception):
                        then(transport)
                return
            if stop.wait(0.05) or not transport.is_active():
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        stop.set()
        thread.join(timeout=10)
        for transport in transports:
            transport.close()
        listener.close()


@contextlib.contextmanager
def saying(*parts: bytes, hold: bool = True) -> Iterator[int]:
    """A listener that sends `parts` to whoever connects, and reads what comes; yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            try:
                sock, _ = listener.accept()
            except OSError:
                continue
            with sock, contextlib.suppress(OSError):
                sock.settimeout(5)
                for part in parts:
                    sock.sendall(part)
                if hold:
                    stop.wait(30)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        stop.set()
        thread.join(timeout=10)
        listener.close()
