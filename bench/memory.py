"""Predicted against published memory of 260 runs: nbkit, its formula, and every estimator on PyPI, on the same rows.

What is measured: |predicted / measured - 1| of the peak, in the sense the row was measured in (live tensors, reserved by
the allocator, the whole device, or, of the longest row that fits a card, the least it runs with). Rows that are left out
are counted by their reason. Every run did fit its card, so nbkit is also asked whether it does: a run told to fail has a
low end above what the card can use. Peers answer with one figure, whatever was measured; each is asked through its own
code (bench/_peer_worker.py) and compared with nbkit on those rows only that it answers.
"""

from __future__ import annotations

import functools
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from bench import CannotRunError, Figures, Goal, _memory_calls, _memory_rows, _peers
from nbkit.display import Table

EXACT = "transformers 4.57 + peft (plain loop)"
NBKIT, FORMULA = "nbkit", "nbkit's formula"
METHODS = ("full", "lora", "qlora")
KINDS = {"allocated_gib": "allocated", "reserved_gib": "reserved", "device_gib": "device", "needed_gib": "device"}
LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Other families' names for the same maps; a fused one stands for all it holds.
SAME = {
    "dense": ("o_proj",), "out_proj": ("o_proj",), "c_proj": ("o_proj",), "fc1": ("up_proj",), "fc2": ("down_proj",),
    "query_key_value": ("q_proj", "k_proj", "v_proj"), "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "c_attn": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj"),
    "dense_h_to_4h": ("up_proj",), "dense_4h_to_h": ("down_proj",), "w1": ("gate_proj",), "w2": ("up_proj",),
}  # fmt: skip
UNDER = 0.10
# The csv's names of cards where nbkit.hardware calls them otherwise.
CARDS = {
    "A10G-24GB": "A10G", "RTX A6000-48GB": "RTX A6000", "A6000-48GB": "RTX A6000", "L40S-48GB": "L40S",
    "RTX4090-24GB": "RTX 4090", "RTX3090-24GB": "RTX 3090",
}  # fmt: skip


@dataclass
class Case:
    """One row, and what each estimator said of it in GiB; a text where it said nothing."""

    row: _memory_rows.Row
    call: _memory_calls.Call
    said: dict[str, float | str] = field(default_factory=dict)
    low_gib: float | None = None
    high_gib: float | None = None

    def error(self, name: str) -> float | None:
        """Signed, as a share of what was measured."""
        said = self.said.get(name)
        return said / self.row.measured_gib - 1 if isinstance(said, float) else None


def run(only: str = "") -> Figures:
    """Ask everyone about every row.

    Args:
        only: Rows whose framework begins with this, asked of nbkit alone; "" for all.
    Raises: CannotRunError when the peers cannot be installed or asked, or no row is left.
    """
    start = time.monotonic()
    rows = [row for row in _memory_rows.rows() if row.framework.startswith(only)]
    if not rows:
        raise CannotRunError(f"no framework begins with {only!r}; there is: {', '.join(_memory_rows.frameworks())}")
    cases, left_out = [], Counter[tuple[str, str]]()
    for row in rows:
        try:
            cases.append(Case(row, _memory_calls.call(row)))
        except _memory_calls.LeftOutError as why:
            left_out[row.framework, str(why)] += 1
    _ask_nbkit(cases)
    if not only:
        _ask_peers(cases)
    above = sum(_above(case) for case in cases)
    notes = [
        f"{above} of {len(cases)} were measured above the high end that nbkit gave for the device.",
        f"{time.monotonic() - start:.0f} s.",
    ]
    against = _row_by_row(cases, notes) if only else _against(cases, notes)
    tables = [_by_framework(cases), _by_method(cases), _decisions(cases), against, _reasons(left_out)]
    data = [{"id": c.row.id, "framework": c.row.framework, "measured_gib": c.row.measured_gib, **c.said} for c in cases]
    return Figures("Peak memory, predicted against measured", tables, _goals(cases), data)


