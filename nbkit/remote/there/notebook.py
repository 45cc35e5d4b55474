"""Executes a notebook on this box: `python notebook.py FOLDER NAME`, in a folder of work.py.

The file itself becomes the executed one: written, whole or not at all, after each cell and while a long one prints. What
cells print goes to stdout as it comes. After the last cell, training runs that still go on are waited for: the kernel
holds them. SIGTERM interrupts the cell that is at work, as the stop button does, and no other begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from queue import Empty
from typing import Any, Dict, Optional

KERNEL = "nbkit-run"
VIEW = "application/vnd.jupyter.widget-view+json"  # its text is how it began: a bar at 0 %
EVERY_S, DRAIN_S, TELL_S = 3.0, 0.5, 10.0
LAST_S = 25.0  # for a training run that was asked to stop; supervise.py kills after 30
_ACTIVE = ("waiting", "training", "evaluating", "paused", "stalled")


def put(path: str, text: str) -> None:
    """Write a file, whole or not at all."""
    staged = os.path.join(os.path.dirname(path), ".%s.%d.part" % (os.path.basename(path), os.getpid()))
    with open(staged, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(staged, path)


def first_line(cell: Any, most: int = 80) -> str:
    """What a cell is known by: its first line of code."""
    lines = [line.strip() for line in cell.source.splitlines() if line.strip()]
    return (next((line for line in lines if not line.startswith("#")), lines[0]) if lines else "")[:most]


def say(text: str) -> None:
    """A line of our own, on a line of its own."""
    print("\n" * (not say.at_start) + text, flush=True)  # type: ignore[attr-defined]
    say.at_start = True  # type: ignore[attr-defined]


say.at_start = True  # type: ignore[attr-defined]


def hand_on(text: str) -> None:
    """What a cell printed."""
    sys.stdout.write(text)
    sys.stdout.flush()
    if text:
        say.at_start = text.endswith("\n")  # type: ignore[attr-defined]


def spoken(message: Dict[str, Any]) -> str:
    """An output as text; empty for what is no output, and for views that are drawn over and over."""
    kind, content = message["msg_type"], message["content"]
    if kind == "stream":
        return str(content["text"])
    if kind == "error":
        return "\n".join(content["traceback"]) + "\n"
    if kind in ("execute_result", "display_data") and VIEW not in content["data"]:
        plain = content["data"].get("text/plain", "")
        return str(plain).rstrip("\n") + "\n" if plain else ""
    return ""


def headline(run: str) -> str:
    """Where a training run stands, in a line; empty for none."""
    with contextlib.suppress(OSError, ValueError, KeyError), open(os.path.join(run, "status.json")) as file:
        status = json.load(file)
        line = "%s: %s, step %d of %d" % (os.path.basename(run), status["state"], status["step"], status["max_steps"])
        with contextlib.suppress(OSError, ValueError), open(os.path.join(run, "metrics.jsonl"), "rb") as rows:
            rows.seek(max(0, os.fstat(rows.fileno()).st_size - 4096))
            losses = [row["loss"] for row in map(json.loads, rows.read().split(b"\n")[1:-1]) if "loss" in row]
            line += ", loss %.4f" % losses[-1] if losses and losses[-1] is not None else ""
        return line
    return ""


class Execution:
    """One notebook on its way through one kernel."""

    def __init__(self, folder: str, name: str) -> None:
        import nbformat

        self.folder, self.path = folder, os.path.join(folder, "files", name)
        self.notebook = nbformat.read(self.path, as_version=4)
        self.cells = [cell for cell in self.notebook.cells if cell.cell_type == "code"]
        for cell in self.cells:
            cell.outputs, cell.execution_count = [], None
        self.stopping = False
        self.failed: Optional[Dict[str, Any]] = None
        self.kernel_pid = 0
        self.parents: Dict[str, Any] = {}  # message -> its cell and its place
        self._saved, self._took = time.monotonic(), 0.0

    def save(self, *, now: bool = True) -> None:
        """Write the notebook, unless it was written a moment ago and there is no need."""
        import nbformat

        began = time.monotonic()
        if not now and began - self._saved < max(EVERY_S, 20 * self._took):
            return
        put(self.path, nbformat.writes(self.notebook))
        self._saved, self._took = time.monotonic(), time.monotonic() - began

    def interrupt(self) -> None:
        """SIGTERM: end the cell at work, begin no other."""
        self.stopping = True
        with contextlib.suppress(OSError):
            if self.kernel_pid:
                os.kill(self.kernel_pid, signal.SIGINT)

    def client(self, place: str) -> Any:
        """A client whose kernel talks through sockets in `place`, which is this user's alone, and is this Python."""
        from jupyter_client.manager import AsyncKernelManager
        from nbclient import NotebookClient

        execution = self

        class Client(NotebookClient):  # type: ignore[misc]
            def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
                execution.heard(msg)
                if msg["msg_type"] == "status":
                    execution.parents[msg["parent_header"].get("msg_id")] = (cell, cell_index)
                return super().process_message(msg, cell, cell_index)

            async def _async_poll_output_msg(self, parent_msg_id: str, cell: Any, cell_index: int) -> None:
                """As NotebookClient does it; and what a cell of before still says goes where it belongs."""
                from nbclient.exceptions import CellExecutionComplete

                while True:
                    msg = await self.kc.iopub_channel.get_msg(timeout=None)
                    if msg["parent_header"].get("msg_id") != parent_msg_id:
                        self.late(msg)
                        continue
                    try:
                        self.process_message(msg, cell, cell_index)
                    except CellExecutionComplete:
                        return

            def late(self, msg: Any) -> None:
                known = execution.parents.get(msg["parent_header"].get("msg_id"))
                if known and msg["msg_type"] != "status":
                    self.process_message(msg, *known)

        name = self.notebook.metadata.get("kernelspec", {})
        language = str(name.get("language") or "python").lower()
        spec = KERNEL if language == "python" else str(name.get("name"))
        manager = AsyncKernelManager(kernel_name=spec, transport="ipc", connection_file=os.path.join(place, "k.json"))
        resources = {"metadata": {"path": os.path.join(self.folder, "files")}}
        return Client(self.notebook, km=manager, timeout=None, resources=resources, coalesce_streams=True)

    def heard(self, message: Dict[str, Any]) -> None:
        """Something came from the kernel."""
        hand_on(spoken(message))
        if message["msg_type"] not in ("status", "execute_input"):
            self.save(now=False)

    async def run(self, client: Any) -> None:
        """Every cell, until one fails or somebody asks to stop."""
        from nbclient.exceptions import CellExecutionError, DeadKernelError

        number, of = 0, sum(1 for cell in self.cells if cell.source.strip())
        async with client.async_setup_kernel(cleanup_kc=True):
            asyncio.get_event_loop().add_signal_handler(signal.SIGTERM, self.interrupt)
            telling = asyncio.ensure_future(self.tell_training())
            self.kernel_pid = int(getattr(getattr(client.km, "provisioner", None), "pid", 0) or 0)
            for index, cell in enumerate(self.notebook.cells):
                if self.stopping:
                    break
                code = cell.cell_type == "code" and cell.source.strip()
                if code:
                    number += 1
                    progress = {"cell": number, "of": of, "line": first_line(cell), "since": time.time()}
                    put(os.path.join(self.folder, "progress.json"), json.dumps(progress))
                    say("[%d/%d] %s" % (number, of, progress["line"]))
                try:
                    await client.async_execute_cell(cell, index, execution_count=number if code else None)
                except (CellExecutionError, DeadKernelError) as error:
                    name = getattr(error, "ename", "") or "the kernel died"
                    value = str(getattr(error, "evalue", "") or "killed, or out of memory").strip().split("\n")[0]
                    self.failed = {"number": number, "line": first_line(cell), "error": "%s: %s" % (name, value[:300])}
                    break
                finally:
                    self.save()
            await self.outlast(client)
            telling.cancel()
            self.save()

    async def outlast(self, client: Any) -> None:
        """Wait for training runs that cells left going on, and for what they still have to show."""
        told, end = False, 0.0
        while self.training() and await client.km.is_alive() and (not end or time.monotonic() < end):
            if not told:
                say("No cell is at work; waiting for the training run that one started.")
            told = True
            if self.stopping and not end:
                end = time.monotonic() + LAST_S
            await self.drain(client)
        await self.drain(client)

    async def drain(self, client: Any) -> None:
        """Take what the kernel still says."""
        with contextlib.suppress(Empty):
            while True:
                client.late(await client.kc.iopub_channel.get_msg(timeout=DRAIN_S))

    def training(self) -> str:
        """The folder of the run that the kernel trains; empty when it trains none."""
        runs = os.environ.get("NBKIT_RUNS", "")
        for name in os.listdir(runs) if os.path.isdir(runs) else ():
            with contextlib.suppress(OSError, ValueError), open(os.path.join(runs, name, "status.json")) as file:
                status = json.load(file)
                if status["state"] in _ACTIVE and status["pid"] == self.kernel_pid:
                    return os.path.join(runs, name)
        return ""

    async def tell_training(self) -> None:
        """Say now and then how far a training is: what shows it in the notebook is a picture."""
        said = ""
        while True:
            await asyncio.sleep(TELL_S)
            line = headline(self.training())
            if line and line != said:
                say(line)
                said = line


def main(folder: str, name: str) -> int:
    """Execute; 0 when every cell ran, 1 when one failed, 143 when it was asked to stop."""
    os.umask(0o077)
    place = tempfile.mkdtemp(prefix="nbkit-")  # short, as a socket's path must be, and 0700
    put(os.path.join(folder, "place"), place)  # removed by the watcher, where this process is killed
    try:
        kernel = os.path.join(place, "kernels", KERNEL)
        os.makedirs(kernel)
        words = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        put(os.path.join(kernel, "kernel.json"),
            json.dumps({"argv": words, "display_name": "Python of nbkit run", "language": "python"}))  # fmt: skip
        places = filter(None, [place, os.environ.get("JUPYTER_PATH", "")])
        os.environ["JUPYTER_PATH"] = os.pathsep.join(places)
        execution = Execution(folder, name)
        asyncio.run(execution.run(execution.client(place)))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if execution.failed and not execution.stopping:
        put(os.path.join(folder, "result.json"), json.dumps({"cell": execution.failed}))
        say("Cell %(number)d failed (%(line)s): %(error)s" % execution.failed)
        return 1
    return 143 if execution.stopping else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
