"""Parameters of a notebook: how a value is read, and where it goes."""

from __future__ import annotations

import pytest

from nbkit.errors import NbkitError
from nbkit.remote import parameters
from tests.works import notebook


def sources(content):
    return ["".join(cell["source"]) for cell in content["cells"]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", 3), ("-3", -3), ("1e-4", 1e-4), ("1.", 1.0), (".5", 0.5), ("true", True), ("False", False), ("null", None),
        ("", None), ("gpu box", "gpu box"), ("'3'", "3"), ('"true"', "true"), ("[1, 2]", [1, 2]), ('{"a": 1}', {"a": 1}),
        ("[oops", "[oops"), ("yes", "yes"), ("1e999", "1e999"), ("a=b", "a=b"), ("'", "'"),
    ],
)  # fmt: skip
def test_a_value_is_read_as_yaml_reads_a_scalar(text, expected):
    """Numbers are numbers, 1e-4 too; quotes make a text of anything; `yes` is a word."""
    found = parameters.parse([f"K={text}"])["K"]
    assert (expected, type(expected)) == (found, type(found))


@pytest.mark.parametrize("pair", ["K", "=1", "a-b=1", "class=1", ""])
def test_no_name_is_wrong_usage(pair):
    """What is no name of Python is refused, with an example."""
    with pytest.raises(NbkitError, match="is not NAME=VALUE") as caught:
        parameters.parse([pair])
    assert 2 == caught.value.exit_code


@pytest.mark.parametrize("text", ["[q_proj, v_proj]", "{'a': 1}", '{"a": NaN}', "[1, 2,]"])
def test_a_list_that_cannot_be_read_is_wrong_usage(text):
    """It is not taken for a text in silence; how to write the list, and how the text, is said."""
    with pytest.raises(NbkitError, match="looks like a list or a dictionary, and is no JSON") as caught:
        parameters.parse([f"K={text}"])
    assert 2 == caught.value.exit_code
    assert 'TARGETS=["q_proj", "v_proj"]' in caught.value.hint
    assert text == parameters.scalar(f"'{text}'") or "'" in text


class TestInject:
    def test_goes_after_the_tagged_cell(self):
        """The values stand in a cell of their own, after the defaults, and replace what was injected before."""
        content = notebook(
            "import os", ("STEPS = 1\nLR: float = 0.1", "parameters"), ("STEPS = 9", "injected-parameters"), "run()"
        )
        assert [] == parameters.inject(content, {"STEPS": 5, "LR": 1e-4})
        assert ["import os", "STEPS = 1\nLR: float = 0.1", "# Parameters\nSTEPS = 5\nLR = 0.0001", "run()"] == sources(
            content
        )
        assert ["injected-parameters"] == content["cells"][2]["metadata"]["tags"]
        assert "id" in content["cells"][2]

    def test_unknown_name_is_said(self):
        """As papermill does, and with the name that was meant."""
        content = notebook(("STEPS = 1", "parameters"))
        assert ["unknown parameter 'STPES'; did you mean 'STEPS'?"] == parameters.inject(content, {"STPES": 5})

    def test_no_tagged_cell_is_said(self):
        """The values then go to the top; an older notebook's cells have no id."""
        content = notebook("run()", minor=4)
        assert "no cell tagged 'parameters'" in parameters.inject(content, {"A": "x"})[0]
        assert ["# Parameters\nA = 'x'", "run()"] == sources(content)
        assert "id" not in content["cells"][0]

    def test_a_cell_with_a_magic_is_read_too(self):
        """What Python cannot parse is searched line by line."""
        assert ["A", "B"] == parameters.assigned("%matplotlib inline\nA = 1\nB: int = 2\nif A == 3: pass")

    def test_another_language_is_refused(self):
        """Values are written in Python."""
        with pytest.raises(NbkitError, match="this one is in julia"):
            parameters.inject(notebook("x", language="julia"), {"A": 1})


@pytest.mark.parametrize("text", ["{}", "[]", "no json", '{"nbformat": 3, "cells": []}', '{"nbformat": 4, "cells": 3}'])
def test_no_notebook(tmp_path, text):
    """A file that is none is refused by name."""
    path = tmp_path / "a.ipynb"
    path.write_text(text)
    with pytest.raises(NbkitError, match=r"a\.ipynb is no notebook"):
        parameters.read(path)
