"""A model of fake tensors: the real modules of transformers, PEFT and bitsandbytes, with shapes for weights."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from nbkit.errors import ModelError, NbkitError
from nbkit.memory.program import Program

Task = Literal["causal", "sequence classification"]
PACKED = frozenset({"Params4bit", "Int8Params"})  # bitsandbytes' classes of quantised weights


@dataclass(frozen=True)
class Wanted:
    """What to build: the objects a notebook would give to from_pretrained and get_peft_model.

    Attributes:
        config: Of transformers, for one text model.
        dtype: Of the weights, by torch's name.
    """

    config: Any
    dtype: str
    task: Task = "causal"
    peft_config: Any = None
    quantization_config: Any = None
    trust_remote_code: bool = False


@dataclass
class Fake:
    """The model, and the mode in which it runs."""

    model: Any
    mode: Any
    adapted: bool
    quantised: bool


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings of the libraries while their code runs on fakes: their advice would be about the fakes."""
    import logging

    names = ("transformers", "peft", "bitsandbytes", "trl", "accelerate")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in names:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def build(wanted: Wanted, layers: int | None, program: Program) -> Fake:
    """Build the model with `layers` decoder layers, None for all of them.

    Raises: ModelError when transformers cannot build it, NbkitError (exit code 2) when no module matches the adapters.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    config = truncated(wanted.config, layers)
    adapted = wanted.peft_config is not None and program.model_code == "transformers"
    with quiet(), torch.device("meta"):
        if program.model_code == "litgpt":
            model = _litgpt(wanted, config)
        else:
            model = _skeleton(wanted, config, program)
            if wanted.quantization_config is not None:
                _quantise(model, wanted.quantization_config, head=program.head_quantised)
                if program.casts_unquantised:
                    _to_fp32(model)
            if adapted:
                model = _adapt(model, wanted.peft_config)
    mode = FakeTensorMode()
    with quiet():
        _adapter_formats(model, program, quantised=wanted.quantization_config is not None)
        _to_fake(model, mode, wanted.quantization_config, getattr(torch, wanted.dtype))
    model.train()
    return Fake(model, mode, adapted, wanted.quantization_config is not None)


def _litgpt(wanted: Wanted, config: Any) -> Any:
    """LitGPT's model; Fabric's bitsandbytes plugin quantises every linear map, the head among them."""
    import torch

    from nbkit.memory.litgpt import Gpt

    model = Gpt(config, wanted.peft_config).to(getattr(torch, wanted.dtype))
    if wanted.quantization_config is not None:
        from transformers.integrations.bitsandbytes import replace_with_bnb_linear

        model = replace_with_bnb_linear(
            model, modules_to_not_convert=[], quantization_config=wanted.quantization_config
        )
    return model


def layers_of(wanted: Wanted) -> list[Any]:
    """The decoder layers of the whole model on meta, to compare their kinds."""
    import torch

    from nbkit.memory.places import longest_list

    with quiet(), torch.device("meta"):
        model = _skeleton(wanted, copy.deepcopy(wanted.config), Program())
    path, _ = longest_list(model)
    return list(model.get_submodule(path)) if path else []


def truncated(config: Any, layers: int | None) -> Any:
    """A copy of the config with that many decoder layers and every per-layer list cut to match."""
    config = copy.deepcopy(config)
    if layers is None:
        return config
    full = config.num_hidden_layers
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == full:
            setattr(config, name, value[:layers])
    config.num_hidden_layers = layers
    if getattr(config, "max_window_layers", None) is not None:
        config.max_window_layers = min(config.max_window_layers, layers)
    return config


def _skeleton(wanted: Wanted, config: Any, program: Program) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForCausalLM if wanted.task == "causal" else AutoModelForSequenceClassification
    if wanted.task != "causal" and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0  # whoever trains a classifier on batches has set one
    if program.untied:
        config.tie_word_embeddings = False
    attention = "eager" if program.attention == "eager" else "sdpa"
    options = {"dtype": getattr(torch, wanted.dtype), "trust_remote_code": wanted.trust_remote_code}
    try:
        try:
            model = auto.from_config(config, attn_implementation=attention, **options)
        except ValueError as error:
            if "attention" not in str(error) or attention == "eager":
                raise
            model = auto.from_config(config, attn_implementation="eager", **options)
    except Exception as error:
        kind = getattr(config, "model_type", type(config).__name__)
        remote = "trust_remote_code" in str(error)
        raise ModelError(
            f"transformers cannot build a model of type {kind!r}: {str(error).splitlines()[0]}",
            hint="its code comes with the repository: read it, then predict(..., trust_remote_code=True)"
            if remote
            else "pip install -U transformers      or give the config of a model of a known type",
        ) from error
    model.config.use_cache = False
    return model


def _quantise(model: Any, config: Any, *, head: bool) -> None:
    """transformers' own replacement of the linear maps, before weights would be loaded."""
    from transformers.quantizers import AutoHfQuantizer

    chosen = copy.deepcopy(config)
    if head and chosen.llm_int8_skip_modules is None:
        chosen.llm_int8_skip_modules = ["none"]  # a list of one's own takes the place of the default: the head
    quantizer = AutoHfQuantizer.from_config(chosen, pre_quantized=False)
    quantizer.preprocess_model(model=model, device_map=None)
    name = "is_loaded_in_8bit" if getattr(config, "load_in_8bit", False) else "is_loaded_in_4bit"
    setattr(model, name, True)
    model.config.quantization_config = chosen


