"""What the live dashboard costs in JupyterLab, against matplotlib, livelossplot and plotly; how soon Stop and reload work."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench import CannotRunError, Line, Outcome

REFRESHES, PER_S, ROUNDS = 100, 10.0, 2
LONG, LONG_PER_S = 1500, 50.0
STOPS, RELOADS = 5, 3
SLOWEST_S = 600.0  # 100 refreshes of the slowest peer: 150 s
PEERS = {"matplotlib": "matplotlib re-display", "livelossplot": "livelossplot", "plotly": "plotly FigureWidget"}
WATCH = "import nbkit, steps\nrun = nbkit.watch(steps.begin(every_s={every_s}))"
STEP_S = 0.05


@dataclass(frozen=True)
class Cost:
    """Of one refresh, but for the heap: what it grew by from the first to the last."""

    cpu_ms: float
    bytes: float
    task_ms: float
    heap_mb: float
    per_s: float


def run() -> Outcome:
    """Measure all of it in this environment's JupyterLab; about ten minutes, most of them livelossplot's.

    Raises: CannotRunError without Chromium, JupyterLab, or an index of packages for the peers.
    """
    with _lab() as lab:
        costs = _costs(lab)
        long = _cost(lab, "nbkit", "nbkit", LONG, LONG_PER_S)
        lines = [line for peer in PEERS for line in _against(costs["nbkit"], costs[peer], PEERS[peer])]
        lines.append(_beside_bare(costs["nbkit"], costs["bare"]))
        lines += _limits(costs["nbkit"], long)
        for kernel, title in (("nbkit", "ipykernel 7.4"), ("colab", "Colab's kernel")):
            stops, reloads = _stops(lab, kernel), _reloads(lab, kernel)
            lines.append(_limit(f"Stop, click to loop ended, {title}", stops, 0.5 + STEP_S, "s"))
            lines.append(_limit(f"reload in mid-run, all rows back, {title}", reloads, 10, "s"))
    title = (
        f"5 series, 1,000 points, {REFRESHES} refreshes aimed at {PER_S:g} Hz, JupyterLab in Chromium, {ROUNDS} rounds"
    )
    return Outcome(title, lines)


@contextmanager
def _lab() -> Iterator[Any]:
    try:
        from tools import overlay
        from tools.lab import lab as serve
        from tools.page import executable
    except ImportError as error:
        raise CannotRunError(f"{error}; run it as: make bench BENCH=dashboard") from error
    if executable() is None:
        raise CannotRunError("no Chromium; Debian, Ubuntu: apt install chromium")
    try:
        peers, colab = overlay.python("bench-dashboard"), overlay.python("colab")
    except overlay.CannotMakeError as error:
        raise CannotRunError(str(error)) from error
    root = Path(__file__).resolve().parent.parent
    folder = tempfile.TemporaryDirectory(prefix="nbkit-bench-", ignore_cleanup_errors=True)
    with folder, serve(Path(folder.name), [root / "tests" / "browser"]) as lab:
        lab.add_kernel("peers", peers)
        lab.add_colab_kernel(colab)
        yield lab


def _costs(lab: Any) -> dict[str, list[Cost]]:
    """Every way in turn, round after round, so that a slow machine is slow for all."""
    found: dict[str, list[Cost]] = {way: [] for way in ("nbkit", "bare", *PEERS)}
    for _ in range(ROUNDS):
        for way, costs in found.items():
            costs.append(_cost(lab, way, "peers" if way in PEERS else "nbkit", REFRESHES, PER_S))
    return found


def _cost(lab: Any, way: str, kernel: str, refreshes: int, per_s: float) -> Cost:
    """One way in a notebook, a kernel and a page of its own."""
    from tools.page import Gauge, wait_for

    received: list[int] = []
    cell = f"from bench import _refresh\n_refresh.measure({way!r}, {refreshes}, {per_s})"
    with _notebook(lab, f"{way}-{time.monotonic_ns()}", cell, kernel) as book:
        book.page.on("websocket", lambda socket: socket.on("framereceived", lambda data: received.append(len(data))))
        book.open().run_all()
        result = book.folder / "result.json"
        wait_for((book.folder / "ready").exists, f"{way} to draw", 120)
        book.page.wait_for_timeout(3000)  # the page loads the library
        gauge = Gauge(book.page)
        heap, task, seen = gauge.heap_mb(), gauge.task_s(), len(received)
        (book.folder / "go.part").write_text(str(2 * per_s))
        (book.folder / "go.part").rename(book.folder / "go")
        deadline = time.monotonic() + SLOWEST_S
        while not result.exists():
            if time.monotonic() > deadline:
                raise CannotRunError(f"{way} did not end within {SLOWEST_S:g} s")
            book.page.wait_for_timeout(500)  # lets the frames be counted
        book.page.wait_for_timeout(1000)
        task = gauge.task_s() - task
        said = json.loads(result.read_text())
        grown = gauge.heap_mb() - heap
    return Cost(
        1000 * said["cpu_s"] / refreshes, sum(received[seen:]) / refreshes, 1000 * task / refreshes, grown,
        refreshes / said["took_s"],
    )  # fmt: skip


@contextmanager
def _notebook(lab: Any, name: str, cell: str, kernel: str) -> Iterator[Any]:
    """A notebook of one cell in a fresh Chromium; its kernel is ended afterwards."""
    from tools.page import Notebook, chromium, page

    lab.forget()
    with chromium() as browser, page(browser) as fresh:
        yield Notebook(lab, fresh, f"{name}/book", [cell], kernel=kernel)
    lab.end_kernels()


def _against(ours: list[Cost], theirs: list[Cost], peer: str) -> list[Line]:
    """Ratios, round by round. A peer below its goal would be a surprise: the goals leave a factor of two to ten."""
    goals = {"cpu_ms": (0.5 if "plotly" in peer else 0.02, "kernel CPU a refresh", "ms"),
             "bytes": (0.05, "bytes a refresh", "B"), "task_ms": (0.5, "browser task a refresh", "ms")}  # fmt: skip
    lines = []
    for name, (goal, title, unit) in goals.items():
        mine, other = [getattr(cost, name) for cost in ours], [getattr(cost, name) for cost in theirs]
        ratios = [a / b for a, b in zip(mine, other, strict=True)]
        lines.append(Line(title, peer, ratios, goal, median(mine), median(other), unit))
    heaps = [cost.heap_mb for cost in theirs]
    mine = [max(cost.heap_mb, 0.0) for cost in ours]
    lines.append(Line("heap growth", peer, [a / max(b, 0.01) for a, b in zip(mine, heaps, strict=True)], 1.0,
                      median(mine), median(heaps), "MB"))  # fmt: skip
    return lines


def _beside_bare(ours: list[Cost], bare: list[Cost]) -> Line:
    """A kernel that idles for 0.1 s and sends one message has a price of its own, which no view can go below."""
    mine, least = [cost.cpu_ms for cost in ours], [cost.cpu_ms for cost in bare]
    ratios = [a / b for a, b in zip(mine, least, strict=True)]
    return Line("kernel CPU a refresh", "a bare AnyWidget.send", ratios, 2.0, median(mine), median(least), "ms")


def _limits(costs: list[Cost], long: Cost) -> list[Line]:
    return [
        _limit("kernel CPU a refresh", [cost.cpu_ms for cost in costs], 1.0, "ms"),
        _limit("bytes a refresh", [cost.bytes for cost in costs], 1000, "B"),
        _limit("time between refreshes", [1 / cost.per_s for cost in costs], 0.2, "s"),
        _limit(f"heap growth over {LONG:,} refreshes", [max(long.heap_mb, 0.0)], 1.0, "MB"),
    ]


def _limit(title: str, values: list[float], most: float, unit: str) -> Line:
    """A goal that stands alone: the ratio is ours to the limit."""
    return Line(title, "the limit", [value / most for value in values], 1.0, median(values), most, unit)


def _stops(lab: Any, kernel: str) -> list[float]:
    """Seconds from the click in the page to the end of the loop in the kernel, a fresh run each time."""
    from tools.page import wait_for

    found = []
    with _notebook(lab, f"stop-{kernel}", WATCH.format(every_s=STEP_S), kernel) as book:
        book.open()
        for number in range(STOPS):
            book.run_all()
            wait_for(lambda number=number: len(book.runs()) > number, "the run to begin")
            board, path = book.outputs.locator("[data-nbkit=dashboard]"), book.runs()[-1]
            _rows(book, board, 10)
            stop = board.locator("[data-nbkit=stop]")
            clicked = stop.evaluate("button => { const now = Date.now(); button.click(); return now; }") / 1000
            events = path / "events.jsonl"
            wait_for(lambda events=events: events.exists() and "ended" in events.read_text(), "the loop to end", 60)
            found.append(json.loads(events.read_text().splitlines()[-1])["ended"] - clicked)
            book.page.wait_for_timeout(1500)  # the frozen picture takes the widget's place
    return found


def _reloads(lab: Any, kernel: str) -> list[float]:
    """Seconds from the reload to all rows that the page had before, with the run going on."""
    found = []
    with _notebook(lab, f"reload-{kernel}", WATCH.format(every_s=STEP_S), kernel) as book:
        book.open().run_all()
        board = book.outputs.locator("[data-nbkit=dashboard]")
        before = _rows(book, board, 200)
        book.save()
        for _ in range(RELOADS):
            began = time.monotonic()
            book.reload()
            before = _rows(book, board, before)
            found.append(time.monotonic() - began)
    return found


def _rows(book: Any, board: Any, least: int) -> int:
    """Wait until the page holds `least` rows; how many it holds."""
    book.page.wait_for_function(
        "least => Number(document.querySelector('.jp-OutputArea [data-nbkit=dashboard]')?.dataset.rows || 0) >= least",
        arg=least, timeout=60_000, polling=50,
    )  # fmt: skip
    return int(board.get_attribute("data-rows"))
