"""Checkpoints that are whole or absent: staged beside their name, listed with sha256 in a manifest, then renamed.

transformers writes straight into checkpoint-N; of 60 kills inside a save 32 left one that could not be loaded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbkit import atomic
from nbkit.errors import StorageError

MANIFEST = "MANIFEST.json"
_MARGIN = 64 * 2**20  # bytes beside the trained weights and optimizer states


def safely(trainer: Any, saved: Callable[[Path], None]) -> None:
    """Make `trainer` save its checkpoints through a staging folder; `saved` is told of each one.

    Rotation (`save_total_limit`) happens after the new checkpoint stands under its name. A token in the trainer's
    arguments (`hub_token`) is not written along.
    """
    original = getattr(trainer._save_checkpoint, "nbkit_original", trainer._save_checkpoint)

    def save(model: Any, trial: Any) -> None:
        root = Path(trainer.args.output_dir)
        _check_room(trainer, root)
        name = f"checkpoint-{trainer.state.global_step}"
        token = trainer.args.hub_token
        with atomic.folder(root / name) as staged:
            # The trainer names the folder itself: it writes into `staging`, and what it wrote is moved up.
            staging = staged / "writing"
            trainer.args.output_dir = str(staging)
            if not trainer.args.push_to_hub:
                trainer.args.hub_token = None
            try:
                original(model, trial)
            finally:
                trainer.args.output_dir, trainer.args.hub_token = str(root), token
            _name_best(trainer, root, staging / name)
            for file in (staging / name).iterdir():
                file.rename(staged / file.name)
            shutil.rmtree(staging)
            write_manifest(staged, trainer.state.global_step)
        _rotate(trainer, root)
        saved(root / name)

    save.nbkit_original = original  # type: ignore[attr-defined]
    trainer._save_checkpoint = save


def _name_best(trainer: Any, root: Path, written: Path) -> None:
    """The best checkpoint is named by its final path, not by the staging folder's."""
    best = trainer.state.best_global_step
    if not best or trainer.args.metric_for_best_model is None:
        return
    trainer.state.best_model_checkpoint = str(root / f"checkpoint-{best}")
    trainer.state.save_to_json(str(written / "trainer_state.json"))


def _rotate(trainer: Any, root: Path) -> None:
    from transformers.trainer_utils import rotate_checkpoints

    rotate_checkpoints(
        output_dir=str(root),
        save_total_limit=trainer.args.save_total_limit,
        best_model_checkpoint=trainer.state.best_model_checkpoint,
        use_mtime=False,
    )


def _check_room(trainer: Any, root: Path) -> None:
    """Raises: StorageError when the disk cannot hold one more checkpoint; the earlier ones stay."""
    trained = sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)
    needed = 3 * trained + _MARGIN  # the weights and AdamW's two states
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise StorageError(
            f"A checkpoint needs {needed / 2**30:.2f} GiB in {root}, and {free / 2**30:.2f} GiB are free. "
            "The checkpoints that are there stay as they are.",
            hint="free some space and resume, or set NBKIT_RUNS to a folder on a larger disk",
        )


def write_manifest(folder: Path, step: int) -> None:
    """List every file of `folder` with size and sha256, last of all."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": atomic.sha256(file)} for file in sorted(folder.iterdir())
    }
    atomic.write_json(folder / MANIFEST, {"step": step, "files": files})


def wrong(folder: Path) -> str:
    """Why the checkpoint in `folder` cannot be trusted; empty when every file is what the manifest says."""
    try:
        listed = json.loads((folder / MANIFEST).read_text())["files"]
    except FileNotFoundError:
        return f"no {MANIFEST}: its save did not finish, or another program wrote it"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is damaged"
    for name, known in listed.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != known["bytes"]:
            return f"{name} has {file.stat().st_size:,} bytes, not {known['bytes']:,}"
        if atomic.sha256(file) != known["sha256"]:
            return f"{name} has changed (sha256)"
    return ""


def newest(root: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint in `root` that verifies, and what was skipped on the way to it, with the reason."""
    found = [path for path in root.glob("checkpoint-*") if path.is_dir() and path.name.rpartition("-")[2].isdigit()]
    skipped: list[str] = []
    for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        reason = wrong(path)
        if not reason:
            return path, skipped
        skipped.append(f"{path.name}: {reason}")
    return None, skipped
