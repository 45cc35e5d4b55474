"""The memory formula, judged by measured runs, by steps run on fake tensors, and by what must hold of any such sum."""

from __future__ import annotations

import pytest

from nbkit.errors import NbkitError
from nbkit.memory import Shape, Step, estimate, shape
from nbkit.memory.formula import UNCERTAINTY

GB = 1e9 / 2**30  # in GiB

# Allocated peaks in GB on an RTX A6000: transformers 4.57 and PEFT in a plain loop with logits and foreach AdamW, 1 x 2048
# tokens. From the validation table in the README of vramcalc 0.1.2 (PyPI). The rows whose peak lies in foreach AdamW's
# own copies are left out: TRL trains with the fused one.
A6000 = [
    ("Llama-3.2-1B", "full", {}, 13.76),
    ("Llama-3.2-1B", "full", {"checkpointing": False}, 17.51),
    ("Qwen2.5-1.5B", "full", {"checkpointing": False}, 23.40),
    (
        "Llama-3.2-1B",
        "full",
        {"dtype": "float16"},
        25.22,
    ),  # measured with bf16 autocast over fp32 weights: the same bytes
    ("Llama-3.2-1B", "full", {"dtype": "float16", "checkpointing": False}, 30.55),
    ("Llama-3-8B", "lora", {"targets": "attention"}, 20.55),
    ("Llama-3.2-1B", "lora", {"targets": "attention", "checkpointing": False}, 10.13),
    ("Llama-3.2-3B", "lora", {"targets": "attention", "checkpointing": False}, 18.98),
    ("Qwen2.5-1.5B", "lora", {"targets": "attention", "checkpointing": False}, 13.78),
]
# GiB, step of TRL 1.16 on fake CPU tensors (so without Triton): 1 x 2048 tokens, rank 16 on all linear maps,
# checkpointing, accumulation, 8-bit AdamW for adapters. QLoRA, LoRA, full bf16.
FAKE_CPU = {
    "TinyLlama-1.1B": (2.9, 4.3, 10.6),
    "Llama-3.2-3B": (4.6, 8.5, 27.7),
    "Mistral-7B": (6.7, 16.4, None),
    "Qwen2.5-7B": (7.9, 17.0, None),
    "Llama-3-8B": (8.2, 17.9, 64.3),
    "Llama-2-13B": (10.1, 27.6, None),
    "Llama-3.3-70B": (43.3, 137.9, None),
}
# GiB, the same with TRL's tiles made to work in place, as Triton's kernels do, and AdamW: (tokens, sequences).
FAKE_CUDA = [
    ("TinyLlama-1.1B", "lora", (1024, 8), {}, 4.37),
    ("Llama-3-8B", "lora", (2048, 1), {}, 16.89),
    ("Llama-3-8B", "lora", (1024, 8), {}, 20.77),
    ("Llama-3-8B", "lora", (1024, 1), {"checkpointing": False}, 25.13),
    ("Llama-3.2-3B", "lora", (4096, 2), {"checkpointing": False}, 52.45),
    ("Qwen2.5-7B", "lora", (2048, 1), {}, 16.04),
    ("SmolLM2-135M", "lora", (1024, 8), {}, 1.01),
    ("SmolLM2-135M", "full", (2048, 1), {}, 1.37),
    ("Llama-3.2-3B", "full", (2048, 1), {}, 26.68),
    ("Llama-3.2-3B", "full", (1024, 1), {"checkpointing": False}, 30.02),
]
# GiB of live tensors, fp32 on fake CPU tensors: checkpointing, (tokens, sequences).
FAKE_FP32 = [
    ("SmolLM2-135M", "lora", True, (512, 4), 2.78),
    ("SmolLM2-135M", "lora", False, (512, 4), 5.25),
    ("SmolLM2-135M", "full", True, (512, 1), 2.66),
    ("TinyLlama-1.1B", "full", False, (512, 4), 26.03),
    ("TinyLlama-1.1B", "lora", True, (512, 4), 6.69),
]
# GiB of peak resident memory of a whole process, TRL 1.16 on the CPU in fp32 with accumulation, 1 sequence.
MEASURED_RSS = [("lora", 512, 2.32), ("qlora", 256, 1.43), ("full", 256, 3.13)]


def off(value, expected):
    """Relative error."""
    return abs(value / expected - 1)


class TestAgainstMeasurements:
    @pytest.mark.parametrize(("model", "method", "options", "gb"), A6000)
    def test_runs_on_a_gpu(self, model, method, options, gb):
        """Each measured peak lies within half of the stated uncertainty."""
        found = estimate(shape(model), Step(method, 2048, loss="logits", **options))
        assert UNCERTAINTY / 2 > off(found.allocated_gib, gb * GB)

    @pytest.mark.parametrize(("method", "seq", "gib"), MEASURED_RSS)
    def test_processes_on_a_cpu_lie_in_the_range(self, method, seq, gib):
        """The peak of a real training process of SmolLM2-135M lies between the low and the high end."""
        found = estimate(shape("SmolLM2-135M"), Step(method, seq, dtype="float32", device="cpu"))
        assert found.low_gib < gib < found.high_gib

    def test_a_70b_on_one_80_gb_card(self):
        """Unsloth's reserved peak for Llama-3.3-70B QLoRA, 42.8 GiB on an A100-80GB, lies in the range."""
        found = estimate(shape("Llama-3.3-70B"), Step("qlora", 2048, optimizer="adamw_8bit"))
        assert found.low_gib < 42.8 < found.high_gib


