"""What a server says, made harmless: no control character reaches a terminal, a notebook or a log."""

from __future__ import annotations

import re
import unicodedata


def said(error: BaseException) -> str:
    """The text of an error, harmless; a refused channel's own words come without paramiko's wrapping."""
    return plain(str(getattr(error, "text", "") or error)) or type(error).__name__


def plain(text: str | bytes, limit: int = 1000, *, lines: bool = False) -> str:
    """`text` with control and direction characters shown as `\\x1b` or `\\u202e`, cut to `limit` characters.

    A byte that is no text, as file names have them, becomes `\\xff`.

    `lines=True` leaves newlines and tabs.
    """
    if isinstance(text, bytes):
        text = text[: limit * 4].decode("utf-8", "replace")
    shown = []
    for c in text[:limit]:
        if lines and c in "\n\t":
            shown.append(c)
        elif "\udc80" <= c <= "\udcff":  # a byte of a file's name that is no text
            shown.append(f"\\x{ord(c) - 0xDC00:02x}")
        elif unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp", "Cs"}:
            shown.append(c.encode("unicode_escape", "surrogatepass").decode())
        else:
            shown.append(c)
    return "".join(shown) + ("…" if len(text) > limit else "")


_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def coloured(text: str) -> str:
    """As `plain` with `lines=True`, whole, and with colours left in: a traceback of IPython has them."""
    parts, end = [], 0
    for found in _COLOUR.finditer(text):
        parts += [plain(text[end : found.start()], len(text), lines=True), found.group()]
        end = found.end()
    return "".join([*parts, plain(text[end:], len(text), lines=True)])
