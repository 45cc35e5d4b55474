"""What a training step costs: the step itself run on fake tensors, the formula, and what fits where."""

from __future__ import annotations

from nbkit.memory.fits import Fit, Fits, fits
from nbkit.memory.formula import Estimate, Part, Step, estimate
from nbkit.memory.measured import Measured, measured_step
from nbkit.memory.predict import Peak, Prediction, predict
from nbkit.memory.program import Program
from nbkit.memory.shapes import SHAPES, Shape, shape
from nbkit.memory.trace import Trace

__all__ = [
    "SHAPES", "Estimate", "Fit", "Fits", "Measured", "Part", "Peak", "Prediction", "Program", "Shape", "Step", "Trace", "estimate",
    "fits", "measured_step", "predict", "shape",
]  # fmt: skip
