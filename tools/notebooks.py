"""The notebooks' workshop.

    python -m tools.notebooks badges     write the badge line and the install cell from pyproject.toml
    python -m tools.notebooks check      the lint: one line a finding, exit 1 if there is any
    python -m tools.notebooks render     run all in full, in order, and store their outputs
    python -m tools.notebooks smoke      run copies in smoke mode under nbval; leaves nothing in the tree

`smoke` takes --junitxml FILE. Every command takes the names of notebooks, else it means all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tools import notebook_rules, notebook_runs, system
from tools.notebook_rules import NOTEBOOKS, Notebook, badge_line, install_cell, is_badge, source_of

NEEDS_SSHD = "05"  # its practice box; run by name without sshd, it fails and says what to install


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a notebook as Jupyter does: one space of indent, UTF-8, a final newline."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def set_source(cell: dict[str, Any], source: str) -> None:
    """Replace a cell's source, a line an item, as notebooks store it."""
    cell["source"] = source.splitlines(keepends=True)


def render_badges(path: Path) -> bool:
    """Write the badge line and the install cell of one notebook; True if that changed it.

    Raises: SystemExit when the notebook has no place for one of them.
    """
    notebook = Notebook.read(path)
    before = json.dumps(notebook.content)
    title, installs = notebook.title, notebook.tagged("install")
    if title is None or not is_badge(source_of(title[1]).split("\n")[0]):
        raise SystemExit(f"{path.name}: the first markdown cell must begin with a line `<!-- badge -->`")
    if len(installs) != 1:
        raise SystemExit(f"{path.name}: one code cell must carry the tag `install`; {len(installs)} do")
    _, *rest = source_of(title[1]).split("\n")
    set_source(title[1], "\n".join([badge_line(path.name), *rest]))
    set_source(installs[0][1], install_cell())
    changed = json.dumps(notebook.content) != before
    if changed:
        write(path, notebook.content)
    return changed


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["badges", "check", "render", "smoke"])
    parser.add_argument("names", nargs="*", help="notebooks, as 03 or 03_qlora_sft.ipynb; all without any")
    parser.add_argument("--junitxml", type=Path, help="where `smoke` writes pytest's report")
    options = parser.parse_args(argv)
    everything = sorted(NOTEBOOKS.glob("*.ipynb"))
    paths = [path for path in everything if not options.names or path.name.startswith(tuple(options.names))]
    if not paths:
        print(f"notebooks: none in {NOTEBOOKS.name}/ matches {' '.join(options.names) or '*.ipynb'}", file=sys.stderr)
        return 2
    if options.command == "badges":
        for path in paths:
            print(f"notebooks: {path.name} {'written' if render_badges(path) else 'unchanged'}")
        return 0
    if options.command == "check":
        findings = [finding for path in paths for finding in notebook_rules.check(path)]
        skipped = notebook_rules.missing_stack()
        print(*findings, sep="\n", end="\n" if findings else "")
        print(f"notebooks: {len(paths)} checked, {len(findings)} findings" + (f"; {skipped}" if skipped else ""))
        return 1 if findings else 0
    if options.command == "render":
        return notebook_runs.render(paths)
    if not options.names and not system.found("sshd"):
        paths = [path for path in paths if not path.name.startswith(NEEDS_SSHD)]
        print(f"notebooks: {NEEDS_SSHD} is skipped: sshd is not installed", flush=True)
    return notebook_runs.smoke(paths, options.junitxml)


if __name__ == "__main__":
    sys.exit(main())
