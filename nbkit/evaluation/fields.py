"""Compare a generated text with an expected one: as text, and field by field where a JSON object is expected.

Pure functions, no model. Strict on purpose: a program that reads the answer calls `json.loads` on it, so an object
wrapped in words or in a code fence counts as no object at all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Match:
    """How one generated text compares with the expected one.

    Attributes:
        exact: True when the texts are equal without their outer white space, or when both are the same JSON object
            (spacing and the order of keys are free; types, extra keys and extra text are not).
        right: Expected fields whose value is equal in the generated object.
        fields: Expected fields in all; 0 where the expected text is not a JSON object.
    """

    exact: bool
    right: int
    fields: int

    @property
    def share(self) -> float | None:
        """Share of the expected fields that are right; None where no fields are expected."""
        return self.right / self.fields if self.fields else None


def match(expected: str, got: str) -> Match:
    """Compare `got` with `expected`.

    A field is a leaf of the object, named by its path: `{"a": {"b": 1, "c": 2}}` has two. A list is one field, and so is
    an empty object. A key that was not asked for costs the exact match and no field.
    """
    same_text = expected.strip() == got.strip()
    wanted = parse_object(expected)
    if wanted is None:
        return Match(same_text, 0, 0)
    wanted_leaves = leaves(wanted)
    found = parse_object(got)
    if found is None:
        return Match(same_text, 0, len(wanted_leaves))
    found_leaves = leaves(found)
    right = sum(path in found_leaves and same(value, found_leaves[path]) for path, value in wanted_leaves.items())
    return Match(same_text or same(wanted, found), right, len(wanted_leaves))


def parse_object(text: str) -> dict[str, Any] | None:
    """The one JSON object that `text` is, or None.

    None for any text around it, for a list or a bare value, for a key that stands twice (readers disagree on which one
    counts) and for NaN and Infinity (not JSON).
    """
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_not_json)
    except (ValueError, RecursionError):  # RecursionError: a model that repeats "[" until its last token
        return None
    return value if isinstance(value, dict) else None


def leaves(value: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    """The fields of an object by their path of keys."""
    found: dict[tuple[str, ...], Any] = {}
    for key, item in value.items():
        if isinstance(item, dict) and item:
            found.update({(key, *path): leaf for path, leaf in leaves(item).items()})
        else:
            found[(key,)] = item
    return found


def same(one: Any, other: Any) -> bool:
    """True when two JSON values are equal, as JSON: 1 is 1.0, but neither "1" nor true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a key stands twice")
    return unique


def _not_json(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
