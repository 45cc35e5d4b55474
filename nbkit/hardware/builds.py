"""Which build of torch a machine can use: PyTorch's own names for them, best first, with the reason."""

from __future__ import annotations

import re

from nbkit.errors import NbkitError
from nbkit.hardware.facts import version
from nbkit.hardware.machine import Machine
from nbkit.hardware.parts import Choice, Gpu

# CUDA versions that PyTorch builds for or lately did, newest first; the index is asked for each that fits.
CUDA = ((13, 0), (12, 9), (12, 8), (12, 6))
_ONLY_ASKED = ((13, 2),)  # there is one, which nobody has tried with nbkit: taken where it is asked for by name
_LAST_FOR_OLD = (12, 6)  # later ones have no kernels for Volta and Pascal
_FIRST_FOR_NEW = (12, 8)  # earlier ones have none for Blackwell


def asked_build(name: str) -> str:
    """The build that somebody asked for by its name: cpu, cu128, rocm7.2, xpu.

    Raises: NbkitError (2) for one that PyTorch does not build.
    """
    known = ["cpu", *(f"cu{major}{minor}" for major, minor in sorted((*CUDA, *_ONLY_ASKED)))]
    if name in {*known, "xpu"} or re.fullmatch(r"rocm\d+\.\d+(\.\d+)?", name):
        return name
    raise NbkitError(
        f"{name!r} is no build of torch. There are: {', '.join(known)}; not tried with nbkit: xpu, rocm7.2 and its like.",
        hint="leave --torch out: the build that fits the driver is chosen",
        exit_code=2,
    )


def torch_builds(machine: Machine) -> Choice[tuple[str, ...]]:
    """The builds of torch for `machine`, such as cu128 or cpu, the best first.

    Any driver for CUDA 12 runs every CUDA 12 build (minor version compatibility), so an older one of them gets cu126.

    Raises: NbkitError when no build fits driver and cards; exit code 5.
    Source: CUDA compatibility guide; pytorch#172352, pytorch#167244.
    """
    gpus = machine.visible_gpus
    if not gpus:
        return Choice(("cpu",), "no NVIDIA GPU there" if not machine.gpus else "CUDA_VISIBLE_DEVICES hides every GPU")
    reaches = version(gpus[0].cuda)[:2]
    driver = f"driver {gpus[0].driver or 'unknown'}" + (f" reaches CUDA {gpus[0].cuda}" if reaches else "")
    fitting = [one for one in CUDA if not reaches or one <= reaches]
    if not fitting and reaches >= (12, 0):
        fitting = [min(CUDA)]
    if not fitting:
        raise NbkitError(
            f"No build of torch fits: {driver}, and torch needs 12.0 or newer.",
            hint="have the NVIDIA driver updated (580 or newer is best), or use an older Python environment: --python",
            exit_code=5,
        )
    reasons = [driver] if reaches else [f"{driver}: its CUDA version is unknown, the oldest build is the safe one"]
    if not reaches:
        fitting = [min(CUDA)]
    known = [gpu for gpu in gpus if gpu.compute_capability]
    fitting = _with_kernels(known, fitting, reasons)
    return Choice(tuple(f"cu{major}{minor}" for major, minor in fitting), "; ".join(reasons))


def _with_kernels(gpus: list[Gpu], fitting: list[tuple[int, int]], reasons: list[str]) -> list[tuple[int, int]]:
    """Those of `fitting` that have kernels for every card."""
    old = next((gpu for gpu in gpus if (gpu.compute_capability or (9, 0)) < (7, 5)), None)
    new = next((gpu for gpu in gpus if (gpu.compute_capability or (9, 0)) >= (10, 0)), None)
    if old:
        reasons.append(f"{old.short_name} (compute capability {old.capability}) needs cu126")
        fitting = [one for one in fitting if one <= _LAST_FOR_OLD]
    if new:
        reasons.append(f"{new.short_name} (compute capability {new.capability}) needs cu128 or newer")
        fitting = [one for one in fitting if one >= _FIRST_FOR_NEW]
    if not fitting:
        raise NbkitError(
            f"No build of torch fits: {'; '.join(reasons)}.",
            hint="update the NVIDIA driver, or choose the cards: CUDA_VISIBLE_DEVICES=0",
            exit_code=5,
        )
    return fitting
