"""What no file of this project may say or do: checks shared by the tests and the notebook lint."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The bare name on PyPI belongs to an unrelated project: a command that installs or runs it would run a stranger's code.
_END = r"(?![-\w./])"
_BARE_INSTALL = re.compile(
    r"""\b(?:pip[0-9.]*|conda|mamba|uv(?:\s+(?:pip|tool))?|pipx)\s+(?:install|add|inject)\b"""
    r"""[^\n`;&|#]*?[\s"'`]nbkit""" + _END
)
_BARE_RUN = re.compile(r"""\b(?:uvx|pipx\s+run|uv\s+tool\s+run|uv\s+run\s+--with)\s+(?:-\S+\s+)*["']?nbkit""" + _END)

_SKIPPED_FOLDERS = {".git", ".venv", "__pycache__", "build", "dist", "runs", "node_modules"}


def tree_files(root: Path = ROOT) -> list[Path]:
    """The files that a commit would hold; outside a git clone, every file but what is built."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        found = [path for path in root.rglob("*") if not _SKIPPED_FOLDERS.intersection(path.relative_to(root).parts)]
    else:
        found = [root / name for name in done.stdout.split("\0") if name]
    return sorted(path for path in found if path.is_file())


def bare_installs(text: str) -> list[str]:
    """Each place in `text` that tells a reader to install or run the unrelated package of our import name."""
    return [match[0] for pattern in (_BARE_INSTALL, _BARE_RUN) for match in pattern.finditer(text)]


def banned(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and reason for each construct that trades safety away: in a call, or in a dictionary passed on with **."""
    for node in ast.walk(tree):
        # A name, an attribute of a module, or what an import names.
        named = getattr(node, "id", None) or getattr(node, "attr", None) or (isinstance(node, ast.alias) and node.name)
        if named == "AutoAddPolicy":
            yield node.lineno, "AutoAddPolicy accepts any host key"
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                yield from _banned_setting(keyword.value, keyword.arg)
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant):
                    yield from _banned_setting(value, key.value)


_BANNED_SETTINGS = {
    ("trust_remote_code", True): "trust_remote_code=True runs code from the hub",
    ("weights_only", False): "weights_only=False lets a pickle run code",
    ("verify", False): "verify=False accepts any certificate",
    ("shell", True): "shell=True lets data become commands",
}


def _banned_setting(value: ast.expr, name: object) -> Iterator[tuple[int, str]]:
    if isinstance(value, ast.Constant) and isinstance(value.value, bool):
        reason = _BANNED_SETTINGS.get((str(name), value.value))
        if reason:
            yield value.lineno, reason
