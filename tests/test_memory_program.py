"""Habits of training loops and what each of them costs or saves, on small models with bytes known beforehand."""

from __future__ import annotations

import pytest

from nbkit.memory import Program, predict

pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
GIB = 2**30


def llama(**changes):
    """One layer with tied weights where the head is large, so that sizes are easy to reckon."""
    from transformers import LlamaConfig

    sizes = {
        "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 8,
        "num_key_value_heads": 2, "vocab_size": 2048, "max_position_embeddings": 512, "dtype": "bfloat16",
    }  # fmt: skip
    return LlamaConfig(**{**sizes, **changes})


def peak(program, *, config=None, **options):
    """Of one step without checkpointing."""
    return predict(config or llama(), program=program, **{"batch": 1, "seq": 64, "checkpointing": False, **options})


class TestLoss:
    def test_shifted_logits_are_copied_where_rows_are_several(self):
        """Cutting off the last position of one row is a view; of two rows a copy of 2 bytes a logit, held forward."""
        config = llama(vocab_size=32000)
        copied = {}
        for batch in (1, 2):
            programs = (
                Program.plain_loop(loss="plain"),
                Program.plain_loop(loss="shifted", upcasts_logits="in the loss"),
            )
            plain, shifted = (peak(one, config=config, batch=batch, seq=256).allocated_gib for one in programs)
            copied[batch] = (shifted - plain) * GIB / (batch * 256 * 32000)
        assert 0 == pytest.approx(copied[1], abs=0.5)
        assert 2 < copied[2] - copied[1]

    def test_logits_upcast_at_the_head_are_float32_outputs(self):
        """Outputs that are held cost 4 bytes a logit then, and 2 without."""
        config, logits = llama(vocab_size=32000), 256 * 32000
        held = {
            where: peak(
                Program.plain_loop(loss="shifted", upcasts_logits=where, holds_outputs="backward"),
                config=config,
                seq=256,
            ).allocated_gib
            for where in ("at the head", "in the loss")
        }
        assert 2 == pytest.approx((held["at the head"] - held["in the loss"]) * GIB / logits, rel=0.1)


class TestOptimizer:
    def test_masters_are_float32_copies_with_float32_states(self):
        """12 bytes a weight in place of the 4 of bfloat16 states (DeepSpeed's 16-bit engine)."""
        config = llama(hidden_size=1024, intermediate_size=4096)
        found, plain = (
            peak(Program.plain_loop(optimizer=one), config=config) for one in ("adamw masters", "adamw fused")
        )
        assert 3 == pytest.approx(found.parts["optimizer states"] / plain.parts["optimizer states"], rel=0.01)

    def test_a_step_in_the_backward_never_holds_all_gradients(self):
        """Gradients come and go one by one, the states are all there."""
        config = llama(hidden_size=1024, intermediate_size=4096, num_hidden_layers=3)
        program = Program.plain_loop(optimizer="adamw fused", holds_outputs="no")
        whole = peak(program, config=config)
        stepped = peak(program.but(steps_in_backward=True), config=config)
        assert stepped.parts["optimizer states"] == pytest.approx(whole.parts["optimizer states"], rel=0.01)
        assert stepped.allocated_gib < whole.allocated_gib - 0.5 * whole.parts["gradients"]

    def test_buckets_are_held_through_the_backward(self):
        """DeepSpeed's reduce buckets add their bytes to a peak that lies there."""
        config = llama(vocab_size=32000)
        program = Program.plain_loop(optimizer="sgd")
        found = peak(program.but(bucket_bytes=GIB), config=config, seq=256).allocated_gib
        assert 1 == pytest.approx(found - peak(program, config=config, seq=256).allocated_gib, abs=0.05)


class TestQuantised:
    def test_what_is_not_quantised_becomes_float32(self):
        """prepare_model_for_kbit_training doubles embedding, head and norms, and leaves the packed weights."""
        import torch
        from peft import LoraConfig
        from transformers import BitsAndBytesConfig

        options = {
            "config": llama(vocab_size=32000, tie_word_embeddings=False),
            "peft_config": LoraConfig(r=8, target_modules=["q_proj"], task_type="CAUSAL_LM"),
            "quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16),
        }
        plain, cast = (
            peak(Program.plain_loop(casts_unquantised=one), **options).parts["weights"] for one in (False, True)
        )
        assert 2 * 2 * 32000 * 256 / GIB == pytest.approx(cast - plain, rel=0.01)

    @pytest.mark.parametrize(("reentrant", "layers"), [(True, 0), (False, 8)])
    def test_an_extra_copy_escapes_checkpointing_that_is_not_reentrant(self, reentrant, layers):
        """bitsandbytes before 0.43.2: the inputs of all 4-bit maps, 4 hidden widths with this MLP's, live to the loss."""
        import torch
        from peft import LoraConfig
        from transformers import BitsAndBytesConfig

        options = {
            "config": llama(num_hidden_layers=8, vocab_size=32000),
            "peft_config": LoraConfig(r=8, target_modules=["q_proj"], task_type="CAUSAL_LM"),
            "quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16),
            "checkpointing": True, "seq": 512,
        }  # fmt: skip
        program = Program.trainer().but(input_grads=True, reentrant=reentrant)
        plain, kept = (peak(program.but(extra_4bit_copy=one), **options) for one in (False, True))
        inputs = 2 * 512 * (256 + 256 + 256 + 512)  # of q, k and v; of o; of gate and up; of down
        assert layers * inputs == pytest.approx((kept.allocated_gib - plain.allocated_gib) * GIB, abs=0.1 * inputs)

    def test_unpacked_weights_are_kept(self):
        """AutoGPTQ's torch kernel: 2 bytes a weight live from its product to the backward, none are dequantised there."""
        import torch
        from peft import LoraConfig
        from transformers import BitsAndBytesConfig

        options = {
            "config": llama(hidden_size=1024, intermediate_size=4096, num_hidden_layers=2, num_key_value_heads=8),
            "peft_config": LoraConfig(r=8, target_modules=["q_proj"], task_type="CAUSAL_LM"),
            "quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16),
        }
        plain, kept = (peak(Program.plain_loop(unpacks_4bit=one), **options).allocated_gib for one in (False, True))
        assert 2 * 2 * (4 + 3 * 4) * 1024**2 == pytest.approx((kept - plain) * GIB, rel=0.25)


class TestTrace:
    def test_accumulating_steps_are_traced(self):
        """Gradients that are summed up belong to their layer, so a deep model's steps can be replayed."""
        from peft import LoraConfig

        adapters = LoraConfig(r=8, target_modules=["q_proj"], task_type="CAUSAL_LM")
        options = {"peft_config": adapters, "accumulates": True, "checkpointing": True}
        found = peak(Program.trainer(), config=llama(num_hidden_layers=9), **options)
        trace = found.trace_at(1, 64)
        assert trace is not None
        tensors = found.allocated_gib - found.parts["cuBLAS workspace"]
        assert tensors * GIB == pytest.approx(trace.peak_bytes(), rel=0.01)

    def test_what_a_card_must_offer_lies_between_live_and_reserved(self):
        """With the context in both; on a CPU there is no card."""
        from nbkit.memory.predicted import CONTEXT_GIB

        config = llama(num_hidden_layers=9, vocab_size=32000)
        for program in (Program.plain_loop(loss="shifted"), Program.named("torchtune", chunk=64)):
            found = peak(program, config=config, batch=2, seq=256)
            live = found.allocated_gib + sum(CONTEXT_GIB) / 2
            assert live <= found.needed_gib <= found.device_gib
        assert peak(Program.plain_loop(), device="cpu").needed_gib is None
