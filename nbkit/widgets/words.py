"""What changed between two samples of one prompt, word by word."""

from __future__ import annotations

import difflib
import re

Segment = tuple[str, str]  # kind and text: "=" kept, "+" new, "-" gone
_MOST_WORDS = 2000  # the comparison is quadratic in the worst case


def changes(before: str, after: str) -> list[Segment]:
    """`after` as segments, with the words of `before` that are gone in their places.

    Words are compared, white space is not: joining every segment but "-" gives `after` back.
    """
    old, new = _words(before), _words(after)
    if len(old) > _MOST_WORDS or len(new) > _MOST_WORDS:
        return [("=", after)]
    found: list[Segment] = []
    compared = difflib.SequenceMatcher(None, [w.strip() for w in old], [w.strip() for w in new], autojunk=False)
    for kind, i, j, k, m in compared.get_opcodes():
        if kind == "equal":
            found.append(("=", "".join(new[k:m])))
            continue
        if i < j:
            found.append(("-", _spaced("".join(old[i:j]))))
        if k < m:
            found.append(("+", "".join(new[k:m])))
    return found


def _words(text: str) -> list[str]:
    """Each word with the white space behind it; leading white space is a word of its own."""
    return re.findall(r"\S+\s*|^\s+", text)


def _spaced(gone: str) -> str:
    """A gone word does not touch the word that stands behind it now."""
    return gone if gone[-1:].isspace() else gone + " "
