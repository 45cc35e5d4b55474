"""Write the tables of docs/hardware.md from the code's own data: `python -m tools.hardware_docs`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbkit.display import Table
from nbkit.hardware import offers, specs
from nbkit.hardware.advice import tiers
from nbkit.hardware.rules import all_rules
from nbkit.memory import frameworks

PAGE = Path(__file__).resolve().parent.parent / "docs" / "hardware.md"


def rules_table() -> Table:
    """One row a rule, with its number in the collection of symptoms."""
    rows = [
        (rule.symptom or "", rule.id, rule.severity, ", ".join(rule.blocks), rule.explanation, rule.source)
        for rule in sorted(all_rules(), key=lambda one: (one.symptom or 99, one.id))
    ]
    return Table(("#", "rule", "severity", "blocks", "why", "source"), rows)


TABLES = {
    "rules": rules_table, "accelerators": specs.table, "offers": lambda: offers().table(), "tiers": tiers,
    "programs": frameworks,
}  # fmt: skip


def markdown(table: Table) -> str:
    """A table in Markdown, its notes below."""

    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    head = [line(table.columns), "|" + " --- |" * len(table.columns)]
    return "\n".join([*head, *map(line, table.rows), "", *(f"{note}  " for note in table.notes)]).rstrip()


def rendered(page: str) -> str:
    """The page with each marked table written anew."""
    for name, make in TABLES.items():
        block = re.compile(rf"(<!-- {name} -->\n)(?:.*?\n)??(<!-- end -->)", re.DOTALL)
        if not block.search(page):
            raise SystemExit(f"{PAGE.name} has no place for the table {name!r}")
        page = block.sub(
            lambda found, make=make: f"{found.group(1)}\n{markdown(make())}\n\n{found.group(2)}", page, count=1
        )
    return page


if __name__ == "__main__":
    text = PAGE.read_text()
    new = rendered(text)
    PAGE.write_text(new)
    sys.stdout.write(f"{PAGE.name}: {'rewritten' if new != text else 'unchanged'}\n")
