"""Which run a trainer goes on with, from which checkpoint, and why not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbkit.errors import RunError
from nbkit.training import manifest
from nbkit.training.recipe import differences, read_yaml
from nbkit.training.record import in_path, new_path
from nbkit.training.run import Run, latest, runs

# A run that failed so is not in the way of another recipe: the recipe was at fault.
OF_THE_RECIPE = ("not finite", "memory")


@dataclass(frozen=True)
class Plan:
    """Where a run goes and what it starts from. `finished` is the run to resume when it has nothing left to do."""

    path: Path
    checkpoint: Path | None = None
    notes: tuple[str, ...] = ()
    finished: Run | None = None


def plan(
    trainer: Any, values: dict[str, Any], data: dict[str, Any], name: str, resume: str | Path | Run | None
) -> Plan:
    """Decide.

    Args:
        values: The trainer's recipe.
        data: The identity of its rows.
    Raises: RunError when the run to resume has another recipe or other rows, is still active, or has no checkpoint that
        can be trusted; with "auto" also when the newest run of this name is unfinished and of another recipe or other
        rows, and when the trainer's arguments make an exact resume impossible.
    """
    title = name or Path(values["model_name_or_path"]).name
    fresh = new_path(title)
    if resume is None:
        return Plan(fresh)
    _require_exact(trainer)
    if resume == "auto":
        found = next((run for run in runs() if not mismatch(run, values, data)), None)
        if found is None:
            _refuse_unfinished(title, values, data)
            return Plan(fresh, notes=("resume: no earlier run has this recipe and these rows; started anew",))
        return _go_on(found, trainer, fresh, auto=True)
    run = resume if isinstance(resume, Run) else latest(resume)
    differing = mismatch(run, values, data)
    if differing:
        raise RunError(
            f"Run {run.id} cannot be resumed with this trainer: {'; '.join(differing)}.",
            hint="build the trainer as it was, or start anew: nbkit.start(trainer)",
        )
    return _go_on(run, trainer, fresh, auto=False)


def _go_on(run: Run, trainer: Any, fresh: Path, *, auto: bool) -> Plan:
    status = run.status
    if status.state == "done":
        return Plan(run.path, finished=run)
    if status.active:
        raise RunError(
            f"Run {run.id} is still {status.state}.", hint=f"nbkit watch {run.id}      or: nbkit stop {run.id}"
        )
    point, skipped = manifest.newest(run.path / "checkpoints")
    if point is not None:
        notes = [f"resume: skipped {line}" for line in skipped] + _changed(point, trainer)
        return Plan(run.path, point, tuple(notes))
    why = "; ".join(skipped) or "it has no checkpoint"
    if auto:
        return Plan(fresh, notes=(f"resume: {run.id} has nothing to go on from ({why}); started anew",))
    raise RunError(f"Run {run.id} has nothing to resume from: {why}.", hint="start anew: nbkit.start(trainer)")


def _require_exact(trainer: Any) -> None:
    args = trainer.args
    wrong = [name for name in ("ignore_data_skip", "save_only_model") if getattr(args, name, False)]
    if wrong:
        what = {
            "ignore_data_skip": "the rows would start over",
            "save_only_model": "the optimizer's state is not in its checkpoints",
        }
        raise RunError(
            f"A run with {' and '.join(f'{name}=True' for name in wrong)} cannot be resumed as if it had not stopped: "
            f"{', and '.join(what[name] for name in wrong)}.",
            hint=f"set {wrong[0]}=False, or start anew: nbkit.start(trainer, resume=None)",
        )


def _refuse_unfinished(name: str, values: dict[str, Any], data: dict[str, Any]) -> None:
    """Not to leave an interrupted run behind because a value was changed unawares."""
    named = re.compile(rf"\d+-\d+-{re.escape(in_path(name))}(-\d+)?")  # a number: of those that started in one second
    run = next((run for run in runs() if named.fullmatch(run.id)), None)
    if run is None or run.status.state not in {"stopped", "failed"}:
        return
    failed = [event.get("kind") for event in run.events() if event["event"] == "failed"]
    if failed and failed[-1] in OF_THE_RECIPE:
        return
    if not manifest.checkpoints(run.path / "checkpoints"):
        return
    raise RunError(
        f"The newest run, {run.id}, is unfinished (step {run.status.step} of {run.status.max_steps}) and differs from "
        f"this trainer: {'; '.join(mismatch(run, values, data))}.",
        hint="to go on with it, build the trainer as it was; to leave it, start anew: nbkit.start(trainer, resume=None)",
    )


def _changed(point: Path, trainer: Any) -> list[str]:
    """What is not as it was when the checkpoint was saved, and keeps the resumed run from being exactly the same."""
    then = manifest.read(point)
    now = manifest.circumstances(trainer, {})
    before = {**(then.get("versions") or {}), "processes": (then.get("batch") or {}).get("world")}
    after = {**now["versions"], "processes": now["batch"]["world"]}
    for key in ("threads", "device"):
        before[key], after[key] = then.get(key), now[key]
    found = [
        f"{key} {value} then, {after.get(key)} now"
        for key, value in before.items()
        if value is not None and value != after.get(key)
    ]
    return [f"resume: not exactly the same run any more: {'; '.join(found)}"] if found else []


def mismatch(run: Run, values: dict[str, Any], data: dict[str, Any]) -> list[str]:
    """What keeps `run` from being resumed; empty when recipe and rows are the same."""
    begun = next((event for event in run.events() if event["event"] == "started"), None)
    try:
        found = differences(read_yaml(run.path / "config.yaml"), values)
    except OSError:
        return ["it has no config.yaml"]
    if begun is None:
        return ["its events.jsonl has no start"]
    if begun["data"] != data:
        found.append(f"training rows: {begun['data']['rows']}, now {data['rows']}, or other ones")
    return found


def load_result(trainer: Any, run: Run) -> None:
    """Give the trainer the weights of a run that had finished, so that what follows in the notebook holds for it."""
    if run.adapter.name != "adapter" or not run.adapter.is_dir():
        return
    from peft import load_peft_weights, set_peft_model_state_dict

    set_peft_model_state_dict(trainer.model, load_peft_weights(str(run.adapter), device=str(trainer.args.device)))
