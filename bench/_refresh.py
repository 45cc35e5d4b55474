"""What runs in the kernel for `python -m bench dashboard`: ways to show five series, one refresh after another.

Each way is a function that draws 1,000 points of history and returns `refresh(step)`, which adds one point to every
series and shows it.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

WINDOW = 1000
NAMES = ("loss", "smoothed", "learning_rate", "grad_norm", "speed")
Refresh = Callable[[int], object]
_LONGEST_S = 600.0


def point(step: int) -> dict[str, float]:
    """One value for each series, of the size and shape that training gives."""
    loss = 2.2 * math.exp(-step / 700) + 0.4 + 0.05 * math.sin(step * 1.7)
    return {
        "loss": loss,
        "smoothed": loss - 0.05 * math.sin(step * 1.7),
        "learning_rate": 2e-4 * max(0.0, 1 - step / 4000),
        "grad_norm": 0.8 + 0.2 * math.sin(step),
        "speed": 5000 + 300 * math.cos(step),
    }


def nbkit() -> Refresh:
    """nbkit's widget on a run that another process writes, two rows a refresh at 10 Hz: what recording costs is not in it."""
    from IPython.display import display

    from nbkit.training import Run
    from nbkit.widgets.dashboard import Dashboard
    from nbkit.widgets.feed import Feed

    command = [sys.executable, "-c", "from bench import _refresh; _refresh.write_run()"]
    subprocess.Popen(command, stdin=subprocess.DEVNULL)
    path = Path("run")
    _wait_for(path / "prefilled")
    dashboard = Dashboard(Feed(Run(path)))
    display(dashboard)
    return lambda _: dashboard.refresh()


def bare() -> Refresh:
    """What Jupyter itself takes: an AnyWidget that shows nothing is sent as many bytes as nbkit sends."""
    from anywidget import AnyWidget
    from IPython.display import display

    widget = AnyWidget(_esm="export default { render() {} };")
    display(widget)
    rows = [[float(step), *point(step).values()] for step in range(7)]
    return lambda _: widget.send({"rows": rows})


def write_run() -> None:
    """The history at once; after `go` as many rows a second as `go` says, until result.json."""
    from nbkit.training.record import Recorder

    recorder = Recorder(Path("run"))
    recorder.set("training", max_steps=4000)

    def add(step: int) -> None:
        values = point(step)
        row = {name: values[name] for name in ("loss", "learning_rate", "grad_norm")}
        recorder.row(step, row | {"num_tokens": step * 1e3})
        recorder.step(step)

    for step in range(1, WINDOW):
        add(step)
    recorder.flush()
    Path("run/prefilled").touch()
    _wait_for(Path("go"))
    per_s = float(Path("go").read_text())
    began = time.monotonic()
    while not Path("result.json").exists() and time.monotonic() - began < _LONGEST_S:
        step += 1
        add(step)
        time.sleep(max(0.0, began + (step - WINDOW) / per_s - time.monotonic()))
    recorder.set("done")


def _axes() -> tuple[Any, list[Any], dict[str, deque[float]]]:
    """Two by two panels of matplotlib, the first with two of the five lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6))
    panels = figure.subplots(2, 2).ravel()
    lines = [panel.plot([], [])[0] for panel in (panels[0], panels[0], *panels[1:])]
    return figure, lines, {name: deque(maxlen=WINDOW) for name in ("step", *NAMES)}


def matplotlib() -> Refresh:
    """A figure drawn again and shown in place of the one before: clear_output(wait=True), display(figure)."""
    import matplotlib as mpl
    from IPython.display import clear_output, display
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    mpl.use("module://matplotlib_inline.backend_inline")
    set_matplotlib_formats("png")
    figure, lines, history = _axes()

    def refresh(step: int) -> None:
        values = point(step)
        history["step"].append(step)
        for name, line in zip(NAMES, lines, strict=True):
            history[name].append(values[name])
            line.set_data(history["step"], history[name])
        for panel in figure.axes:
            panel.relim()
            panel.autoscale_view()
        clear_output(wait=True)
        display(figure)

    for step in range(1, WINDOW):
        for name, value in {"step": step, **point(step)}.items():
            history[name].append(value)
    refresh(WINDOW)
    return refresh


def livelossplot() -> Refresh:
    """PlotLosses with its default output, matplotlib, over the last 1,000 steps."""
    from livelossplot import PlotLosses
    from livelossplot.outputs import MatplotlibPlot

    plot = PlotLosses(outputs=[MatplotlibPlot()], from_step=-WINDOW)
    for step in range(1, WINDOW):
        plot.update(point(step))

    def refresh(step: int) -> None:
        plot.update(point(step))
        plot.send()

    refresh(WINDOW)
    return refresh


def plotly() -> Refresh:
    """A FigureWidget with two by two panels whose five traces are set anew in one batch."""
    from IPython.display import display
    from plotly.graph_objects import FigureWidget
    from plotly.subplots import make_subplots

    figure = FigureWidget(make_subplots(rows=2, cols=2))
    history: dict[str, deque[float]] = {name: deque(maxlen=WINDOW) for name in ("step", *NAMES)}
    for step in range(1, WINDOW):
        for name, value in {"step": step, **point(step)}.items():
            history[name].append(value)
    for name, (row, column) in zip(NAMES, ((1, 1), (1, 1), (1, 2), (2, 1), (2, 2)), strict=True):
        figure.add_scatter(x=list(history["step"]), y=list(history[name]), name=name, row=row, col=column)
    display(figure)

    def refresh(step: int) -> None:
        for name, value in {"step": step, **point(step)}.items():
            history[name].append(value)
        with figure.batch_update():
            for trace, name in zip(figure.data, NAMES, strict=True):
                trace.x, trace.y = list(history["step"]), list(history[name])

    return refresh


# Widgets refresh from a thread, as they are used: the page's questions are answered meanwhile. Figures that are shown
# anew belong to the cell that draws them.
IN_CELL: dict[str, Callable[[], Refresh]] = {f.__name__: f for f in (matplotlib, livelossplot)}
IN_THREAD: dict[str, Callable[[], Refresh]] = {f.__name__: f for f in (nbkit, bare, plotly)}


def measure(way: str, refreshes: int, per_s: float) -> None:
    """Draw, say `ready`, wait for `go`, refresh at that pace or as fast as it goes, leave the cost in result.json.

    CPU time is that of the whole kernel, all its threads, from the first refresh to half a second after the last.
    """
    if way in IN_CELL:
        _measure(IN_CELL[way](), refreshes, per_s)
    else:
        Thread(target=_measure, args=(IN_THREAD[way](), refreshes, per_s), daemon=True).start()


def _measure(refresh: Refresh, refreshes: int, per_s: float) -> None:
    Path("ready").touch()
    _wait_for(Path("go"))
    time.sleep(0.3)  # the first rows
    cpu, began = time.process_time(), time.monotonic()
    for number in range(refreshes):
        refresh(WINDOW + 1 + number)
        time.sleep(max(0.0, began + (number + 1) / per_s - time.monotonic()))
    took = time.monotonic() - began
    time.sleep(0.5)  # what is still being sent belongs to it
    Path("result.part").write_text(json.dumps({"cpu_s": time.process_time() - cpu, "took_s": took}))
    Path("result.part").rename("result.json")


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {path} after two minutes")
        time.sleep(0.05)
