"""What a committed notebook must be: each rule reads one notebook's JSON and yields findings."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tools import api_drift, guards
from tools.guards import ROOT

NOTEBOOKS = ROOT / "notebooks"
MAX_CODE_LINES = 15
MAX_OUTPUT_BYTES = 100_000
PLACEHOLDER = "<!-- badge -->"
_BADGE = re.compile(r"\[!\[Open in Colab\]\(\S+\)\]\(\S+\)")
_CAPS = re.compile(r"[A-Z][A-Z0-9_]+")
# Folders of people's machines, and of this one; a path in prose such as `runs/` is relative and fine.
_MACHINE_PATH = re.compile(r"(?<![\w.:/>-])/(?:home|root|Users|tmp|private|mnt|opt|srv|content|workspace)/[^\s\"'<>]+")
_WIDGETS = ("application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json")

Cell = dict[str, Any]


@dataclass(frozen=True)
class Notebook:
    """A notebook's file name and its JSON."""

    name: str
    content: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Notebook:
        """Load a file as it stands: nbformat would repair what the rules look for."""
        return cls(path.name, json.loads(path.read_text(encoding="utf-8")))

    @property
    def cells(self) -> list[tuple[int, Cell]]:
        """Number, from 1, and cell."""
        return list(enumerate(self.content["cells"], start=1))

    @property
    def code(self) -> list[tuple[int, Cell]]:
        """The code cells, numbered among all cells."""
        return [(index, cell) for index, cell in self.cells if cell["cell_type"] == "code"]

    @property
    def title(self) -> tuple[int, Cell] | None:
        """The first markdown cell."""
        return next(((index, cell) for index, cell in self.cells if cell["cell_type"] == "markdown"), None)

    def tagged(self, tag: str) -> list[tuple[int, Cell]]:
        """The code cells that carry `tag`."""
        return [(index, cell) for index, cell in self.code if tag in cell.get("metadata", {}).get("tags", [])]


@dataclass(frozen=True)
class Finding:
    """What is wrong, and where.

    Attributes:
        where: `03_qlora_sft.ipynb:cell 4`, cells counted from 1; `03_qlora_sft.ipynb` for the notebook as a whole.
    """

    where: str
    what: str

    def __str__(self) -> str:
        """One line, as compilers print it."""
        return f"{self.where}: {self.what}"


