"""The numbers of a decoder-only model that decide its memory, for well-known models and from any config."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from nbkit.errors import ModelError

_MOST = 1 << 24  # of any size in a config: tens of times what the largest models have

Targets = Literal["all-linear", "attention"]


# Families whose MLP has no gate: the sums below would be wrong by half (+50 % on Phi-1.5's published runs).
UNGATED = frozenset({"phi", "gpt_neox", "starcoder2", "nemotron"})


@dataclass(frozen=True)
class Shape:
    """A dense Llama-like decoder: RMSNorm, grouped-query attention, gated MLP. All counts, no bytes.

    Attributes:
        tied: The output head shares the embedding's weights.
        qkv_bias: The query, key and value projections have a bias (Qwen2).
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    qkv_bias: bool = False

    @property
    def query(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def key_value(self) -> int:
        """Width of all key heads (or value heads) together."""
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of the seven linear maps of one layer: what 4-bit quantises and all-linear LoRA adapts."""
        h, q, kv, i = self.hidden, self.query, self.key_value, self.intermediate
        return {"q": (h, q), "k": (h, kv), "v": (h, kv), "o": (q, h), "gate": (h, i), "up": (h, i), "down": (i, h)}

    @property
    def linear_params(self) -> int:
        """Parameters of the linear maps of all layers."""
        return self.layers * sum(width * out for width, out in self.linears.values())

    @property
    def embedding_params(self) -> int:
        """Parameters of the embedding, and of the head when it has its own; 4-bit loading leaves both in 16 bit."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def params(self) -> int:
        """All parameters."""
        bias = self.query + 2 * self.key_value if self.qkv_bias else 0
        return self.linear_params + self.embedding_params + self.layers * (2 * self.hidden + bias) + self.hidden

    def lora_params(self, rank: int, targets: Targets = "all-linear") -> int:
        """Parameters of LoRA adapters: rank x (in + out) for each adapted map."""
        adapted = ("q", "k", "v", "o") if targets == "attention" else tuple(self.linears)
        return self.layers * rank * sum(sum(self.linears[name]) for name in adapted)

    @classmethod
    def from_config(cls, config: Any, name: str = "") -> Shape:
        """Read a transformers config object (LlamaConfig, Qwen2Config, MistralConfig and their like).

        Raises: ModelError for a mixture of experts, an MLP of two matrices, or a config without these numbers: the
            formula does not cover them.
        """
        kind = getattr(config, "model_type", type(config).__name__)
        if kind in UNGATED:
            raise ModelError(
                f"{kind} has an MLP of two matrices; the memory formula covers gated ones (Llama, Mistral, Qwen2) only.",
                hint="nbkit.predict runs the step itself on fake tensors, for any architecture of transformers",
            )
        if any(getattr(config, key, None) for key in ("num_local_experts", "num_experts", "n_routed_experts")):
            raise ModelError(
                f"{kind} is a mixture of experts; the memory formula covers dense decoders only.",
                hint="measure it: start one step with a small batch and read torch.cuda.max_memory_allocated()",
            )
        try:
            heads, hidden = config.num_attention_heads, config.hidden_size
            sizes = [heads, hidden, config.num_hidden_layers, config.intermediate_size, config.vocab_size]
            if not all(isinstance(one, int) and 0 < one <= _MOST for one in sizes):
                raise ModelError(
                    f"The config of {name or kind} has sizes that no model has: heads {heads}, hidden {hidden}, layers "
                    f"{sizes[2]}, intermediate {sizes[3]}, vocabulary {sizes[4]}.",
                    hint="download config.json again, or correct it",
                )
            return cls(
                name=name or getattr(config, "_name_or_path", "") or kind,
                layers=config.num_hidden_layers,
                hidden=hidden,
                intermediate=config.intermediate_size,
                heads=heads,
                kv_heads=getattr(config, "num_key_value_heads", None) or heads,
                head_dim=getattr(config, "head_dim", None) or hidden // heads,
                vocab=config.vocab_size,
                tied=bool(getattr(config, "tie_word_embeddings", False)),
                qkv_bias=kind == "qwen2" or bool(getattr(config, "attention_bias", False)),
            )
        except AttributeError as error:
            raise ModelError(
                f"The config of {name or kind} lacks what the memory formula needs: {error.name}.",
                hint="the formula covers Llama, Mistral, Qwen2 and models built like them",
            ) from error


# Shapes as published in each model's config.json; parameter counts are checked against transformers in the tests.
SHAPES: tuple[Shape, ...] = (
    Shape("SmolLM2-135M", 30, 576, 1536, 9, 3, 64, 49152, tied=True),
    Shape("Qwen2.5-0.5B", 24, 896, 4864, 14, 2, 64, 151936, tied=True, qkv_bias=True),
    Shape("TinyLlama-1.1B", 22, 2048, 5632, 32, 4, 64, 32000, tied=False),
    Shape("Llama-3.2-1B", 16, 2048, 8192, 32, 8, 64, 128256, tied=True),
    Shape("Qwen2.5-1.5B", 28, 1536, 8960, 12, 2, 128, 151936, tied=True, qkv_bias=True),
    Shape("Llama-3.2-3B", 28, 3072, 8192, 24, 8, 128, 128256, tied=True),
    Shape("Mistral-7B", 32, 4096, 14336, 32, 8, 128, 32768, tied=False),
    Shape("Qwen2.5-7B", 28, 3584, 18944, 28, 4, 128, 152064, tied=False, qkv_bias=True),
    Shape("Llama-3-8B", 32, 4096, 14336, 32, 8, 128, 128256, tied=False),
    Shape("Llama-2-13B", 40, 5120, 13824, 40, 40, 128, 32000, tied=False),
    Shape("Llama-3.3-70B", 80, 8192, 28672, 64, 8, 128, 128256, tied=False),
)


# Asked for by these names, and left out of the tables that list SHAPES; hub ids are nbkit.models.known's.
ALSO: tuple[Shape, ...] = (
    Shape("Llama-2-7B", 32, 4096, 11008, 32, 32, 128, 32000, tied=False),
    Shape("Llama-2-70B", 80, 8192, 28672, 64, 8, 128, 32000, tied=False),
)


def shape(name: str) -> Shape:
    """The shape of a well-known model.

    Raises: ModelError that lists the known names.
    """
    known = {one.name.lower(): one for one in (*SHAPES, *ALSO)}
    if name.lower() in known:
        return known[name.lower()]
    near = get_close_matches(name.lower(), known, n=1)
    guess = f"did you mean {known[near[0]].name}? " if near else ""
    raise ModelError(
        f"No model named {name!r} among nbkit's built-in shapes.",
        hint=f"{guess}known: {', '.join(one.name for one in (*SHAPES, *ALSO))}; any other by its hub id (owner/name) or a "
        "folder that holds its config.json",
        exit_code=2,
    )
