"""LitGPT's model and loss as a step sees them: for predictions of runs that its finetune scripts do.

Rebuilt from what its model does (litgpt/model.py, lora.py, finetune/lora.py and Fabric's precision plugin, 2023 to 2024),
because transformers' modules keep other tensors: one projection for query, key and value whose output lives on through
the view that is the values; keys and values repeated for every head; one dropout for the adapters of that projection;
the head run 128 positions at a time; outputs turned to float32 by Fabric; a head of its own beside the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from nbkit.errors import ModelError

HEAD_CHUNK = 128  # tokens, finetune/lora.py
_PARTS = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "dense": "o", "gate_proj": "mlp", "up_proj": "mlp",
    "down_proj": "mlp", "fc1": "mlp", "fc2": "mlp", "lm_head": "head", "q": "q", "k": "k", "v": "v", "o": "o",
    "mlp": "mlp",
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """What decides the tensors of LitGPT's GPT."""

    layers: int
    width: int
    heads: int
    groups: int
    head_size: int
    inner: int
    vocab: int
    rotary: int
    bias: bool
    qkv_bias: bool
    head_bias: bool
    gated: bool
    layer_norm: bool
    parallel: bool
    shared_norm: bool
    post_norms: bool
    softcap: bool
    scale_embeddings: bool


