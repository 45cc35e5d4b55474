"""How a Prediction comes about: read the objects, run the step at two depths, put the answer together."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
from collections.abc import Mapping
from typing import Any, Literal

from nbkit.errors import NbkitError, require
from nbkit.hardware.parts import GIB
from nbkit.memory import asked as asking
from nbkit.memory import depth, fake, kernels, source
from nbkit.memory import held as holding
from nbkit.memory.disk import Disk, host_gib, of_run
from nbkit.memory.distributed import Alone
from nbkit.memory.predict import Peak, Prediction, is_installed
from nbkit.memory.program import Program
from nbkit.memory.step import Job, Ran, run
from nbkit.memory.trace import Trace
from nbkit.memory.unroll import unroll

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
    if batch is not None and (isinstance(batch, bool) or batch < 1):
        raise NbkitError(f"batch={batch!r}: it must be a whole number of at least 1.", exit_code=2)
    _refuse_plain("args", args, "SFTConfig(max_length=1024, ...)")
    _refuse_plain("peft_config", peft_config, "LoraConfig(...)")
    found = source.read(model, trust_remote_code=trust_remote_code)
    if found.trainer is not None:
        args = args if args is not None else found.trainer.args
        dataset = dataset if dataset is not None else _tokenised(found.trainer)
    peft_config = peft_config if peft_config is not None else found.peft_config
    quantization_config = quantization_config if quantization_config is not None else found.quantization_config
    habits, doubts = (program, ()) if program is not None else _habits(args, found)
    if gpu is not None and device is None:
        device = "cuda"
    asked = asking.read(
        args,
        found,
        habits,
        full=peft_config is None,
        quantization=quantization_config,
        dataset=dataset,
        batch=batch,
        seq=seq,
        dtype=dtype,
        device=device,
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
        wanted, habits, asked.batch, asked.seq, asked.checkpointing, asked.accumulates, asked.packed, asked.device, args,
        asked.scored,
    )  # fmt: skip
    return answer(dataclasses.replace(found, notes=(*found.notes, *doubts)), job, asked, gpu)


def _refuse_plain(name: str, value: Any, wanted: str) -> None:
    """A dictionary or a word has none of the attributes that are read: all would be taken for left out.

    Raises: NbkitError.
    """
    if isinstance(value, (str, bytes, int, float, dict, list, tuple)):
        raise NbkitError(f"{name} is {type(value).__name__}, {value!r:.60}.", hint=f"give {name}={wanted}", exit_code=2)


def _habits(args: Any, found: source.Source) -> tuple[Program, tuple[str, ...]]:
    """The trainer's program with the attention that the model was or will be loaded with, and what is doubtful in it."""
    program = Program.of(args)
    if found.adapter_dtype is not None:
        program = program.but(adapter_dtype=found.adapter_dtype, compact_head=found.compact_head)
    doubts: list[str] = []
    asked = (getattr(args, "model_init_kwargs", None) or {}).get("attn_implementation")
    asked = str(asked or getattr(found.config, "_attn_implementation", None) or "sdpa")
    if asked == "eager":
        program = program.but(attention="eager")
    elif "flash" in asked:
        program = program.but(attention="flash")
        doubts.append(f"{asked}: counted as flash attention within torch, which keeps the same tensors and no mask.")
    elif asked != "sdpa":
        doubts.append(f"{asked}: counted as sdpa.")
    if getattr(args, "use_liger_kernel", False):
        doubts.append(
            "Liger's kernels do not run on fake tensors: the step is counted without them, which is the most it takes."
        )
        if not is_installed("liger_kernel"):
            doubts.append("liger_kernel is not installed here, and a trainer that asks for it refuses to begin.")
    return program, tuple(doubts)


def _on_cpu(program: Program) -> Program:
    """On a CPU torch.optim.AdamW steps parameter by parameter, and paged states are plain ones."""
    names = {"adamw foreach": "adamw", "adamw paged": "adamw 32-bit", "adamw paged 8-bit": "adamw 8-bit"}
    return program.but(optimizer=names.get(program.optimizer, program.optimizer))


def _tokenised(trainer: Any) -> Any:
    columns = getattr(trainer.train_dataset, "column_names", None) or ()
    return trainer.train_dataset if "input_ids" in columns else None


