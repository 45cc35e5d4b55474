"""What a script or notebook needs of what lies beside it: modules go along, data is told."""

from __future__ import annotations

import json

import pytest

from nbkit.remote import beside, parcel, work
from tests import works
from tests.works import finished, notebook

box = works.box


@pytest.fixture
def home(tmp_path):
    """A project: modules, a package, a folder without __init__, data."""
    for place, text in {
        "mod.py": "import other",
        "other.py": "X = 1",
        "unused.py": "",
        "lib/__init__.py": "from . import a",
        "lib/a.py": "import json, deep.inner\nY = 2",
        "lib/__pycache__/a.py": "",
        "lib/table.json": "{}",
        "lib/weights.bin": "w" * (1 << 20) + "w",
        "nbkit/__init__.py": "",
        "deep/inner.py": "",
        "deep/rows.csv": "",
        "datasets/train.csv": "1,2",
        "data/d.txt": "hello",
    }.items():
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import mod", {"mod.py": ["mod.py"], "other.py": ["other.py"]}),
        ("from lib import a", {"lib": ["lib/__init__.py", "lib/a.py", "lib/table.json"], "deep": ["deep/inner.py"]}),
        ("def f():\n    import deep.inner as x", {"deep": ["deep/inner.py"]}),
        ("from deep import inner", {"deep": ["deep/inner.py"]}),
        ("import datasets, os.path, torch, nbkit", {}),  # a folder of data is no module
        ("from . import mod", {}),
        ("import mod\ndef f(:", {}),
    ],
)
def test_modules_are_found_as_python_finds_them(home, code, expected):
    """With what they import themselves; small files of a package, Python files of a folder."""
    assert expected == beside.modules(home, [code])


def test_cells_with_magics_are_read(home):
    """A shell line, a magic and a timed cell are no obstacle; what is not Python is left out."""
    cells = [
        "%matplotlib inline\n!ls\nimport mod",
        "%%time\nimport lib",
        "%%bash\nimport deep.inner",
        "x = !ls\nimport os",
    ]
    (home / "a.ipynb").write_text(json.dumps(notebook(*cells)))
    code = beside.code_of(home / "a.ipynb", "notebook")
    assert {"mod.py", "other.py", "lib", "deep"} == set(beside.modules(home, code))  # deep: lib imports it
    assert "" == code[2]


def test_data_is_found_by_its_name(home):
    """In the code, in parameters, behind an option; a bare word that is a folder, and what lies elsewhere, are not meant."""
    code = ["open('data/d.txt'); 'data'; '/etc/passwd'; '../x'; 'absent.txt'; ''; 'a\\nb'"]
    assert ["data/d.txt"] == beside.named(home, code, [])
    assert ["datasets/train.csv", "mod.py"] == beside.named(home, [], [["datasets/train.csv"], "--x=mod.py", 3])


def test_goes_along_and_the_rest_is_said(box, home):
    """A script runs there with its modules; which data stays here is said before it begins, unless --with names it."""
    (home / "train.py").write_text("import mod\nfrom lib import a\nprint(mod.other.X, a.Y)\nPATH = 'data/d.txt'")
    said: list[str] = []
    ended, out = finished(work.begin(box, home / "train.py", say=said.append))
    assert ("done", "1 2\n") == (ended.state, out)
    assert [
        "deep/, lib/, mod.py, other.py go along: train.py imports them",
        "train.py names data/d.txt, which stays here; if it is read there: --with data/d.txt",
    ] == said
    notes = parcel.prepare(home / "train.py", {}, [home / "data", home / "lib", home / "mod.py"]).notes
    assert ["deep/, other.py go along: train.py imports them"] == notes
