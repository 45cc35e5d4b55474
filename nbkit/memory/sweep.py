"""Memory as a surface over batch, sequence, rank and GPUs: evaluated in microseconds, here and in the planner's sliders.

A part of the peak is affine in the tokens T of the micro-batch, in min(T, 4096) (the loss works in tiles), in the rank
and, over several GPUs, in 1/N: a few numbers a part and moment, taken from the formula and from nbkit.memory.distributed
by evaluating them at a dozen points. Where torch is at hand, two fake steps of a variant set its surface for one device
right: the difference to the formula, a line in T, is added to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

from nbkit.hardware.parts import GIB
from nbkit.memory import distributed
from nbkit.memory.formula import TILE_ROWS, UNCERTAINTY, Estimate, Method, Part, Step, moments, outside
from nbkit.memory.shapes import Shape

How = Literal["one", "each", "sharded"]  # one device; a copy on each of several (DDP); weights split over them (FSDP)
STRATEGY: Mapping[How, distributed.Strategy] = {"each": "ddp", "sharded": "fsdp"}
_NOTHING = 1e-9  # GiB: what is left of a part that cancels out
Coefficients = tuple[float, ...]  # GiB: fixed, a token, a token of the first tile, a rank; then the same over N
Line = tuple[float, float]  # GiB: fixed, a token
Parts = Mapping[str, Mapping[str, Coefficients]]  # of each moment where the peak can lie


@dataclass(frozen=True)
class Way:
    """One variant on one device or several: its parts, and how far the sum may be off.

    Attributes:
        doubt: Share of the allocated peak.
        outside_gib: What the process holds beside its tensors, least and most.
        safe_share: The most of a device that may be filled by the estimate, where such a rule holds; else 1.
    """

    moments: Parts
    doubt: float
    outside_gib: tuple[float, float]
    safe_share: float = 1.0


@dataclass(frozen=True)
class Correction:
    """What fake steps said beyond the formula; each line is added to the formula's allocated peak."""

    allocated: Line
    low: Line
    high: Line
    basis: str


@dataclass(frozen=True)
class Variant:
    """One method, with or without checkpointing. `correction` is from fake steps on one device, where there were any."""

    method: Method
    checkpointing: bool
    ways: Mapping[How, Way]
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

    def at(
        self,
        method: Method,
        checkpointing: bool,
        batch: int,
        seq: int,
        *,
        rank: int = 16,
        gpus: int = 1,
        how: How = "one",
    ) -> Point:
        """The peak for `batch` x `seq` tokens on each of `gpus` devices."""
        variant, tokens = self.variants[method, checkpointing], batch * seq
        way = variant.ways[how]
        found = {name: _evaluate(parts, tokens, rank, gpus) for name, parts in way.moments.items()}
        moment = max(found, key=lambda name: sum(found[name].values()))
        parts = {name: gib for name, gib in found[moment].items() if gib > _NOTHING}
        formula = sum(parts.values())
        mended = variant.correction if how == "one" else None
        if mended is None:
            least, most = way.outside_gib
            high = max(formula * (1 + way.doubt) + most, formula / way.safe_share)
            return Point(parts, moment, formula * (1 - way.doubt) + least, high, "formula")
        more = _line(mended.allocated, tokens)
        if more > 0:
            parts["seen in a fake step"] = more
        elif formula + more > 0:
            parts = {name: gib * (formula + more) / formula for name, gib in parts.items()}
        low, high = formula + _line(mended.low, tokens), formula + _line(mended.high, tokens)
        return Point(parts, moment, low, high, mended.basis)

    def largest_batch(self, room_gib: float, method: Method, checkpointing: bool, seq: int, **where: Any) -> int:
        """Rows of `seq` tokens that fit for sure; 0 when not even one does."""
        return _most(lambda batch: self.at(method, checkpointing, batch, seq, **where).high_gib <= room_gib, 4096)

    def longest_seq(self, room_gib: float, method: Method, checkpointing: bool, batch: int = 1, **where: Any) -> int:
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
            "variants": {
                f"{one.method}:{'on' if one.checkpointing else 'off'}": {
                    "ways": {
                        how: {
                            "moments": way.moments,
                            "doubt": way.doubt,
                            "outside": way.outside_gib,
                            "safe": way.safe_share,
                        }
                        for how, way in one.ways.items()
                    },
                    "correction": None if one.correction is None else vars(one.correction),
                }
                for one in self.variants.values()
            },
        }


