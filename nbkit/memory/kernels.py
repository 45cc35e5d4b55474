"""What a GPU's kernels allocate where the CPU's code does otherwise: stand-ins for a fake step meant for CUDA.

Each is counted from the kernel's source, named beside it; none is fitted to a measurement.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

# cuBLAS asks the allocator for one workspace a handle; forward and backward run on two threads, each with its own
# handle. ":4096:2:16:8" is torch's default, 32 MiB on Hopper (aten/src/ATen/cuda/CublasHandlePool.cpp).
CUBLAS_BYTES = 2 * (2 * 4096 + 8 * 16) * 1024
CUBLAS_BYTES_HOPPER = 2 * 32 * 2**20
OUTLIER_SHARE = 0.01  # columns that LLM.int8 keeps in 16 bit: the paper found 0.1 % and fewer than 1 % (2208.07339)


def stand_ins(tracker: Any, *, device: str, scored: float = 1.0) -> dict[str, Callable[..., Any]]:
    """Operators to answer otherwise, by name.

    Args:
        scored: Share of the positions that a compact fused head computes: those with a label.
    """
    table = {**_quantised(tracker), "aten::index": _picked(scored)}
    if device == "cuda":
        table["aten::_scaled_dot_product_flash_attention_for_cpu_backward"] = _attention_backward(tracker)
    return table


def _quantised(tracker: Any) -> dict[str, Callable[..., Any]]:
    """bitsandbytes' products."""
    import torch

    def four_bit(func: Any, args: Any, kwargs: Any) -> Any:
        # bitsandbytes 0.50: backends/cuda/ops.py `_dequant_linear_fallback`, taken for more than 1536 rows at once and
        # for most shapes above 512; backends/default/ops.py on a CPU.
        hidden, _, shape = args[:3]
        nested = kwargs.get("absmax_8bit")
        scratch = [torch.empty(tuple(shape), dtype=hidden.dtype)]
        if nested is not None:
            scratch += [torch.empty(nested.shape, dtype=torch.float32), torch.empty(nested.shape, dtype=torch.float32)]
        out = hidden.new_empty((*hidden.shape[:-1], shape[0]))
        tracker.hold("bitsandbytes::gemm_4bit", *scratch, out)
        return out

    def eight_bit_quantise(func: Any, args: Any, kwargs: Any) -> Any:
        # backends/cuda/ops.py `int8_vectorwise_quant`: A.abs(), the comparison, then int8 rows with a scale each.
        hidden = args[0]
        threshold = args[1] if len(args) > 1 else kwargs.get("threshold", 0.0)
        rows = hidden.new_empty(hidden.shape, dtype=torch.int8)
        scale = hidden.new_empty(hidden.numel() // hidden.shape[-1], dtype=torch.float32)
        if not threshold:
            return rows, scale, None
        tracker.hold("bitsandbytes::int8_vectorwise_quant", torch.empty_like(hidden), rows.new_empty(rows.shape), rows)
        return rows, scale, hidden.new_empty(_outliers(hidden), dtype=torch.int64)

    def eight_bit_product(func: Any, args: Any, kwargs: Any) -> Any:
        # backends/default/ops.py `int8_mixed_scaled_mm`: int32 product, fp16 copy, the outliers' product added.
        hidden, rows, weight = args[:3]
        shape = (*rows.shape[:-1], weight.shape[0])
        product, half = hidden.new_empty(shape, dtype=torch.int32), hidden.new_empty(shape, dtype=torch.float16)
        out = hidden.new_empty(shape)
        tracker.hold("bitsandbytes::int8_mixed_scaled_mm", product, half, out)
        return out, hidden.new_empty((hidden.shape[0], _outliers(hidden)))

    return {
        "bitsandbytes::gemm_4bit": four_bit,
        "bitsandbytes::int8_vectorwise_quant": eight_bit_quantise,
        "bitsandbytes::int8_mixed_scaled_mm": eight_bit_product,
    }


def _picked(scored: float) -> Callable[..., Any]:
    """hidden_states[mask]: how many are picked depends on the data, which a fake does not have."""
    import torch

    def picked(func: Any, args: Any, kwargs: Any) -> Any:
        tensor, indices = args[:2]
        mask = indices[0] if indices else None
        if mask is None or mask.dtype not in {torch.bool, torch.uint8}:
            return func(*args, **kwargs)
        count = max(1, round(mask.numel() * scored))
        return tensor.new_empty((count, *tensor.shape[mask.dim() :]))

    return picked


def _attention_backward(tracker: Any) -> Callable[..., Any]:
    """flash_api.cpp `mha_bwd`: fp32 sums for dq, softmax_d, and full-headed dk, dv where heads share keys."""
    import torch

    def attention_backward(func: Any, args: Any, kwargs: Any) -> Any:
        query, key = args[1], args[2]
        batch, heads, rows, width = query.shape
        rows, width = -(-rows // 128) * 128, -(-width // 32) * 32
        scratch = [
            query.new_empty((batch, heads, rows, width), dtype=torch.float32),
            query.new_empty((batch, heads, rows), dtype=torch.float32),
        ]
        if key.shape[1] != heads:
            scratch += [query.new_empty((batch, heads, *key.shape[2:])) for _ in range(2)]
        out = func(*args, **kwargs)
        tracker.hold("flash attention backward", *scratch, *out)
        return out

    return attention_backward


def _outliers(hidden: Any) -> int:
    return max(1, round(int(hidden.shape[-1]) * OUTLIER_SHARE))


@contextlib.contextmanager
def as_on(device: str, *, compact: bool = True) -> Iterator[tuple[str, ...]]:
    """Let TRL's head behave as on that device while the block runs: under Triton in place, tile by tile, on scored
    positions only; on a CPU in torch, on scored positions where the head is `compact`.

    Yields: Doubts, where the installed TRL does not look as expected.
    """
    if device != "cuda" and not compact:
        yield ()
        return
    try:
        from trl.kernels import chunked_logprob
        from trl.trainer import utils
    except ImportError:
        yield ()
        return
    wanted: list[tuple[Any, str, Callable[..., Any]]] = [
        (utils, "_use_triton", _true)
    ]  # this name decides which positions are scored
    if device == "cuda":
        wanted += [(chunked_logprob, name, _nothing) for name in ("_forward_tile", "_backward_tile", "_addmm_fp32")]
    missing = tuple(f"{module.__name__}.{name}" for module, name, _ in wanted if not hasattr(module, name))
    before = [(module, name, getattr(module, name)) for module, name, _ in wanted if hasattr(module, name)]
    try:
        for module, name, value in wanted:
            if hasattr(module, name):
                setattr(module, name, value)
        yield tuple(f"{name} is not in this TRL; its head is counted as it runs here" for name in missing)
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def keep_inputs_of_4bit(model: Any) -> None:
    """bitsandbytes before 0.43.2 put the input of each 4-bit map on the node, where it lived till the graph died."""
    _keep_with_4bit(model, lambda module, hidden: hidden, saved=False)  # on the context, as MatMul4Bit.forward had it


def keep_unpacked_4bit(model: Any) -> None:
    """AutoGPTQ's torch kernel unpacks a map's weights and multiplies by them, so autograd keeps them for the backward.

    Source: auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py: shifted as int32, narrowed to int8, scaled to 16 bit.
    """
    import torch

    def unpacked(module: Any, hidden: Any) -> Any:
        shape = (module.out_features, module.in_features)
        shifted, narrow = torch.empty(shape, dtype=torch.int32), torch.empty(shape, dtype=torch.int8)
        del shifted
        weight = torch.empty(shape, dtype=hidden.dtype)
        del narrow
        return weight

    _keep_with_4bit(model, unpacked, saved=True)


def _keep_with_4bit(model: Any, made: Callable[[Any, Any], Any], *, saved: bool) -> None:
    """Let each 4-bit map's node hold what `made` gives for the module and its input: saved for the backward, which frees
    it, or else till the graph dies."""
    import torch

    class Kept(torch.autograd.Function):  # type: ignore[misc] # torch is not typed here
        @staticmethod
        def forward(ctx: Any, out: Any, kept: Any) -> Any:
            if saved:
                ctx.save_for_backward(kept)
            else:
                ctx.kept = kept
            return out.view_as(out)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> tuple[Any, None]:
            return grad, None

    def hook(module: Any, args: Any, out: Any) -> Any:
        return Kept.apply(out, made(module, args[0]))

    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.register_forward_hook(hook)


def _nothing(*_: Any, **__: Any) -> None:
    """A Triton kernel allocates nothing."""


def _true(*_: Any) -> bool:
    return True


@functools.cache
def register_flash() -> str:
    """Teach transformers an attention that keeps what flash attention keeps and knows no S x S mask.

    Returns: The name to put into `config._attn_implementation`.
    """
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface

    def flash(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> tuple[Any, None]:
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=options.get("dropout", 0.0),
            scale=options.get("scaling"), enable_gqa=key.shape[1] != query.shape[1],
        )  # fmt: skip
        return out.transpose(1, 2).contiguous(), None

    def no_mask(*_: Any, **__: Any) -> None:
        return None

    AttentionInterface.register("nbkit_flash", flash)
    AttentionMaskInterface.register("nbkit_flash", no_mask)
    return "nbkit_flash"
