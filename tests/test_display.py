"""The same table in a terminal, a notebook and JSON."""

from __future__ import annotations

import pytest

from nbkit.display import Table, choice, mode


class TestTable:
    table = Table(["model", "GiB"], [("a<b", 1.23456), ("long name", 12345)], title="T", notes=["Note."])

    def test_text_is_aligned_without_trailing_spaces(self):
        """Numbers stand to the right, text to the left."""
        expected = "T\nmodel         GiB\n---------  ------\na<b         1.235\nlong name  12,345\nNote."
        assert expected == str(self.table)

    def test_wide_cells_are_wrapped_where_the_terminal_is_narrow(self):
        """The columns stand, numbers stay whole; a line longer than the terminal would break them."""
        wide = Table(["card", "GiB", "remark"], [("L4", 22.0, "one two three four five six"), ("T4", 14.7, "x" * 40)])
        assert max(map(len, wide.text().splitlines())) == 52
        expected = [
            "card   GiB  remark",
            "----  ----  ----------------------------",
            "L4      22  one two three four five six",
            "T4    14.7  " + "x" * 28,
            "            " + "x" * 12,
        ]
        assert expected == wide.text(40).splitlines()
        assert "card   GiB  remark\n----  ----  ------------" == "\n".join(wide.text(10).splitlines()[:2])
        names = Table(["run", "cause"], [("20261130-125741-a-name-that-is-long", "one two three")])
        assert "20261130-125741-a-name-that-is-long  one two" in names.text(46)  # what is pasted is broken last

    def test_html_is_escaped(self):
        """A cell cannot inject markup."""
        assert "a&lt;b" in self.table._repr_html_()
        assert "a<b" not in self.table._repr_html_()

    def test_an_empty_table_has_its_heads(self):
        """No rows is not an error."""
        assert "a  b\n-  -" == str(Table(["a", "b"], []))

    def test_as_dicts_names_the_columns(self):
        """A script gets one object a row."""
        assert {"model": "a<b", "GiB": 1.23456} == self.table.as_dicts()[0]


@pytest.mark.parametrize("chosen", ["widget", "html", "text"])
def test_mode_follows_the_environment(monkeypatch, chosen):
    """NBKIT_DISPLAY overrides what is found."""
    monkeypatch.setenv("NBKIT_DISPLAY", chosen)
    assert (chosen, f"NBKIT_DISPLAY={chosen}") == choice()


def test_an_unknown_choice_is_no_choice(monkeypatch):
    """A typing error falls back to what is found, here text."""
    monkeypatch.setenv("NBKIT_DISPLAY", "widgets")
    assert "text" == mode()


@pytest.mark.parametrize(("ci", "expected"), [("", ("widget", "in a notebook")), ("true", ("text", "CI is set"))])
def test_a_notebook_gets_widgets_and_ci_text(monkeypatch, ci, expected):
    """In a kernel there is a front end to draw in; in CI nobody looks, and outputs are compared."""
    monkeypatch.delenv("NBKIT_DISPLAY", raising=False)
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr("nbkit.display.in_notebook", lambda: True)
    assert expected == choice()


def test_mode_is_text_outside_a_notebook(monkeypatch):
    """A script or a test has no notebook to draw in."""
    monkeypatch.delenv("NBKIT_DISPLAY", raising=False)
    assert ("text", "not in a notebook") == choice()
