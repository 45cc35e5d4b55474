"""Fake steps inside a plan, and rates measured on this processor: real torch, tiny models."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from nbkit.memory import Load, Shape, Step, benchmark, duration, plan
from nbkit.memory.measure import _open as is_open
from nbkit.memory.measure import predicted, refine
from nbkit.memory.place import place

TINY = Shape("tiny", 2, 64, 128, 4, 2, 16, 1000, tied=True)
SMALL = Shape("small", 4, 256, 768, 4, 2, 64, 2048, tied=True)


def config():
    """A transformers config of TINY's shape."""
    from transformers import LlamaConfig

    return LlamaConfig(num_hidden_layers=2, hidden_size=64, intermediate_size=128, num_attention_heads=4,
                       num_key_value_heads=2, vocab_size=1000, tie_word_embeddings=True)  # fmt: skip


@pytest.mark.train
class TestMeasure:
    def test_a_fake_step_sets_the_surface_right(self):
        """The option that was run gives what nbkit.predict says; the others stay with the formula."""
        found = plan(config(), "T4", seq=64, batch=1)
        option = found.of("lora", False)
        ground, notes = refine(found, [option])
        said = predicted(found, "lora", False, 1, 64)
        point = ground.at("lora", False, 1, 64)
        assert () == notes
        assert pytest.approx((said.low_gib, said.high_gib)) == (point.low_gib, point.high_gib)
        assert ("fake step", "formula") == (point.basis, ground.at("qlora", False, 1, 64).basis)

    def test_only_what_the_formula_leaves_open_is_run(self):
        """A clear yes or no needs no fake step."""
        found = plan("Mistral-7B", "RTX 4090")
        opened = [one.name for one in found.options if is_open(one, found.place.room_gib)]
        assert ["LoRA", "LoRA, checkpointing"] == opened

    def test_what_cannot_be_run_is_said(self):
        """A shape without a config keeps the formula, with a note."""
        near = replace(place("T4"), room_gib=0.6)  # in the middle of every option's range
        found = plan(TINY, near, measure=True, seq=64, batch=1)
        assert any("no fake step (tiny is a shape without a config)" in note for note in found.notes)


def measured_step_s(shape, tokens):
    """The shortest of five real LoRA steps (forward, backward, AdamW) of a model of that shape, float32, on this CPU."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(num_hidden_layers=shape.layers, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
                    num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim,
                    vocab_size=shape.vocab, tie_word_embeddings=True)
    )  # fmt: skip
    model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([weights for weights in model.parameters() if weights.requires_grad])
    ids = torch.randint(0, shape.vocab, (1, tokens))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.train
class TestBenchmark:
    def test_predicts_real_steps_on_this_processor(self):
        """Steps of a four-layer model take what two measured layers say, within a factor that a busy machine explains;
        where its business changes between the two, both are measured again."""
        step = Step("lora", 256, 1, dtype="float32", checkpointing=False, device="cpu")
        for attempt in range(3):
            rates = benchmark(SMALL, step, device="cpu", seconds=4)
            pairs = [
                (duration(SMALL, step, Load.uniform(1, tokens), rates).seconds, measured_step_s(SMALL, tokens))
                for tokens in (64, 256)
            ]
            if all(0.2 < found / expected < 5 for found, expected in pairs):
                break
            assert attempt < 2, pairs
        assert "a benchmark of two layers at 16 and 256 tokens on this CPU" in rates.basis

    @pytest.mark.parametrize("method", ["full", "qlora"])
    def test_every_method_is_run_as_it_is(self, method):
        """Full training has no adapters, QLoRA unpacks 4-bit weights, and that is measured by itself."""
        step = Step(method, 64, 1, dtype="float32", checkpointing=True, device="cpu")
        rates = benchmark(TINY, step, device="cpu", seconds=2)
        assert rates.flops_per_s > 0
        assert rates.layer_s >= 0
        assert (rates.unpack_per_s is not None) == (method == "qlora")

    def test_stays_within_its_time(self):
        """Two seconds asked, not twenty taken; torch is imported already."""
        start = time.monotonic()
        benchmark(SMALL, Step("lora", 256, 1, dtype="float32", device="cpu"), device="cpu", seconds=2)
        assert time.monotonic() - start < 40

    def test_a_model_too_large_to_measure_is_refused(self):
        """Two layers beyond a quarter of the memory are not made."""
        from nbkit.errors import NbkitError

        huge = replace(SMALL, name="huge", hidden=65536, intermediate=262144)
        with pytest.raises(NbkitError, match="Two layers of huge take"):
            benchmark(huge, Step("lora", device="cpu"), device="cpu")
