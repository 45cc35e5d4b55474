"""An adapter merged into full-precision weights, without touching the model it comes from.

Merging into 4-bit weights (`merge_and_unload` on a quantised model) rounds the result to 4 bits again, and a LoRA update
is far smaller than half a 4-bit step: on the embedded model not one code changes and the fine-tune is gone. So the
weights leave the 4-bit form first and are merged in higher precision.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nbkit.errors import ModelError
from nbkit.evaluation.loss import evaluating

_BLOCK = 1024


def save_merged(model: Any, folder: Path, *, dtype: Any, ends: list[int], pad: int | None) -> int:
    """Write base and active adapter as one plain model: safetensors, config and generation settings.

    The whole merged model is held in ordinary memory once, at the width of `dtype` (2 bytes a parameter at 16 bits).

    Args:
        model: A PeftModel; only read.
        folder: An existing folder.
        dtype: The torch dtype to store.
        ends: Token ids that end an answer; the generation settings get all of them.
        pad: Token id for padding.
    Returns: Bytes of the weights.
    Raises: ModelError for an adapter on a kind of layer that has no plain form here.
    """
    import torch

    base = model.get_base_model()
    with evaluating(model):
        state = {
            name: tensor.to("cpu", dtype) if tensor.is_floating_point() else tensor.cpu()
            for name, tensor in _weights(base)
        }
    config = copy.deepcopy(base.config)
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, name):
            delattr(config, name)
    # A skeleton without memory: it knows the names a checkpoint of this architecture has, and which weights are tied.
    with torch.device("meta"):
        skeleton = type(base)._from_config(config, dtype=dtype)  # noqa: SLF001 - the only maker that takes a class and a dtype
    _require_complete(state, skeleton)
    skeleton.generation_config = copy.deepcopy(base.generation_config)
    skeleton.generation_config.eos_token_id = ends
    skeleton.config.pad_token_id = skeleton.generation_config.pad_token_id = pad
    size: int = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    skeleton.save_pretrained(folder, state_dict=state, max_shard_size="5GB")
    return size


def _weights(base: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of each weight of the merged model; a weight that two modules share comes once."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    done: list[str] = []
    for name, module in base.named_modules():
        if any(name.startswith(f"{above}.") for above in done):
            continue
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) or _quantised(module):
            done.append(name)
            yield from _plain(name, module)
    for name, parameter in base.named_parameters():
        if not any(name.startswith(f"{above}.") for above in done):
            yield name, parameter.detach()
    for owner, module in base.named_modules():
        if not any(f"{owner}.".startswith(f"{above}.") for above in done):
            transient = module._non_persistent_buffers_set  # noqa: SLF001 - torch has no public name for it
            for name, buffer in module.named_buffers(recurse=False):
                if name not in transient:
                    yield f"{owner}.{name}".lstrip("."), buffer.detach()


def _quantised(module: Any) -> bool:
    """True for a 4-bit or 8-bit linear layer; with FSDP, 4-bit weights are stored in tensors that call themselves bf16."""
    if not hasattr(module, "in_features"):
        return False
    return hasattr(module.weight, "quant_state") or not module.weight.dtype.is_floating_point


def _plain(name: str, module: Any) -> Iterator[tuple[str, Any]]:
    """The weight, and bias where there is one, of the ordinary layer that computes what `module` computes."""
    import torch

    inner = module.get_base_layer() if hasattr(module, "get_base_layer") else getattr(module, "original_module", module)
    weight = inner.weight
    kind = type(inner).__name__
    if isinstance(inner, torch.nn.Embedding):
        yield f"{name}.weight", module(torch.arange(inner.num_embeddings, device=weight.device))
    elif hasattr(inner, "in_features") or kind == "Conv1D":
        # What a linear layer does to the unit vectors is its weight, whatever is inside: NF4, int8, LoRA, DoRA, several
        # adapters at once. It is asked in blocks; the identity of a large layer would not fit.
        width = inner.in_features if hasattr(inner, "in_features") else weight.shape[0]
        ask = weight.dtype if weight.dtype.is_floating_point else torch.float32
        bias = module(torch.zeros(1, width, dtype=ask, device=weight.device))[0]
        blocks = []
        for begin in range(0, width, _BLOCK):
            rows = min(_BLOCK, width - begin)
            unit = torch.zeros(rows, width, dtype=ask, device=weight.device)
            unit[torch.arange(rows), begin + torch.arange(rows)] = 1
            blocks.append(module(unit) - bias)
        columns = torch.cat(blocks)
        yield f"{name}.weight", (columns if kind == "Conv1D" else columns.T).contiguous()
        if inner.bias is not None or bool(bias.any()):
            yield f"{name}.bias", bias
    elif hasattr(module, "modules_to_save"):
        active = module.modules_to_save[module.active_adapter]
        for part, tensor in active.state_dict().items():
            yield f"{name}.{part}", tensor
    else:
        raise ModelError(
            f"Layer {name} ({kind}) has an adapter that cannot be merged here.",
            hint="keep the adapter as it is: model.save_pretrained(folder)",
        )


def _require_complete(state: dict[str, Any], skeleton: Any) -> None:
    expected = dict(skeleton.named_parameters())  # each shared weight once, under its first name
    missing = sorted(expected.keys() - state.keys())
    wrong = [name for name, parameter in expected.items() if name in state and state[name].shape != parameter.shape]
    if missing or wrong:
        named = ", ".join([*missing, *wrong][:4])
        raise ModelError(
            f"The merged weights do not fit {type(skeleton).__name__}: {len(missing)} missing, {len(wrong)} of another "
            f"shape ({named}).",
            hint="keep the adapter as it is: model.save_pretrained(folder)",
        )
