"""A deep model's peaks from two shallow runs: each (phase, operator, place) is affine in the number of layers.

Extrapolating the overall peak alone is wrong by up to 7 %: it may lie at another operator at full depth than in a
shallow model. So every peak is extrapolated for itself, and the largest is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from nbkit.memory.tracker import KINDS, Key, Phase, Tally

# Every decoder layer of these is built alike; of others the layers are compared on a skeleton first.
_UNIFORM = frozenset(
    {
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
        "phi",
        "phi3",
        "gpt_neox",
        "falcon",
        "stablelm",
        "mixtral",
        "granite",
    }
)
# Settings that make layers differ even in those.
_UNEVEN = ("mlp_only_layers", "first_k_dense_replace", "no_rope_layers")


@dataclass(frozen=True)
class Depths:
    """Which depths to run. `full` is run alone where it is shallow enough, or where no pattern was found."""

    full: int
    shallow: tuple[int, int] | None
    edge: int

    @property
    def to_run(self) -> tuple[int, ...]:
        """Numbers of layers."""
        return self.shallow or (self.full,)


def depths(config: Any, skeleton: Any, adapters: Any = None) -> Depths:
    """Choose them for a config. `skeleton()` builds the whole model on meta; called only where layers may differ.

    Args:
        adapters: PEFT config: one that names layers is run at full depth.
    """
    full = int(config.num_hidden_layers)
    if _names_layers(adapters):
        return Depths(full, None, 2)
    prefix, period = 0, 1
    lists = [v for v in vars(config).values() if isinstance(v, list) and len(v) == full and len(set(map(str, v))) > 1]
    kind = getattr(config, "model_type", "")
    if kind not in _UNIFORM or lists or any(getattr(config, name, None) for name in _UNEVEN):
        found = pattern(skeleton())
        if found is None:
            return Depths(full, None, 2)
        prefix, period = found
    edge = max(2, prefix + period)
    first = edge + 1
    while (first - full) % period:
        first += 1
    second = first + period
    return Depths(full, (first, second) if second < full else None, edge)


def _names_layers(adapters: Any) -> bool:
    """Whether it adapts some layers only, or differently: by number, in a list, a pattern or an expression."""
    targets = getattr(adapters, "target_modules", None) or ()
    patterns = [*(getattr(adapters, "rank_pattern", None) or ()), *([targets] if isinstance(targets, str) else targets)]
    return getattr(adapters, "layers_to_transform", None) is not None or any(
        letter.isdigit() for one in patterns for letter in one
    )


def pattern(layers: Sequence[Any]) -> tuple[int, int] | None:
    """(prefix, period) of the layers' kinds: the first `prefix` differ, the rest repeats every `period`."""
    kinds = [_kind(layer) for layer in layers]
    for period in range(1, 9):
        for prefix in range(min(5, len(kinds))):
            rest = kinds[prefix:]
            if len(rest) >= 2 * period and all(one == rest[i % period] for i, one in enumerate(rest)):
                return prefix, period
    return None


def _kind(layer: Any) -> tuple[Any, ...]:
    shapes = tuple((name, tuple(one.shape)) for name, one in layer.named_parameters())
    settings = tuple(
        (path, name, value)
        for path, module in layer.named_modules()
        for name, value in sorted(vars(module).items())
        if name not in {"layer_idx", "layer_id", "training"} and isinstance(value, (bool, int, str))
    )
    return shapes, settings


@dataclass(frozen=True)
class Found:
    """The peak at full depth. Bytes."""

    key: Key
    live: float
    parts: dict[str, float]


def peak(tallies: Sequence[Tally], chosen: Depths, phases: Collection[str] = get_args(Phase)) -> Found:
    """The largest of all peaks at full depth, or of those in some phases."""
    low, high = tallies[0], tallies[-1]
    share = _share(chosen)
    best: Found | None = None
    for key, mark in high.marks.items():
        if key.phase not in phases:
            continue
        before = low.marks.get(key)
        if before is None:
            live, parts = float(mark.live), [float(part) for part in mark.parts]
        else:
            live = before.live + (mark.live - before.live) * share
            parts = [old + (new - old) * share for old, new in zip(before.parts, mark.parts, strict=True)]
        if best is None or live > best.live:
            best = Found(key, live, dict(zip(KINDS, parts, strict=True)))
    if best is None:
        raise ValueError("a step without operators")
    return best


def _share(chosen: Depths) -> float:
    """How far full depth lies from the first depth that was run, in steps to the second."""
    if chosen.shallow is None:
        return 0.0
    return (chosen.full - chosen.shallow[0]) / (chosen.shallow[1] - chosen.shallow[0])


def affine(values: Sequence[float], chosen: Depths) -> float:
    """A count or a size at full depth, from its values at the depths that were run."""
    return values[0] + (values[-1] - values[0]) * _share(chosen)
