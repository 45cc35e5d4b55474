"""A deep model's trace from a shallow one's: one layer in the middle is repeated as often as layers are missing.

What a layer allocates is freed in its own events, in a neighbour's, or outside of the layers. So a repeated layer's
events are the middle one's with every reference moved along: a free of the neighbour's third tensor becomes a free of
the third tensor of the copy's neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from nbkit.memory.trace import Trace
from nbkit.memory.tracker import Moment

# (phase of a micro-batch, layer at full depth, ordinal there): a tensor's name, the same in every step.
_Name = tuple[str, int, int]


def unroll(
    resident: Sequence[tuple[int, int]],
    first: Sequence[Moment],
    steady: Sequence[Moment],
    shallow: int,
    full: int,
    tokens: int,
) -> Trace | None:
    """The trace at `full` layers from one at `shallow` of them.

    Returns: None where the layers are not alike enough to be repeated.
    """
    middle, more = shallow // 2, full - shallow
    names: dict[_Name, int] = {}
    try:
        before, known = _step(first, {}, middle, more, names)
        after, _ = _step(steady, known, middle, more, names)
    except KeyError:
        return None
    sizes = [size for size, layer in resident for _ in range(more + 1 if layer == middle else 1)]
    return Trace(tuple(sizes), tuple(before), tuple(after), tokens)


def _step(
    moments: Sequence[Moment], earlier: dict[int, _Name], middle: int, more: int, names: dict[_Name, int]
) -> tuple[list[tuple[int, int]], dict[int, _Name]]:
    """Events of one step at full depth, and the names of the shallow run's keys that are alive after it."""
    moments = _settled(moments)
    shallow_names = _named(moments)
    events: list[tuple[int, int]] = []
    here: set[int] = set()
    past: set[int] = {names[name] for name in _all_deep(earlier, middle, more)} if earlier else set()

    def key(name: _Name) -> int:
        return names.setdefault(name, len(names))

    def emit(one: Moment, deep: int) -> None:
        """Repeat an event at the layer `deep`."""
        own = shallow_names.get(one.key) or earlier[one.key]
        if one.size:
            made = key((own[0], deep, own[2]))
            here.add(made)
            events.append((made, one.size))
            return
        old = one.key not in shallow_names
        for layer in _freed_at(own[1], one.layer, deep, middle, more):
            gone = names[own[0], layer, own[2]]
            pool = past if old else here
            pool.remove(gone)
            events.append((-1 - gone if old else gone, 0))

    for (phase, layer), group in groupby(moments, key=lambda one: (one.phase, one.layer)):
        run = list(group)
        repeats = (-1,) if layer == -1 else _deep(layer, middle, more)
        for deep in reversed(repeats) if phase == "backward" else repeats:
            for one in run:
                emit(one, deep)
    alive = {one.key for one in moments if one.size} - {one.key for one in moments if not one.size}
    return events, {one: shallow_names[one] for one in alive}


def _settled(moments: Sequence[Moment]) -> list[Moment]:
    """Give a layer what happens between two of its events: autograd adds to a gradient that is there, and an optimizer
    makes a counter, outside of any module."""
    found: list[Moment] = []
    outside = 0  # of the layers: so many at the end of `found`
    for one in moments:
        if one.layer == -1:
            outside += 1
        else:
            begun = len(found) - outside
            if begun and (found[begun - 1].phase, found[begun - 1].layer) == (one.phase, one.layer):
                found[begun:] = [replace(it, layer=one.layer) for it in found[begun:]]
            outside = 0
        found.append(one)
    return found


def _named(moments: Sequence[Moment]) -> dict[int, _Name]:
    """Name each tensor by where it was made and the how-manieth it is there."""
    found: dict[int, _Name] = {}
    counts: dict[tuple[str, int], int] = {}
    micro_batch, before = 0, ""
    for one in moments:
        if one.phase == "forward" and before == "backward":
            micro_batch += 1
        before = one.phase
        if one.size:
            place = (f"{one.phase} {micro_batch}", one.layer)
            found[one.key] = (*place, counts.get(place, 0))
            counts[place] = counts.get(place, 0) + 1
    return found


def _all_deep(earlier: dict[int, _Name], middle: int, more: int) -> list[_Name]:
    return [(phase, deep, at) for phase, layer, at in earlier.values() for deep in _deep(layer, middle, more)]


def _deep(layer: int, middle: int, more: int) -> Sequence[int]:
    if layer == middle:
        return range(middle, middle + more + 1)
    return (layer + more,) if layer > middle else (layer,)


def _freed_at(made: int, at: int, deep: int, middle: int, more: int) -> Sequence[int]:
    """At which layers of the deep model tensors die that layer `made` made, when an event of layer `at` is at `deep`."""
    if made == -1:
        return (-1,) if at == -1 or deep == _deep(at, middle, more)[-1] else ()
    if at == -1:
        return _deep(made, middle, more)
    return (deep + made - at,)
