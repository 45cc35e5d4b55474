"""nbkit: fine-tune language models from notebooks, here or on a remote GPU.

The notebook's vocabulary, loaded on first use: `import nbkit` imports neither torch, transformers, paramiko nor
ipywidgets.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# name -> (module, attribute); an attribute of None means the module itself.
_LAZY: dict[str, tuple[str, str | None]] = {
    "data": ("nbkit.data", None),
    "models": ("nbkit.models", None),
    "evaluation": ("nbkit.evaluation", None),
    "probe": ("nbkit.hardware", "probe"),
    "doctor": ("nbkit.hardware", "doctor"),
    "fits": ("nbkit.memory", "fits"),
    "plan": ("nbkit.memory", "plan"),
    "planner": ("nbkit.widgets.still", "planner"),
    "predict": ("nbkit.memory", "predict"),
    "Program": ("nbkit.memory", "Program"),
    "settings": ("nbkit.training", "settings"),
    "start": ("nbkit.widgets", "start"),
    "watch": ("nbkit.widgets", "watch"),
    "overlay": ("nbkit.widgets", "overlay"),
    "latest": ("nbkit.training", "latest"),
    "runs": ("nbkit.training", "runs"),
    "Run": ("nbkit.training", "Run"),
    "connect": ("nbkit.remote", "connect"),
}
__all__ = ["NbkitError", "__version__", *_LAZY]  # noqa: PLE0604 - the keys are strings


def __getattr__(name: str) -> Any:
    """Load a name of the vocabulary when it is first used (PEP 562)."""
    if name == "NbkitError":
        from nbkit.errors import NbkitError

        return NbkitError
    if name not in _LAZY:
        raise AttributeError(f"module 'nbkit' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
    module_name, attribute = _LAZY[name]
    module = importlib.import_module(module_name)
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