def _reasons(left_out: Counter[tuple[str, str]]) -> Table:
    rows = [[framework, why, count] for (framework, why), count in sorted(left_out.items())]
    return Table(["framework", "not asked, because", "rows"], [*rows, ["all", "", left_out.total()]], "Rows left out")


def _ask_nbkit(cases: Sequence[Case]) -> None:
    from nbkit.memory import predict

    for index, case in enumerate(cases, start=1):
        print(f"\rbench: row {index} of {len(cases)} ({case.row.id}) ", end="", file=sys.stderr, flush=True)
        try:
            found = predict(case.call.model, **case.call.options)
            if case.call.how is None:
                case.said[NBKIT] = float(getattr(found, case.call.compare))
                case.low_gib, case.high_gib = found.low_gib, found.high_gib
            else:
                _share(case, found)
        except Exception as error:  # a row that cannot be predicted is a finding of the benchmark, not its end
            case.said[NBKIT] = f"failed: {str(error).splitlines()[0][:120]}"
        case.said[FORMULA] = _formula(case)
    print("\r", end="", file=sys.stderr)


def _share(case: Case, found: Any) -> None:
    """One device's share of a step that is spread over several, in the sense that the row was measured in."""
    from nbkit.memory.distributed import OUTSIDE_GIB, spread

    share = spread(found.alone, case.call.how)
    # What is cached and of no use lies between activations and logits, which each device has for itself.
    reserved = share.allocated_gib + found.reserved_gib - found.allocated_gib
    outside = sum(OUTSIDE_GIB) / 2
    said = {"allocated_gib": share.allocated_gib, "reserved_gib": reserved, "device_gib": reserved + outside}
    case.said[NBKIT] = said[case.call.compare] * case.call.devices
    case.low_gib, case.high_gib = share.low_gib * case.call.devices, share.high_gib * case.call.devices


def _formula(case: Case) -> float | str:
    from nbkit.errors import NbkitError
    from nbkit.memory import Shape, Step, estimate

    question = _question(case)
    if question is None or question.n_gpu > 1:
        return "unsupported"
    program = case.call.options.get("program")
    if question.attn == "eager":
        return "unsupported: eager attention"
    if question.amp and question.method != "full":
        return "unsupported: adapters on float32 weights"
    try:
        found = estimate(
            Shape.from_config(case.call.model),
            Step(
                question.method,
                question.seq,
                question.batch,
                dtype="float16" if question.amp else "float32" if question.dtype == "fp32" else "bfloat16",
                rank=question.rank or 16,
                targets="attention" if not set(question.targets) & set(LLAMA[4:]) else "all-linear",
                checkpointing=question.checkpointing,
                accumulation=bool(case.call.options.get("accumulates")) or not getattr(program, "set_to_none", True),
                optimizer="adamw_8bit" if "8bit" in question.optimizer else "adamw",
                loss="logits" if getattr(program, "loss", "plain") == "plain" else "fused",
            ),
        )
    except NbkitError as error:
        return f"unsupported: {error.message[:80]}"
    if question.kind == "device":
        return (found.low_gib + found.high_gib) / 2
    return found.allocated_gib


def _ask_peers(cases: Sequence[Case]) -> None:
    asked = [(case, question) for case in cases if (question := _question(case)) is not None]
    answers = _peers.installed().ask([question for _, question in asked])
    for name, found in answers.items():
        for (case, _), answer in zip(asked, found, strict=True):
            said = f"unsupported: {answer.unsupported}" if answer.unsupported else f"failed: {answer.failed}"
            case.said[name] = said if answer.gib is None else answer.gib
        for case in cases:
            case.said.setdefault(name, "unsupported: training method")


