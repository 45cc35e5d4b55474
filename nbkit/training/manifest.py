"""What a checkpoint must hold to be trusted: every file with size and sha256, and what the run was when it was saved."""

from __future__ import annotations

import functools
import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from nbkit import atomic

MANIFEST = "MANIFEST.json"
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "nbkit-llm")


def versions() -> dict[str, str | None]:
    """The packages that decide a training result."""
    return {package: _version(package) for package in PACKAGES}


@functools.cache
def _version(package: str) -> str | None:
    """Looked up once: a look takes milliseconds, and what is imported does not change."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def circumstances(trainer: Any, data: dict[str, Any]) -> dict[str, Any]:
    """What a resume must find again to be exact.

    Args:
        data: Row count and fingerprint, from recipe.data_identity.
    """
    import torch

    args = trainer.args
    return {
        "versions": versions(),
        "seeds": {"seed": args.seed, "data_seed": args.data_seed, "full_determinism": args.full_determinism},
        "data": data,
        "batch": {
            "per_device": args.per_device_train_batch_size,
            "accumulation": args.gradient_accumulation_steps,
            "world": args.world_size,
        },
        "threads": torch.get_num_threads(),
        "device": args.device.type,
    }


def write(folder: Path, step: int, particulars: dict[str, Any] | None = None) -> None:
    """List every file of `folder`, sub-folders too, with size and sha256, last of all."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": atomic.sha256(path)} for path in found
    }
    content = json.loads(json.dumps({"step": step, **(particulars or {}), "files": files}))  # as it will be read back
    atomic.write_json(folder / MANIFEST, {**content, "sha256": _digest(content)})


def _digest(content: dict[str, Any]) -> str:
    """Of a manifest without its own digest: a changed seed or step in it would be believed otherwise."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read(folder: Path) -> dict[str, Any]:
    """What `write` wrote; empty when it is not there or damaged."""
    try:
        found = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def size(folder: Path) -> int:
    """Bytes of the checkpoint in `folder`, as its manifest says; 0 when it has none."""
    try:
        return sum(known["bytes"] for known in read(folder).get("files", {}).values())
    except (AttributeError, KeyError, TypeError):
        return 0


def wrong(folder: Path) -> str:
    """Why the checkpoint in `folder` cannot be trusted; empty when every file is what the manifest says."""
    try:
        content = dict(json.loads((folder / MANIFEST).read_text()))
        sealed = content.pop("sha256") == _digest(content)
        listed = dict(content["files"])
        known = {str(name): (int(one["bytes"]), str(one["sha256"])) for name, one in listed.items()}
    except FileNotFoundError:
        return f"no {MANIFEST}: its save did not finish, or another program wrote it"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is damaged"
    if not sealed:
        return f"{MANIFEST} has changed (sha256)"
    if not known:
        return f"{MANIFEST} lists no file"
    added = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {*known, MANIFEST}
    if added:
        return f"{min(added)} was added after the save"
    return next((reason for name, one in known.items() if (reason := _wrong_file(folder, name, *one))), "")


def _wrong_file(folder: Path, name: str, length: int, digest: str) -> str:
    file = folder / name
    if not file.is_file():
        return f"{name} is missing"
    if file.stat().st_size != length:
        return f"{name} has {file.stat().st_size:,} bytes, not {length:,}"
    return f"{name} has changed (sha256)" if atomic.sha256(file) != digest else ""


def step_of(folder: Path) -> int:
    """The step in the name `checkpoint-N`; -1 for another name."""
    head, _, number = folder.name.rpartition("-")
    return int(number) if head == "checkpoint" and number.isdigit() else -1


def checkpoints(root: Path) -> list[Path]:
    """The checkpoints in `root`, valid or not, the newest first."""
    found = [path for path in root.glob("checkpoint-*") if path.is_dir() and step_of(path) >= 0]
    return sorted(found, key=step_of, reverse=True)


def newest(root: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint in `root` that verifies, and what was skipped on the way to it, with the reason."""
    skipped: list[str] = []
    for path in checkpoints(root):
        reason = wrong(path)
        if not reason:
            return path, skipped
        skipped.append(f"{path.name}: {reason}")
    return None, skipped
