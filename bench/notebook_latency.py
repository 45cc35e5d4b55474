"""A notebook's `1+1` through a tunnel, against a stock Jupyter server on this machine, in turn in one run."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from bench import CannotRunError, Line, Outcome

ROUNDS, CELLS = 7, 20
START_S = 60.0
# 15 ms where a stock server takes 48; 4 s to a URL that works, 2 s to the one of a server that runs.
GOAL_RATIO, GOAL_START_S, GOAL_AGAIN_S = 15 / 48, 4.0, 2.0
_TOKEN = "nbkit-bench"


@contextlib.contextmanager
def _stock(folder: Path) -> Iterator[str]:
    """The address of a server as `jupyter server` starts it: TCP on 127.0.0.1."""
    from tests.sshd import free_port

    port = free_port()
    words = ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", f"--IdentityProvider.token={_TOKEN}",
             "--ServerApp.open_browser=False", "--ServerApp.allow_root=True", f"--ServerApp.root_dir={folder}"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyter_server", *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        from nbkit.remote.jupyter import get

        end = time.monotonic() + START_S
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(OSError):
                get(port, "/api/status", _TOKEN)
                yield f"http://127.0.0.1:{port}"
                return
            time.sleep(0.1)
        raise CannotRunError("a stock Jupyter server did not start")
    finally:
        process.terminate()
        process.wait(timeout=20)


@contextlib.contextmanager
def _tunnelled(folder: Path) -> Iterator[tuple[str, str, float, float]]:
    """Address and token of a tunnel; seconds to the first URL that works, and to the next one."""
    from tests.sshd import running

    with running(folder) as box:
        words = ["box", "-F", str(box.config), "--python", sys.executable]
        try:
            with _tunnel(words) as (_, first_s):
                pass
            with _tunnel(words) as (url, again_s):
                address, _, token = url.partition("?token=")
                yield address, token, first_s, again_s
        finally:
            subprocess.run([sys.executable, "-m", "nbkit.cli", "stop", *words], check=False, capture_output=True)


@contextlib.contextmanager
def _tunnel(words: list[str]) -> Iterator[tuple[str, float]]:
    """`nbkit tunnel` as a process, and the seconds until its URL opens a page."""
    import urllib.request

    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "nbkit.cli", "tunnel", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise CannotRunError("nbkit tunnel printed no URL")
        urllib.request.urlopen(url, timeout=START_S).close()
        yield url, time.perf_counter() - start
    finally:
        process.terminate()
        process.communicate(timeout=20)


def run() -> Outcome:
    """Measure.

    Raises: CannotRunError without sshd or Jupyter.
    """
    import os

    from tests.notebook_client import Client
    from tests.sshd import SSHD

    if not SSHD or not shutil.which("ssh-keygen"):
        raise CannotRunError("sshd is absent: apt install openssh-server openssh-client")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        # What is remembered of boxes, and kernel specs, stay out of the person's own.
        for variable in ("NBKIT_STATE", "XDG_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
            (folder / variable).mkdir(mode=0o700)
            os.environ[variable] = str(folder / variable)
        stock = stack.enter_context(_stock(folder))
        address, token, first_s, again_s = stack.enter_context(_tunnelled(folder / "box"))
        kernels = {"nbkit": Client(address, token).kernel(), "stock": Client(stock, _TOKEN).kernel()}
        seen: dict[str, list[float]] = {"nbkit": [], "stock": []}
        for turn in range(ROUNDS + 1):
            for who, kernel in kernels.items():
                times = []
                for _ in range(CELLS):
                    start = time.perf_counter()
                    kernel.run("1+1")
                    times.append(1000 * (time.perf_counter() - start))
                if turn:  # the first only warms
                    seen[who].append(median(times))
        for kernel in kernels.values():
            kernel.close()
    ratios = [a / b for a, b in zip(seen["nbkit"], seen["stock"], strict=True)]
    lines = [
        Line("1+1 through nbkit tunnel", "stock local server", ratios, GOAL_RATIO, median(seen["nbkit"]),
             median(seen["stock"]), "ms"),
        Line("nbkit tunnel to an open page", "the goal", [first_s / GOAL_START_S], 1.0, first_s, GOAL_START_S, "s"),
        Line("the same, Jupyter running", "the goal", [again_s / GOAL_AGAIN_S], 1.0, again_s, GOAL_AGAIN_S, "s"),
    ]  # fmt: skip
    return Outcome(f"A notebook through a tunnel on loopback, {ROUNDS} rounds of {CELLS} cells in turn", lines)