@lru_cache(maxsize=64)
def surface(shape: Shape, step: Step) -> Surface:
    """The surface of a model by formula; kept, for a plan asks for the same one many times.

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
    def alone(tokens: int, rank: int) -> dict[str, dict[str, float]]:
        found = moments(shape, replace(step, micro_batch=1, seq=tokens, rank=rank))
        return {name: {part: size / GIB for part, size in parts.items()} for name, parts in found.items()}

    def among(how: How, gpus: int, tokens: int, rank: int) -> dict[str, dict[str, float]]:
        asked = replace(step, micro_batch=1, seq=tokens, rank=rank)
        spread_as = distributed.How(
            STRATEGY[how],
            gpus,
            quant_storage_float=step.method == "qlora",
            optimizer_8bit=step.optimizer == "adamw_8bit",
        )
        found = {}
        for name, parts in alone(tokens, rank).items():
            estimate = Estimate(shape, asked, name, tuple(Part(part, gib) for part, gib in parts.items()))
            found[name] = dict(distributed.spread(distributed.Alone.of(estimate), spread_as).worst)
        return found

    ways: dict[How, Way] = {"one": Way(_affine(alone), UNCERTAINTY, outside(step))}
    if step.device == "cuda":
        for how in STRATEGY:
            two, four = (_affine(lambda t, r, h=how, n=gpus: among(h, n, t, r)) for gpus in (2, 4))  # type: ignore[misc]
            bar = distributed.BARS[STRATEGY[how]]
            ways[how] = Way(_over_gpus(two, four), bar, distributed.OUTSIDE_GIB, distributed.SAFE_SHARE)
    return Variant(step.method, step.checkpointing, ways)


def _affine(at: Callable[[int, int], dict[str, dict[str, float]]]) -> dict[str, dict[str, Coefficients]]:
    """Coefficients of each part, from its values at five places (tokens, rank)."""
    one, tile, twice, thrice = (at(tokens, 8) for tokens in (1, TILE_ROWS, 2 * TILE_ROWS, 3 * TILE_ROWS))
    wider = at(1, 16)
    found: dict[str, dict[str, Coefficients]] = {}
    for moment, parts in one.items():
        found[moment] = {}
        for part, base in parts.items():
            token = (thrice[moment][part] - twice[moment][part]) / TILE_ROWS
            tiled = (tile[moment][part] - base) / (TILE_ROWS - 1) - token
            rank = (wider[moment][part] - base) / 8
            found[moment][part] = (base - token - tiled - 8 * rank, token, tiled, rank)
    return found


def _over_gpus(two: Parts, four: Parts) -> dict[str, dict[str, Coefficients]]:
    """Each coefficient as one number and one over N, from its values for two and four devices."""
    return {
        moment: {
            part: (
                *(2 * b - a for a, b in zip(half, four[moment][part], strict=True)),
                *(4 * (a - b) for a, b in zip(half, four[moment][part], strict=True)),
            )
            for part, half in parts.items()
        }
        for moment, parts in two.items()
    }


def _evaluate(parts: Mapping[str, Coefficients], tokens: int, rank: int, gpus: int) -> dict[str, float]:
    here: tuple[float, ...] = (1.0, tokens, min(tokens, TILE_ROWS), rank)
    grid = here + tuple(value / gpus for value in here)
    return {name: sum(c * x for c, x in zip(coefficients, grid, strict=False)) for name, coefficients in parts.items()}


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