def _to_fp32(model: Any) -> None:
    """As peft.prepare_model_for_kbit_training does with every 16-bit weight that holds no packed ones."""
    import torch

    for parameter in model.parameters():
        if parameter.dtype in {torch.float16, torch.bfloat16} and type(parameter).__name__ not in PACKED:
            parameter.data = parameter.data.to(torch.float32)


def _adapt(model: Any, peft_config: Any) -> Any:
    from peft import get_peft_model

    try:
        with dora_without_weights():
            return get_peft_model(model, copy.deepcopy(peft_config), low_cpu_mem_usage=True)
    except (ValueError, TypeError) as error:
        message = str(error).splitlines()[0]
        if "arget modules" in message or "target_modules" in message:
            leaves = sorted({path.rpartition(".")[2] for path, one in model.named_modules() if _is_linear(one)})
            raise NbkitError(
                f"The adapter would change nothing: {message}",
                hint=f"linear maps of this model: {', '.join(leaves)}; or target_modules='all-linear'",
                exit_code=2,
            ) from error
        raise NbkitError(f"PEFT refuses this adapter: {message}", exit_code=2) from error


def unmatched(model: Any, peft_config: Any) -> list[str]:
    """Names in `target_modules` that no module of the model has; PEFT passes over them in silence."""
    targets = getattr(peft_config, "target_modules", None)
    if targets is None or isinstance(targets, str):
        return []
    paths = [path for path, _ in model.named_modules()]
    return sorted(name for name in targets if not any(path == name or path.endswith(f".{name}") for path in paths))


@contextlib.contextmanager
def dora_without_weights() -> Iterator[None]:
    """DoRA takes the norms of the weights; quantised ones have no values here, so a tensor of their shape is given."""
    import torch

    try:
        from peft.tuners.lora import dora
    except ImportError:
        yield
        return
    before = getattr(dora, "dequantize_module_weight", None)
    if before is None:
        yield
        return

    def shaped(module: Any) -> Any:
        weight, shape = module.weight, (module.out_features, module.in_features)
        if type(weight).__name__ in PACKED or hasattr(weight, "SCB"):
            return torch.empty(shape, dtype=torch.float32)
        state = getattr(weight, "quant_state", None)
        return before(module) if state is None else torch.empty(shape, dtype=state.dtype)

    dora.dequantize_module_weight = shaped
    try:
        yield
    finally:
        dora.dequantize_module_weight = before


def _is_linear(module: Any) -> bool:
    import torch

    return isinstance(module, torch.nn.Linear)


