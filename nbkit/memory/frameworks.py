"""Programs of training code that others run and publish figures of, each as it was read in that code.

`Program.named("ms-swift 2")` gives one; `frameworks()` shows them all, with what a run's own settings have to add. Nothing in
them is fitted to a measurement. bench/_memory_calls.py predicts published runs with these, row by row.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

from nbkit.display import Table
from nbkit.errors import NbkitError
from nbkit.memory.program import Program


@dataclass(frozen=True)
class Framework:
    """One published loop.

    Attributes:
        name: What Program.named takes.
        program: Its habits where a run's settings do not say otherwise.
        dtype: How weights load, for predict's `dtype`.
        beside: What to tell `Program.named` or `predict` for some runs of it.
        read_in: The code.
    """

    name: str
    program: Program
    dtype: str
    beside: str
    read_in: str

    @property
    def habits(self) -> str:
        """Where it differs from Program(), as keywords."""
        plain = Program()
        said = {one.name: getattr(self.program, one.name) for one in dataclasses.fields(Program)}
        differs = {key: value for key, value in said.items() if value != getattr(plain, key)}
        return ", ".join(f"{key}={value!r}" for key, value in differs.items() if key not in {"name", "exact", "bar"})


# transformers' Trainer under accelerate before transformers 5: reentrant checkpointing, outputs copied to float32.
_OLD = Program(
    loss="shifted", optimizer="adamw foreach", autocast="bfloat16", outputs_to_fp32=True, input_grads=True, reentrant=True,
    exact=False, bar=0.1,
)  # fmt: skip
_AT_THE_HEAD = _OLD.but(name="transformers 4.45", upcasts_logits="at the head")
_IN_THE_LOSS = _OLD.but(name="transformers 4.46", upcasts_logits="in the loss")
_OPTIM = "optimizer='adamw 8-bit' and so on by its optim"

FRAMEWORKS: tuple[Framework, ...] = (
    Framework(
        "trl",
        Program.trl(),
        "as the config has it",
        "better: the SFTConfig itself, predict(model, args)",
        "trl 1.16, sft_trainer.py; transformers 5",
    ),
    Framework(
        "transformers",
        Program.trainer(),
        "as the config has it",
        "better: the TrainingArguments themselves; autocast='bfloat16', outputs_to_fp32=True under bf16",
        "transformers 5, trainer.py, loss_utils.py",
    ),
    Framework(
        "transformers 4.49",
        _OLD.but(name="transformers 4.49", loss="plain"),
        "float32 under bf16=True, unless loaded in 16 bit",
        f"4.49 to 4.57 (the labels are shifted, not the logits); {_OPTIM}",
        "transformers 4.49 and 4.57, loss_utils.py; accelerate 1.2",
    ),
    Framework(
        "transformers 4.46",
        _IN_THE_LOSS,
        "float32 under bf16=True, unless loaded in 16 bit",
        f"4.46 to 4.48; {_OPTIM}",
        "transformers 4.46 and 4.48, loss_utils.py; accelerate 1.2",
    ),
    Framework(
        "transformers 4.45",
        _AT_THE_HEAD,
        "float32 under bf16=True, unless loaded in 16 bit",
        f"and before; {_OPTIM}; extra_4bit_copy=True with bitsandbytes before 0.43.2",
        "transformers 4.40, modeling_llama.py; accelerate 0.29",
    ),
    Framework(
        "trl 0.12",
        _IN_THE_LOSS.but(name="TRL 0.12"),
        "bfloat16",
        f"0.9 to 0.14 given a peft_config, in bf16; adapters stay float32 (bfloat16 before 0.9); its float32 "
        f"norms are not counted; {_OPTIM}",
        "trl 0.8.6, 0.12.2, 0.14, sft_trainer.py",
    ),
    Framework(
        "qlora script",
        _IN_THE_LOSS.but(name="QLoRA script", casts_unquantised=True),
        "bfloat16",
        f"prepare_model_for_kbit_training, then get_peft_model, then any Trainer of 2023 or 2024; {_OPTIM}; "
        "upcasts_logits='at the head' before transformers 4.46",
        "peft 0.14, utils/other.py; run against the real loop in tests/test_memory_old_loops.py",
    ),
    Framework(
        "qwen finetune.py",
        _OLD.but(name="Qwen's finetune.py", attention="flash"),
        "bfloat16; full: float32; Q-LoRA: float16",
        "Q-LoRA (GPTQ in DeepSpeed's fp16 engine): optimizer='adamw masters', bucket_bytes=800_000_000, autocast=None, "
        "outputs_to_fp32=False, adapter_dtype='float16', unpacks_4bit=True",
        "QwenLM/Qwen, finetune.py and finetune/*.sh, end of 2023",
    ),
    Framework(
        "ms-swift 2",
        _AT_THE_HEAD.but(name="ms-swift 2", attention="flash", reentrant=False),
        "bfloat16",
        "upcasts_logits='no' for Qwen's and Baichuan's own model code; attention='eager' without flash; bitsandbytes: "
        "extra_4bit_copy=True; GPTQ: unpacks_4bit=True; rows of many lengths: dataset=[...]",
        "ms-swift 1.4 to 2.0, trainers/trainers.py, llm/utils/model.py (not reentrant from torch 2.1); bitsandbytes 0.41.3",
    ),
    Framework(
        "fsdp_qlora",
        Program.plain_loop(
            holds_outputs="backward", loss="shifted", upcasts_logits="at the head", adapter_dtype="bfloat16",
            input_grads=True, reentrant=True, exact=False, bar=0.1,
        ).but(name="fsdp_qlora"),
        "bfloat16",
        "QLoRA: extra_4bit_copy=True (bitsandbytes 0.43.0); sharded: nbkit.memory.distributed.spread(found.alone, How('fsdp', "
        "gpus, mixed_precision=False, quant_storage_float=True))",
        "AnswerDotAI/fsdp_qlora, train.py, March 2024",
    ),
    Framework(
        "litgpt",
        Program.litgpt(),
        "bfloat16; float32 under bf16-mixed, with autocast='bfloat16'",
        "QLoRA: extra_4bit_copy=True (bitsandbytes 0.41), optimizer='adamw paged'; holds_outputs='backward' where the longest "
        "row comes first",
        "Lightning-AI/litgpt, finetune/lora.py, full.py, 2023 to 2024",
    ),
    Framework(
        "torchtune",
        Program.torchtune(attention="flash"),
        "bfloat16",
        "chunk=seq // 8 (CEWithChunkedOutputLoss); without it loss='plain', chunked_head=False; optimizer_in_bwd: "
        "steps_in_backward=True; PagedAdamW8bit: optimizer='adamw paged 8-bit'",
        "pytorch/torchtune, recipes/full_finetune_single_device.py, 2024",
    ),
    Framework(
        "peft metamath",
        Program.plain_loop(empties_cache=True).but(name="PEFT MetaMathQA"),
        "bfloat16",
        "seq is the longest row that came, not the cap",
        "huggingface/peft, method_comparison/MetaMathQA/run.py, 2025",
    ),
    Framework(
        "plain loop",
        Program.plain_loop(),
        "as loaded",
        "holds_outputs='backward' where `del out` comes after the backward, set_to_none=False, autocast",
        "torch 2, torch.optim.AdamW (foreach on a GPU)",
    ),
)  # fmt: skip


def named(name: str, **habits: Any) -> Program:
    """The program of that name with some habits changed.

    Raises: NbkitError (exit code 2) for a name or a habit that is not known.
    """
    for one in FRAMEWORKS:
        if one.name == name.strip().lower():
            break
    else:
        names = [one.name for one in FRAMEWORKS]
        close = difflib.get_close_matches(name.lower(), names, 1, 0.5)
        hint = f"did you mean {close[0]!r}?" if close else "Program(...) describes any loop; nbkit.memory.frameworks()"
        raise NbkitError(f"No program is called {name!r}. There is: {', '.join(names)}.", hint=hint, exit_code=2)
    known = {field.name for field in dataclasses.fields(Program)}
    if unknown := sorted(set(habits) - known):
        raise NbkitError(
            f"{', '.join(unknown)}: a Program has no such habit.",
            hint=f"there is: {', '.join(sorted(known))}",
            exit_code=2,
        )
    return one.program.but(**habits)


def frameworks() -> Table:
    """All of them: name, habits, how weights load, what a run may have to add, and where it was read."""
    rows = [[one.name, one.habits or "none beside", one.dtype, one.beside, one.read_in] for one in FRAMEWORKS]
    return Table(
        ["Program.named", "differs from Program() in", "dtype", "for some runs", "read in"],
        rows,
        title="Programs of published training code",
    )
