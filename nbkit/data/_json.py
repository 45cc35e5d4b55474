"""JSON and JSON Lines, read strictly: what is not plain JSON objects is an error that names the line.

Own reader: `datasets` loads eight kinds of broken rows without a word, and says nothing a person can use for five more.
Source: RFC 8259, jsonlines.org. Not covered: comments, JSON5.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from typing import TYPE_CHECKING, Any, NoReturn

from nbkit.data import _text
from nbkit.data.rows import Progress, Row, quote
from nbkit.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

MAX_DEPTH = 100  # chat rows nest three to ten deep; a parser that follows 10,000 brackets dies of recursion
_ONE_OBJECT = "one JSON object a line, as json.dumps(row) writes it"
_HUGE_EXPONENT = re.compile(r"\d[eE]\+?\d{3}")
_SPACE = re.compile(r"[ \t\r\n]*")


def read_jsonl(path: Path, limit: int | None = None) -> tuple[list[Row], list[int]]:
    """The rows of a JSON Lines file, plain or .gz, and the line of each. CRLF and blank lines are accepted.

    Raises: DataError, naming file, line and column.
    """
    rows: list[Row] = []
    numbers: list[int] = []
    progress = Progress(f"reading {path.name}")
    for number, text, closed in _text.lines(path):
        if limit is not None and len(rows) >= limit:
            break
        if text.isspace() or not text:
            continue
        rows.append(_line(path, number, text, closed=closed))
        numbers.append(number)
        progress(len(rows))
    if not rows and limit != 0:
        raise _text.blank(path)
    return rows, numbers


def _line(path: Path, number: int, text: str, *, closed: bool) -> Row:
    start = _skip_space(text, 0)
    try:
        value, end = _parse(text, start)
        _expect(_skip_space(text, end) == len(text), "Extra data", text, _skip_space(text, end))
    except json.JSONDecodeError as error:
        column = min(error.pos, len(text.rstrip("\r\n"))) + 1
        if not closed:
            raise DataError(
                f"{path}:{number}:{column}: the last line is not complete JSON ({error.msg}): "
                "the file was probably cut off.",
                hint="copy or export it again and compare sizes; to go on without that row: "
                f"sed -i '$d' {shlex.quote(str(path))}",
            ) from error
        near = quote(text[error.pos : error.pos + 30].rstrip("\r\n"))
        raise DataError(
            f"{path}:{number}:{column}: not JSON: {error.msg}, at {near}.",
            hint=_syntax_hint(text.strip(), path),
        ) from error
    except _RefusedError as error:
        raise DataError(f"{path}:{number}: {error}", hint=error.hint) from error
    if not isinstance(value, dict):
        array = f"if the file is one JSON array, name it so: mv {_q(path)} {_q(path.with_suffix('.json'))}"
        raise DataError(
            f"{path}:{number}: a row must be a JSON object, this is {_type(value)}: {quote(value)}.",
            hint=array if isinstance(value, list) else _ONE_OBJECT,
        )
    return value


def read_json(path: Path, limit: int | None = None) -> tuple[list[Row], list[int]]:
    """The rows of a .json file: one array of objects, or JSON Lines under another name.

    Raises: DataError, naming file, line and column.
    """
    text = "".join(line.text for line in _text.lines(path))
    start = _skip_space(text, 0)
    if start == len(text):
        raise _text.blank(path)
    if text[start] == "[":
        return _array(path, text, start, limit)
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return read_jsonl(path, limit)  # it names the line
    lists = [key for key, item in value.items() if isinstance(item, list)] if isinstance(value, dict) else []
    if _skip_space(text, end) == len(text) and isinstance(value, dict) and ("\n" in text[start:end] or lists):
        raise DataError(
            f"{path} holds one JSON object, not a list of rows; its keys: {', '.join(value)}.",
            hint=f'nbkit.data.read(json.load(open("{path}"))["{lists[0] if lists else "KEY"}"])',
        )
    return read_jsonl(path, limit)


def _array(path: Path, text: str, start: int, limit: int | None) -> tuple[list[Row], list[int]]:
    """The objects of the array at `start`, with the line each begins on."""
    rows: list[Row] = []
    numbers: list[int] = []
    line, counted = 1, 0
    position = _skip_space(text, start + 1)
    ended = text.startswith("]", position)
    while not ended and (limit is None or len(rows) < limit):
        line += text.count("\n", counted, position)
        counted = position
        try:
            value, end = _parse(text, position)
            position = _skip_space(text, end)
            ended = text.startswith("]", position)
            _expect(ended or text.startswith(",", position), "Expecting ',' or ']'", text, position)
        except json.JSONDecodeError as error:
            cut = not text[error.pos :].strip() or error.msg.startswith("Unterminated")
            raise DataError(
                f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}"
                + (": the file was probably cut off." if cut else "."),
                hint="copy or export it again and compare sizes" if cut else f"python -m json.tool {_q(path)}",
            ) from error
        except _RefusedError as error:
            raise DataError(f"{path}:{line}: {error}", hint=error.hint) from error
        if not isinstance(value, dict):
            raise DataError(
                f"{path}:{line}: item {len(rows) + 1} of the array must be an object, this is {_type(value)}.",
                hint='a list of objects: [{"prompt": ..., "completion": ...}, ...]',
            )
        rows.append(value)
        numbers.append(line)
        position = _skip_space(text, position + 1)
    if not rows and limit != 0:
        raise DataError(f"{path} holds an empty list.", hint="the export wrote no rows: make it again")
    if ended and limit is None and position < len(text):
        raise DataError(f"{path}: text follows the end of the array: {quote(text[position:])}.", hint=_ONE_OBJECT)
    return rows, numbers


class _RefusedError(ValueError):
    """JSON that parses, or nearly, and cannot be trained on."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


