"""The memory surface: exactly the formula, set right by fake steps, and quick enough for a slider."""

from __future__ import annotations

import json
import time

import pytest

from nbkit.memory.distributed import Alone, How, spread
from nbkit.memory.formula import Step, estimate
from nbkit.memory.shapes import shape
from nbkit.memory.sweep import surface

MISTRAL = shape("Mistral-7B")
VARIANTS = [(method, on) for method in ("full", "lora", "qlora") for on in (True, False)]


class TestSurface:
    @pytest.mark.parametrize(("method", "checkpointing"), VARIANTS)
    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
    def test_is_the_formula_everywhere(self, method, checkpointing, dtype):
        """Four numbers a part give the formula's peak, parts and range at any batch, sequence and rank."""
        found = surface(MISTRAL, Step("lora", dtype=dtype))
        for batch, seq, rank in ((1, 128, 4), (1, 4096, 16), (4, 2048, 64), (32, 8192, 256), (3, 1000, 7)):
            step = Step(method, seq, batch, dtype=dtype, rank=rank, checkpointing=checkpointing)
            expected, point = estimate(MISTRAL, step), found.at(method, checkpointing, batch, seq, rank=rank)
            assert expected.moment == point.moment
            assert pytest.approx(expected.allocated_gib) == point.allocated_gib
            assert {part.name: pytest.approx(part.gib) for part in expected.parts} == dict(point.parts)
            assert pytest.approx((expected.low_gib, expected.high_gib)) == (point.low_gib, point.high_gib)

    def test_largest_batch_and_longest_row_are_exact(self):
        """One row or one token more does not fit."""
        found = surface(MISTRAL, Step("qlora"))
        batch = found.largest_batch(23.5, "qlora", True, 2048)
        seq = found.longest_seq(23.5, "qlora", True)
        for size, length in ((batch, 2048), (1, seq)):
            assert "yes" == found.at("qlora", True, size, length).fits(23.5)
        assert "yes" != found.at("qlora", True, batch + 1, 2048).fits(23.5)
        assert "yes" != found.at("qlora", True, 1, seq + 1).fits(23.5)
        assert 0 == found.largest_batch(4.0, "full", True, 128)

    @pytest.mark.parametrize(("how", "strategy"), [("each", "ddp"), ("sharded", "fsdp")])
    @pytest.mark.parametrize("method", ["full", "lora", "qlora"])
    def test_several_gpus_are_as_distribution_reckons(self, how, strategy, method):
        """Over 2, 3 and 8 GPUs the surface says what nbkit.memory.distributed says, parts and range."""
        found = surface(MISTRAL, Step("lora"))
        for gpus, batch, seq in ((2, 1, 512), (3, 2, 4096), (8, 1, 1024)):
            alone = Alone.of(estimate(MISTRAL, Step(method, seq, batch)))
            expected = spread(alone, How(strategy, gpus, quant_storage_float=method == "qlora"))
            point = found.at(method, True, batch, seq, gpus=gpus, how=how)
            assert pytest.approx(expected.allocated_gib) == point.allocated_gib
            assert pytest.approx((expected.low_gib, expected.high_gib)) == (point.low_gib, point.high_gib)
            assert {part: pytest.approx(gib) for part, gib in expected.worst.items() if gib} == dict(point.parts)

    def test_fake_steps_set_it_right(self):
        """Where two fake steps were run the surface gives back what they said, and a line between."""
        found = surface(MISTRAL, Step("lora"))
        seen = [(256, 15.0, 15.2, 16.0), (4096, 18.0, 18.4, 19.5)]
        mended = found.corrected("lora", True, seen)
        for tokens, allocated, low, high in seen:
            point = mended.at("lora", True, 1, tokens)
            assert pytest.approx((allocated, low, high)) == (point.allocated_gib, point.low_gib, point.high_gib)
            assert "fake step" == point.basis
        assert 15.0 < mended.at("lora", True, 1, 2048).allocated_gib < 18.0
        assert found.at("qlora", True, 1, 256) == mended.at("qlora", True, 1, 256)
        again = mended.corrected("lora", True, [(256, 14.0, 14.2, 15.0)])
        assert pytest.approx(14.0) == again.at("lora", True, 1, 256).allocated_gib

    def test_a_slider_move_is_far_below_a_tenth_of_a_second(self):
        """A hundred evaluations in the time one move may take."""
        found = surface(MISTRAL, Step("lora"))
        start = time.perf_counter()
        for batch in range(1, 101):
            found.at("qlora", True, batch, 1024)
        assert time.perf_counter() - start < 1.0

    def test_json_carries_what_a_browser_needs(self):
        """as_dict is JSON and small."""
        text = json.dumps(surface(MISTRAL, Step("lora")).as_dict())
        assert len(text) < 60_000
        assert {"full:on", "full:off", "lora:on", "lora:off", "qlora:on", "qlora:off"} == set(
            json.loads(text)["variants"]
        )
