"""What a training step costs: the formula, the shapes of well-known models, and what fits where."""

from __future__ import annotations

from nbkit.memory.fits import Fit, Fits, fits
from nbkit.memory.formula import Estimate, Part, Step, estimate
from nbkit.memory.shapes import SHAPES, Shape, shape

__all__ = ["SHAPES", "Estimate", "Fit", "Fits", "Part", "Shape", "Step", "estimate", "fits", "shape"]
