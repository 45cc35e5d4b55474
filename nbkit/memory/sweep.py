"""Memory as a surface over batch, sequence and rank: evaluated in microseconds, here and in the planner's sliders.

A part of the peak is affine in the tokens T of the micro-batch, in min(T, 4096) (the loss works in tiles) and in the
rank: four numbers a part and moment, taken from the formula by evaluating it at five points. Where torch is at hand, two
fake steps of the same variant set the surface right: the difference to the formula, a line in T, is added to it.

Several GPUs (FSDP, ZeRO-3): what is held is divided; activations are not; two decoder layers and the embedding are
gathered whole. Stated with 20 % more doubt: nothing here has been run on several GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from nbkit.memory.formula import GIB, NF4_BYTES, TILE_ROWS, UNCERTAINTY, Method, Step, moments, outside
from nbkit.memory.shapes import Shape

HELD = ("weights", "adapters", "gradients", "optimizer")
SHARDED_DOUBT = 0.20
Coefficients = tuple[float, float, float, float]  # GiB: fixed, a token, a token of the first tile, a rank
Line = tuple[float, float]  # GiB: fixed, a token


@dataclass(frozen=True)
class Correction:
    """What fake steps said beyond the formula; each line is added to the formula's allocated peak."""

    allocated: Line
    low: Line
    high: Line
    basis: str


@dataclass(frozen=True)
class Variant:
    """One method, with or without checkpointing.

    Attributes:
        moments: For each moment where the peak can lie, the coefficients of each part.
        gathered_gib: What a sharded run holds whole beside its share.
        outside_gib: What the process holds beside its tensors, least and most.
        correction: From fake steps, or None where the formula speaks alone.
    """

    method: Method
    checkpointing: bool
    moments: Mapping[str, Mapping[str, Coefficients]]
    gathered_gib: float
    outside_gib: tuple[float, float]
    correction: Correction | None = None


@dataclass(frozen=True)
class Point:
    """The memory at one place of the surface. `low_gib` to `high_gib` is what the device has to give."""

    parts: Mapping[str, float]
    moment: str
    low_gib: float
    high_gib: float
    basis: str

    @property
    def allocated_gib(self) -> float:
        return sum(self.parts.values())

    @property
    def largest(self) -> str:
        """The part to work on first."""
        return max(self.parts, key=lambda name: self.parts[name])

    def fits(self, room_gib: float) -> Literal["yes", "tight", "no"]:
        """yes: even the high end. tight: only the low end. no: not even that."""
        if self.high_gib <= room_gib:
            return "yes"
        return "tight" if self.low_gib <= room_gib else "no"