class TestAgainstFakeTensors:
    @pytest.mark.parametrize("model", FAKE_CPU)
    def test_trl_without_triton(self, model):
        """Every cell of the reference table lies within the stated uncertainty, and within a fifth of it."""
        for method, gib in zip(("qlora", "lora", "full"), FAKE_CPU[model], strict=True):
            if gib is not None:
                optimizer = "adamw" if method == "full" else "adamw_8bit"
                found = estimate(shape(model), Step(method, 2048, optimizer=optimizer, device="cpu"))
                assert UNCERTAINTY / 5 > off(found.allocated_gib, gib), (method, found.allocated_gib, gib)

    @pytest.mark.parametrize(("model", "method", "tokens", "options", "gib"), FAKE_CUDA)
    def test_trl_with_triton(self, model, method, tokens, options, gib):
        """Long and short batches, with and without checkpointing, lie within half of the stated uncertainty."""
        found = estimate(shape(model), Step(method, *tokens, **options))
        assert UNCERTAINTY / 2 > off(found.allocated_gib, gib)

    @pytest.mark.parametrize(("model", "method", "checkpointing", "tokens", "gib"), FAKE_FP32)
    def test_fp32_on_a_cpu(self, model, method, checkpointing, tokens, gib):
        """Training in float32 without a GPU lies within half of the stated uncertainty."""
        step = Step(method, *tokens, dtype="float32", device="cpu", checkpointing=checkpointing)
        assert UNCERTAINTY / 2 > off(estimate(shape(model), step).allocated_gib, gib)


class TestParts:
    def test_weights_are_the_quantised_and_the_rest(self):
        """NF4 with double quantisation takes 4.127 bits of each linear weight; embedding and head stay in 16 bit."""
        parts = {part.name: part.gib for part in estimate(shape("Llama-3-8B"), Step("qlora")).parts}
        linear, others = 6_979_321_856, 8_030_261_248 - 6_979_321_856
        assert pytest.approx((linear * 4.127 / 8 + others * 2) / 2**30) == parts["weights"]
        assert pytest.approx(41_943_040 * 4 / 2**30) == parts["adapters"] == parts["gradients"]
        assert pytest.approx(2 * parts["adapters"]) == parts["optimizer"]

    def test_parts_add_up_and_the_largest_is_named(self):
        """The shares sum to the peak, the range lies around it, and full training is bound by the optimizer."""
        found = estimate(shape("Llama-3-8B"), Step("full"))
        assert pytest.approx(sum(part.gib for part in found.parts)) == found.allocated_gib
        assert found.low_gib < found.allocated_gib < found.high_gib
        assert ("optimizer", "loss") == (found.largest.name, found.moment)

    def test_float16_keeps_full_training_in_fp32(self):
        """Where bf16 is missing, full training holds 16 bytes a parameter instead of 8; adapters cost the same."""
        one = shape("TinyLlama-1.1B")
        old, new = (estimate(one, Step("full", 8, dtype=dtype)).allocated_gib for dtype in ("float16", "bfloat16"))
        assert 7.9 < (old - new) * 2**30 / one.params < 10.1
        half = [estimate(one, Step("lora", dtype=dtype)).allocated_gib for dtype in ("float16", "bfloat16")]
        assert half[0] == half[1]

    def test_the_fused_loss_spares_the_logits(self):
        """For a large vocabulary the plain loss costs gigabytes that TRL's head does not."""
        fused, logits = (
            estimate(shape("Llama-3-8B"), Step("qlora", 2048, 4, loss=loss)).allocated_gib
            for loss in ("fused", "logits")
        )
        assert 7 < logits - fused < 14

    @pytest.mark.parametrize(
        "more", [{"seq": 2048}, {"micro_batch": 4}, {"rank": 64}, {"checkpointing": False}, {"dtype": "float32"}]
    )
    def test_more_costs_more(self, more):
        """Longer, wider, unchecked or wider-numbered steps never cost less."""
        small, large = (estimate(shape("Llama-3.2-1B"), Step("lora", **given)) for given in ({}, more))
        assert large.allocated_gib > small.allocated_gib

    def test_without_accumulation_gradients_wait_for_the_loss(self):
        """A single micro-batch holds no gradient while the loss is computed."""
        held, free = (estimate(shape("Llama-3-8B"), Step("full", accumulation=value)) for value in (True, False))
        assert free.allocated_gib < held.allocated_gib

    def test_shows_parts_and_range(self):
        """The table names each share in GiB, the sum, the stated uncertainty and the moment."""
        text = str(estimate(shape("Llama-3-8B"), Step("qlora", 2048)))
        assert text.startswith("Llama-3-8B, qlora, 1 x 2048 tokens, bfloat16\n")
        assert "weights                5.31" in text
        assert "Formula, ±10%, plus 0.3 to 1 GiB outside the allocator: 6.9 to 9.1 GiB on the device." in text
        assert "The peak lies in the backward of one layer." in text

    @pytest.mark.parametrize(
        ("options", "text"),
        [({"seq": 0}, "seq=0: it must be at least 1."), ({"micro_batch": -1}, "micro_batch=-1: it must be at least 1."),
         ({"method": "dora"}, "method='dora' is unknown.\n  Fix:  full, lora or qlora")],
    )  # fmt: skip
    def test_a_step_that_cannot_be_is_refused(self, options, text):
        """Impossible numbers and unknown methods are usage errors that name the value."""
        with pytest.raises(NbkitError) as caught:
            Step(**{"method": "lora", **options})
        assert (text, 2) == (str(caught.value), caught.value.exit_code)

    def test_a_model_of_ones_own(self):
        """Any dense shape can be asked about."""
        tiny = Shape("tiny", 2, 64, 128, 4, 2, 16, 1000, tied=True)
        assert 0 < estimate(tiny, Step("qlora", 16)).allocated_gib < 1
