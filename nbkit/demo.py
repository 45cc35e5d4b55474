"""The four notebooks, executed one after another as a person would run them, and what came of it."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbkit import atomic
from nbkit.display import Table
from nbkit.errors import NbkitError, RunError, require
from nbkit.training import runs

NOTEBOOKS = ("01_hardware_check", "02_data_prep", "03_qlora_sft", "04_eval")
_CELL_TIMEOUT_S = 3600
_TELL_EVERY_S = 15.0
_SETS = ("seen", "unseen")


@dataclass(frozen=True)
class Demo:
    """What the demo achieved; `as_dict` is what result.json holds."""

    out: Path
    values: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """`seen` and `unseen` (rows, exact match, field accuracy, loss; base and tuned), `seconds`, `notebooks`."""
        return self.values

    def __str__(self) -> str:
        rows = [
            (
                name,
                found["rows"],
                *(
                    f"{found[f'base_{key}']:.2f} -> {found[f'tuned_{key}']:.2f}"
                    for key in ("exact_match", "field_accuracy", "loss")
                ),
            )
            for name, found in ((name, self.values[name]) for name in _SETS)
        ]
        table = Table(
            ["held-out set", "rows", "exact match", "field accuracy", "loss"],
            rows,
            title="Base -> tuned, same prompts, greedy decoding",
            notes=[
                "seen: new combinations of words that were trained on. unseen: names, products and phrasings that were not.",
            ],
        )
        notebooks = "\n".join(f"  {path}" for path in self.values["notebooks"])
        return (
            f"{table}\n\nExecuted notebooks ({self.values['seconds']:.0f} s):\n{notebooks}\n"
            f"Result: {self.out / 'result.json'}\nOpen them in JupyterLab: make lab      (these: jupyter lab {self.out})"
        )


def run_demo(notebooks: Path, out: Path, *, say: Callable[[str], None]) -> Demo:
    """Execute NOTEBOOKS from `notebooks`; the executed copies, prepared data and result.json go to `out`.

    Args:
        say: Is told of progress, a line at a time.
    Raises: RunError naming the notebook and the cell that failed, with the cell's own error; the copy executed so far
        is kept beside the others. MissingPackageError without the train and lab extras.
    """
    require("torch", "transformers", "trl", "peft", "bitsandbytes", extra="train")
    require("nbclient", "nbformat", "ipykernel", extra="lab")
    absent = [name for name in NOTEBOOKS if not (notebooks / f"{name}.ipynb").is_file()]
    if absent:
        raise NbkitError(
            f"{notebooks.absolute()} has no {', '.join(absent)}.",
            hint="run it in a clone, or give --notebooks",
            exit_code=2,
        )
    began = time.monotonic()
    with atomic.explain(out):
        out.mkdir(parents=True, exist_ok=True)
    before = {run.id for run in runs(out.parent)}
    done: list[str] = []
    with _environment(out):
        for name in NOTEBOOKS:
            started = time.monotonic()
            say(f"{name} ...")
            done.append(str(_execute(notebooks / f"{name}.ipynb", out, say)))
            say(f"{name}: {time.monotonic() - started:.0f} s")
    evaluation = _evaluation(out, before)
    values = {
        **{name: evaluation["sets"][name] for name in _SETS},
        "base_loss": evaluation["sets"]["seen"]["base_loss"],
        "tuned_loss": evaluation["sets"]["seen"]["tuned_loss"],
        "forgetting": evaluation.get("general"),
        "seconds": round(time.monotonic() - began, 1),
        "notebooks": done,
    }
    atomic.write_json(out / "result.json", values)
    return Demo(out, values)


@contextmanager
def _environment(out: Path) -> Iterator[None]:
    """Runs go beside `out`, where `nbkit runs` looks; the kernels inherit it."""
    kept = os.environ.get("NBKIT_RUNS")
    os.environ["NBKIT_RUNS"] = str(out.parent.absolute())
    try:
        yield
    finally:
        if kept is None:
            del os.environ["NBKIT_RUNS"]
        else:
            os.environ["NBKIT_RUNS"] = kept


def _execute(source: Path, out: Path, say: Callable[[str], None]) -> Path:
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook = nbformat.read(source, as_version=4)
    target = out / source.name
    at = [0]

    def begun(cell: Any, cell_index: int) -> None:  # noqa: ARG001 - nbclient passes both by name
        at[0] = cell_index + 1

    def progress() -> str:
        training = next((run.headline() for run in runs(out.parent) if run.status.active), "")
        return f"  {source.stem}: cell {at[0]} of {len(notebook.cells)}{f' · {training}' if training else ''}"

    client = NotebookClient(
        notebook,
        timeout=_CELL_TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(out.absolute())}},
        on_cell_start=begun,
        # ipykernel warns of its TCP ports at each start; the demo's kernels are local and short-lived.
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
    )
    try:
        with _heartbeat(lambda: say(progress())):
            client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        where = next((i + 1 for i, c in enumerate(notebook.cells) if _failed(c)), "?")
        raise RunError(
            f"{source.name} failed in cell {where}: {_reason(notebook, error)}", hint=f"open {target} to see it"
        ) from error
    finally:
        atomic.write_text(target, nbformat.writes(notebook) + "\n")
    return target


@contextmanager
def _heartbeat(tell: Callable[[], None]) -> Iterator[None]:
    """Call `tell` every 15 seconds while the block runs."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_TELL_EVERY_S):
            tell()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _failed(cell: Any) -> bool:
    return any(output.output_type == "error" for output in cell.get("outputs", ()))


def _reason(notebook: Any, error: Exception) -> str:
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.output_type == "error":
                return f"{output.ename}: {output.evalue}"
    return str(error).strip().splitlines()[-1]


def _evaluation(out: Path, before: set[str]) -> dict[str, Any]:
    """What 04_eval wrote into the run that 03_qlora_sft made."""
    # A finished run of the same recipe and data is taken up by 03_qlora_sft and not trained again.
    made = [run for run in runs(out.parent) if run.id not in before and (run.path / "evaluation.json").is_file()]
    if not made:
        raise RunError("04_eval left no evaluation.json in a run of this demo.", hint=f"look at {out}/04_eval.ipynb")
    found: dict[str, Any] = json.loads((made[0].path / "evaluation.json").read_text())
    return found