@dataclass(frozen=True)
class Surface:
    """The memory of one model's training step, for every method, with and without checkpointing."""

    shape: Shape
    step: Step
    variants: Mapping[tuple[Method, bool], Variant]

    def at(self, method: Method, checkpointing: bool, batch: int, seq: int, *, rank: int = 16, gpus: int = 1) -> Point:
        """The peak for `batch` x `seq` tokens on each of `gpus` that share the weights."""
        variant = self.variants[method, checkpointing]
        tokens = batch * seq
        found = {name: _evaluate(parts, tokens, rank) for name, parts in variant.moments.items()}
        if gpus > 1:
            found = {name: _sharded(parts, variant.gathered_gib, gpus) for name, parts in found.items()}
        moment = max(found, key=lambda name: sum(found[name].values()))
        parts = {name: gib for name, gib in found[moment].items() if gib > 0}
        formula = sum(parts.values())
        mended = variant.correction
        if mended is None or gpus > 1:
            doubt = UNCERTAINTY + (SHARDED_DOUBT if gpus > 1 else 0)
            least, most = variant.outside_gib
            low, high = formula * (1 - doubt) + least, formula * (1 + doubt) + most
            return Point(parts, moment, low, high, "formula")
        more = _line(mended.allocated, tokens)
        if more > 0:
            parts["seen in a fake step"] = more
        elif formula + more > 0:
            parts = {name: gib * (formula + more) / formula for name, gib in parts.items()}
        low, high = formula + _line(mended.low, tokens), formula + _line(mended.high, tokens)
        return Point(parts, moment, low, high, mended.basis)

    def largest_batch(self, room_gib: float, method: Method, checkpointing: bool, seq: int, **where: int) -> int:
        """Rows of `seq` tokens that fit for sure; 0 when not even one does."""
        return _most(lambda batch: self.at(method, checkpointing, batch, seq, **where).high_gib <= room_gib, 4096)

    def longest_seq(self, room_gib: float, method: Method, checkpointing: bool, batch: int = 1, **where: int) -> int:
        """Tokens of a row that fit for sure with `batch` rows; 0 when not even one token does."""
        return _most(lambda seq: self.at(method, checkpointing, batch, seq, **where).high_gib <= room_gib, 2**20)

    def corrected(
        self, method: Method, checkpointing: bool, seen: Sequence[tuple[int, float, float, float]]
    ) -> Surface:
        """The surface set right by fake steps.

        Args:
            seen: (tokens, allocated, low, high in GiB) of one or two predictions with the surface's own rank.
        """
        before = self.variants[method, checkpointing]
        bare = replace(self, variants={**self.variants, (method, checkpointing): replace(before, correction=None)})
        rank = self.step.rank
        formula = [bare.at(method, checkpointing, 1, tokens, rank=rank).allocated_gib for tokens, *_ in seen]
        lines = [
            _through([(one[0], one[index] - base) for one, base in zip(seen, formula, strict=True)])
            for index in (1, 2, 3)
        ]
        mended = replace(before, correction=Correction(lines[0], lines[1], lines[2], "fake step"))
        return replace(self, variants={**self.variants, (method, checkpointing): mended})

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: what planner.js computes with."""
        return {
            "tile": TILE_ROWS,
            "held": HELD,
            "doubt": {"one": UNCERTAINTY, "several": UNCERTAINTY + SHARDED_DOUBT},
            "variants": {
                f"{one.method}:{'on' if one.checkpointing else 'off'}": {
                    "moments": {
                        name: {part: list(c) for part, c in parts.items()} for name, parts in one.moments.items()
                    },
                    "gathered": one.gathered_gib,
                    "outside": list(one.outside_gib),
                    "correction": None if one.correction is None else vars(one.correction),
                }
                for one in self.variants.values()
            },
        }


def surface(shape: Shape, step: Step) -> Surface:
    """The surface of a model by formula.

    Args:
        step: Its number format, targets, optimizer, loss and device are kept; method, checkpointing, batch, sequence and
            rank are what the surface is over.
    """
    variants = {
        (method, checkpointing): _variant(shape, replace(step, method=method, checkpointing=checkpointing))
        for method in get_args(Method)
        for checkpointing in (True, False)
    }
    return Surface(shape, step, variants)


def _variant(shape: Shape, step: Step) -> Variant:
    def bytes_at(tokens: int, rank: int) -> dict[str, dict[str, float]]:
        return moments(shape, replace(step, micro_batch=1, seq=tokens, rank=rank))

    one, tile, twice, thrice = (bytes_at(tokens, 8) for tokens in (1, TILE_ROWS, 2 * TILE_ROWS, 3 * TILE_ROWS))
    wider = bytes_at(1, 16)
    found: dict[str, dict[str, Coefficients]] = {}
    for moment, parts in one.items():
        found[moment] = {}
        for part, base in parts.items():
            token = (thrice[moment][part] - twice[moment][part]) / TILE_ROWS
            tiled = (tile[moment][part] - base) / (TILE_ROWS - 1) - token
            rank = (wider[moment][part] - base) / 8
            fixed = base - token - tiled - 8 * rank
            found[moment][part] = (fixed / GIB, token / GIB, tiled / GIB, rank / GIB)
    width = 4 if step.dtype == "float32" or (step.method == "full" and step.dtype == "float16") else 2
    layer = shape.linear_params / shape.layers * (NF4_BYTES if step.method == "qlora" else width)
    whole = shape.vocab * shape.hidden * width
    return Variant(step.method, step.checkpointing, found, (2 * layer + whole) / GIB, outside(step))


def _evaluate(parts: Mapping[str, Coefficients], tokens: int, rank: int) -> dict[str, float]:
    tiled = min(tokens, TILE_ROWS)
    return {name: c[0] + c[1] * tokens + c[2] * tiled + c[3] * rank for name, c in parts.items()}


def _sharded(parts: Mapping[str, float], gathered: float, gpus: int) -> dict[str, float]:
    share = {name: gib / gpus if name in HELD else gib for name, gib in parts.items()}
    return {**share, "gathered weights": gathered}


def _line(line: Line, tokens: int) -> float:
    return line[0] + line[1] * tokens


def _through(points: Sequence[tuple[int, float]]) -> Line:
    """The line through one (level) or two points."""
    (first, start), (last, end) = points[0], points[-1]
    slope = (end - start) / (last - first) if last != first else 0.0
    return start - slope * first, slope


def _most(fits: Any, limit: int) -> int:
    """The largest number from 1 to `limit` for which `fits` holds; 0 when it holds for none. It holds up to some number."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
