"""The doctor's rules as data: what to look for, what it means, what to paste, what it blocks. One per known symptom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from nbkit.hardware.facts import Facts

Severity = Literal["blocker", "warning", "note"]


@dataclass(frozen=True)
class Hit:
    """A rule that holds: the values that were seen, and what differs from the rule's own text in this case."""

    evidence: tuple[str, ...]
    severity: Severity | None = None
    fix: str | None = None


def seen(*evidence: str, severity: Severity | None = None, fix: str | None = None) -> Hit:
    return Hit(evidence, severity, fix)


@dataclass(frozen=True)
class Rule:
    """One thing that goes wrong.

    Attributes:
        id: Stable, for scripts.
        symptom: Number in the list of symptoms that the rules came from; 0 for those added since.
        severity: blocker: the methods in `blocks` will fail. warning: they will be slow, wrong or fragile. note: good to know.
        blocks: full, LoRA, QLoRA, bf16, flash attention, several GPUs, GPU, loading, downloads, data workers.
        explanation: Why, in a sentence or two.
        fix: To paste, or to do.
        look: The facts that show it, or None.
        says: A pattern of the error's own text: it fires too where that was met.
        source: Threads where it was found; "from memory" where there is none.
    """

    id: str
    symptom: int
    severity: Severity
    blocks: tuple[str, ...]
    explanation: str
    fix: str
    look: Callable[[Facts], Hit | None]
    says: str = ""
    source: str = ""


def all_rules() -> tuple[Rule, ...]:
    """Every rule, from the driver up to the run."""
    from nbkit.hardware import rules_gpu, rules_host, rules_run, rules_stack

    return (*rules_gpu.RULES, *rules_stack.RULES, *rules_host.RULES, *rules_run.RULES)