def answer(found: source.Source, job: Job, asked: asking.Asked, gpu: str | None) -> Prediction:
    """Run the job and put the Prediction together."""
    chosen = depth.depths(found.config, lambda: fake.layers_of(job.wanted), adapters=job.wanted.peft_config)
    replayed = job.device == "cuda"
    runs = _runs(job, chosen, trace=replayed)
    peak = depth.peak([one.tally for one in runs], chosen)
    paged = depth.affine([one.paged for one in runs], chosen)
    params = round(depth.affine([one.params for one in runs], chosen))
    trained = round(depth.affine([one.trained for one in runs], chosen))
    parts = {name: value / GIB for name, value in peak.parts.items() if value}
    if paged:
        parts["optimizer states"] = parts.get("optimizer states", 0.0) - paged / GIB
    if job.device == "cuda":
        parts["cuBLAS workspace"] = _workspace(gpu) / GIB
    allocated = sum(parts.values())
    trace_at = functools.partial(_trace, job, chosen)
    longest = _at_full_depth(runs[0], job, chosen) if replayed else None
    low_context, high_context = CONTEXT_GIB if job.device == "cuda" else (0.5, 1.5)
    usable = _usable(gpu) if job.device == "cuda" else None
    room = usable - low_context if usable is not None else None
    held = holding.held(job, asked.lengths, allocated, longest, trace_at, room_gib=room)
    bar, measured = _bar(job, gpu)
    device = held.gib + sum((low_context, high_context)) / 2
    most = held.worst_gib * (1 + bar) + high_context + paged / GIB
    if held.limited and usable is not None:  # what fragments goes back to the driver before a run fails
        device, most = min(device, usable), min(most, max(usable, allocated * (1 + bar) + high_context + paged / GIB))
    notes = [*found.notes, *asked.notes, *dict.fromkeys(doubt for one in runs for doubt in one.doubts)]
    files, unsure = _disk(job, asked, params, trained, local=found.local)
    notes += [*measured, *held.notes, *unsure]
    if paged:
        notes.append(f"Paged optimizer states of {paged / GIB:.2f} GiB may leave the GPU; the high end counts them.")
    if not job.program.exact:
        notes.append(f"The loop of {job.program.name} is approximated with transformers' model code.")
    return Prediction(
        subject=_subject(found.name, job, params, trained),
        allocated_gib=allocated,
        reserved_gib=held.gib,
        device_gib=device,
        low_gib=allocated * (1 - bar) + low_context,
        high_gib=most,
        bar=f"±{bar:.0%} of the tensors, and {low_context:g} to {high_context:g} GiB outside of torch's allocator.",
        parts=parts,
        peak=Peak(peak.key.phase, peak.key.operator.replace("aten::", "aten."), peak.key.module),
        host_gib=host_gib(2 * params)[0],
        disk=files.as_mapping(),
        notes=tuple(notes),
        basis="fake step",
        versions=versions(),
        batch=job.batch,
        seq=job.seq,
        program=job.program,
        method=_method(job),
        trace_at=trace_at,
        find_needed=functools.partial(_needed, longest, job, allocated, sum((low_context, high_context)) / 2),
        alone=_alone(runs, job, chosen, params, trained, paged=paged, workspace_gib=parts.get("cuBLAS workspace", 0.0)),
    )


def _needed(step: Trace | None, job: Job, allocated_gib: float, context_gib: float) -> float | None:
    if step is None:
        return None
    often = int(job.program.empties_cache)
    return holding.least_gib(step, allocated_gib=allocated_gib, empty_every=often) + context_gib


