"""What is wrong here, and how to mend it: every rule over the facts, worst first."""

from __future__ import annotations

import importlib.util
import os
import re
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import Any

from nbkit.display import Table
from nbkit.hardware import imports
from nbkit.hardware.facts import Facts, Wanted
from nbkit.hardware.machine import Machine, probe
from nbkit.hardware.rules import Hit, Rule, Severity, all_rules
from nbkit.hardware.stack import Ask
from nbkit.hardware.stack import stack as ask_stack
from nbkit.redact import redact

_ORDER = ("blocker", "warning", "note")
_COLOURS = {"blocker": "#c62828", "warning": "#b26a00", "note": "#546e7a"}


@dataclass(frozen=True)
class Finding:
    """One rule that holds here.

    Attributes:
        evidence: The values that were seen.
        blocks: What will not work (blocker), or is at risk (warning).
    """

    id: str
    severity: Severity
    evidence: tuple[str, ...]
    explanation: str
    fix: str
    blocks: tuple[str, ...]
    source: str

    def __str__(self) -> str:
        blocked = f" [{', '.join(self.blocks)}]" if self.severity != "note" else ""
        fix = self.fix.replace("\n", "\n         ")
        lines = (
            f"{self.severity}: {self.id}{blocked}",
            f"  Seen:  {'; '.join(self.evidence)}",
            f"  Why:   {self.explanation}",
            f"  Fix:   {fix}",
        )
        return "\n".join(lines)


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found. Shows itself; `.ok` is False when something blocks.

    Attributes:
        findings: Worst first.
        checked: How many rules were applied.
        skipped: What was not looked at, and why.
    """

    findings: tuple[Finding, ...]
    checked: int
    skipped: tuple[str, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.blockers

    @property
    def blockers(self) -> tuple[Finding, ...]:
        return tuple(one for one in self.findings if one.severity == "blocker")

    @property
    def blocked(self) -> tuple[str, ...]:
        """Methods that will not work as things stand."""
        return tuple(dict.fromkeys(method for one in self.blockers for method in one.blocks))

    @property
    def exit_code(self) -> int:
        return 0 if self.ok else 5

    @property
    def summary(self) -> str:
        """One line: how many of each."""
        counts = [(kind, sum(one.severity == kind for one in self.findings)) for kind in _ORDER]
        said = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts if count)
        blocked = f"; blocked: {', '.join(self.blocked)}" if self.blocked else ""
        return f"{said or 'nothing wrong found'} ({self.checked} rules in {self.seconds:.1f} s){blocked}"

    def table(self) -> Table:
        """One row a finding."""
        rows = [(one.severity, one.id, "; ".join(one.evidence), one.fix) for one in self.findings]
        return Table(("severity", "finding", "seen", "fix"), rows, title=f"Doctor: {self.summary}", notes=self.skipped)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "ok": self.ok,
            "blocked": list(self.blocked),
            "findings": [asdict(one) for one in self.findings],
            "checked": self.checked,
            "skipped": list(self.skipped),
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        return "\n".join([f"Doctor: {self.summary}", *(f"\n{one}" for one in self.findings), *self.skipped])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        parts = [f"<div style='font-weight:600'>Doctor: {escape(self.summary)}</div>"]
        for one in self.findings:
            blocked = (
                f" <span style='opacity:.7'>{escape(', '.join(one.blocks))}</span>" if one.severity != "note" else ""
            )
            parts.append(
                f"<details{' open' if one.severity == 'blocker' else ''} style='margin:.3em 0'>"
                f"<summary><b style='color:{_COLOURS[one.severity]}'>{one.severity}</b> {escape(one.id)}{blocked}: "
                f"{escape('; '.join(one.evidence))}</summary>"
                f"<div style='margin:.2em 1.2em'>{escape(one.explanation)}"
                f"<pre style='margin:.3em 0;white-space:pre-wrap'>{escape(one.fix)}</pre></div></details>"
            )
        parts += [f"<div style='opacity:.75'>{escape(one)}</div>" for one in self.skipped]
        return f"<div>{''.join(parts)}</div>"


def diagnose(facts: Facts, rules: Sequence[Rule] | None = None) -> tuple[Finding, ...]:
    """Apply the rules to facts, from this machine or another; worst first, in the rules' order.

    A rule that fails on facts it did not expect is itself reported, as a note: one odd machine must not hide the rest.
    """
    found = []
    for rule in rules if rules is not None else all_rules():
        try:
            hit = rule.look(facts) or _said(rule, facts.error)
        except Exception as error:
            hit = Hit(
                (f"the rule failed: {type(error).__name__}: {error}",),
                "note",
                "please report it, with `nbkit check --json`",
            )
        if hit:
            evidence = tuple(redact(text) for text in hit.evidence)
            found.append(
                Finding(
                    rule.id,
                    hit.severity or rule.severity,
                    evidence,
                    rule.explanation,
                    hit.fix or rule.fix,
                    rule.blocks,
                    rule.source,
                )
            )
    return tuple(sorted(found, key=lambda one: _ORDER.index(one.severity)))


def _said(rule: Rule, error: str) -> Hit | None:
    """The line of the error that the rule knows."""
    if not rule.says or not error:
        return None
    found = re.search(rule.says, error)
    if found is None:
        return None
    start = error.rfind("\n", 0, found.start()) + 1
    end = error.find("\n", found.end())
    return Hit((error[start : end if end >= 0 else None].strip()[:300],))


def doctor(
    *,
    args: Any = None,
    model: Any = None,
    error: BaseException | str | None = None,
    disk_gib: float | None = None,
    fast: bool = False,
    machine: Machine | None = None,
    timeout_s: float = 120.0,
) -> Diagnosis:
    """Find what is wrong with this machine and its training stack, and say how to mend it.

    torch and bitsandbytes are imported in a child process, ended with all it started after `timeout_s`: a broken stack
    cannot hang or crash this one. Without torch nothing is imported, and the whole takes under three seconds.

    Args:
        args: A TrainingArguments or SFTConfig: judged against the GPU.
        model: A loaded model: device map, trainable number formats, attention.
        error: The exception or text that a run ended with: rules that know it say what it means.
        disk_gib: What the run will write, to judge the disks by.
        fast: Leave out the child process and the disks' speed.
        machine: From probe(); probed now when not given.
    Returns: A Diagnosis; print it, or read `.findings`, `.blocked`, `.ok`.
    Not covered: the network; whether gradients are right (nbkit.models.self_test does that).
    """
    began = time.monotonic()
    machine = machine or probe(read_speed=not fast)
    wanted = Wanted.of(args, model)
    if disk_gib is not None:
        wanted = replace(wanted, disk_gib=disk_gib)
    has_torch = importlib.util.find_spec("torch") is not None  # also one without a record, which `packages` misses
    return examine(
        machine, None if fast else imports.ask, wanted, error, has_torch=has_torch, own_pid=os.getpid(),
        timeout_s=timeout_s, began=began,
    )  # fmt: skip


def examine(
    machine: Machine,
    ask: Ask | None,
    wanted: Wanted = Wanted(),  # noqa: B008 - frozen
    error: BaseException | str | None = None,
    *,
    has_torch: bool,
    own_pid: int | None = None,
    timeout_s: float = 120.0,
    began: float,
) -> Diagnosis:
    """Judge a machine, this one or another: what `doctor` does once it has the facts.

    Args:
        machine: From probe(), or from the facts of a box.
        ask: What imports torch there in a child process; None to leave that out.
        has_torch: Whether torch is installed there at all.
        own_pid: This process, where the machine is this one: what it holds itself is no finding.
        began: When the looking began, by time.monotonic().
    """
    skipped = []
    stack = None
    if ask is None:
        skipped.append("Not looked at (fast): torch and bitsandbytes, how fast the disks are read.")
    elif not has_torch:
        skipped.append("Not looked at: torch and bitsandbytes, which are not installed here.")
    else:
        stack = ask_stack(machine, timeout_s=timeout_s, ask=ask)
    skipped += [f"Not read: {problem}." for problem in machine.problems]
    findings = diagnose(Facts(machine, stack, wanted, _text(error), own_pid))
    return Diagnosis(findings, len(all_rules()), tuple(skipped), time.monotonic() - began)


def _text(error: BaseException | str | None) -> str:
    if isinstance(error, BaseException):
        return "".join(traceback.format_exception(error))
    return error or ""
