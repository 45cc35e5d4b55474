"""One training in a forked child of a warm process: torch is imported once, and a kill takes only the child."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import json
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS, EVERY = 8, 2
_PR_SET_PDEATHSIG = 1
_done = mmap.mmap(-1, 8)  # shared with the child: the step it has done survives its kill


def steps_done() -> int:
    """The steps that the last child had done when it ended, by its own count and not by what it wrote."""
    return int.from_bytes(_done[:8], "little")


def warm() -> None:
    """Load what every child needs, and start no thread of torch's: a fork would not have it."""
    import torch

    torch.set_num_threads(1)
    from transformers.utils import logging

    from tests import little

    logging.disable_progress_bar()
    import tempfile

    # What a first training imports and compiles, no child has to.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        before = os.environ.get("NBKIT_RUNS")
        os.environ["NBKIT_RUNS"] = folder
        from nbkit import training

        training.start(little.trainer(max_steps=2, save_steps=1, save_total_limit=1)).wait(100)
        if before is None:
            del os.environ["NBKIT_RUNS"]
        else:
            os.environ["NBKIT_RUNS"] = before
    # A child that looks for garbage would copy every page it looks at.
    gc.collect()
    gc.freeze()


def trainer(folder: Path | str = "unused", **arguments: Any) -> Any:
    """The trainer of all chaos: 8 steps of a Llama of 20,000 weights with attention dropout, a save every 2."""
    from transformers import TrainerCallback

    from tests import little

    class CountCallback(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            _done[:8] = int(state.global_step).to_bytes(8, "little")

    made = little.trainer(folder, **{"max_steps": STEPS, "save_steps": EVERY, "save_total_limit": 2, **arguments})
    made.add_callback(CountCallback())
    return made


def ours(root: Path, **arguments: Any) -> None:
    """nbkit's run in `root`, resumed where there is one; what happened goes to result.json."""
    os.environ["NBKIT_RUNS"] = str(root)
    from nbkit import training
    from nbkit.training.run import Run

    run: Run = training.start(trainer(**arguments), name="chaos", resume="auto")
    finished = type(run) is Run  # no worker: the run was done before
    error = ""
    try:
        run.wait(100)
    except Exception as failure:
        error = str(failure)
    began = [event for event in run.events() if event["event"] in {"started", "resumed"}]
    losses = {row["step"]: row["loss"] for row in run.metrics() if "loss" in row}
    point = f"checkpoint-{STEPS}" if finished else began[-1]["checkpoint"]
    _say(root, error, point, losses, run.path / "model" / "model.safetensors", began[-1]["notes"])


def plain(root: Path, **arguments: Any) -> None:
    """Plain Trainer in `root`, with resume_from_checkpoint=True where there is a checkpoint."""
    from transformers.trainer_utils import get_last_checkpoint

    made = trainer(root / "plain", logging_steps=1, save_strategy="steps", **arguments)
    last = get_last_checkpoint(str(root / "plain")) if (root / "plain").is_dir() else None
    error = ""
    try:
        made.train(resume_from_checkpoint=last)
        made.save_model(str(root / "plain" / "model"))
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
    losses = {row["step"]: row["loss"] for row in made.state.log_history if "loss" in row}
    name = Path(last).name if last else None
    _say(root, error, name, losses, root / "plain" / "model" / "model.safetensors", [])


def _say(root: Path, error: str, point: str | None, losses: dict[int, float], model: Path, notes: list[str]) -> None:
    digest = hashlib.sha256(model.read_bytes()).hexdigest() if model.is_file() and not error else ""
    result = {"error": error, "point": point, "losses": losses, "model": digest, "notes": notes}
    with contextlib.suppress(OSError):  # on a full disk the parent sees that there is none
        (root.parent / f"{root.name}.json").write_text(json.dumps(result))


def child(function: Callable[..., None], root: Path, **arguments: Any) -> int:
    """Fork and run `function(root)` there; it is killed with its parent, and ends with 0, 1 after an exception, or as
    SystemExit says. Returns: The child's pid.
    """
    sys.stdout.flush()
    _done[:8] = bytes(8)
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with contextlib.suppress(AttributeError, OSError):  # Linux only
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        silent = os.open(os.devnull, os.O_WRONLY)
        if not os.environ.get("NBKIT_DEBUG"):
            os.dup2(silent, 1)
            os.dup2(silent, 2)
        function(root, **arguments)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    finally:
        os._exit(code)


def end(pid: int, within_s: float = 120.0) -> int:
    """Wait for a child. Returns: Its exit status; it is killed after `within_s`, or when the wait is broken off."""
    until = time.monotonic() + within_s
    try:
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > until:
                raise TimeoutError(f"child {pid} did not end in {within_s:g} s")
            time.sleep(0.002)
    except BaseException:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        raise


def result(root: Path) -> dict[str, Any] | None:
    """What the last child in `root` said; None when it was killed first, or its disk was full."""
    file = root.parent / f"{root.name}.json"
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    finally:
        file.unlink(missing_ok=True)
    return found
