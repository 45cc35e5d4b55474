"""One tool of `python -m bench kernel`: prints "ready", then for each line of stdin what it measured, as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench._nothing_lost import _spec

CELLS, BYTES = 30, 100_000_000
_ARRAY = f"import os\nfrom ipykernel.comm import Comm\n_data = memoryview(os.urandom({BYTES}))"
_SEND = "Comm(target_name='bench', buffers=[_data])\nNone"
_SERVE = (
    f"import os, socket\ndata = memoryview(os.urandom({BYTES}))\n"
    "listen = socket.create_server(('127.0.0.1', 0))\nprint(listen.getsockname()[1], flush=True)\n"
    "while True:\n    line, _ = listen.accept()\n    line.sendall(data)\n    line.close()"
)


async def _run(client: Any, code: str) -> float:
    """Seconds until the reply and idle are here."""
    began = time.perf_counter()
    reply = await client.execute_interactive(code, timeout=120, output_hook=lambda _: None)
    assert reply["content"]["status"] == "ok", reply["content"]
    return time.perf_counter() - began


def _raw(config: str) -> dict[str, float]:
    """Seconds for as many bytes through a plain forward, and through one that rides on the relay as kernels do."""
    from nbkit import ssh

    server = subprocess.Popen([sys.executable, "-c", _SERVE], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        with ssh.connect("box", config=config) as session, ssh.Streams(session) as streams:
            return {"raw forward, s": _read(session, port), "raw forward over the relay, s": _read(streams, port)}
    finally:
        server.kill()
        server.communicate()


def _read(carrier: Any, port: int) -> float:
    from nbkit import ssh

    with ssh.forward(carrier, port) as forward:
        began, left = time.perf_counter(), BYTES
        with socket.create_connection(("127.0.0.1", forward.local_port)) as line:
            while left > 0:
                got = len(line.recv(1 << 20))
                assert got
                left -= got
        return time.perf_counter() - began


async def measure(kind: str, config: str, folder: Path) -> None:
    """Answer until stdin ends."""
    from jupyter_client.manager import start_new_async_kernel

    name = await asyncio.to_thread(_spec, kind, config, folder)
    manager, client = await start_new_async_kernel(kernel_name=name, startup_timeout=120)
    await _run(client, "1+1")
    await _run(client, _ARRAY)  # it is there beforehand, as the raw forward's is
    print("ready", flush=True)
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        told = {"1+1, ms": 1000 * median([await _run(client, "1+1") for _ in range(CELLS)])}
        if line == "all":
            told["100 MB array, s"] = await _run(client, _SEND)
            if kind == "nbkit":
                told |= await asyncio.to_thread(_raw, config)
        print(json.dumps(told), flush=True)
    client.stop_channels()
    with contextlib.suppress(Exception):
        await asyncio.wait_for(manager.shutdown_kernel(now=True), 30)


if __name__ == "__main__":
    asyncio.run(measure(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
