"""Quality, counted: score a model, compare it with its base, see what it forgot, export it unharmed, describe it.

The modules are loaded here, not on first use: `score`, `compare`, `forgetting` and `export` are verbs and modules of one
name, and a module that is loaded later would take the verb's place. None of them imports torch or matplotlib.
"""

from __future__ import annotations

from nbkit.evaluation.card import Data, model_card
from nbkit.evaluation.compare import Comparison, Pair, compare
from nbkit.evaluation.export import Export, check_folder, export
from nbkit.evaluation.forgetting import Forgetting, forgetting
from nbkit.evaluation.loss import completion_loss
from nbkit.evaluation.score import Output, Score, score
from nbkit.evaluation.stats import Difference

__all__ = [
    "Comparison",
    "Data",
    "Difference",
    "Export",
    "Forgetting",
    "Output",
    "Pair",
    "Score",
    "check_folder",
    "compare",
    "completion_loss",
    "export",
    "forgetting",
    "model_card",
    "score",
]
