"""Checkpoints that are whole or absent: staged beside their name, listed with sha256 in a manifest, then renamed.

transformers writes straight into checkpoint-N; of 60 kills inside a save 32 left one that could not be loaded.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nbkit import atomic
from nbkit.errors import NbkitError, StorageError
from nbkit.models.quiet import no_bars
from nbkit.training import guards, manifest
from nbkit.training.overrides import override

_MARGIN = (
    64 * 2**20
)  # bytes beside the trained weights and optimizer states, and left free for all else that is written
_FULL = 2**20  # a save that fails with less than this free failed for want of room
# A pickle of the arguments, with any hub token in them; nothing reads it back.
PICKLED_ARGUMENTS = "training_args.bin"


@contextlib.contextmanager
def safely(trainer: Any, saved: Callable[[Path], None], data: dict[str, Any] | None = None) -> Iterator[None]:
    """Within the block `trainer` saves its checkpoints through a staging folder; `saved` is told of each one.

    A checkpoint holds no token and no pickled arguments, is readable by its owner only (0700, 0600), and stands under its
    name only when it is whole. `save_total_limit` is kept by deleting older ones after the new one was read back and
    found right; the best one (`metric_for_best_model`) is never deleted. A push to the hub sends the finished checkpoint.

    Raises (from the save): StorageError when there is no room for it, before or while it is written; NotFiniteError when
        a trained weight is nan or inf. The earlier checkpoints stay as they are.
    """
    args, plain = trainer.args, trainer._save_checkpoint
    root, limit = Path(args.output_dir), args.save_total_limit

    def save(model: Any, trial: Any) -> None:
        guards.check_weights(trainer)
        check_room(trainer, root)
        name = f"checkpoint-{trainer.state.global_step}"
        with _explained(root, name), atomic.folder(root / name, private=True) as staged:
            _write(trainer, root, staged, name, lambda: plain(model, trial))
            particulars = manifest.circumstances(trainer, data or {})
            manifest.write(staged, trainer.state.global_step, particulars)
        saved(root / name)
        _rotate(trainer, root, limit)
        if args.push_to_hub:
            trainer._push_from_checkpoint(str(root / name))
            (root / PICKLED_ARGUMENTS).unlink(missing_ok=True)

    undo = override(trainer, "_save_checkpoint", save)
    # Trainer would delete by itself, also at the end of a run that is only stopped.
    args.save_total_limit = None
    try:
        yield
    finally:
        undo()
        args.save_total_limit = limit


def _write(trainer: Any, root: Path, staged: Path, name: str, write: Callable[[], None]) -> None:
    """Let the trainer write into `staged`. It names the folder itself, below `output_dir`; what it wrote is moved up."""
    args, kept = trainer.args, (str(trainer.args.output_dir), trainer.args.push_to_hub)
    inner = staged / "writing"
    args.output_dir, args.push_to_hub = str(inner), False
    try:
        with no_bars():
            write()
    finally:
        args.output_dir, args.push_to_hub = kept
    _name_best(trainer, root, inner / name)
    (inner / name / PICKLED_ARGUMENTS).unlink(missing_ok=True)
    for file in (inner / name).iterdir():
        file.rename(staged / file.name)
    shutil.rmtree(inner)


def _name_best(trainer: Any, root: Path, written: Path) -> None:
    """The best checkpoint is named by its final path, not by the staging folder's."""
    best = trainer.state.best_global_step
    if not best or trainer.args.metric_for_best_model is None:
        return
    final = root / f"checkpoint-{best}"
    if final.is_dir() or best == trainer.state.global_step:
        trainer.state.best_model_checkpoint = str(final)
    trainer.state.save_to_json(str(written / "trainer_state.json"))


def _rotate(trainer: Any, root: Path, limit: int | None) -> None:
    """Delete the oldest beyond `limit`, once the newest is read back and right; never that one, never the best."""
    found = manifest.checkpoints(root)
    best = trainer.state.best_model_checkpoint
    kept = {found[0].name, Path(best).name if best else ""}
    spare = [path for path in reversed(found) if path.name not in kept]
    many = len(found) - max(limit or len(found), len(kept - {""}))
    if many <= 0 or not spare:
        return
    reason = manifest.wrong(found[0])
    if reason:
        raise StorageError(
            f"{found[0].name} was saved and read back wrong: {reason}. The earlier checkpoints were kept.",
            hint="the disk or its driver may be failing: look with dmesg, and set NBKIT_RUNS to a folder on another disk",
        )
    for path in spare[:many]:
        atomic.remove(path)


def needed(trainer: Any, root: Path) -> int:
    """Bytes of the next checkpoint: those of the last one, else the trained weights and AdamW's two states."""
    earlier = next((size for path in manifest.checkpoints(root) if (size := manifest.size(path))), 0)
    return earlier or 3 * sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)


def check_room(trainer: Any, root: Path) -> None:
    """Raises: StorageError when the disk cannot hold one more checkpoint; the earlier ones stay."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    bytes_needed, free = needed(trainer, root) + _MARGIN, shutil.disk_usage(root).free
    if free < bytes_needed:
        raise StorageError(
            f"A checkpoint needs {bytes_needed / 2**30:.2f} GiB in {root}, and {free / 2**30:.2f} GiB are free. "
            "The checkpoints that are there stay as they are.",
            hint="free some space and resume, or set NBKIT_RUNS to a folder on a larger disk",
        )


def forecast(trainer: Any, root: Path) -> str:
    """A warning when all checkpoints that will stand together do not fit on the disk; empty when they do.

    One more than `save_total_limit`: the new one stands beside the old ones before they are rotated.
    """
    args = trainer.args
    if str(getattr(args.save_strategy, "value", args.save_strategy)) == "no" or not args.save_total_limit:
        return ""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    wanted = (args.save_total_limit + 1) * needed(trainer, root) + _MARGIN
    free = shutil.disk_usage(root).free
    if free >= wanted:
        return ""
    return (
        f"save_total_limit={args.save_total_limit} needs about {wanted / 2**30:.2f} GiB on the disk of {root} (one more "
        f"stands there during a save), and {free / 2**30:.2f} GiB are free"
    )


@contextlib.contextmanager
def _explained(root: Path, name: str) -> Iterator[None]:
    """torch and safetensors report a full disk in words of their own."""
    try:
        yield
    except NbkitError as error:
        if isinstance(error, StorageError) and "disk is full" in error.message:
            raise _filled(root, name) from error
        raise
    except Exception as error:
        if shutil.disk_usage(root).free < _FULL or "No space left" in str(error):
            raise _filled(root, name) from error
        raise


def _filled(root: Path, name: str) -> StorageError:
    earlier = ", ".join(path.name for path in reversed(manifest.checkpoints(root))) or "none yet"
    return StorageError(
        f"The disk filled up while {name} was written to {root}; nothing of it was left. Earlier checkpoints: {earlier}.",
        hint='free some space, then nbkit.start(trainer, resume="auto") goes on from the newest of them',
    )
