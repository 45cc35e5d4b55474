"""Each method that a prediction offers is run on fakes: formats, adapters, heads, experts; and a real step beside it."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest

from nbkit.errors import NbkitError
from nbkit.memory import Program, predict

WITHOUT_TORCH = """
import json, sys
for name in ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate"):
    sys.modules[name] = None
from types import SimpleNamespace as Object
import nbkit
from nbkit.errors import NbkitError
lora = Object(r=16, target_modules="all-linear")
found = nbkit.predict("Qwen/Qwen2.5-7B", peft_config=lora, quantization_config=Object(load_in_4bit=True), seq=1024)
refused = []
for model, options in (
    ("mistralai/Mixtral-8x7B-v0.1", {}),
    ("Qwen/Qwen2.5-7B", {"peft_config": lora, "quantization_config": Object(load_in_8bit=True)}),
):
    try:
        nbkit.predict(model, seq=64, **options)
    except NbkitError as error:
        refused.append(error.message)
print(json.dumps({**found.as_dict(), "refused": refused}))
"""


def test_without_torch_the_formula_answers():
    """With torch's import blocked: the formula's figure and range, and refusals that name what it does not cover."""
    from nbkit.memory import Step, estimate, shape

    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, timeout=120, check=True
    )
    found = json.loads(done.stdout)
    expected = estimate(shape("Qwen2.5-7B"), Step("qlora", seq=1024, accumulation=False))
    assert "formula" == found["basis"]
    assert expected.allocated_gib == pytest.approx(found["allocated_gib"], abs=1e-3)
    assert found["low_gib"] < found["allocated_gib"] * 0.9 + 0.31
    assert any("torch is not installed" in note for note in found["notes"])
    assert ["mixture of experts" in found["refused"][0], "8-bit weights" in found["refused"][1]] == [True, True]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
class TestOnFakes:
    """One layer, 64 tokens, TRL's program unless said otherwise."""

    @pytest.fixture(autouse=True)
    def _needs_torch(self):
        pytest.importorskip("torch")
        pytest.importorskip("peft")

    def config(self, **changes):
        """A Llama of one layer."""
        from transformers import LlamaConfig

        sizes = {
            "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 8,
            "num_key_value_heads": 2, "vocab_size": 2048, "max_position_embeddings": 512, "dtype": "bfloat16",
        }  # fmt: skip
        return LlamaConfig(**{**sizes, **changes})

    def predicted(self, config=None, **options):
        """A prediction with LoRA on all linear maps."""
        from peft import LoraConfig

        adapter = {"r": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options.pop("adapter", {})}
        cap = options.pop("cap", 64)
        return predict(config or self.config(), peft_config=LoraConfig(**adapter), seq=cap, **options)

    def accumulating(self):
        """Arguments of TRL with gradient accumulation."""
        return SimpleNamespace(
            per_device_train_batch_size=2, max_length=64, gradient_accumulation_steps=4, bf16=True, optim="adamw_torch",
            packing_strategy="bfd",
        )  # fmt: skip

    def bits(self, count):
        """A BitsAndBytesConfig."""
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(**{f"load_in_{count}bit": True})

    def test_eight_bit_weights(self):
        """LLM.int8 halves the linear maps and leaves embedding and head: one byte less for each of their weights."""
        linear = 2 * 256 * 256 + 2 * 256 * 64 + 3 * 256 * 512
        saved = self.predicted().parts["weights"] - self.predicted(quantization_config=self.bits(8)).parts["weights"]
        assert linear / 2**30 == pytest.approx(saved, rel=0.05)

    @pytest.mark.parametrize("bits", [None, 4, 8])
    def test_dora_adds_its_magnitudes(self, bits):
        """DoRA trains one number more for each output of an adapted map, on quantised weights too."""
        quantised = {} if bits is None else {"quantization_config": self.bits(bits)}
        plain = self.predicted(**quantised).parts
        dora = self.predicted(adapter={"use_dora": True}, **quantised).parts
        assert dora["adapters"] > plain["adapters"]

    def test_rank_stabilised_adapters_weigh_the_same(self):
        """rsLoRA changes a factor, no tensor."""
        found = self.predicted(adapter={"use_rslora": True})
        assert self.predicted().allocated_gib == pytest.approx(found.allocated_gib, rel=1e-3)

    def test_fp16(self):
        """Full training under fp16 takes float32 weights, and says so; adapters leave the base in 16 bit."""
        program = Program.trl().but(autocast="float16")
        full = predict(self.config(), seq=64, dtype="float16", program=program)
        adapted = self.predicted(dtype="float16", program=program)
        assert any("float32" in note for note in full.notes)
        assert full.parts["weights"] > 1.9 * adapted.parts["weights"]

    def test_sequence_classification(self):
        """The task of the adapter decides: no logits over the vocabulary, whose head is gone from the weights too."""
        classified = self.predicted(adapter={"task_type": "SEQ_CLS"}, batch=2, program=Program.trainer())
        causal = self.predicted(batch=2, program=Program.trainer())
        head = 256 * 2048 * 2 / 2**30
        assert head == pytest.approx(causal.parts["weights"] - classified.parts["weights"], rel=0.05)

    def test_experts(self):
        """Of a mixture all experts are weights, whichever are chosen."""
        from transformers import Qwen3MoeConfig

        sizes = {
            "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512, "dtype": "bfloat16",
            "num_experts_per_tok": 2,
        }  # fmt: skip
        few, many = (
            self.predicted(Qwen3MoeConfig(**sizes, num_experts=one), adapter={"target_modules": ["q_proj"]})
            for one in (4, 8)
        )
        expected = 4 * 3 * 64 * 64 * 2 / 2**30
        assert expected == pytest.approx(many.parts["weights"] - few.parts["weights"], rel=0.05)

    def test_what_the_arguments_ask_of_attention_and_liger(self):
        """Eager keeps the scores; flash attention is counted and said; Liger is left out and said."""
        args = {"per_device_train_batch_size": 1, "max_length": 256, "gradient_accumulation_steps": 1, "bf16": True}

        def asked(**more):
            found = SimpleNamespace(**args, packing_strategy="bfd", optim="adamw_torch", **more)
            return predict(self.config(), found)

        eager = asked(model_init_kwargs={"attn_implementation": "eager"})
        flash = asked(model_init_kwargs={"attn_implementation": "flash_attention_2"}, use_liger_kernel=True)
        assert "eager" == eager.program.attention
        assert eager.allocated_gib >= flash.allocated_gib
        assert any("flash_attention_2" in note for note in flash.notes)
        assert any("Liger" in note for note in flash.notes)
        missing = importlib.util.find_spec("liger_kernel") is None
        assert missing == any("liger_kernel is not installed here" in note for note in flash.notes)

    def test_lengths_are_replayed(self):
        """Batches of many lengths: reserved is replayed in random order, at least what is allocated, and it is said."""
        config = self.config(num_hidden_layers=6)
        found = predict(config, self.accumulating(), dataset=[30, 64, 48, 20] * 4, batch=2, device="cuda")
        assert found.allocated_gib <= found.reserved_gib
        assert any("replayed through a model of the allocator" in note for note in found.notes)

    def test_a_run_that_fits_a_card_reserves_no_more_than_the_card(self):
        """Qwen-7B's sizes over varying lengths: without a card its fragments pass 24 GB; on an RTX 4090 they are given back
        to the driver first, so it fits."""
        config = self.config(
            vocab_size=151936, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
            num_key_value_heads=32, max_position_embeddings=4096,
        )  # fmt: skip
        program = Program(
            loss="shifted", attention="flash", autocast="bfloat16", optimizer="adamw foreach", input_grads=True
        )
        rows = random.Random(3).choices(range(90, 2000), k=400)
        asked = {"program": program, "dataset": rows, "checkpointing": True, "adapter": {"target_modules": ["q_proj"]}}
        free, card = (self.predicted(config, device="cuda", gpu=gpu, cap=2000, **asked) for gpu in (None, "RTX 4090"))
        assert free.allocated_gib == card.allocated_gib < 19
        assert free.device_gib > 24
        assert card.reserved_gib < card.device_gib <= 23.52
        assert ("tight", "yes") == (free.fits(23.52), card.fits(23.52))
        assert any("The card fills up" in note for note in card.notes)

    def test_a_bias_that_is_cast_in_the_forward_does_not_hinder_a_trace(self):
        """bitsandbytes gives Qwen's bias its input's format once: replayed all the same, and no step leaves anything."""
        from transformers import BitsAndBytesConfig, Qwen2Config

        bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype="bfloat16")
        config = Qwen2Config(
            vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=6, num_attention_heads=4,
            num_key_value_heads=4,
        )  # fmt: skip
        program = Program(loss="shifted", autocast="bfloat16", optimizer="adamw foreach", outputs_to_fp32=True)
        found = self.predicted(
            config, quantization_config=bits, program=program, dtype="bfloat16", batch=2,
            dataset=[30, 64, 48, 20] * 4, device="cuda",
        )  # fmt: skip
        assert any("replayed through a model of the allocator" in note for note in found.notes)
        trace = found.trace_at(2, 64)
        made = {key for key, size in trace.steady if size}
        assert set() == made - {key for key, size in trace.steady if not size}

    def test_pieces_for_several_devices(self):
        """What spread needs adds up to the whole, and a device of two holds half of the frozen weights."""
        from nbkit.memory.distributed import How, spread

        found = self.predicted(self.config(num_hidden_layers=6), dtype="bfloat16")
        alone, one = found.alone, spread(found.alone, How("ddp", 1))
        assert 6 == alone.layers
        assert 2 * alone.frozen == pytest.approx(alone.frozen_gib * 2**30, rel=0.01)
        whole = (6 * alone.layer_gib + alone.ends_gib) * 2**30
        assert whole == pytest.approx(2 * alone.frozen + alone.trained_bytes * alone.trainable, rel=0.02)
        assert found.allocated_gib == pytest.approx(one.allocated_gib, rel=0.2)
        half = spread(alone, How("fsdp", 2, mixed_precision=False)).worst["weights"]
        assert half == pytest.approx(one.worst["weights"] / 2)

    def test_an_accumulated_step_is_replayed_at_full_depth(self):
        """Gradients that are added to lie between a layer's events: the unrolled trace is the whole model's, to 1 %."""
        from peft import LoraConfig

        from nbkit.memory import fake, step
        from nbkit.memory.unroll import unroll

        adapter = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
        wanted = fake.Wanted(
            self.config(num_hidden_layers=7), "bfloat16", peft_config=adapter, quantization_config=self.bits(4)
        )
        job = step.Job(wanted, Program.trl(), 1, 64, {}, accumulates=True)
        shallow, whole = (step.run(job, layers, trace=True) for layers in (3, None))
        deep = unroll(shallow.resident, shallow.first.moments, shallow.tally.moments, 3, 7, 64)
        true = unroll(whole.resident, whole.first.moments, whole.tally.moments, 7, 7, 64)
        assert true.peak_bytes() == pytest.approx(deep.peak_bytes(), rel=0.01)
        assert len(true.steady) == pytest.approx(len(deep.steady), rel=0.01)
        assert whole.tally.peak[1].live == pytest.approx(true.peak_bytes(), rel=0.01)

    def test_gradients_put_there_give_the_peak_of_micro_batches_that_were_run(self):
        """The quick way and two real micro-batches agree to a block of the allocator."""
        from nbkit.memory import fake, step

        wanted = fake.Wanted(self.config(num_hidden_layers=2), "bfloat16")
        job = step.Job(wanted, Program.trl(), 1, 64, {}, accumulates=True)
        quick, real = (step.run(job, None, trace=trace).tally.peak[1].live for trace in (False, True))
        assert real == pytest.approx(quick, abs=512)

    def test_gemma_3(self):
        """Sliding and full layers in a pattern of six, from the text part of a config that has a vision part too."""
        from transformers import Gemma3Config, Gemma3TextConfig

        sizes = {
            "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "vocab_size": 512, "num_hidden_layers": 26, "dtype": "bfloat16",
        }  # fmt: skip
        text = self.predicted(Gemma3TextConfig(**sizes))
        whole = self.predicted(Gemma3Config(text_config=Gemma3TextConfig(**sizes)))
        assert text.allocated_gib == pytest.approx(whole.allocated_gib)
        assert any("only its language model" in note for note in whole.notes)
        tied = 512 * 64 + 26 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
        assert tied * 2 / 2**30 == pytest.approx(text.parts["weights"], rel=0.05)

    @pytest.mark.parametrize(("strategy", "rows", "tokens"), [("bfd", 1, 256), ("wrapped", 4, 64)])
    def test_packing(self, strategy, rows, tokens):
        """TRL lays packs end to end as one row, or keeps them as rows when it wraps; every one of them is full."""
        args = SimpleNamespace(
            per_device_train_batch_size=4, max_length=64, gradient_accumulation_steps=1, bf16=True, optim="adamw_torch",
            packing=True, packing_strategy=strategy,
        )  # fmt: skip
        found = predict(self.config(), args, dataset=[10, 20, 30] * 8)
        assert (rows, tokens) == (found.batch, found.seq)
        assert any("Padding-free" in note for note in found.notes) == (strategy == "bfd")

    def test_a_measured_step_agrees_and_leaves_no_trace(self, tmp_path):
        """A real step on this CPU is within 15 % of its prediction; weights, random state and optimizer are as before."""
        import torch
        from transformers import LlamaForCausalLM, Trainer, TrainingArguments

        from nbkit.memory import measured_step

        model = LlamaForCausalLM(self.config(num_hidden_layers=2, dtype="float32"))
        args = TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, bf16=True, optim="adamw_torch", report_to=[],
            per_device_train_batch_size=4,
        )  # fmt: skip
        rows = [{"input_ids": [one] * 96, "labels": [one] * 96} for one in range(8)]
        trainer = Trainer(model=model, args=args, train_dataset=rows)
        before = [one.detach().clone() for one in model.parameters()]
        state, other = torch.random.get_rng_state(), random.getstate()
        measured = measured_step(trainer)
        predicted = predict(trainer, seq=96)
        assert measured.allocated_gib == pytest.approx(predicted.allocated_gib, rel=0.15)
        assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
        assert torch.equal(state, torch.random.get_rng_state())
        assert random.getstate() == other
        assert trainer.optimizer is None
        assert all(one.grad is None for one in model.parameters())
        assert "forward" not in vars(model)

    def test_nothing_to_measure(self):
        """A trainer without rows is an error."""
        from nbkit.memory import measured_step

        with pytest.raises(NbkitError, match="no rows"):
            measured_step(SimpleNamespace(train_dataset=None))
