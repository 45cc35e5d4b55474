"""What this device sustains: one and two decoder layers of the model's shape, run forward and backward at two lengths.

The difference of one and two layers is a layer, without what a model does once. Two lengths give the two regimes of
nbkit.memory.time: the short one the fixed cost of a layer, the long one the arithmetic.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from nbkit.errors import NbkitError, require
from nbkit.hardware import probe
from nbkit.memory.formula import Step
from nbkit.memory.shapes import Shape
from nbkit.memory.time import Rates, launches, work

_SHORT = 16
_LONG = {"cpu": 1024, "cuda": 8192}
_SPREAD = 0.2
_COPIED_BYTES = {"cpu": 2**26, "cuda": 2**28}
_MOST_RUNS = 9
_WORDS = 64  # vocabulary of the benchmark's model: the head is not what is measured


def benchmark(shape: Shape, step: Step, *, device: str = "", seconds: float = 20.0) -> Rates:
    """Measure the rates for `step` on this device.

    Args:
        shape: The model; only its layers' sizes matter, no weights are loaded.
        step: Method, rank, targets, checkpointing and number format are run as they are; the longer of the two lengths
            is its micro-batch, at most 1,024 tokens on a CPU and 8,192 on a GPU.
        device: "cuda" or "cpu"; "" takes the GPU where torch sees one.
        seconds: The most that measuring may take, once torch is imported.
    Returns: Rates for nbkit.memory.time.duration.
    Raises: MissingPackageError; NbkitError when two layers would take more than a quarter of the memory.
    Not covered: several GPUs; the speed of the head (counted at the layers' rate).
    """
    require("torch", "transformers", "peft", *(["bitsandbytes"] if step.method == "qlora" else []), extra="train")
    import torch

    started = time.monotonic()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    _refuse_large(shape, device)
    model = _layers(shape, step, device)
    sync = torch.cuda.synchronize if device == "cuda" else lambda: None
    long = max(min(step.tokens, _LONG[device]), 4 * _SHORT)
    share = (seconds - (time.monotonic() - started)) / 5
    layer_s = {}
    for tokens in (_SHORT, long):
        one, two = (_best(partial(_pass, model, count, tokens, device), share, sync) for count in (1, 2))
        layer_s[tokens] = max(two - one, two / 20)
    copied = torch.empty(_COPIED_BYTES[device] // 4, device=device)
    traffic = 2 * _COPIED_BYTES[device] / _best(copied.clone, share / 2, sync)
    unpack = _unpacking(model, share / 2, sync) if step.method == "qlora" else None
    flops_per_s, fixed_s = _two_regimes(shape, step, layer_s, unpack)
    took = time.monotonic() - started
    where = torch.cuda.get_device_name(0) if device == "cuda" else f"this CPU, {torch.get_num_threads()} threads"
    return Rates(
        flops_per_s=flops_per_s,
        layer_s=fixed_s / launches(step),
        bytes_per_s=traffic,
        spread=_SPREAD,
        basis=f"a benchmark of two layers at {_SHORT} and {long:,} tokens on {where} ({took:.0f} s)",
        unpack_per_s=unpack,
    )


def _two_regimes(
    shape: Shape, step: Step, layer_s: dict[int, float], unpack_per_s: float | None
) -> tuple[float, float]:
    """(operations a second, fixed seconds of a layer): t^3 = c^3 + (F/R)^3 at both lengths, solved for c and R."""
    one = replace(shape, layers=1, vocab=1)
    (short, short_s), (long, long_s) = sorted(layer_s.items())
    asked = {tokens: work(one, step, tokens, tokens * tokens) for tokens in (short, long)}
    fixed = {tokens: found.unpacked_bytes / unpack_per_s if unpack_per_s else 0.0 for tokens, found in asked.items()}
    # Unpacking is measured by itself; noise must not make the rest of a layer negative.
    short_s, long_s = max(short_s - fixed[short], short_s / 10), max(long_s - fixed[long], long_s / 10)
    long_s = max(long_s, 1.02 * short_s)
    rate = ((asked[long].flops ** 3 - asked[short].flops ** 3) / (long_s**3 - short_s**3)) ** (1 / 3)
    rest = max(short_s**3 - (asked[short].flops / rate) ** 3, 0.0)
    return float(rate), float(rest ** (1 / 3))


def _layers(shape: Shape, step: Step, device: str) -> Any:
    """Two decoder layers as the trainer would have them: adapters, 4-bit weights, checkpointing; numbers mean nothing."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaModel

    from nbkit.models.prepare import silence_optional_kernel

    silence_optional_kernel()
    config = LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim, num_hidden_layers=2, vocab_size=_WORDS,
        pad_token_id=None, attention_bias=shape.qkv_bias, max_position_embeddings=max(_LONG.values()),
    )  # fmt: skip
    dtype = torch.float32 if step.method == "full" and step.dtype == "float16" else getattr(torch, step.dtype)
    with torch.device("meta"):
        model = LlamaModel(config).to(dtype)
    model = model.to_empty(device=device)
    for weights in model.parameters():
        weights.data.fill_(0.01)
    model.rotary_emb = type(model.rotary_emb)(config).to(device)  # its frequencies are computed, not loaded
    if step.method == "qlora":
        _quantise(model, dtype, device)
    if step.method != "full":
        targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
        targets += ["gate_proj", "up_proj", "down_proj"] if step.targets == "all-linear" else []
        model = get_peft_model(model, LoraConfig(r=step.rank, lora_alpha=step.rank, target_modules=targets))
    if step.checkpointing:
        model.enable_input_require_grads()
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model.train()


