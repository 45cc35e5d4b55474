"""Traces of made-up steps that have the shape of real ones."""

from __future__ import annotations

from nbkit.memory.trace import Trace

MIB = 2**20


def step(tokens, *, layers=12, tiles=1, bend=0.0):
    """A trace with the shape of a real one: weights; a forward that keeps three sizes a layer; a backward with passing
    buffers; gradients that the next step frees; optimizer states made in the first step."""
    resident = (8 * MIB,) * layers
    forward = [(i, int((40 + 100 * (i % 3)) * 1024 * tokens * (1 + bend * tokens))) for i in range(3 * layers)]
    events = list(forward)
    key = 3 * layers
    for _ in range(tiles):
        events += [(key, 300 * 1024 * tokens), (key, 0)]
        key += 1
    gradients, states = [], []
    for index, size in reversed(forward):
        events += [(key, size), (index, 0), (key, 0)]
        key += 1
        if index % 3 == 0:
            gradients.append(key)
            events.append((key, 2 * MIB))
            key += 1
    for _ in gradients:
        states += [(key, 4 * MIB)]
        key += 1
    return Trace(resident, (*events, *states), (*((-1 - g, 0) for g in gradients), *events), tokens)
