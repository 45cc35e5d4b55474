"""One tool of `python -m bench nothing_lost`: prints "ready", waits for "go", runs the cell, prints what arrived as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

_TOKEN = "nbkit-bench"
_POLL_S = 3.0  # how often a Jupyter server looks whether a kernel lives; sshpyk mends its tunnels then


class Cell:
    """The cell, the requests, and what came back.

    Attributes:
        done: The cell's reply and all of the requests' have come.
    """

    def __init__(self, folder: Path, lines: int, per_s: float, ends: float) -> None:
        self.code = (
            "import time\n_began = time.monotonic()\n"
            f"for _number in range({lines}):\n    print(_number, flush=True)\n"
            f"    time.sleep(max(0.0, _began + _number / {per_s} - time.monotonic()))"
        )
        self.path, self.ends = folder / "asked", ends
        self.text = ""
        self.waiting: set[str] = set()
        self.over = threading.Event()  # no more requests come
        self.error = ""

    def request(self, number: str) -> str:
        """The code of a request."""
        return f"with open({str(self.path)!r}, 'a') as _file:\n    _file.write('{number}\\n')"

    def heard(self, kind: str, parent: str, content: dict[str, Any]) -> None:
        """One message from the kernel."""
        if kind == "stream":
            self.text += content["text"]
        elif kind == "execute_reply":
            self.waiting.discard(parent)

    @property
    def done(self) -> bool:
        return self.over.is_set() and not self.waiting


def _commands(cell: Cell, send: Any) -> None:
    """Lines of stdin: "go" starts the cell, "ask N" sends a request."""
    for line in sys.stdin:
        word, _, number = line.strip().partition(" ")
        send(cell.code if word == "go" else cell.request(number))


def _spec(kind: str, config: str, folder: Path) -> str:
    """Write the tool's kernel spec; its name. "here" is a kernel of this machine, without any tool."""
    if kind == "here":
        return "python3"
    os.environ["JUPYTER_DATA_DIR"] = str(folder / "data")
    os.environ["NBKIT_STATE"] = str(folder / "state")
    if kind == "nbkit":
        from nbkit import remote
        from nbkit.remote import kernels

        with remote.connect("box", config=config, python=sys.executable) as box:
            return kernels.add(box, config=config).name
    with Path(config).open("a") as file:  # what its manual asks for
        file.write(
            f"  ControlMaster auto\n  ControlPath {folder}/c-%C\n  ControlPersist 10m\n  BatchMode yes\n"
            "  ServerAliveInterval 5\n  ServerAliveCountMax 2\n"
        )
    where = {"ssh_host_alias": "box", "ssh_config": config, "remote_python": sys.executable,
             "remote_kernel_name": "python3", "raise_on_ssh_config_error": False}  # fmt: skip
    spec = {"argv": [], "display_name": "peer", "language": "python", "metadata": {
        "kernel_provisioner": {"provisioner_name": "sshpyk-provisioner", "config": where}}}  # fmt: skip
    path = folder / "data" / "kernels" / "peer" / "kernel.json"
    path.parent.mkdir(parents=True)
    (folder / "data" / "runtime").mkdir()
    path.write_text(json.dumps(spec))
    return "peer"


async def by_provisioner(kind: str, config: str, folder: Path, cell: Cell) -> None:
    """A kernel of a kernel spec, as the manager of a Jupyter server holds it."""
    from jupyter_client.manager import AsyncKernelManager

    manager = AsyncKernelManager(kernel_name=_spec(kind, config, folder))
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=90)
    loop = asyncio.get_running_loop()

    def send(code: str) -> None:
        loop.call_soon_threadsafe(lambda: cell.waiting.add(client.execute(code)))

    threading.Thread(target=_commands, args=(cell, send), daemon=True).start()
    print("ready", flush=True)

    async def listen(get: Any) -> None:
        while True:
            with contextlib.suppress(Exception):
                message = await get(timeout=1)
                cell.heard(message["msg_type"], message["parent_header"].get("msg_id", ""), message["content"])

    async def watch() -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            with contextlib.suppress(Exception):
                await manager.is_alive()

    tasks = [asyncio.create_task(one) for one in (listen(client.get_iopub_msg), listen(client.get_shell_msg), watch())]
    await _until(cell)
    for task in tasks:
        task.cancel()
    print(json.dumps({"lines": cell.text.split(), "error": cell.error}), flush=True)
    client.stop_channels()
    with contextlib.suppress(Exception):
        await asyncio.wait_for(manager.shutdown_kernel(now=True), 30)


