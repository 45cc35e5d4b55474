"""Rules about a run: what it asks for, and the error that it met."""

from __future__ import annotations

import re

from nbkit.hardware.facts import Facts
from nbkit.hardware.machine import BF16_SINCE
from nbkit.hardware.rules import Hit, Rule, seen

# Activations above 65504 were reported for these; float16 cannot hold them.
_OVERFLOWING = ("gemma3", "gemma3n", "t5", "mt5", "umt5")
_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_MEMORY = r"([\d.]+) (KiB|MiB|GiB)"


def _bf16(facts: Facts) -> Hit | None:
    gpu = facts.oldest
    if facts.wanted.dtype == "bfloat16" and gpu and (gpu.compute_capability or BF16_SINCE) < BF16_SINCE:
        return seen("bf16 is asked for", f"{gpu.short_name}: compute capability {gpu.capability}")
    return None


def _fp16_trained(facts: Facts) -> Hit | None:
    wanted = facts.wanted
    if wanted.dtype == "float16" and "float16" in wanted.trainable_dtypes:
        return seen("fp16=True", f"trainable parameters are {', '.join(wanted.trainable_dtypes)}")
    return None


def _overflow(facts: Facts) -> Hit | None:
    family = facts.wanted.family or ""
    if facts.wanted.dtype == "float16" and family.startswith(_OVERFLOWING):
        return seen(f"model family {family}", "float16")
    return None


def _amount(pattern: str, text: str) -> float | None:
    """GiB that an out-of-memory message gives after or before a phrase; `@` stands for the amount."""
    found = re.search(pattern.replace("@", _MEMORY), text)
    return float(found.group(1)) * _UNITS[found.group(2)] / 2**30 if found else None


def _out_of_memory(facts: Facts) -> bool:
    return bool(re.search(r"out of memory|OutOfMemoryError", facts.error))


def _fragmented(facts: Facts) -> Hit | None:
    used = _amount(r"@ is allocated by PyTorch", facts.error)
    idle = _amount(r"@ is reserved by PyTorch but unallocated", facts.error)
    if used and idle and idle > 0.1 * used:
        return seen(f"{idle:.1f} GiB reserved and not used, {used:.1f} GiB used")
    return None


def _logits(facts: Facts) -> Hit | None:
    if not _out_of_memory(facts):
        return None
    found = re.search(r"log_softmax|cross_entropy|logits\.float\(\)|lm_head", facts.error)
    return seen(f"out of memory in {found.group(0)}") if found else None


def _evaluation(facts: Facts) -> Hit | None:
    wanted = facts.wanted
    if _out_of_memory(facts) and re.search(r"evaluation_loop|prediction_step|in evaluate\b", facts.error):
        return seen("out of memory inside the evaluation", severity="blocker")
    if wanted.eval_batch and wanted.train_batch and wanted.eval_batch > wanted.train_batch:
        return seen(
            f"per_device_eval_batch_size={wanted.eval_batch}", f"per_device_train_batch_size={wanted.train_batch}"
        )
    return None


def _offloaded(facts: Facts) -> Hit | None:
    away = [place for place in facts.wanted.devices if place in {"cpu", "disk"}]
    here = [place for place in facts.wanted.devices if place not in {"cpu", "disk"}]
    return seen(f"parts of the model lie on: {', '.join(away)}") if away and here else None


def _no_gradients(facts: Facts) -> Hit | None:
    wanted = facts.wanted
    if wanted.peft and wanted.checkpointing and wanted.inputs_require_grad is False:
        return seen("adapters, gradient checkpointing, and no input that requires a gradient")
    return None


RULES: tuple[Rule, ...] = (
    Rule(
        "bf16-asked", 10, "blocker", ("bf16",),
        "The trainer is told to use bf16 on a GPU that has none.",
        "SFTConfig(bf16=False, fp16=True)",
        _bf16, r"setup doesn't support bf16", "unsloth#2783, dolly#11, LMFlow#251",
    ),
    Rule(
        "fp16-trainable", 11, "blocker", ("full", "LoRA", "QLoRA"),
        "A gradient scaler cannot unscale float16 gradients: what is trained must be float32, only the frozen rest float16.",
        "for p in model.parameters():\n    if p.requires_grad: p.data = p.data.float()",
        _fp16_trained, r"Attempting to unscale FP16 gradients", "diffusers#6442, LLaVA#363",
    ),
    Rule(
        "fp16-overflow", 12, "warning", ("full", "LoRA", "QLoRA"),
        "This family's activations pass 65504, the largest float16: the loss becomes 0 or NaN.",
        "compute in float32 (fp16=False, bf16=False), or take another model or a GPU with bf16",
        _overflow, source="from memory",
    ),
    Rule(
        "fragmentation", 20, "warning", ("full", "LoRA", "QLoRA"),
        "Memory is reserved in pieces of the wrong size: batches of varying length leave holes.",
        "export PYTORCH_ALLOC_CONF=expandable_segments:True  # before Python starts; and run the longest batch first",
        _fragmented, source="trl#5207, trl#4237",
    ),
    Rule(
        "oom-logits", 21, "blocker", ("full", "LoRA", "QLoRA"),
        "The peak is the loss: logits of every token over the whole vocabulary, several times in float32.",
        "SFTTrainer's default loss (loss_type='nll') computes it in pieces; else use_liger_kernel=True, or a shorter max_length",
        _logits, source="trl#5575, litgpt#2311",
    ),
    Rule(
        "oom-evaluation", 22, "warning", ("full", "LoRA", "QLoRA"),
        "An evaluation takes its own batch size and keeps logits: a run that trains can still end at its first evaluation.",
        "SFTConfig(per_device_eval_batch_size=1, eval_accumulation_steps=1, prediction_loss_only=True)",
        _evaluation, source="from memory",
    ),
    Rule(
        "offloaded-parts", 26, "blocker", ("QLoRA", "LoRA"),
        'device_map="auto" put parts of the model on CPU or disk: they are not trained, or at a crawl.',
        'device_map={"": 0}  # and a smaller model, a shorter sequence, or QLoRA instead of LoRA',
        _offloaded, r"can't train a model that has been loaded with .*device_map|offload\w* .*cpu or disk", "accelerate source",
    ),
    Rule(
        "no-input-gradients", 27, "blocker", ("LoRA", "QLoRA"),
        "With gradient checkpointing and frozen embeddings nothing that enters a block requires a gradient, so none flows.",
        "model.enable_input_require_grads()  # or gradient_checkpointing_kwargs={'use_reentrant': False}",
        _no_gradients, r"None of the inputs have requires_grad=True|does not require grad and does not have a grad_fn",
        "transformers#42489",
    ),
)  # fmt: skip
