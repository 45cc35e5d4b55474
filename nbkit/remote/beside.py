"""What a script or a notebook needs of what lies beside it: the modules that it imports, and the files that it names."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nbkit.remote import parameters

_PYTHON_MAGICS = ("%%time", "%%timeit", "%%capture", "%%prun")  # what follows is Python, after their own line
_LONGEST = 255
_MOST_BYTES = 1 << 20


def code_of(path: Path, kind: str) -> list[str]:
    """The Python of a script, or of each cell of a notebook.

    Raises: NbkitError for what is no notebook.
    """
    if kind == "script":
        return [path.read_text(encoding="utf-8", errors="replace")]
    cells = parameters.read(path)["cells"]
    return [_python("".join(cell["source"])) for cell in cells if cell.get("cell_type") == "code"]


def _python(cell: str) -> str:
    """A cell without its magics."""
    first, _, rest = cell.lstrip().partition("\n")
    if first.startswith(_PYTHON_MAGICS):
        cell = rest
    elif first.startswith("%%"):
        return ""
    if "%" in cell or "!" in cell or "?" in cell:
        from IPython.core.inputtransformer2 import TransformerManager

        return str(TransformerManager().transform_cell(cell))
    return cell


def modules(home: Path, code: Iterable[str]) -> dict[str, list[str]]:
    """The modules and packages in the folder `home` that `code` imports, and those that they do: name -> their files.

    Of a package all files up to 1 MiB, for some read a table that lies beside them; of a folder without `__init__.py` only
    Python files: it may hold data. Names are relative to `home`. nbkit's own code goes along in another way.
    """
    found: dict[str, list[str]] = {}
    left = [tree for text in code if (tree := _parsed(text))]
    while left:
        for dotted in _imported(left.pop()):
            name, files = _located(home, dotted)
            if name and name not in found:
                found[name] = files
                scripts = (home / file for file in files if file.endswith(".py"))
                texts = (script.read_text(encoding="utf-8", errors="replace") for script in scripts)
                left += [tree for text in texts if (tree := _parsed(text))]
    return found


def named(home: Path, code: Iterable[str], values: Iterable[Any]) -> list[str]:
    """Files below `home`, and folders by more than one word, that a text in `code` or one of `values` is the name of."""
    texts = [one.rpartition("=")[2] for one in _texts(values)]
    for tree in filter(None, map(_parsed, code)):
        texts += [
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
    return sorted({text for text in texts if _is_below(home, text)})


def _parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):  # it is told where it runs
        return None


def _imported(tree: ast.Module) -> Iterator[str]:
    """Names of modules, with dots; of what is taken from a package it is not known whether it is one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _located(home: Path, dotted: str) -> tuple[str, list[str]]:
    """What lies in `home` for the first word, as Python would find it, and its files; "" for what comes from elsewhere."""
    top, *rest = dotted.split(".")
    if top == "nbkit":
        return "", []
    if (home / top / "__init__.py").is_file():
        return top, _below(home, top, whole=True)
    if (home / f"{top}.py").is_file():
        return f"{top}.py", [f"{top}.py"]
    inner = home / top / rest[0] if rest else home
    if rest and (inner.with_name(f"{rest[0]}.py").is_file() or (inner / "__init__.py").is_file()):
        return top, _below(home, top, whole=False)
    return "", []


def _below(home: Path, folder: str, *, whole: bool) -> list[str]:
    found = []
    for above, folders, names in os.walk(home / folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        place = Path(above).relative_to(home)
        for name in sorted(names):
            path = Path(above) / name
            if path.is_file() and (name.endswith(".py") or (whole and path.stat().st_size <= _MOST_BYTES)):
                found.append((place / name).as_posix())
    return found


def _texts(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _texts(value)
        elif isinstance(value, Mapping):
            yield from _texts(value.values())


def _is_below(home: Path, text: str) -> bool:
    if not text or len(text) > _LONGEST or "\n" in text or "\0" in text or Path(text).is_absolute():
        return False
    path = home / text
    try:
        is_thing = path.is_file() or (path.is_dir() and len(Path(text).parts) > 1)
        return is_thing and path.resolve() != home and path.resolve().is_relative_to(home)
    except OSError:
        return False
