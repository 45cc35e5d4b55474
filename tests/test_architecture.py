"""The shape of the house: imports point downward, light stays light, and some things are never said or done."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import guards

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "nbkit"

# Lowest first. A room may use every floor below its own, and itself; rooms on one floor do not see each other. Only the
# ground is one floor and one room.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("display", "errors", "atomic", "closing", "folders", "redact", "smoke"),
    ("hardware",),
    ("data", "ssh"),
    ("models",),
    ("memory",),
    ("training", "evaluation"),
    ("remote",),
    ("widgets", "demo"),
    ("cli",),
)
FLOOR_OF = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = ("torch", "transformers", "datasets", "paramiko", "ipywidgets", "matplotlib", "pyarrow", "numpy")
# The roof shows things and may load what shows them; everything else a user imports stays light.
LIGHT = ("data", "hardware", "memory", "training", "evaluation", "models", "remote", "cli")


def rooms() -> list[str]:
    """The first-level modules of the package, packages and files alike."""
    return sorted({path.relative_to(PACKAGE).with_suffix("").parts[0] for path in PACKAGE.rglob("*.py")})


def imported_rooms(source: str, module: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Line and room for each import of nbkit in `source`, wherever it stands: functions count too.

    `module` is the dotted path of the file, without nbkit: ("memory", "step"). Taking a name from the house itself
    gives "" except for `__version__`, which says nothing about rooms.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*("nbkit", *module)[: len(module) + 1 - node.level], *base.split(".")]).rstrip(".")
            taken = [alias.name for alias in node.names if alias.name != "__version__"]
            names = [f"nbkit.{name}" for name in taken] if base == "nbkit" else [base]
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == "nbkit":
                room = rest.partition(".")[0]
                yield node.lineno, room if room in FLOOR_OF else ""


def upward_imports(source: str, module: tuple[str, ...]) -> list[str]:
    """A sentence for each import in `source` that does not point downward."""
    room, here = module[0], FLOOR_OF[module[0]]
    found = []
    for line, target in imported_rooms(source, module):
        if not target:
            found.append(f"line {line}: {room} takes a name from nbkit itself; import it from its room")
        elif target != room and FLOOR_OF[target] >= here > 0:
            found.append(f"line {line}: {room} imports {target}, which is not below it")
        elif FLOOR_OF[target] > here:
            found.append(f"line {line}: {room} imports {target}, which is above the ground")
    return found


class TestFloors:
    def test_every_room_has_a_floor(self):
        """A new first-level module is given a floor here, or the next test could not judge it."""
        assert [] == [room for room in rooms() if room not in FLOOR_OF and room != "__init__"]

    def test_the_design_shows_these_floors(self):
        """docs/design.md draws the same rooms on the same floors, the highest first."""
        drawn = (ROOT / "docs" / "design.md").read_text().partition("## Rooms")[2].split("```")[1].splitlines()[1:]
        floors = [set(re.split(" {3,}", line)[0].split()) for line in drawn if not line.startswith(" ")]
        assert [set(floor) for floor in reversed(FLOORS)] == floors

    def test_imports_point_downward(self):
        """No module of nbkit imports a room on its own floor or above, not even inside a function."""
        wrong = []
        for path in sorted(PACKAGE.rglob("*.py")):
            module = path.relative_to(PACKAGE).with_suffix("").parts
            if module != ("__init__",):  # the house's own vocabulary names every room, lazily
                wrong += [f"{path.relative_to(ROOT)} {text}" for text in upward_imports(path.read_text(), module)]
        assert [] == wrong

    @pytest.mark.parametrize(
        ("module", "source", "expected"),
        [
            ("data.read", "import nbkit.training", "line 1: data imports training, which is not below it"),
            (
                "data.read",
                "def f():\n    from nbkit.memory import fits",
                "line 2: data imports memory, which is not below it",
            ),
            ("data.read", "from nbkit.ssh import session", "line 1: data imports ssh, which is not below it"),
            ("models.a", "from ..training.run import Run", "line 1: models imports training, which is not below it"),
            ("errors", "from nbkit import cli", "line 1: errors imports cli, which is above the ground"),
            ("memory.a", "import_module('nbkit.widgets')", "line 1: memory imports widgets, which is not below it"),
            (
                "data.read",
                "from nbkit import probe",
                "line 1: data takes a name from nbkit itself; import it from its room",
            ),
        ],
    )
    def test_an_upward_import_is_found(self, module, source, expected):
        """The check fails on an import that points up or sideways, in whichever form it is written."""
        assert [expected] == upward_imports(source, tuple(module.split(".")))

    @pytest.mark.parametrize(
        ("module", "source"),
        [
            ("memory.predict", "from nbkit.models import embedded\nfrom nbkit.hardware import probe"),
            ("atomic", "from nbkit.errors import StorageError"),
            ("data.read", "from . import rows\nfrom .rows import Row\nfrom nbkit.data.rows import Row"),
            ("cli", "from nbkit import __version__"),
        ],
    )
    def test_a_downward_import_is_not(self, module, source):
        """Floors below, the room itself, the ground and the version are free to use."""
        assert [] == upward_imports(source, tuple(module.split(".")))


def said_by(code: str) -> str:
    """The last line that a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
    assert 0 == done.returncode, done.stderr
    return done.stdout.splitlines()[-1]