def _adapter_formats(model: Any, program: Program, *, quantised: bool) -> None:
    """What the program casts the adapters to. TRL spares DoRA's magnitudes (sft_trainer.py, 1.16)."""
    import torch

    name = program.adapter_dtype
    if name is None and program.casts_quantised_adapters and quantised:
        name = "bfloat16"
    if name is None:
        return
    for path, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_magnitude_vector" not in path and hasattr(model, "peft_config"):
            parameter.data = parameter.data.to(getattr(torch, name))


def _to_fake(model: Any, mode: Any, quantization: Any, compute: Any) -> None:
    """Put a fake CPU tensor in the place of each meta tensor; shared ones stay shared."""
    import torch

    made: dict[int, Any] = {}

    def fake(tensor: Any) -> Any:
        key = id(tensor)
        if key not in made:
            with mode:
                data = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            made[key] = torch.nn.Parameter(data, requires_grad=tensor.requires_grad) if is_parameter else data
        return made[key]

    def replaced(module: Any, parameter: Any) -> Any:
        kind = type(parameter).__name__
        if kind == "Params4bit":
            return _four_bit(module, parameter, mode, quantization, compute)
        return _eight_bit(module, parameter, mode) if kind == "Int8Params" else fake(parameter)

    for module in model.modules():
        parameters, buffers = module._parameters, module._buffers  # noqa: SLF001 - how torch's own _apply does it
        parameters.update({name: replaced(module, one) for name, one in parameters.items() if one is not None})
        buffers.update({name: fake(one) for name, one in buffers.items() if one is not None})
        if torch.is_tensor(getattr(module, "original_inv_freq", None)):  # rotary embeddings keep it beside the buffer
            module.original_inv_freq = fake(module.original_inv_freq)


def _four_bit(module: Any, weight: Any, mode: Any, quantization: Any, compute: Any) -> Any:
    """A packed weight with its constants: absmax for each 64 weights, quantised again in 256s with double quant."""
    import torch
    from bitsandbytes.functional import QuantState

    rows, columns = weight.shape
    storage = quantization.bnb_4bit_quant_storage
    count = rows * columns
    blocks = -(-count // 64)
    with mode:
        packed = torch.empty((count + 1) // (2 * storage.itemsize), 1, dtype=storage)
        state2 = offset = None
        if quantization.bnb_4bit_use_double_quant:
            absmax = torch.empty(blocks, dtype=torch.uint8)
            state2 = QuantState(
                absmax=torch.empty(-(-blocks // 256), dtype=torch.float32),
                code=torch.empty(256, dtype=torch.float32),
                blocksize=256,
                dtype=torch.float32,
            )
            offset = torch.empty((), dtype=torch.float32)
        else:
            absmax = torch.empty(blocks, dtype=torch.float32)
        code = torch.empty(16, dtype=torch.float32)
    parameter = torch.nn.Parameter(packed, requires_grad=False)
    parameter.quant_state = QuantState(
        absmax=absmax,
        shape=torch.Size((rows, columns)),
        code=code,
        blocksize=64,
        quant_type=quantization.bnb_4bit_quant_type,
        dtype=compute,
        offset=offset,
        state2=state2,
    )
    module.quant_state = parameter.quant_state
    module.support_avx512bf16_for_cpu = False
    return parameter


def _eight_bit(module: Any, weight: Any, mode: Any) -> Any:
    """int8 weights with a scale a row, as Linear8bitLt keeps them after its first forward."""
    import torch

    with mode:
        packed = torch.empty(weight.shape, dtype=torch.int8)
        scale = torch.empty(weight.shape[0], dtype=torch.float32)
    parameter = torch.nn.Parameter(packed, requires_grad=False)
    parameter.CB, parameter.SCB, parameter.has_fp16_weights = None, None, False
    module.state.CB, module.state.SCB = parameter.data, scale
    return parameter


def constants(model: Any) -> Iterator[tuple[str, Any]]:
    """Tensors that belong to quantised weights but are no parameters, with their module's path."""
    for path, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            found = [state.absmax, state.code, state.offset]
            found += [state.state2.absmax, state.state2.code] if state.state2 is not None else []
            yield from ((path, one) for one in found if one is not None)
        scale = getattr(getattr(module, "state", None), "SCB", None)
        if scale is not None:
            yield path, scale
