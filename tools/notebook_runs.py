"""Run the notebooks: in full, to store their outputs, or as copies in smoke mode, to test them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

from tools.guards import ROOT

CELL_TIMEOUT_S = 300
# A full run trains for real; on a CPU one cell may take a quarter of an hour.
RENDER_CELL_TIMEOUT_S = 3600
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def clean(notebook: dict[str, Any], places: dict[str, str]) -> dict[str, Any]:
    """A copy of an executed notebook, fit to be committed.

    Goes: stderr, live widgets, metadata beyond kernel, language and tags. `places` maps folders of this machine to what
    takes their place, such as "~".
    """
    cells = []
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags")
        kept = {**cell, "metadata": {"tags": tags} if tags else {}}
        if cell["cell_type"] == "code":
            kept["outputs"] = [out for out in map(_cleaned_output, cell["outputs"]) if out]
        cells.append(kept)
    text = json.dumps(cells, ensure_ascii=False)
    for place in sorted(places, key=len, reverse=True):  # the deepest folder first: a venv lies inside the tree
        text = text.replace(place, places[place])
    return {
        "cells": json.loads(text),
        "metadata": {"kernelspec": KERNEL, "language_info": {"name": "python"}},
        "nbformat": notebook["nbformat"],
        "nbformat_minor": notebook["nbformat_minor"],
    }


def _cleaned_output(output: dict[str, Any]) -> dict[str, Any] | None:
    if output["output_type"] == "stream" and output["name"] == "stderr":
        return None
    if "data" not in output:
        return output
    data = {kind: value for kind, value in output["data"].items() if kind != WIDGET_VIEW}
    # What a widget says of itself in plain text, `VBox(children=...)`, is of no use to a reader.
    only_a_widget = len(data) < len(output["data"]) and set(data) <= {"text/plain"}
    return None if only_a_widget else {**output, "data": data, "metadata": {}}


def render(paths: list[Path]) -> int:
    """Execute `paths` in order, in a folder that is removed afterwards, and store their outputs; returns the exit code.

    A notebook is written only when it ran to its end.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    for name in ("NBKIT_SMOKE", "CI"):  # in full, and as a person sees it
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory(prefix="nbkit-render-") as folder:
        work = Path(folder).resolve()
        os.environ["NBKIT_RUNS"] = str(work / "runs")
        places = {f"{work}/": "", str(work): ".", str(ROOT): ".", sys.prefix: ".venv", str(Path.home()): "~"}
        practice = "nbkit-practice-"  # the folder of a practice box, whose ssh_config is part of lines to paste
        places[f"{tempfile.gettempdir()}/{practice}"] = practice
        for path in paths:
            start = time.monotonic()
            print(f"notebooks: {path.name} ...", flush=True)
            notebook = nbformat.read(path, as_version=4)
            for cell in notebook.cells:
                if cell.cell_type == "code":
                    cell.outputs, cell.execution_count = [], None
            client = NotebookClient(
                notebook,
                timeout=RENDER_CELL_TIMEOUT_S,
                kernel_name="python3",
                record_timing=False,
                store_widget_state=False,
                coalesce_streams=True,
                resources={"metadata": {"path": str(work)}},
            )
            try:
                client.execute()
            except CellExecutionError as error:
                print(f"notebooks: {path.name} failed and is as it was:\n{error}", file=sys.stderr)
                return 1
            finished = json.dumps(clean(notebook, places), indent=1, ensure_ascii=False) + "\n"
            path.write_text(finished, encoding="utf-8")
            print(f"notebooks: {path.name} stored, {time.monotonic() - start:.0f} s", flush=True)
    return 0


def smoke(paths: list[Path], report: Path | None = None) -> int:
    """Run copies of `paths` under nbval in smoke mode, in order; returns pytest's exit code.

    Copies, because a run writes beside its notebook, and because a later notebook reads what an earlier one wrote.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nbkit-smoke-") as folder:
        work = Path(folder)
        copies = [Path(shutil.copy(path, work)) for path in paths]
        (work / "pytest.ini").write_text("[pytest]\n")  # the project's own settings are for its unit tests
        xml = work / "report.xml"
        environment = {
            **os.environ,
            "NBKIT_SMOKE": "1",
            "CI": "1",
            "HF_HUB_OFFLINE": "1",
            "NBKIT_RUNS": str(work / "runs"),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        nbval = ["--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={CELL_TIMEOUT_S}"]
        bare = ["-p", "no:randomly", "-p", "no:cacheprovider", f"--rootdir={work}", "-c", str(work / "pytest.ini")]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *nbval, *bare, f"--junitxml={xml}", *map(str, copies)],
            cwd=work,
            env=environment,
            check=False,
        )
        if xml.exists():
            print(summary(xml, [path.name for path in paths]))
            if report is not None:
                shutil.copy(xml, report)
    print(f"notebooks: smoke {'ok' if done.returncode == 0 else 'FAILED'} in {time.monotonic() - start:.0f} s")
    return done.returncode


def summary(report: Path, names: list[str]) -> str:
    """A line a notebook: cells, failures and time, from pytest's report."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    seconds: Counter[str] = Counter()
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - written by the pytest we just ran
        said = f"{case.get('classname', '')} {case.get('name', '')}"
        for name in names:
            if name.removesuffix(".ipynb") in said:
                failed = case.find("failure") is not None or case.find("error") is not None
                counts[name]["failed" if failed else "skipped" if case.find("skipped") is not None else "passed"] += 1
                seconds[name] += float(case.get("time", 0))  # type: ignore[assignment]
    return "\n".join(
        f"notebooks: {name:<28} {count['passed']:>3} cells passed, {count['failed']} failed, {seconds[name]:.0f} s"
        for name, count in counts.items()
    )