def sizes(config: Any) -> Sizes:
    """Read them off a transformers config.

    Raises: ModelError for a type that LitGPT does not have.
    """
    kind = config.model_type
    heads, width = config.num_attention_heads, config.hidden_size
    head_size = getattr(config, "head_dim", None) or width // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    rotary = head_size
    if kind == "phi":
        rotary = int(head_size * (getattr(config, "partial_rotary_factor", None) or _rotary(config)))
    elif kind == "gpt_neox":
        rotary = int(head_size * _rotary(config))
    elif kind == "falcon":
        groups = 1 if config.multi_query else heads
    elif kind not in {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3"}:
        raise ModelError(f"nbkit does not know how LitGPT builds {kind!r}.", hint="predict it with Program.trl()")
    plain = kind in {"phi", "gpt_neox", "falcon"}
    return Sizes(
        config.num_hidden_layers,
        width,
        heads,
        groups,
        head_size,
        getattr(config, "intermediate_size", None) or 4 * width,
        config.vocab_size,
        rotary,
        bias=kind in {"phi", "gpt_neox"},
        qkv_bias=kind in {"phi", "gpt_neox", "qwen2"},
        head_bias=kind == "phi",
        gated=not plain,
        layer_norm=plain,
        parallel=plain,
        shared_norm=kind in {"phi", "falcon"},
        post_norms=kind == "gemma2",
        softcap=kind == "gemma2",
        scale_embeddings=kind in {"gemma", "gemma2"},
    )


def _rotary(config: Any) -> float:
    parameters = getattr(config, "rope_parameters", None) or {}
    return float(parameters.get("partial_rotary_factor") or getattr(config, "rotary_pct", None) or 0.25)


class Adapted(nn.Module):  # type: ignore[misc] # torch is not typed here
    """A linear map with LoRA beside it, in the model's own format; `parts` of a fused projection may be left out."""

    def __init__(
        self, into: int, out: int, *, bias: bool, rank: int, dropout: float, parts: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(into, out, bias=bias)
        self.rank, self.out = rank, out
        self.parts = tuple(parts) or (out,)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        if rank:
            self.lora_A = nn.Parameter(torch.empty(rank * len(self.parts), into))
            self.lora_B = nn.Parameter(torch.empty(sum(self.parts), rank))

    def forward(self, x: Any) -> Any:
        plain = self.linear(x)
        if not self.rank:
            return plain
        if self.parts == (self.out,):
            return plain + (self.dropout(x) @ self.lora_A.transpose(0, 1) @ self.lora_B.transpose(0, 1)) * 2.0
        low = functional.linear(self.dropout(x), self.lora_A).transpose(-2, -1)
        weight = self.lora_B.unsqueeze(-1)
        if len(set(self.parts)) == 1:
            high = functional.conv1d(low, weight, groups=len(self.parts))
        else:
            pairs = zip(low.chunk(len(self.parts), dim=1), weight.split(self.parts), strict=True)
            high = torch.cat([functional.conv1d(a, b) for a, b in pairs], dim=1)
        high = high.transpose(-2, -1)
        if sum(self.parts) != self.out:
            where = torch.zeros(sum(self.parts), dtype=torch.int64)
            padded = high.new_zeros((high.shape[0] * high.shape[1], self.out))
            high = padded.index_copy(1, where, high.reshape(-1, sum(self.parts))).view(*high.shape[:-1], self.out)
        return plain + high * 2.0


class RmsNorm(nn.Module):  # type: ignore[misc] # torch is not typed here
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Any) -> Any:
        kind = x.dtype
        x = x.float()
        x = x * torch.rsqrt(torch.mean(x * x, dim=-1, keepdim=True) + 1e-6)
        return (x * self.weight.float()).to(kind)


class Attention(nn.Module):  # type: ignore[misc] # torch is not typed here
    def __init__(self, s: Sizes, lora: dict[str, Any]) -> None:
        super().__init__()
        own = {"q": s.heads * s.head_size, "k": s.groups * s.head_size, "v": s.groups * s.head_size}
        parts = [own[name] for name in "qkv" if name in lora["parts"]]
        rank, dropout = lora["rank"], lora["dropout"]
        self.attn = Adapted(
            s.width, sum(own.values()), bias=s.qkv_bias, rank=rank if parts else 0, dropout=dropout, parts=parts
        )
        self.proj = Adapted(own["q"], s.width, bias=s.bias, rank=rank if "o" in lora["parts"] else 0, dropout=dropout)
        self.s = s

    def forward(self, x: Any, cos: Any, sin: Any) -> Any:
        s = self.s
        batch, length, _ = x.shape
        each = s.heads // s.groups
        qkv = self.attn(x).view(batch, length, s.groups, each + 2, s.head_size).permute(0, 2, 3, 1, 4)
        q, k, v = qkv.split((each, 1, 1), dim=2)
        if s.groups != s.heads:
            k = k.expand(batch, s.groups, each, length, s.head_size)
            v = v.expand(batch, s.groups, each, length, s.head_size)
        q, k, v = (one.reshape(batch, -1, length, s.head_size) for one in (q, k, v))
        q, k = (torch.cat((_rope(one[..., : s.rotary], cos, sin), one[..., s.rotary :]), dim=-1) for one in (q, k))
        if s.softcap:
            scores = torch.tanh((q @ k.mT) * 0.1) * 50.0
            scores = scores + torch.ones(length, length, dtype=q.dtype).triu(diagonal=1)
            y = functional.softmax(scores, dim=-1, dtype=torch.float).to(q.dtype) @ v
        else:
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(batch, length, -1))


def _rope(x: Any, cos: Any, sin: Any) -> Any:
    half = x.size(-1) // 2
    rotated = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return (x * cos + rotated * sin).to(x.dtype)


class Mlp(nn.Module):  # type: ignore[misc] # torch is not typed here
    def __init__(self, s: Sizes, lora: dict[str, Any]) -> None:
        super().__init__()
        options = {"bias": s.bias, "rank": lora["rank"] if "mlp" in lora["parts"] else 0, "dropout": lora["dropout"]}
        self.fc = Adapted(s.width, s.inner, **options)
        self.gate = Adapted(s.width, s.inner, **options) if s.gated else None
        self.proj = Adapted(s.inner, s.width, **options)

    def forward(self, x: Any) -> Any:
        if self.gate is None:
            return self.proj(functional.gelu(self.fc(x)))
        return self.proj(functional.silu(self.fc(x)) * self.gate(x))