def loaded_by(statement: str, watched: tuple[str, ...]) -> list[str]:
    """Which of `watched` a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps([name for name in {watched!r} if name in sys.modules]))"
    return json.loads(said_by(code))


class TestLightImports:
    @pytest.mark.parametrize("name", ["nbkit", *(f"nbkit.{room}" for room in LIGHT)])
    def test_imports_nothing_heavy(self, name):
        """Importing nbkit or one of its public rooms loads neither torch nor any other package that takes a second."""
        assert [] == loaded_by(f"import {name}", HEAVY)

    def test_a_heavy_import_would_be_seen(self):
        """The check sees a package of the list that was loaded."""
        assert ["paramiko"] == loaded_by("import paramiko", ("paramiko", "torch"))

    def test_the_command_line_imports_click_only(self):
        """`nbkit --help` is quick because nbkit.cli loads nothing but click and the standard library."""
        code = (
            "import sys; before = set(sys.modules); import nbkit.cli\n"
            "tops = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
            "print(*sorted(tops - set(sys.stdlib_module_names) - {'nbkit', 'click'}))"
        )
        assert "" == said_by(code).strip()


NAME = "nbkit"


class TestInstallName:
    def test_no_file_installs_the_unrelated_package(self):
        """No file of the tree tells a reader to install by the bare name: on PyPI it is somebody else's project."""
        wrong = []
        for path in guards.tree_files():
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # a picture or the like
            wrong += [f"{path.relative_to(ROOT)}: {found}" for found in guards.bare_installs(text)]
        assert [] == wrong

    @pytest.mark.parametrize(
        "text",
        [
            f"pip install {NAME}",
            f"python -m pip install -q '{NAME}[train]==0.1'",
            f'%pip install -U torch "{NAME}"',
            f"run `pip install {NAME}` first",
            f"uv add {NAME}",
            f"uv pip install --system {NAME}",
            f"pipx install {NAME}",
            f"uvx {NAME} doctor",
            f"conda install -c conda-forge {NAME}",
        ],
    )
    def test_the_bare_name_is_found(self, text):
        """Every common installer, quoted or not, with an extra or a version, is recognised."""
        assert 1 == len(guards.bare_installs(text))

    @pytest.mark.parametrize(
        "text",
        [
            f'pip install "{NAME}-llm[train]"',
            f"pip install -e . && {NAME} demo",
            f"pip install -e .  # then: {NAME} --help",
            f"pip install git+https://example.org/{NAME}-llm/{NAME}@v1",
            f"uvx --from {NAME}-llm {NAME} doctor",
            f"{NAME} tunnel gpu-box",
        ],
    )
    def test_our_own_name_is_not(self, text):
        """The distribution's name, a URL, and the command itself are not taken for the stranger's package."""
        assert [] == guards.bare_installs(text)


def code_of(path: Path) -> Iterator[tuple[str, str]]:
    """Place and Python source of a file: itself, or each code cell of a notebook with magics made into calls."""
    if path.suffix == ".py":
        yield path.name, path.read_text()
    elif path.suffix == ".ipynb":
        from IPython.core.inputtransformer2 import TransformerManager

        for index, cell in enumerate(json.loads(path.read_text())["cells"], start=1):
            if cell["cell_type"] == "code":
                yield f"{path.name} cell {index}", TransformerManager().transform_cell("".join(cell["source"]))


class TestBanList:
    def test_nothing_banned_stands_in_code(self):
        """No module, test, tool or notebook cell accepts unknown hosts, remote code, pickles or any certificate."""
        wrong = []
        for path in guards.tree_files():
            for place, source in code_of(path):
                wrong += [f"{place}, line {line}: {reason}" for line, reason in guards.banned(ast.parse(source))]
        assert [] == wrong

    @pytest.mark.parametrize(
        ("source", "reason"),
        [
            ("client.set_missing_host_key_policy(paramiko.AutoAddPolicy())", "AutoAddPolicy accepts any host key"),
            ("from paramiko import AutoAddPolicy", "AutoAddPolicy accepts any host key"),
            ("load('x', trust_remote_code=True)", "trust_remote_code=True runs code from the hub"),
            ("torch.load(path, weights_only=False)", "weights_only=False lets a pickle run code"),
            ("requests.get(url, verify=False)", "verify=False accepts any certificate"),
            ("subprocess.run(text, shell=True)", "shell=True lets data become commands"),
            ("options = {'trust_remote_code': True}", "trust_remote_code=True runs code from the hub"),
        ],
    )
    def test_each_ban_is_found(self, source, reason):
        """The check names the line and the reason for each construct on the list."""
        assert [(1, reason)] == list(guards.banned(ast.parse(source)))

    def test_the_safe_spelling_is_not(self):
        """The opposite setting, and a mention in a text, are allowed."""
        source = "load(weights_only=True, shell=False)\nprint('never trust_remote_code=True')"
        assert [] == list(guards.banned(ast.parse(source)))