def _question(case: Case) -> _peers.Question | None:
    fields, options, config = case.row.fields, case.call.options, case.call.model
    if fields["method"] not in METHODS:
        return None
    lora = options.get("peft_config")
    program = options.get("program")
    dtype = options.get("dtype") or "bfloat16"
    quantised = options.get("quantization_config")
    return _peers.Question(
        id=case.row.id,
        config=config.to_dict(),
        params=_params(fields["model"]),
        method=fields["method"],  # type: ignore[arg-type]  # one of METHODS
        rank=lora.r if lora is not None else 0,
        targets=_targets(lora.target_modules) if lora is not None else (),
        batch=options["batch"],
        seq=options["seq"],
        checkpointing=bool(options.get("checkpointing")),
        optimizer=_optimizer(fields["optimizer"]),
        dtype={"bfloat16": "bf16", "float16": "fp16"}.get(dtype, "bf16" if _amp(program) else "fp32"),  # type: ignore[arg-type]
        amp=_amp(program) and dtype == "float32",
        attn=getattr(program, "attention", "sdpa"),
        double_quant=bool(getattr(quantised, "bnb_4bit_use_double_quant", False)),
        gpu_gib=_card_gib(fields["gpu"]),
        n_gpu=int(fields["n_gpu"]),
        sharding=_sharding(case.row.framework),
        kind=KINDS[case.call.compare],  # type: ignore[arg-type]  # the names of _peers.Question
    )


@functools.cache
def _params(name: str) -> int:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return sum(one.numel() for one in AutoModelForCausalLM.from_config(_memory_rows.config(name)).parameters())


def _targets(modules: str | Iterable[str]) -> tuple[str, ...]:
    """In Llama's names, for peers that know those only."""
    if isinstance(modules, str):
        return LLAMA
    return tuple(sorted({name for one in modules for name in SAME.get(one, (one,))}))


def _optimizer(text: str) -> str:
    text = text.lower()
    if "8" in text:
        return "paged_adamw_8bit" if "paged" in text else "adamw_8bit"
    return "adamw"


def _amp(program: Any) -> bool:
    return getattr(program, "autocast", None) is not None


def _card_gib(name: str) -> float:
    found = re.search(r"(\d+) ?GB", name)
    return float(found[1]) if found else 16.0 if "T4" in name else 24.0 if "L4" in name or "A10G" in name else 80.0


def _sharding(framework: str) -> str:
    return next((name for name in ("zero3", "zero2", "ddp", "fsdp") if name in framework), "")


def _room_gib(case: Case) -> float:
    """What the row's card can use; of a capacity row the capacity itself, which its run filled."""
    from nbkit.hardware import card

    name = case.row.fields["gpu"]
    if name.startswith("capacity"):
        return case.row.measured_gib
    return card(CARDS.get(name, name)).usable_gib * case.call.devices


def _wrongly_refused(case: Case) -> float | None:
    """By which share the low end exceeds the card that the run did fit; negative where it fits."""
    return case.low_gib / _room_gib(case) - 1 if case.low_gib is not None else None


def _wrongly_promised(case: Case) -> float | None:
    """By which share a capacity row, which nothing more fits beside, is promised room above the high end."""
    if case.high_gib is None or not case.row.fields["gpu"].startswith("capacity"):
        return None
    return 1 - case.high_gib / case.row.measured_gib


def _decisions(cases: Sequence[Case]) -> Table:
    rows = []
    for title, share in (
        ("fits, and was told not to", _wrongly_refused),
        ("full, and was told to have room", _wrongly_promised),
    ):
        found = [value for case in cases if (value := share(case)) is not None]
        wrong = [value for value in found if value > 0]
        rows.append(
            [title, len(found), len(wrong), sum(value > UNDER for value in wrong), f"{max(wrong, default=0):.0%}"]
        )
    return Table(["verdict", "runs", "wrong", "by >10 %", "worst"], rows, "Whether it fits the card it ran on")


def _above(case: Case) -> bool:
    return case.high_gib is not None and case.row.measured_gib > case.high_gib


def _errors(cases: Iterable[Case], name: str) -> list[float]:
    return [error for case in cases if (error := case.error(name)) is not None]


