"""A real JupyterLab of our own on 127.0.0.1, for the browser tests and `python -m bench dashboard`.

It has its own settings, kernels and port, so it neither sees nor changes those of the person who runs it. It ends with
the process that started it, even when that one is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from tools.guards import ROOT

START_S = 90.0  # 5 to 9 s when nothing else runs
_CALL_S = 30.0
TOKEN = "nbkit-browser-tests"  # noqa: S105 - of a server that only this process's machine reaches
# Ends with us: on Linux the kernel sends the signal when our process is gone, however it went.
_START = """
import signal, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
from jupyterlab.labapp import main
main()
"""
# A person's own, or CI's: each would change what the notebooks show. pytest's would confuse a kernel that runs tests.
_DROPPED = ("CI", "NBKIT_DISPLAY", "NBKIT_RUNS", "NBKIT_SMOKE", "NBKIT_DEBUG", "PYTEST_CURRENT_TEST", "COV_CORE_SOURCE")


class Lab:
    """A running server.

    Attributes:
        url: Without a slash at the end.
        root: The folder whose notebooks it serves.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url, self.root = folder, url, folder / "root"

    def call(self, method: str, path: str) -> Any:
        """One REST request; the JSON of the answer, or None."""
        request = urllib.request.Request(f"{self.url}{path}", method=method)  # noqa: S310 - our own server
        request.add_header("Authorization", f"token {TOKEN}")
        with urllib.request.urlopen(request, timeout=_CALL_S) as answer:  # noqa: S310 - same
            text = answer.read()
        return json.loads(text) if text else None

    def end_kernels(self) -> None:
        """Kernels survive the page that started them; end them all, so that each test starts its own."""
        for kind in ("sessions", "kernels"):
            for each in self.call("GET", f"/api/{kind}"):
                with contextlib.suppress(OSError):  # ended in between, or so busy that the server's end will have to do
                    self.call("DELETE", f"/api/{kind}/{each['id']}")

    def forget(self) -> None:
        """Drop what a page stored here: a theme chosen by one test must not outlive it, nor an open tab."""
        for name in ("settings", "workspaces"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir(parents=True)

    def add_kernel(self, name: str, python: Path) -> None:
        """Let notebooks name a kernel that runs `python`; it imports nbkit and tools from this tree."""
        spec = self.folder / "data" / "kernels" / name / "kernel.json"
        spec.parent.mkdir(parents=True, exist_ok=True)
        command = [str(python), "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec.write_text(json.dumps({"argv": command, "display_name": name, "language": "python"}))

    def add_colab_kernel(self, python: Path) -> str:
        """The kernel `colab`, of overlay `colab`, and what lets a page loaded from now on show its widgets."""
        home = self.folder / "data" / "labextensions" / "nbkit-old-widgets"
        (home / "static").mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tools" / "old_widgets.js", home / "static" / "old_widgets.js")
        script = python.parent.parent / "share" / "jupyter" / "nbextensions" / "anywidget" / "index.js"
        shutil.copy(script, home / "static" / "anywidget.js")
        build = {"load": "./static/old_widgets.js", "extension": "./extension"}
        about = {"name": "nbkit-old-widgets", "version": "1.0.0", "jupyterlab": {"_build": build}}
        (home / "package.json").write_text(json.dumps(about))
        self.add_kernel("colab", python)
        return "colab"


@contextlib.contextmanager
def lab(folder: Path, imports: Sequence[Path] = ()) -> Iterator[Lab]:
    """Run a JupyterLab whose files all lie in `folder`; its kernel `nbkit` is this Python.

    Args:
        imports: More folders that its kernels import from.
    Raises: RuntimeError with the end of its log when it is not up after START_S.
    """
    variables = _prepare(folder, imports)
    log = folder / "lab.log"
    options = {
        "ServerApp.ip": "127.0.0.1", "ServerApp.port": "0", "ServerApp.root_dir": folder / "root",
        "IdentityProvider.token": TOKEN, "ServerApp.open_browser": "False", "ServerApp.allow_root": "True",
        "LabApp.expose_app_in_browser": "True", "JupyterNotebookApp.expose_app_in_browser": "True",
        "KernelManager.shutdown_wait_time": "2",
    }  # fmt: skip
    command = [sys.executable, "-c", _START, *(f"--{name}={value}" for name, value in options.items())]
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, env=variables, cwd=folder / "root", start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        server = Lab(folder, _wait_for_url(process, folder / "runtime", log))
        _wait_until_it_answers(server, process, log)
        server.add_kernel("nbkit", Path(sys.executable))
        yield server
    finally:
        end_tree(process)


def _prepare(folder: Path, imports: Sequence[Path]) -> dict[str, str]:
    """Folders and settings; the environment that makes the server use them and nothing else of the user's."""
    places = {
        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython",
    }  # fmt: skip
    for name in [*places.values(), "root"]:
        (folder / name).mkdir(parents=True, exist_ok=True)
    # No dialog about news; it is not silenced by a command-line option.
    quiet = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}
    overrides = folder / "config" / "labconfig" / "default_setting_overrides.json"
    overrides.parent.mkdir(exist_ok=True)
    overrides.write_text(json.dumps(quiet))
    variables = {name: value for name, value in os.environ.items() if name not in _DROPPED}
    variables |= {name: str(folder / place) for name, place in places.items()}
    # Two cores: threads of torch that wait must not spin.
    variables |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    paths = [str(ROOT), *map(str, imports), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**variables, "PYTHONPATH": os.pathsep.join(paths)}


def _wait_for_url(process: subprocess.Popen[bytes], runtime: Path, log: Path) -> str:
    """The server picks its port and writes it into its runtime folder."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        for info in runtime.glob("jpserver-*.json"):
            with contextlib.suppress(ValueError, OSError):  # half written
                return str(json.loads(info.read_text())["url"]).rstrip("/")
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start: {_tail(log)}")


def _wait_until_it_answers(server: Lab, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):  # refused, timed out
            server.call("GET", "/api/status")
            return
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab does not answer at {server.url}: {_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


def end_tree(process: subprocess.Popen[bytes], grace_s: float = 10.0) -> None:
    """End a process well, then whatever is left of it and of what it started (kernels have sessions of their own)."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        family = []
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    process.kill()
    process.wait(grace_s)
    for one in family:
        with contextlib.suppress(psutil.Error):
            one.kill()
    psutil.wait_procs(family, timeout=grace_s)