def _quantise(model: Any, dtype: Any, device: str) -> None:
    import bitsandbytes as bnb
    import torch

    for layer in model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, linear in list(parent.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    small = bnb.nn.Linear4bit(
                        linear.in_features, linear.out_features, bias=linear.bias is not None, compute_dtype=dtype,
                        compress_statistics=True, quant_type="nf4",
                    )  # fmt: skip
                    small.weight = bnb.nn.Params4bit(
                        linear.weight.data.cpu(), requires_grad=False, compress_statistics=True, quant_type="nf4"
                    )
                    small.bias = linear.bias
                    setattr(parent, name, small.to(device))


def _pass(model: Any, layers: int, tokens: int, device: str) -> None:
    """Forward and backward through the first `layers`."""
    import torch

    model.config.num_hidden_layers = layers
    ids = torch.zeros(1, tokens, dtype=torch.long, device=device)
    model(input_ids=ids, use_cache=False).last_hidden_state.float().mean().backward()
    for weights in model.parameters():
        weights.grad = None


def _unpacking(model: Any, share: float, sync: Callable[[], object]) -> float:
    """Bytes a second of unpacking one layer's 4-bit weights: what is read and what is written."""
    import bitsandbytes as bnb

    weights = [module.weight for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    weights = weights[: len(weights) // 2]

    def unpack() -> None:
        for weight in weights:
            bnb.functional.dequantize_4bit(weight.data, weight.quant_state)

    moved = sum(
        weight.data.numel() + weight.quant_state.shape.numel() * weight.quant_state.dtype.itemsize for weight in weights
    )
    return float(moved / _best(unpack, share, sync))


def _best(run: Callable[[], object], share: float, sync: Callable[[], object]) -> float:
    """The shortest of several runs, within `share` seconds: what others on the machine take is not the device's cost."""
    run()
    sync()
    times: list[float] = []
    began = time.monotonic()
    while not times or (len(times) < _MOST_RUNS and time.monotonic() - began + min(times) < share):
        start = time.perf_counter()
        run()
        sync()
        times.append(time.perf_counter() - start)
    return min(times)


def _refuse_large(shape: Shape, device: str) -> None:
    """Two layers in fp32 must leave three quarters of the memory alone."""
    need = 2 * 4 * shape.linear_params / shape.layers / 2**30
    machine = probe()
    if device == "cpu":
        free = machine.memory.available_gib
    else:
        free = max((gpu.free_gib or gpu.usable_gib for gpu in machine.visible_gpus), default=0.0)
    if need > free / 4:
        raise NbkitError(
            f"Two layers of {shape.name} take {need:.1f} GiB; {free:.1f} GiB are free.",
            hint="use spec_rates(...) of a card's data sheet, or measure a smaller model of the family",
        )
