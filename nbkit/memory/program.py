"""How a training loop treats its memory: what no argument object says, and what decides more than any formula.

The same model with the same arguments differed by 10 % between a loop that frees its outputs before the backward and
one that keeps them, and by 24 % between a head left in float32 and one in bfloat16 (docs/log.md), so the loop is
described, not guessed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from nbkit.errors import NbkitError

Loss = Literal["trl fused", "plain", "shifted", "chunked"]
Optimizer = Literal[
    "adamw",
    "adamw foreach",
    "adamw fused",
    "adamw 8-bit",
    "adamw 32-bit",
    "adamw paged",
    "adamw paged 8-bit",
    "adamw masters",
    "sgd",
    "other",
]
Attention = Literal["sdpa", "eager", "flash"]
Held = Literal["no", "backward", "next"]


@dataclass(frozen=True)
class Program:
    """One training loop's habits. `Program.of(args)` reads them off the trainer's arguments; `Program.named("torchtune")` is
    another framework's loop as it was read in its code, and `.but(...)` changes a habit where a run's settings say so.

    Attributes:
        name: For the reader of a prediction.
        loss: `trl fused` never holds the logits; `plain` is the model's own cross entropy over all of them; `shifted` the
            same as transformers before 4.49 took it, over a copy of the logits without the last position; `chunked`
            takes the loss `chunk` tokens at a time (LitGPT, torchtune).
        upcasts_logits: Where `shifted` logits become float32: "at the head" (the Llama family before transformers
            4.46), "in the loss" (4.46 to 4.48), or "no" earlier than in cross entropy under autocast.
        chunk: Tokens a piece for `chunked`.
        chunked_head: With `chunked`, the head runs piece by piece too; otherwise only the cross entropy does.
        compact_head: On a CPU, TRL's fused head computes positions with a label only, as it always does on a GPU.
        holds_outputs: How long the model's outputs live, logits included: "no" longer than the loss is computed,
            through the "backward", or into the "next" forward, until the name is bound again.
        outputs_to_fp32: The outputs are copied to float32 (accelerate's wrapper under mixed precision).
        input_grads: Embeddings ask for gradients under checkpointing with adapters (enable_input_require_grads).
        reentrant: Checkpointing is torch's reentrant kind (transformers' default before 5): no graph in the forward.
        set_to_none: `zero_grad` frees the gradient buffers; False keeps them, filled with zeros.
        optimizer: Which kernel steps. Of `foreach` and plain AdamW only the first makes a copy of all it trains.
            `masters` steps float32 copies of 16-bit weights (DeepSpeed's fp16 and bf16 engines).
        steps_in_backward: Each weight is stepped as soon as its gradient is there, and the gradient freed (torchtune's
            optimizer_in_bwd).
        bucket_bytes: What the loop holds beside its tensors during the backward: DeepSpeed's reduce buckets.
        autocast: Format of automatic mixed precision, or None where the loop uses none.
        adapter_dtype: Format of the trained adapters; None leaves what PEFT made (float32).
        casts_quantised_adapters: Adapters on quantised weights become bfloat16 (TRL).
        casts_unquantised: 16-bit weights of a quantised model become, and stay, float32: embedding, head and norms
            (peft.prepare_model_for_kbit_training in a script, whose model is then given to a Trainer).
        model_code: Whose modules run: transformers', or LitGPT's as nbkit.memory.litgpt rebuilds them.
        attention: The kernel of attention.
        head_quantised: 4-bit loading quantises the output head too (LitGPT); transformers leaves it in 16 bit.
        untied: Embedding and head are two matrices even where the config ties them.
        extra_4bit_copy: bitsandbytes before 0.43.2 kept one more activation a quantised linear map (PR 1270), beside autograd:
            checkpointing that is not reentrant does not free it, so that all layers' are held.
        unpacks_4bit: 4-bit maps keep their unpacked weights for the backward (AutoGPTQ's torch kernel).
        empties_cache: The loop calls torch.cuda.empty_cache() after each step. It changes what is reserved over batches
            of different lengths; within one step nothing is given back.
        exact: nbkit runs this very code; otherwise the program is an approximation by transformers' model code.
        bar: Share of the allocated peak by which the answer may be off, from how the program is known.

    Not covered: activations offloaded to RAM, compiled models.
    """

    name: str = "transformers.Trainer"
    loss: Loss = "plain"
    upcasts_logits: Literal["no", "at the head", "in the loss"] = "no"
    chunk: int = 256
    chunked_head: bool = False
    compact_head: bool = False
    holds_outputs: Held = "no"
    outputs_to_fp32: bool = False
    input_grads: bool = False
    reentrant: bool = False
    set_to_none: bool = True
    optimizer: Optimizer = "adamw"
    steps_in_backward: bool = False
    bucket_bytes: int = 0
    autocast: Literal["bfloat16", "float16"] | None = None
    adapter_dtype: Literal["bfloat16", "float16", "float32"] | None = None
    casts_quantised_adapters: bool = False
    casts_unquantised: bool = False
    model_code: Literal["transformers", "litgpt"] = "transformers"
    attention: Attention = "sdpa"
    head_quantised: bool = False
    untied: bool = False
    extra_4bit_copy: bool = False
    unpacks_4bit: bool = False
    empties_cache: bool = False
    exact: bool = True
    bar: float = 0.03

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise NbkitError(f"chunk={self.chunk}: a piece of the loss has at least one token.", exit_code=2)
        if not 0 <= self.bar < 1:
            raise NbkitError(f"bar={self.bar}: it is a share of the peak, from 0 to 1.", exit_code=2)
        if self.chunked_head and (self.loss != "chunked" or self.autocast or self.model_code != "transformers"):
            raise NbkitError(
                "chunked_head goes with loss='chunked', transformers' model code and no autocast.",
                hint="Program.torchtune()      or Program.litgpt(), whose head is in pieces by itself",
                exit_code=2,
            )

    def but(self, **changes: Any) -> Program:
        """The same program with some habits changed."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def of(cls, args: Any = None) -> Program:
        """The program of the trainer that takes `args`: TRL's for an SFTConfig, else transformers' Trainer.

        Without arguments: TRL's SFTTrainer as it comes.
        """
        if args is None or hasattr(args, "packing_strategy") or hasattr(args, "loss_type"):
            return cls.trl(args)
        return cls.trainer(args)

    @classmethod
    def named(cls, name: str, **habits: Any) -> Program:
        """Another framework's loop: "torchtune", "litgpt", "ms-swift 2", "qlora script"; nbkit.memory.frameworks() lists
        them, with what a run's settings may have to add.

        Raises: NbkitError (exit code 2) for a name or a habit that is not known.
        """
        from nbkit.memory.frameworks import named

        return named(name, **habits)

    @classmethod
    def trl(cls, args: Any = None) -> Program:
        """TRL's SFTTrainer (1.16: fused head, checkpointing unless refused, bf16 adapters on quantised weights)."""
        refuse_offloading(getattr(args, "activation_offloading", False))
        smoothing = bool(getattr(args, "label_smoothing_factor", 0))
        return cls(
            name="trl.SFTTrainer",
            loss="plain" if smoothing else "trl fused",
            autocast=_autocast(args, default="bfloat16"),
            optimizer=_optimizer(args),
            outputs_to_fp32=_autocast(args, default="bfloat16") is not None,
            input_grads=True,
            casts_quantised_adapters=True,
        )

    @classmethod
    def trainer(cls, args: Any = None) -> Program:
        """transformers' Trainer: the model's own loss; outputs die with compute_loss."""
        autocast = _autocast(args, default=None)
        return cls(autocast=autocast, outputs_to_fp32=autocast is not None, optimizer=_optimizer(args))

    @classmethod
    def nbkit(cls, args: Any = None) -> Program:
        """The trainer that takes `args` as nbkit.start runs it: adapters stay float32 so that a resume is exact, and on a
        CPU TRL's head computes trained positions only (nbkit.training.repairs).
        """
        return cls.of(args).but(adapter_dtype="float32", casts_quantised_adapters=False, compact_head=True)

    @classmethod
    def plain_loop(
        cls,
        *,
        holds_outputs: Held = "next",
        set_to_none: bool = True,
        optimizer: Optimizer = "adamw foreach",
        autocast: Literal["bfloat16", "float16"] | None = None,
        **habits: Any,
    ) -> Program:
        """`out = model(...); out.loss.backward(); optimizer.step()`, as scripts and notebooks write it.

        On a GPU torch.optim.AdamW picks foreach by itself, which is the default here.
        """
        return cls(
            name="plain loop",
            holds_outputs=holds_outputs,
            set_to_none=set_to_none,
            optimizer=optimizer,
            autocast=autocast,
            **habits,
        )

    @classmethod
    def litgpt(cls, **habits: Any) -> Program:
        """LitGPT's finetune scripts, their model rebuilt (nbkit.memory.litgpt)."""
        kept: dict[str, Any] = {
            "name": "litgpt", "model_code": "litgpt", "optimizer": "adamw foreach", "holds_outputs": "next",
            "head_quantised": True, "untied": True, "exact": False, "bar": 0.1, **habits,
        }  # fmt: skip
        return cls(**kept)

    @classmethod
    def torchtune(cls, **habits: Any) -> Program:
        """torchtune's single-device recipes, their model approximated by transformers'."""
        kept: dict[str, Any] = {
            "name": "torchtune", "loss": "chunked", "chunk": 1024, "chunked_head": True, "optimizer": "adamw fused",
            "adapter_dtype": "bfloat16", "exact": False, "bar": 0.15, **habits,
        }  # fmt: skip
        return cls(**kept)


def refuse_offloading(asked: Any) -> None:
    """Raises: NbkitError (exit code 2) where activations would wait in RAM."""
    if asked:
        raise NbkitError(
            "Offloading activations to RAM is not predicted: what returns in time for the backward is not known.",
            hint="predict without it; that answer is the most the run can take",
            exit_code=2,
        )


def _autocast(args: Any, default: Literal["bfloat16"] | None) -> Literal["bfloat16", "float16"] | None:
    if args is None:
        return default
    if getattr(args, "bf16", False):
        return "bfloat16"
    return "float16" if getattr(args, "fp16", False) else None


# transformers' names of optimizers (OptimizerNames) and the kernel each of them runs.
_KERNELS: dict[str, Optimizer] = {
    "adamw_torch": "adamw foreach",
    "adamw_torch_fused": "adamw fused",
    "adamw_bnb_8bit": "adamw 8-bit",
    "adamw_8bit": "adamw 8-bit",
    "paged_adamw_32bit": "adamw paged",
    "paged_adamw": "adamw paged",
    "paged_adamw_8bit": "adamw paged 8-bit",
    "sgd": "sgd",
}


def _optimizer(args: Any) -> Optimizer:
    name = getattr(args, "optim", "adamw_torch_fused")
    return _KERNELS.get(str(getattr(name, "value", name)), "other")
