"""Parameters of a notebook, as papermill gives them: a cell with the values, after the one that is tagged `parameters`."""

from __future__ import annotations

import ast
import json
import keyword
import math
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from nbkit.errors import NbkitError

_TAG, _INJECTED = "parameters", "injected-parameters"
_WORDS: dict[str, Any] = {"": None, "~": None, "null": None, "None": None, "true": True, "True": True, "false": False,
                          "False": False}  # fmt: skip
_INTEGER = re.compile(r"[-+]?[0-9]+\Z")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\Z")
_ASSIGNED = re.compile(r"^([A-Za-z_]\w*)\s*(?::[^=]+)?=(?!=)", re.MULTILINE)


def parse(pairs: Iterable[str]) -> dict[str, Any]:
    """`K=V` each, V as YAML 1.2 reads a scalar: 3, 1e-4, true, null, text; '3' in quotes is text; [1, 2] and {"a": 1} too.

    Raises: NbkitError (2).
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier() or keyword.iskeyword(name):
            raise NbkitError(f"{pair!r} is not NAME=VALUE.", hint="--param LEARNING_RATE=1e-4", exit_code=2)
        found[name] = scalar(text)
    return found


def scalar(text: str) -> Any:
    """One value; see `parse`.

    Raises: NbkitError (2) for what has the brackets of a list or a dictionary and cannot be read as JSON.
    """
    text = text.strip()
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.match(text):
        return int(text)
    if _NUMBER.match(text) and math.isfinite(float(text)):
        return float(text)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if (text[:1], text[-1:]) in {("[", "]"), ("{", "}")}:
        try:
            return json.loads(text, parse_constant=_no_constant)
        except ValueError as error:
            raise NbkitError(
                f"{text!r} looks like a list or a dictionary, and is no JSON: {error}.",
                hint="""names in double quotes, all in single ones: -p 'TARGETS=["q_proj", "v_proj"]'      """
                """(a text: -p "K='[text]'")""",
                exit_code=2,
            ) from error
    return text


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON's")


def read(path: Path) -> dict[str, Any]:
    """A notebook.

    Raises: NbkitError when it is none, or of a format before 4.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if int(found["nbformat"]) < 4 or not isinstance(found["cells"], list):
            raise ValueError("its format is older than 4")
    except (ValueError, KeyError, TypeError) as error:
        raise NbkitError(f"{path} is no notebook: {error}.", hint="open it in JupyterLab and save it anew") from error
    return dict(found)


def inject(notebook: dict[str, Any], values: Mapping[str, Any]) -> list[str]:
    """Put `values` into the notebook.

    Returns: What is to be said: names that the `parameters` cell does not have, or that there is no such cell.
    Raises: NbkitError (2) for a notebook of another language.
    """
    language = str(notebook.get("metadata", {}).get("kernelspec", {}).get("language") or "python").lower()
    if language != "python":
        raise NbkitError(
            f"Parameters can be given to Python notebooks; this one is in {language}.",
            hint="leave --param out",
            exit_code=2,
        )
    cells = notebook["cells"]
    cells[:] = [cell for cell in cells if _INJECTED not in _tags(cell)]
    place = next((index for index, cell in enumerate(cells) if _TAG in _tags(cell)), None)
    said = []
    if place is None:
        said.append("the notebook has no cell tagged 'parameters'; the values go in at its top")
    else:
        known = assigned(_source(cells[place]))
        for name in values:
            if name not in known:
                close = get_close_matches(name, known, n=1)
                said.append(f"unknown parameter {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    lines = ["# Parameters\n", *(f"{name} = {value!r}\n" for name, value in values.items())]
    lines[-1] = lines[-1].rstrip("\n")
    cell = {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {"tags": [_INJECTED]},
        "outputs": [],
        "source": lines,
    }
    if int(notebook.get("nbformat_minor", 0)) >= 5:
        cell["id"] = "nbkit-parameters"
    cells.insert(0 if place is None else place + 1, cell)
    return said


def assigned(source: str) -> list[str]:
    """The names that a cell gives a value, at its top level."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a magic, or a shell line
        return _ASSIGNED.findall(source)
    found = []
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        found += [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    return found


def _tags(cell: Mapping[str, Any]) -> list[str]:
    return list(cell.get("metadata", {}).get("tags") or [])


def _source(cell: Mapping[str, Any]) -> str:
    return "".join(cell["source"])