@cache
def project() -> tuple[str, str]:
    """The repository's URL, from pyproject.toml, and nbkit's version, from nbkit/__init__.py."""
    url = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"].rstrip("/")
    found = re.search(r'^__version__ = "(.+)"', (ROOT / "nbkit" / "__init__.py").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit('nbkit/__init__.py has no line __version__ = "..."')
    return url, found[1]


def badge_line(name: str) -> str:
    """The badge that opens notebook `name` in Colab, as it stands at this version's tag."""
    url, version = project()
    path = url.removeprefix("https://github.com/")
    return (
        "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"(https://colab.research.google.com/github/{path}/blob/v{version}/notebooks/{name})"
    )


def install_cell() -> str:
    """What the cell tagged `install` runs on Colab: this version, with torch pinned to the build that is there."""
    url, version = project()
    return (
        "import sys\n\n"
        'if "google.colab" in sys.modules:  # elsewhere: make lab\n'
        "    from importlib.metadata import version\n\n"
        f'    %pip install -q "torch=={{version(\'torch\')}}" "nbkit-llm[train] @ git+{url}@v{version}"'
    )


def is_badge(line: str) -> bool:
    """True for the placeholder and for a badge that was rendered before."""
    return line.strip() == PLACEHOLDER or _BADGE.fullmatch(line.strip()) is not None


def source_of(cell: Cell) -> str:
    """A cell's text, whichever of the two forms it is stored in."""
    return "".join(cell["source"])


def parsed(cell: Cell) -> ast.Module:
    """A code cell as Python, its magics made into calls.

    Raises: SyntaxError.
    """
    from IPython.core.inputtransformer2 import TransformerManager

    return ast.parse(TransformerManager().transform_cell(source_of(cell)))


def badge(notebook: Notebook) -> Iterator[tuple[int, str]]:
    """The badge and the install cell agree with pyproject.toml."""
    title = notebook.title
    if title is None or source_of(title[1]).split("\n")[0] != badge_line(notebook.name):
        yield (
            title[0] if title else 0,
            "the badge is not the one of this version; run: python -m tools.notebooks badges",
        )
    installs = notebook.tagged("install")
    if len(installs) != 1:
        yield 0, f"one code cell must carry the tag `install`; {len(installs)} do"
    elif source_of(installs[0][1]) != install_cell():
        yield installs[0][0], "the install cell is not the one of this version; run: python -m tools.notebooks badges"


def parameters(notebook: Notebook) -> Iterator[tuple[int, str]]:
    """One cell holds every knob, and no other assigns a name in CAPS."""
    holders = notebook.tagged("parameters")
    if len(holders) != 1:
        yield 0, f"one code cell must carry the tag `parameters`; {len(holders)} do"
    for index, cell in notebook.code:
        if (index, cell) not in holders:
            for node in ast.walk(parsed(cell)):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and _CAPS.fullmatch(node.id):
                    yield index, f"{node.id} is assigned outside the cell tagged `parameters`"


def cells(notebook: Notebook) -> Iterator[tuple[int, str]]:
    """Cells are short, have an id of their own, parse, and leave smoke mode to the library."""
    seen: set[str] = set()
    for index, cell in notebook.cells:
        if not cell.get("id"):
            yield index, "the cell has no id; open and save the notebook in JupyterLab"
        elif cell["id"] in seen:
            yield index, f"the cell's id {cell['id']!r} is taken by an earlier cell"
        seen.add(cell.get("id", ""))
        if cell["cell_type"] == "code":
            lines = len(source_of(cell).splitlines())
            if lines > MAX_CODE_LINES:
                yield (
                    index,
                    f"the cell has {lines} lines of code; at most {MAX_CODE_LINES}: split it, or move code to nbkit",
                )
            if "NBKIT_SMOKE" in source_of(cell):
                yield index, "smoke mode is read by the library, not by cells"


def outputs(notebook: Notebook) -> Iterator[tuple[int, str]]:
    """Stored outputs are small and hold no path, no stderr, no traceback and no widget."""
    for index, cell in notebook.code:
        for output in cell.get("outputs", []):
            text = json.dumps(output, ensure_ascii=False)
            if output["output_type"] == "stream" and output.get("name") == "stderr":
                yield index, "an output is stderr; run: make render"
            if output["output_type"] == "error":
                yield index, f"an output is a traceback ({output.get('ename')})"
            if any(kind in output.get("data", {}) for kind in _WIDGETS):
                yield index, "an output is a live widget, which a reader cannot see; show its static form"
            if len(text.encode()) > MAX_OUTPUT_BYTES:
                yield index, f"an output has {len(text.encode()) / 1000:.0f} kB; at most {MAX_OUTPUT_BYTES // 1000}"
            for found in sorted({match[0] for match in _MACHINE_PATH.finditer(text)} | _own_paths(text)):
                yield index, f"an output names a path of a machine: {found}"


def _own_paths(text: str) -> set[str]:
    return {path for path in (str(ROOT), str(Path.home())) if len(path) > 1 and f"{path}/" in text}


def metadata(notebook: Notebook) -> Iterator[tuple[int, str]]:
    """Metadata says which kernel and which language; cells carry tags only; counts say the run was whole."""
    extra = sorted(set(notebook.content["metadata"]) - {"kernelspec", "language_info"})
    if extra:
        yield 0, f"the notebook's metadata holds {', '.join(extra)}; only kernelspec and language_info belong there"
    for index, cell in notebook.cells:
        extra = sorted(set(cell.get("metadata", {})) - {"tags"})
        if extra:
            yield index, f"the cell's metadata holds {', '.join(extra)}; only tags belong there"
    counts = [cell.get("execution_count") for _, cell in notebook.code]
    if any(count is not None for count in counts) and counts != list(range(1, len(counts) + 1)):
        yield 0, f"execution counts are {counts}; either 1 to {len(counts)} in order, or none at all"


def safety(notebook: Notebook) -> Iterator[tuple[int, str]]:
    """No cell installs by the bare name or does what the ban list names."""
    for index, cell in notebook.cells:
        for found in guards.bare_installs(source_of(cell)):
            yield index, f"`{found}` installs an unrelated package; the distribution is nbkit-llm"
        if cell["cell_type"] == "code":
            for line, reason in guards.banned(parsed(cell)):
                yield index, f"line {line}: {reason}"


def drift(notebook: Notebook) -> Iterator[tuple[int, str]]:
    """Every keyword that a cell gives to the field's own objects exists in the installed release."""
    if missing_stack():
        return
    for index, cell in notebook.code:
        for line, text in api_drift.unknown_keywords(parsed(cell)):
            yield index, f"line {line}: {text}"


def missing_stack() -> str:
    """Why `drift` cannot run here; empty when it can."""
    absent = api_drift.missing()
    return f"API drift not checked: {', '.join(absent)} not installed (the train extra)" if absent else ""


Rule = Callable[[Notebook], Iterator[tuple[int, str]]]
RULES: tuple[Rule, ...] = (badge, parameters, cells, outputs, metadata, safety, drift)


def check(path: Path, rules: tuple[Rule, ...] = RULES) -> list[Finding]:
    """Everything the rules find in one notebook."""
    notebook = Notebook.read(path)
    if (notebook.content["nbformat"], notebook.content["nbformat_minor"]) < (4, 5):
        return [Finding(path.name, "the format is older than 4.5, which has no cell ids; save it in JupyterLab")]
    for index, cell in notebook.code:
        try:
            parsed(cell)
        except SyntaxError as error:
            return [Finding(f"{path.name}:cell {index}", f"line {error.lineno} is not Python: {error.msg}")]
    found = sorted((pair for rule in rules for pair in rule(notebook)), key=lambda pair: pair[0])
    return [Finding(f"{path.name}:cell {index}" if index else path.name, text) for index, text in found]
