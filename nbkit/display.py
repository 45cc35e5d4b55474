"""One way to show: the same object is a table in a terminal, HTML in a notebook and data for `--json`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import zip_longest
from typing import Any, Literal, cast

Mode = Literal["widget", "html", "text"]
_LONGEST_WORDS = (1000, 28, 12)  # what is not broken on a narrow terminal, and on a still narrower one


def in_notebook() -> bool:
    """True inside a Jupyter, Colab or VS Code kernel; False in a terminal, a script or plain IPython."""
    ipython = sys.modules.get("IPython")
    ask = getattr(ipython, "get_ipython", None)  # not there yet while another thread imports IPython
    shell = ask() if ask else None
    return shell is not None and hasattr(shell, "kernel")


def mode() -> Mode:
    """How to show what changes: `widget` in a notebook, `html` in one without anywidget, `text` elsewhere and in CI.

    NBKIT_DISPLAY=widget|html|text overrides it: `html` where the front end has no widget manager, such as VS Code offline.
    """
    return choice()[0]


def choice() -> tuple[Mode, str]:
    """`mode()`, and the reason for it in a few words."""
    chosen = os.environ.get("NBKIT_DISPLAY", "")
    if chosen in {"widget", "html", "text"}:
        return cast("Mode", chosen), f"NBKIT_DISPLAY={chosen}"
    if not in_notebook():
        return "text", "not in a notebook"
    if os.environ.get("CI"):
        return "text", "CI is set"
    if importlib.util.find_spec("anywidget"):
        return "widget", "in a notebook"
    return "html", "anywidget is not installed"


def emit(value: Any) -> None:
    """Show `value` now: rich in a notebook, as text elsewhere."""
    if in_notebook():
        from IPython.display import display

        display(value)
    else:
        print(value)


@dataclass(frozen=True)
class Table:
    """Rows under headings, with a title above and notes below.

    Attributes:
        columns: Headings, as they are shown.
        rows: One sequence a row, as long as `columns`; numbers are aligned to the right.
        title: One line above; empty for none.
        notes: Lines below, each a full sentence.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str = ""
    notes: Sequence[str] = field(default=())

    def __str__(self) -> str:
        """Aligned plain text, without trailing spaces; on a terminal wide cells are wrapped, so that the columns stand."""
        return self.text(shutil.get_terminal_size().columns if sys.stdout.isatty() else None)

    def text(self, width: int | None = None) -> str:
        """As `str`, in at most `width` columns where its words allow; None for as many as it takes."""
        cells = [[_text(cell) for cell in row] for row in self.rows]
        columns = [[head, *(row[i] for row in cells)] for i, head in enumerate(self.columns)]
        widths = [max(map(len, column)) for column in columns]
        right = [all(_numeric(row[i]) for row in self.rows) and bool(self.rows) for i in range(len(self.columns))]
        for longest in _LONGEST_WORDS if width is not None else ():
            least = [w if r else _least(c, longest) for w, r, c in zip(widths, right, columns, strict=True)]
            widths = _narrowed(widths, least, width or 0)

        def lines(texts: Sequence[str]) -> Iterator[str]:
            wrapped = [
                textwrap.wrap(t, w, break_on_hyphens=False) if len(t) > w else [t]
                for t, w in zip(texts, widths, strict=True)
            ]
            for parts in zip_longest(*wrapped, fillvalue=""):
                padded = (t.rjust(w) if r else t.ljust(w) for t, w, r in zip(parts, widths, right, strict=True))
                yield "  ".join(padded).rstrip()

        head = [self.title] if self.title else []
        rows = [line for row in cells for line in lines(row)]
        return "\n".join([*head, *lines(self.columns), *lines(["-" * w for w in widths]), *rows, *self.notes])

    __repr__ = __str__  # what a notebook's plain-text view and nbval compare

    def _repr_html_(self) -> str:
        def cell(value: Any, tag: str) -> str:
            align = "right" if _numeric(value) else "left"
            return f'<{tag} style="text-align:{align};vertical-align:top;white-space:pre-wrap">{escape(_text(value))}</{tag}>'

        title = f"<caption style='text-align:left;caption-side:top;font-weight:600'>{escape(self.title)}</caption>"
        head = "".join(cell(name, "th") for name in self.columns)
        body = "".join("<tr>" + "".join(cell(value, "td") for value in row) + "</tr>" for row in self.rows)
        notes = "".join(f"<div style='opacity:.75'>{escape(note)}</div>" for note in self.notes)
        return f"<table>{title if self.title else ''}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"

    def as_dicts(self) -> list[dict[str, Any]]:
        """One dictionary a row, for `--json`."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def _least(column: Sequence[str], longest: int) -> int:
    """The narrowest that a column of text may become: its longest word, or `longest`."""
    return max(min(max(map(len, text.split()), default=0), longest) for text in column)


def _narrowed(widths: Sequence[int], least: Sequence[int], total: int) -> list[int]:
    """Widths that fit into `total` with two spaces between them, the widest taken from first; not below `least`."""
    found = list(widths)
    while sum(found) + 2 * (len(found) - 1) > total:
        wide = [i for i in range(len(found)) if found[i] > least[i]]
        if not wide:
            break
        found[max(wide, key=lambda i: found[i])] -= 1
    return found


def _numeric(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
