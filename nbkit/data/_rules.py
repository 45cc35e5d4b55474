"""What can be wrong with one row: its turns (errors) and its text (warnings). `check` applies them to all rows."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

from nbkit.data import formats
from nbkit.data.rows import quote

if TYPE_CHECKING:
    from collections.abc import Iterator

Problem = tuple[str, str, str]  # kind, message, fix: what `check` groups rows by

SHORT_CHARACTERS = 2
_HTML = re.compile(
    r"</?(?:p|br|hr|div|span|a|b|i|u|em|strong|ul|ol|li|table|tr|td|th|h[1-6]|img|script|style|font|pre|code)\b[^<>]*>"
    r"|&(?:amp|lt|gt|quot|apos|nbsp|#\d+|#x[0-9a-f]+);",
    re.IGNORECASE,
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2028\u2029\ufeff]")
# UTF-8 that was read as Windows-1252 or Latin-1, and the character for "could not be read".
_MOJIBAKE = re.compile("\u00c3[\u0080-\u00bf\u0192\u201a\u0161\u017e]|\u00c2[\u00a0-\u00bf]|\u00e2\u20ac|\ufffd")
_PATTERNS = (
    ("HTML", _HTML, "HTML tags or entities are left in the text.", "html.unescape, or take the text out of the page"),
    ("control characters", _CONTROL, "control or invisible characters are in the text.", "remove them"),
    (
        "wrong decoding",
        _MOJIBAKE,
        "text was decoded wrongly at some point (such as \u00c3\u00a9 for \u00e9).",
        "export it again as UTF-8",
    ),
)
_MAY_FOLLOW = {"user": {"assistant"}, "assistant": {"user", "tool"}, "tool": {"tool", "assistant"}}


def wrong_turns(turns: list[formats.Message]) -> Iterator[Problem]:
    """Unknown roles and content that is not text, in one conversation."""
    for turn in turns:
        role, content = turn.get("role"), turn.get("content")
        if role not in formats.ROLES:
            yield (
                "wrong role",
                f"the role {quote(role)} is not one of {', '.join(formats.ROLES)}.",
                "rename the role, or leave the row out",
            )
        if isinstance(content, list):
            yield (
                "content not a string",
                "content is a list (of parts, as for images); this trains on text.",
                'join its texts: "".join(part["text"] for part in content)',
            )
        elif not isinstance(content, str) and not (content is None and turn.get("tool_calls")):
            yield "content not a string", f"content is {quote(content)}.", "write it as a string"


def misplaced(talk: formats.Conversation) -> str:
    """What is wrong with the order of roles, or an empty string."""
    roles = [turn["role"] for turn in talk.turns]
    completion = [turn["role"] for turn in talk.completion]
    if completion[0] != "assistant":
        return f"the completion is said by {completion[0]}, not by assistant."
    if not talk.prompt:
        return "nothing stands before the answer."
    body = roles[1:] if roles[0] == "system" else roles
    if "system" in body:
        return "a system turn stands after other turns."
    if body[0] != "user":
        return f"the conversation opens with {body[0]}, not with user."
    for before, after in pairwise(body):
        if after not in _MAY_FOLLOW[before]:
            return f"{after} follows {before}."
    return ""


def wrong_in_text(question: str, answer: str) -> Iterator[Problem]:
    """What a person should look at in the text of one row."""
    if answer.strip() and len(answer.strip()) <= SHORT_CHARACTERS:
        yield (
            "very short answer",
            f"the answer has at most {SHORT_CHARACTERS} characters.",
            "look at them: a right answer, or a cut one?",
        )
    if any(text.strip() and text != text.strip() for text in (question, answer)):
        yield (
            "outer white space",
            "white space at the start or end; it becomes tokens.",
            "strip it, unless it matters (code, poems)",
        )
    both = f"{question}\n{answer}"
    for kind, pattern, message, fix in _PATTERNS:
        if pattern.search(both):
            yield kind, message, fix