class Block(nn.Module):  # type: ignore[misc] # torch is not typed here
    def __init__(self, s: Sizes, lora: dict[str, Any]) -> None:
        super().__init__()
        norm = nn.LayerNorm if s.layer_norm else RmsNorm
        self.norm_1, self.attention = norm(s.width), Attention(s, lora)
        self.norm_2 = None if s.shared_norm else norm(s.width)
        self.mlp = Mlp(s, lora)
        self.after_attention = norm(s.width) if s.post_norms else nn.Identity()
        self.after_mlp = norm(s.width) if s.post_norms else nn.Identity()
        self.parallel = s.parallel

    def forward(self, x: Any, cos: Any, sin: Any) -> Any:
        normed = self.norm_1(x)
        attended = self.after_attention(self.attention(normed, cos, sin))
        if self.parallel:
            if self.norm_2 is not None:
                normed = self.norm_2(x)
            x = attended + x
        else:
            x = attended + x
            normed = self.norm_2(x) if self.norm_2 is not None else normed
        return self.after_mlp(self.mlp(normed)) + x


class Gpt(nn.Module):  # type: ignore[misc] # torch is not typed here
    """The whole model; `lora` is None for full training.

    Args:
        lora: A LoraConfig: rank, dropout and target modules by transformers' names.
    """

    def __init__(self, config: Any, lora: Any) -> None:
        super().__init__()
        s = self.s = sizes(config)
        self.config = config
        chosen: dict[str, Any] = {"rank": 0, "dropout": 0.0, "parts": frozenset()}
        if lora is not None:
            parts = frozenset(_PARTS[name] for name in lora.target_modules if name in _PARTS)
            chosen = {"rank": lora.r, "dropout": lora.lora_dropout, "parts": parts}
        self.wte = nn.Embedding(s.vocab, s.width)
        self.h = nn.ModuleList(Block(s, chosen) for _ in range(s.layers))
        self.ln_f = nn.LayerNorm(s.width) if s.layer_norm else RmsNorm(s.width)
        self.lm_head = Adapted(
            s.width, s.vocab, bias=s.head_bias, rank=chosen["rank"] if "head" in chosen["parts"] else 0,
            dropout=chosen["dropout"],
        )  # fmt: skip
        self.chunks_head = lora is not None
        self.gradient_checkpointing = False
        if lora is not None:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_("lora_" in name)

    def get_output_embeddings(self) -> Any:
        return self.lm_head

    def forward(self, ids: Any) -> Any:
        from torch.utils.checkpoint import checkpoint

        s = self.s
        cos = torch.empty(ids.shape[1], s.rotary, dtype=self.wte.weight.dtype)
        x = self.wte(ids)
        if s.scale_embeddings:
            x = x * s.width**0.5
        for block in self.h:
            x = (
                checkpoint(block, x, cos, cos, use_reentrant=False)
                if self.gradient_checkpointing
                else block(x, cos, cos)
            )
        x = self.ln_f(x)
        pieces = [self.lm_head(one) for one in x.split(HEAD_CHUNK, dim=1)] if self.chunks_head else [self.lm_head(x)]
        if s.softcap:
            pieces = [torch.tanh(one / 30.0) * 30.0 for one in pieces]
        return pieces


def logits(model: Any, ids: Any) -> list[Any]:
    """Logits in pieces, in float32: Fabric converts what a model returns (HalfPrecision.convert_output)."""
    pieces = model(ids)
    return [one.float() for one in pieces]


def loss(pieces: list[Any], ids: Any) -> Any:
    """Cross entropy, 128 positions at a time; the last position has no target."""
    targets = torch.zeros(ids.shape[0], ids.shape[1] - 1, dtype=torch.int64)
    if len(pieces) == 1:
        flat = pieces[0][..., :-1, :].reshape(-1, pieces[0].size(-1))
        pairs = zip(flat.split(HEAD_CHUNK), targets.reshape(-1).split(HEAD_CHUNK), strict=True)
    else:
        wanted = targets.split(pieces[0].size(1), dim=1)
        pieces[-1] = pieces[-1][..., :-1, :]
        pairs = zip(
            (one.reshape(-1, one.size(-1)) for one in pieces), (one.reshape(-1) for one in wanted), strict=False
        )
    each = [functional.cross_entropy(one, target, reduction="none") for one, target in pairs]
    return torch.cat(each).sum() / targets.numel()
