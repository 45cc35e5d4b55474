"""Loops as scripts wrote them in 2024, run for real on this CPU, and what a prediction says when it is told of them."""

from __future__ import annotations

import functools
import weakref

import pytest

from nbkit.memory import Program, predict

pytest.importorskip("torch")
pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]
GIB, VOCAB, HIDDEN, SEQ = 2**30, 16000, 256, 256
MAPS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# transformers 4.46 under accelerate 1.2: the loss shifts float32 logits, the outputs are copied to float32.
OLD = Program(
    loss="shifted", upcasts_logits="in the loss", optimizer="adamw", autocast="bfloat16", outputs_to_fp32=True,
    input_grads=True, reentrant=True, casts_unquantised=True,
)  # fmt: skip


def live_bytes():
    """A dispatch mode that counts what is alive, independent of nbkit's own, and keeps the most since `on` was set."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Live(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.sizes, self.peak, self.on = {}, 0, False

        def see(self, tensor):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.sizes:
                gone = functools.partial(self.gone, storage._cdata)
                self.sizes[storage._cdata] = (storage.nbytes(), weakref.ref(storage, gone))

        def gone(self, key, _):
            del self.sizes[key]

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for one in tree_leaves(out):
                if isinstance(one, torch.Tensor):
                    self.see(one)
            if self.on:
                self.peak = max(self.peak, sum(size for size, _ in self.sizes.values()))
            return out

    return Live()


def objects():
    """Config, adapters and quantisation of the loop."""
    import torch
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, LlamaConfig

    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=512, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2,
        vocab_size=VOCAB, max_position_embeddings=SEQ, tie_word_embeddings=False,
    )  # fmt: skip
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    return config, LoraConfig(r=8, target_modules=MAPS, task_type="CAUSAL_LM"), four_bit


def quantised(config):
    """A model whose linear maps, but for the head, are really in NF4, embedding, head and norms in bfloat16."""
    import bitsandbytes
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(config).to(torch.bfloat16)
    for path, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and path != "lm_head":
            layer = bitsandbytes.nn.Linear4bit(
                module.in_features, module.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
            )
            layer.weight = bitsandbytes.nn.Params4bit(module.weight.data, requires_grad=False, quant_type="nf4")
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, layer.to("cpu"))
    model.is_loaded_in_4bit, model.config.use_cache = True, False
    return model


def measured_bytes(*, prepared):
    """The peak of the loop's second step.

    Args:
        prepared: By peft.prepare_model_for_kbit_training, as hand-written QLoRA scripts have it.
    """
    import torch
    from accelerate.utils.operations import convert_outputs_to_fp32
    from peft import get_peft_model, prepare_model_for_kbit_training

    def loss(logits, labels, **_):  # transformers 4.46 to 4.49, loss_utils.py: ForCausalLMLoss
        logits = logits.float()
        kept = logits[..., :-1, :].contiguous()
        return torch.nn.functional.cross_entropy(kept.view(-1, VOCAB), labels[..., 1:].contiguous().view(-1))

    config, adapters, _ = objects()
    model, reentrant = quantised(config), {"use_reentrant": True}
    if prepared:
        model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs=reentrant)
    else:
        model.gradient_checkpointing_enable(reentrant)
        model.enable_input_require_grads()
    model.loss_function = loss
    model = get_peft_model(model, adapters).train()
    inner = model.forward

    def mixed(**inputs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return inner(**inputs)

    model.forward = convert_outputs_to_fp32(mixed)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], foreach=False)
    live, ids = live_bytes(), torch.zeros((1, SEQ), dtype=torch.int64)
    for one in (*model.parameters(), *model.buffers()):
        live.see(one)
    with live:
        for live.on in (False, True):
            for _ in range(2):  # gradient accumulation
                model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return live.peak


def predicted(program):
    """Of the same objects on a CPU."""
    config, adapters, four_bit = objects()
    return predict(
        config, program=program, peft_config=adapters, quantization_config=four_bit, batch=1, seq=SEQ, dtype="bfloat16",
        checkpointing=True, accumulates=True, device="cpu",
    )  # fmt: skip


class TestQlora:
    @pytest.mark.parametrize("prepared", [True, False])
    def test_the_described_loop_takes_what_the_real_one_takes(self, prepared):
        """Within 1 %, at the loss: 12 bytes a logit, and what preparing adds to the weights."""
        found = predicted(OLD.but(casts_unquantised=prepared))
        assert measured_bytes(prepared=prepared) == pytest.approx(found.allocated_gib * GIB, rel=0.01)
        assert "aten._log_softmax_backward_data" == found.peak.operator

    def test_a_head_in_float32_is_there_twice(self):
        """Two bytes more a weight of embedding and head, and autocast's bfloat16 copy of the head held for the backward."""
        weights = VOCAB * HIDDEN
        more = predicted(OLD).allocated_gib - predicted(OLD.but(casts_unquantised=False)).allocated_gib
        assert (2 + 2 + 2) * weights == pytest.approx(more * GIB, rel=0.05)
