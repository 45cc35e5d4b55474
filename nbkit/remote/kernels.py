"""The kernels of a box in this machine's Jupyter: a kernel spec each, carried out by `BoxProvisioner`.

A Jupyter whose environment has no nbkit does not know the provisioner and leaves the specs out.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from nbkit import atomic

PROVISIONER = "nbkit-box"


def register(host: str, specs: dict[str, Any], *, config: str = "", python: str = "") -> list[str]:
    """Make kernels of `host` selectable here; those of an earlier call that it no longer has go away.

    Args:
        specs: What the box's server answers to GET /api/kernelspecs, under "kernelspecs".
        config: The ssh_config in place of the user's own.
        python: Shell words that start the box's Python.

    Returns: The names that a person sees in the launcher.

    Raises: StorageError.
    """
    unregister(host)
    shown = []
    for name, found in sorted(specs.items()):
        spec = dict(found["spec"])
        provisioner = (
            spec.get("metadata", {}).get("kernel_provisioner", {}).get("provisioner_name", "local-provisioner")
        )
        if provisioner != "local-provisioner":
            continue  # of yet another machine: the box reaches it, we do not
        spec["display_name"] = f"{spec['display_name']} ({host})"
        where = {"host": host, "ssh_config": config, "python": python}
        spec["metadata"] = {
            **spec.get("metadata", {}), "kernel_provisioner": {"provisioner_name": PROVISIONER, "config": where},
        }  # fmt: skip
        atomic.write_json(_folder() / _name(host, name) / "kernel.json", spec)
        shown.append(spec["display_name"])
    return shown


def unregister(host: str) -> int:
    """Remove the kernels of `host` from this machine's Jupyter; how many there were."""
    found = [path.parent for path in _folder().glob("nbkit-*/kernel.json") if _host(path) == host]
    for folder in found:
        shutil.rmtree(folder, ignore_errors=True)
    return len(found)


def _folder() -> Path:
    from jupyter_core.paths import jupyter_data_dir

    return Path(jupyter_data_dir()) / "kernels"


def _name(host: str, kernel: str) -> str:
    """A name that Jupyter allows, and that two hosts never share."""
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", f"{host}-{kernel}")[:60].lower()
    return f"nbkit-{readable}-{hashlib.sha256(f'{host} {kernel}'.encode()).hexdigest()[:8]}"


def _host(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["metadata"]["kernel_provisioner"]["config"]["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
