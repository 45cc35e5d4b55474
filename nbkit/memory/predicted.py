"""How a Prediction comes about: read the objects, run the step at two depths, put the answer together."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from typing import Any, Literal

from nbkit.errors import require
from nbkit.memory import asked as asking
from nbkit.memory import depth, fake, kernels, source
from nbkit.memory.predict import GIB, Peak, Prediction
from nbkit.memory.program import Program
from nbkit.memory.step import Job, Ran, run

# Outside of torch's allocator: the CUDA context with its kernels, and what cuDNN and NCCL keep. Least and most seen.
CONTEXT_GIB = (0.3, 1.0)
PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate")
_cache: dict[str, tuple[Ran, ...]] = {}


def predicted(
    model: Any,
    args: Any,
    *,
    peft_config: Any,
    quantization_config: Any,
    dataset: Any,
    gpu: str | None,
    program: Program | None,
    batch: int | None,
    seq: int | None,
    dtype: str | None,
    checkpointing: bool | None,
    accumulates: bool | None,
    device: Literal["cuda", "cpu"] | None,
    trust_remote_code: bool,
) -> Prediction:
    """The work of `predict`; see there."""
    require("torch", "transformers", extra="train")
    found = source.read(model, trust_remote_code=trust_remote_code)
    if found.trainer is not None:
        args = args if args is not None else found.trainer.args
        dataset = dataset if dataset is not None else _tokenised(found.trainer)
    peft_config = peft_config if peft_config is not None else found.peft_config
    quantization_config = quantization_config if quantization_config is not None else found.quantization_config
    habits = program if program is not None else Program.of(args)
    if gpu is not None and device is None:
        device = "cuda"
    asked = asking.read(
        args, found, habits, full=peft_config is None, dataset=dataset, batch=batch, seq=seq, dtype=dtype, device=device
    )
    if checkpointing is not None:
        asked = dataclasses.replace(asked, checkpointing=(asked.checkpointing or {}) if checkpointing else None)
    if accumulates is not None:
        asked = dataclasses.replace(asked, accumulates=accumulates)
    if asked.device == "cpu":
        habits = _on_cpu(habits)
    task: fake.Task = found.task
    if getattr(peft_config, "task_type", None) == "SEQ_CLS":
        task = "sequence classification"
    wanted = fake.Wanted(found.config, asked.dtype, task, peft_config, quantization_config, trust_remote_code)
    job = Job(
        wanted, habits, asked.batch, asked.seq, asked.checkpointing, asked.accumulates, asked.packed, asked.device, args
    )
    return answer(found, job, asked, gpu)


def _on_cpu(program: Program) -> Program:
    """On a CPU torch.optim.AdamW steps parameter by parameter, and paged states are plain ones."""
    names = {"adamw foreach": "adamw", "adamw paged": "adamw 32-bit", "adamw paged 8-bit": "adamw 8-bit"}
    return program.but(optimizer=names.get(program.optimizer, program.optimizer))


def _tokenised(trainer: Any) -> Any:
    columns = getattr(trainer.train_dataset, "column_names", None) or ()
    return trainer.train_dataset if "input_ids" in columns else None


def answer(found: source.Source, job: Job, asked: asking.Asked, gpu: str | None) -> Prediction:
    """Run the job and put the Prediction together."""
    chosen = depth.depths(found.config, lambda: fake.layers_of(job.wanted))
    runs = _runs(job, chosen)
    peak = depth.peak([one.tally for one in runs], chosen)
    paged = depth.affine([one.paged for one in runs], chosen)
    params, trained = (round(depth.affine(list(pair), chosen)) for pair in zip(*((r.params, r.trained) for r in runs), strict=True))
    parts = {name: value / GIB for name, value in peak.parts.items() if value}
    if paged:
        parts["optimizer states"] = parts.get("optimizer states", 0.0) - paged / GIB
    if job.device == "cuda":
        parts["cuBLAS workspace"] = _workspace(gpu) / GIB
    allocated = sum(parts.values())
    reserved = allocated
    low_context, high_context = CONTEXT_GIB if job.device == "cuda" else (0.5, 1.5)
    bar = job.program.bar
    notes = [*found.notes, *asked.notes, *dict.fromkeys(doubt for one in runs for doubt in one.doubts)]
    if paged:
        notes.append(f"Paged optimizer states of {paged / GIB:.2f} GiB may leave the GPU; the high end counts them.")
    if not job.program.exact:
        notes.append(f"The loop of {job.program.name} is approximated with transformers' model code.")
    return Prediction(
        subject=_subject(found.name, job, params, trained),
        allocated_gib=allocated,
        reserved_gib=reserved,
        device_gib=reserved + sum((low_context, high_context)) / 2,
        low_gib=allocated * (1 - bar) + low_context,
        high_gib=reserved * (1 + bar) + high_context + paged / GIB,
        bar=f"±{bar:.0%} of the tensors, and {low_context:g} to {high_context:g} GiB outside of torch's allocator.",
        parts=parts,
        peak=Peak(peak.key.phase, peak.key.operator.replace("aten::", "aten."), peak.key.module),
        host_gib=0.0,
        disk={},
        notes=tuple(notes),
        basis="fake step",
        versions=versions(),
        batch=job.batch,
        seq=job.seq,
        program=job.program,
    )


def _runs(job: Job, chosen: depth.Depths) -> tuple[Ran, ...]:
    key = repr((
        job.wanted.config.to_json_string(use_diff=False), job.wanted.dtype, job.wanted.task, str(job.wanted.peft_config),
        str(job.wanted.quantization_config), job.program, job.batch, job.seq, job.checkpointing, job.accumulates,
        job.packed, job.device, str(getattr(job.args, "optim", "")), job.scored, chosen,
    ))  # fmt: skip
    if key not in _cache:
        while len(_cache) >= 32:
            _cache.pop(next(iter(_cache)))
        _cache[key] = tuple(run(job, layers, edge=chosen.edge) for layers in chosen.to_run)
    return _cache[key]


def _workspace(gpu: str | None) -> int:
    if gpu is not None:
        from nbkit.hardware import card

        if card(gpu).compute_capability[0] == 9:
            return kernels.CUBLAS_BYTES_HOPPER
    return kernels.CUBLAS_BYTES


def _subject(name: str, job: Job, params: int, trained: int) -> str:
    wanted = job.wanted
    quantised = wanted.quantization_config
    bits = "" if quantised is None else ("8-bit " if getattr(quantised, "load_in_8bit", False) else "4-bit ")
    adapter = str(getattr(getattr(wanted.peft_config, "peft_type", ""), "value", "")) or "adapter"
    method = "full" if wanted.peft_config is None else f"{bits}{adapter}"
    size = f"{params / 1e9:.2f}B" if params >= 1e9 else f"{params / 1e6:.0f}M"
    share = "" if wanted.peft_config is None else f", {trained / 1e6:.1f}M trained"
    return f"{name} ({size}{share}), {method}, {job.batch} x {job.seq} tokens, {wanted.dtype}"


def versions() -> Mapping[str, str]:
    """Of the packages whose behaviour a prediction rests on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