def _alone(
    runs: tuple[Ran, ...],
    job: Job,
    chosen: depth.Depths,
    params: int,
    trained: int,
    *,
    paged: float,
    workspace_gib: float,
) -> Alone:
    """The step in the pieces that several devices share."""
    shallow, tallies = runs[0], [one.tally for one in runs]
    before = depth.peak(tallies, chosen, ("forward", "backward"))
    parts = {name: value / GIB for name, value in before.parts.items()}
    parts["optimizer states"] -= paged / GIB
    parts["cuBLAS workspace"] = workspace_gib
    try:
        step = depth.peak(tallies, chosen, ("optimizer",)).parts["optimizer workspace"] / GIB
    except ValueError:  # the kernel makes nothing
        step = 0.0

    def gib(layer: int) -> float:
        return sum(size for size, where in shallow.resident if where == layer) / GIB

    bits = _method(job).partition(" ")[0]
    adapters = parts.get("adapters", 0.0) * GIB
    return Alone.from_parts(
        parts,
        trainable=trained,
        frozen=params - trained,
        layers=chosen.full,
        layer_gib=gib(chosen.to_run[0] // 2),
        ends_gib=gib(-1),
        trained_bytes=adapters / trained if adapters else 4 if job.wanted.dtype == "float32" else 2,
        quantised=bits if bits in {"4-bit", "8-bit"} else "",  # type: ignore[arg-type]  # just checked
        workspace_gib=step,
    )


def _bar(job: Job, gpu: str | None) -> tuple[float, list[str]]:
    """The program's own error bar, or what real steps of its kind on this device have shown."""
    from nbkit.memory import calibration

    where = calibration.device(gpu, job.device == "cuda")
    found = calibration.earlier(where, f"{job.program.name}, {_method(job)}", versions()) if where else ()
    if not found:
        return job.program.bar, []
    ratios = sorted(one.ratio for one in found)
    span = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
    said = f"{len(found)} measured on {where} before: {span} times what was predicted. The range rests on that."
    return calibration.bar(found), [said]


def _trace(job: Job, chosen: depth.Depths, batch: int, seq: int) -> Trace | None:
    """A trace at full depth for another shape; None where the model's layers cannot be repeated."""
    asked, layers = dataclasses.replace(job, batch=batch, seq=seq), chosen.to_run[0]
    return _at_full_depth(run(asked, layers, edge=chosen.edge, trace=True), asked, chosen)


def _at_full_depth(one: Ran, job: Job, chosen: depth.Depths) -> Trace | None:
    layers = chosen.to_run[0]
    return unroll(one.resident, one.first.moments, one.tally.moments, layers, chosen.full, job.batch * job.seq)


def _runs(job: Job, chosen: depth.Depths, *, trace: bool) -> tuple[Ran, ...]:
    """The job at each depth; the first of them traced where asked for."""
    key = repr((
        job.wanted.config.to_json_string(use_diff=False), job.wanted.dtype, job.wanted.task, str(job.wanted.peft_config),
        str(job.wanted.quantization_config), job.program, job.batch, job.seq, job.checkpointing, job.accumulates,
        job.packed, job.device, str(getattr(job.args, "optim", "")), job.scored, chosen, trace,
    ))  # fmt: skip
    if key not in _cache:
        while len(_cache) >= 32:
            _cache.pop(next(iter(_cache)))
        _cache[key] = tuple(
            run(job, layers, edge=chosen.edge, trace=trace and not at) for at, layers in enumerate(chosen.to_run)
        )
    return _cache[key]


def _disk(job: Job, asked: asking.Asked, params: int, trained: int, *, local: bool) -> tuple[Disk, tuple[str, ...]]:
    adapted = job.wanted.peft_config is not None
    width = 4 if adapted or job.wanted.dtype == "float32" else 2
    state = 2 if "8-bit" in job.program.optimizer else 2 * width
    return of_run(
        params, trained, adapted=adapted, trained_bytes=width, state_bytes=state, args=job.args,
        lengths=asked.lengths, local=local,
    )  # fmt: skip


def _usable(gpu: str | None) -> float | None:
    from nbkit.hardware import card

    return card(gpu).usable_gib if gpu is not None else None


def _workspace(gpu: str | None) -> int:
    if gpu is not None:
        from nbkit.hardware import card

        if card(gpu).compute_capability[0] == 9:
            return kernels.CUBLAS_BYTES_HOPPER
    return kernels.CUBLAS_BYTES


def _method(job: Job) -> str:
    wanted = job.wanted
    quantised = wanted.quantization_config
    bits = "" if quantised is None else ("8-bit " if getattr(quantised, "load_in_8bit", False) else "4-bit ")
    adapter = str(getattr(getattr(wanted.peft_config, "peft_type", ""), "value", "")) or "adapter"
    return "full" if wanted.peft_config is None else f"{bits}{adapter}"


def _subject(name: str, job: Job, params: int, trained: int) -> str:
    wanted, method = job.wanted, _method(job)
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
