"""What a training step costs, what fits where, and how long it takes: by fake steps, by formula, by measurement."""

from __future__ import annotations

from nbkit.memory.batches import Feed, compose
from nbkit.memory.benchmark import benchmark
from nbkit.memory.calibration import Calibration, calibrate
from nbkit.memory.fits import Fit, Fits, fits
from nbkit.memory.formula import Estimate, Part, Step, estimate
from nbkit.memory.frameworks import Framework, frameworks
from nbkit.memory.lengths import Prophecy, prophecy
from nbkit.memory.measured import Measured, measured_step
from nbkit.memory.option import Option, Wish
from nbkit.memory.plan import Plan, plan
from nbkit.memory.predict import Peak, Prediction, predict
from nbkit.memory.program import Program
from nbkit.memory.shapes import SHAPES, Shape, shape
from nbkit.memory.time import Duration, Load, Rates, duration, remaining
from nbkit.memory.trace import Trace

__all__ = [
    "SHAPES", "Calibration", "Duration", "Estimate", "Feed", "Fit", "Fits", "Framework", "Load", "Measured", "Option", "Part",
    "Peak", "Plan", "Prediction", "Program", "Prophecy", "Rates", "Shape", "Step", "Trace", "Wish", "benchmark", "calibrate",
    "compose", "duration", "estimate", "fits", "frameworks", "measured_step", "plan", "predict", "prophecy", "remaining",
    "shape",
]  # fmt: skip