_NO_NAN = "JSON has no NaN or Infinity: write null, or leave the row out"


def _refuse_constant(name: str) -> NoReturn:
    raise _RefusedError(name, _NO_NAN)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _RefusedError(
            f"the key {quote(twice)} stands twice in one object; one value would be lost.",
            "rename one of the two keys",
        )
    return found


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique)
_TOO_DEEP = (f"nested deeper than {MAX_DEPTH} levels.", "rows are flat; look at what wrote this one, or leave it out")


def _parse(text: str, start: int) -> tuple[Any, int]:
    """The JSON value at `start` and where it ends.

    Raises: json.JSONDecodeError for a syntax error; _RefusedError for NaN, a key twice, deep nesting, a number beyond
    float64, half a surrogate pair.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise _RefusedError(*_TOO_DEEP) from error
    except _RefusedError as error:
        if str(error) in {"NaN", "Infinity", "-Infinity"}:
            raise _RefusedError(f"{error}{_key_of_nan(text, start)} is not JSON.", _NO_NAN) from error
        raise
    except ValueError as error:  # an integer of more than 4,300 digits
        raise _RefusedError(f"{str(error).split(';', maxsplit=1)[0]}.", "write it as a string") from error
    body = text[start:end]
    if body.count("[") + body.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise _RefusedError(*_TOO_DEEP)
    if _HUGE_EXPONENT.search(body) and (key := _not_finite(value)):
        raise _RefusedError(f"the number in {key!r} is beyond float64 and would become Infinity.", _NO_NAN)
    if "\\ud" in body or "\\uD" in body:
        _refuse_half_pair(value)
    return value, end


def _expect(found: bool, what: str, text: str, position: int) -> None:
    if not found:
        raise json.JSONDecodeError(what, text, position)


def _refuse_half_pair(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise _RefusedError(
            f"\\u{ord(half):04x} is half a surrogate pair: a character was cut in two.",
            "export again without cutting strings by UTF-16 length, or leave the row out",
        ) from error


def _key_of_nan(text: str, start: int) -> str:
    try:
        key = _not_finite(json.JSONDecoder().raw_decode(text, start)[0])
    except (ValueError, RecursionError):
        return ""
    return f" in {key!r}" if key else ""


def _not_finite(value: Any, name: str = "") -> str:
    """The path of the first NaN or infinity in `value`, such as `scores.0`; empty when there is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return name
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next((found for key, item in items if (found := _not_finite(item, f"{name}.{key}".lstrip(".")))), "")


def _depth(value: Any) -> int:
    deepest, waiting = 0, [(value, 0)]
    while waiting:  # a loop, not recursion: this is the guard against deep nesting
        item, level = waiting.pop()
        deepest = max(deepest, level)
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        waiting.extend((child, level + 1) for child in inner)
    return deepest


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _syntax_hint(body: str, path: Path) -> str:
    if body in {"{", "["} or body.startswith("[{"):
        return f"one object a line; if this is one JSON document: mv {_q(path)} {_q(path.with_suffix('.json'))}"
    if body.startswith(("{'", "{ '")):
        return "this is a Python dict (single quotes), not JSON: write rows with json.dumps(row)"
    return _ONE_OBJECT


def _type(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _q(path: Path) -> str:
    return shlex.quote(str(path))