async def _until(cell: Cell) -> None:
    """Until all has come and for five more seconds, or until the time is up."""
    while time.monotonic() < cell.ends:
        if cell.done:
            await asyncio.sleep(5)
            return
        await asyncio.sleep(0.2)
    cell.error = f"{len(cell.waiting)} replies never came"


class Page:
    """A page of a forwarded server: its kernel's websocket, opened again with the same session when it breaks."""

    def __init__(self, address: str, cell: Cell) -> None:
        from tests.notebook_client import Client

        self.cell, self.client = cell, Client(address, _TOKEN, timeout_s=5)
        self.lock, self.unsent = threading.Lock(), list[str]()
        self.kernel = self._first()

    def _first(self) -> Any:
        while time.monotonic() < self.cell.ends:
            with contextlib.suppress(OSError):
                kernel = self.client.kernel()
                kernel.run("1+1")
                kernel.socket.settimeout(1)
                return kernel
            time.sleep(0.2)
        sys.exit("the server did not start")

    def send(self, code: str) -> None:
        """As JupyterLab does: what is asked while the socket is known to be closed is sent when it is open again."""
        number = uuid.uuid4().hex
        header = {"msg_id": number, "username": "b", "session": self.kernel.session, "msg_type": "execute_request",
                  "version": "5.3"}  # fmt: skip
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        text = json.dumps({"header": header, "parent_header": {}, "metadata": {}, "content": content, "buffers": [],
                           "channel": "shell"})  # fmt: skip
        self.cell.waiting.add(number)
        with self.lock:
            try:
                self.kernel.socket.send(text)
            except Exception:
                self.unsent.append(text)

    def listen(self) -> None:
        """Until all has come, or the time is up."""
        import websocket

        while time.monotonic() < self.cell.ends and not self.cell.done:
            try:
                message = json.loads(self.kernel.socket.recv())
                self.cell.heard(message["msg_type"], message["parent_header"].get("msg_id", ""), message["content"])
            except websocket.WebSocketTimeoutException:
                continue
            except Exception:
                time.sleep(1)
                self._again()

    def _again(self) -> None:
        from tests.notebook_client import Kernel

        with contextlib.suppress(Exception), self.lock:
            self.kernel = Kernel(self.client, self.kernel.id, session=self.kernel.session)
            self.kernel.socket.settimeout(1)
            while self.unsent:
                self.kernel.socket.send(self.unsent[0])
                self.unsent.pop(0)


def by_server(config: str, folder: Path, cell: Cell) -> None:
    """A Jupyter server there, forwarded by ssh, and a page."""
    from tests.sshd import free_port

    far, near = free_port(), free_port()
    words = ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={far}", f"--IdentityProvider.token={_TOKEN}",
             "--ServerApp.open_browser=False", "--ServerApp.allow_root=True", f"--ServerApp.root_dir={folder}"]  # fmt: skip
    server = subprocess.Popen([sys.executable, "-m", "jupyter_server", *words], stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    ssh = ["ssh", "-F", config, "-N", "-L", f"127.0.0.1:{near}:127.0.0.1:{far}", "-o", "ExitOnForwardFailure=yes",
           "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=2", "-o", "ConnectTimeout=5", "box"]  # fmt: skip

    def forward() -> None:
        while time.monotonic() < cell.ends:
            subprocess.run(ssh, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
            time.sleep(1)

    threading.Thread(target=forward, daemon=True).start()
    page = Page(f"http://127.0.0.1:{near}", cell)
    threading.Thread(target=_commands, args=(cell, page.send), daemon=True).start()
    print("ready", flush=True)
    page.listen()
    if cell.waiting:
        cell.error = f"{len(cell.waiting)} replies never came"
    print(json.dumps({"lines": cell.text.split(), "error": cell.error}), flush=True)
    server.terminate()
    server.wait(20)


def main(kind: str, config: str, folder: str, lines: str, per_s: str, seconds: str) -> None:
    """Run one tool."""
    lasts = float(seconds)
    cell = Cell(Path(folder), int(lines), float(per_s), time.monotonic() + lasts + 60)
    threading.Timer(lasts - 60, cell.over.set).start()
    if kind == "jupyter":
        by_server(config, Path(folder), cell)
    else:
        asyncio.run(by_provisioner(kind, config, Path(folder), cell))


if __name__ == "__main__":
    main(*sys.argv[1:])
