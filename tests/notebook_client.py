"""A client of a Jupyter server as VS Code and JupyterLab are: REST requests, and a kernel's websocket."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
import uuid
from typing import Any

import websocket


class Client:
    """Requests to the server at `address` (http://127.0.0.1:PORT), with the token in a header."""

    def __init__(self, address: str, token: str, *, timeout_s: float = 60.0) -> None:
        self.base, self.token, self.timeout_s = address.removesuffix("/lab").rstrip("/"), token, timeout_s

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and JSON of one request; `headers` in place of the one with the token."""
        data = None if body is None else json.dumps(body).encode()
        sent = {"Authorization": f"token {self.token}"} if headers is None else headers
        request = urllib.request.Request(f"{self.base}{path}", data=data, method=method, headers=sent)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            return error.code, None

    def kernel(self, name: str = "python3") -> Kernel:
        """Start a kernel and connect to it."""
        status, found = self.call("POST", "/api/kernels", {"name": name})
        assert 201 == status
        return Kernel(self, found["id"])


class Kernel:
    """A kernel of the server, with its websocket open."""

    def __init__(self, client: Client, kernel_id: str, *, session: str = "") -> None:
        self.client, self.id, self.session = client, kernel_id, session or uuid.uuid4().hex
        address = client.base.replace("http", "ws", 1)
        self.socket = websocket.create_connection(
            f"{address}/api/kernels/{kernel_id}/channels?session_id={self.session}",
            header={"Authorization": f"token {client.token}"}, timeout=client.timeout_s,
            sockopt=((6, 1, 1),),  # TCP_NODELAY, as browsers do
        )  # fmt: skip

    def run(self, code: str) -> str:
        """Run `code`, wait for the reply and for idle; what it printed, or the value of its last line."""
        number = self.send(code)
        said, waiting = "", {"reply", "idle"}
        while waiting:
            message = json.loads(self.socket.recv())
            if message["parent_header"].get("msg_id") != number:
                continue
            kind, found = message["msg_type"], message["content"]
            if kind == "execute_reply":
                assert "ok" == found["status"], found
                waiting.discard("reply")
            elif kind == "status" and found["execution_state"] == "idle":
                waiting.discard("idle")
            elif kind == "stream":
                said += found["text"]
            elif kind == "execute_result":
                said += found["data"]["text/plain"]
        return said

    def send(self, code: str) -> str:
        """Ask for `code` to be run; the request's id."""
        number = uuid.uuid4().hex
        header = {"msg_id": number, "username": "test", "session": self.session, "msg_type": "execute_request",
                  "version": "5.3"}  # fmt: skip
        content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
        self.socket.send(json.dumps({"header": header, "parent_header": {}, "metadata": {}, "content": content,
                                     "buffers": [], "channel": "shell"}))  # fmt: skip
        return number

    def until_printing(self) -> list[dict[str, Any]]:
        """What is heard until a cell has begun to print."""
        heard: list[dict[str, Any]] = []
        while not heard or heard[-1]["msg_type"] != "stream":
            heard.append(json.loads(self.socket.recv()))
        return heard

    def close(self) -> None:
        """End the connection; the kernel goes on."""
        self.socket.close()