def _sum_up(errors: Sequence[float]) -> tuple[str, str, int]:
    """Median and worst of the absolute errors, in words, and how many fall short by more than UNDER."""
    if not errors:
        return "-", "-", 0
    sizes = [abs(error) for error in errors]
    worst = max(errors, key=abs)
    return f"{median(sizes):.1%}", f"{worst:+.0%}", sum(error < -UNDER for error in errors)


def _grouped(cases: Sequence[Case], key: Callable[[Case], str], title: str) -> Table:
    rows = []
    groups = sorted({key(case) for case in cases})
    for group in [*groups, "all"]:
        found = [case for case in cases if group in {key(case), "all"}]
        ours, formula = _errors(found, NBKIT), _errors(found, FORMULA)
        rows.append([group, len(found), len(ours), *_sum_up(ours), len(formula), *_sum_up(formula)[:2]])
    columns = ["", "rows", "nbkit answers", "median", "worst", "under by >10 %"]
    columns += ["formula answers", "its median", "its worst"]
    return Table(columns, rows, title=title)


def _by_framework(cases: Sequence[Case]) -> Table:
    return _grouped(cases, lambda case: case.row.framework, "nbkit.predict and nbkit.memory.estimate, by framework")


def _by_method(cases: Sequence[Case]) -> Table:
    def key(case: Case) -> str:
        return f"{case.row.fields['method']}, {KINDS[case.call.compare]}"

    return _grouped(cases, key, "The same, by method and what was measured")


def _against(cases: Sequence[Case], notes: Sequence[str]) -> Table:
    rows = []
    versions = {**_peers.pins(), "kitsune": _peers.pins()["torch-kitsune"], "accelerate": _version("accelerate")}
    for name in (*_peers.APART, *_peers.TORCH, FORMULA):
        both = [case for case in cases if case.error(name) is not None and case.error(NBKIT) is not None]
        theirs, ours = _sum_up(_errors(both, name)), _sum_up(_errors(both, NBKIT))
        refused = sum(str(case.said.get(name, "")).startswith("unsupported") for case in cases)
        failed = sum(str(case.said.get(name, "")).startswith("failed") for case in cases)
        rows.append([f"{name} {versions.get(name, '')}".strip(), len(both), *theirs, *ours, refused, failed])
    columns = ["estimator", "rows", "median", "worst", "under by >10 %"]
    columns += ["nbkit there: median", "nbkit worst", "nbkit under", "unsupported", "failed"]
    return Table(columns, rows, title="Each estimator on the rows it answers, and nbkit on the same rows", notes=notes)


def _row_by_row(cases: Sequence[Case], notes: Sequence[str]) -> Table:
    rows = []
    for case in cases:
        error, said = case.error(NBKIT), case.said[NBKIT]
        found = f"{said:.2f}" if isinstance(said, float) else said
        what = " ".join(case.row.fields[name] for name in ("model", "method", "batch", "seq_len"))
        off = f"{error:+.1%}" if error is not None else "-"
        rows.append([case.row.id, what, f"{case.row.measured_gib:.2f}", found, off])
    return Table(
        ["row", "model, method, batch, tokens", "measured GiB", "nbkit", "off"], rows, "Row by row", notes=notes
    )


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)


def _goals(cases: Sequence[Case]) -> list[Goal]:
    exact = [abs(error) for error in _errors([c for c in cases if c.row.framework == EXACT], NBKIT)]
    every = [abs(error) for error in _errors(cases, NBKIT)]
    qlora = [abs(error) for error in _errors([c for c in cases if c.row.fields["method"] == "qlora"], NBKIT)]
    wrong = [value for c in cases for value in (_wrongly_refused(c), _wrongly_promised(c)) if value is not None]
    wanted = (
        ("exactly known program, median", exact, median, 0.01),
        ("exactly known program, worst", exact, max, 0.05),
        ("all rows, median", every, median, 0.06),
        ("QLoRA rows, median", qlora, median, 0.10),
        ("worst wrong verdict on a card", [0.0, *wrong], max, 0.10),
    )
    return [Goal(name, float(of(errors)), limit) for name, errors, of, limit in wanted if errors]
