"""Predicted time: operations counted by hand, published runs, and real steps on this processor."""

from __future__ import annotations

import json

import pytest

from nbkit.errors import NbkitError
from nbkit.memory.batches import Feed, compose
from nbkit.memory.formula import Step
from nbkit.memory.shapes import Shape, shape
from nbkit.memory.time import Link, Load, Rates, duration, human, remaining, spec_rates, with_run, work

LLAMA_2_7B = Shape("Llama-2-7B", 32, 4096, 11008, 32, 32, 128, 32000, tied=False)
QWEN_7B = Shape("Qwen-7B", 32, 4096, 11008, 32, 32, 128, 151936, tied=False, qkv_bias=True)
QWEN_14B = Shape("Qwen-14B", 40, 5120, 13696, 40, 40, 128, 152064, tied=False, qkv_bias=True)
CARDS = {"A100": (312, 2039), "RTX 3090": (71.2, 936), "RTX 4090": (165.2, 1008)}
PLAIN = Rates(1e12, 0.0, 1e12, 0.2, "a test")


def seconds(model, step, batch=1, seq=1024, rates=PLAIN, **options):
    """One step of one micro-batch."""
    return duration(model, step, Load.uniform(batch, seq), rates, **options).parts


class TestOperations:
    @pytest.mark.parametrize(
        ("method", "checkpointing", "layers", "head"),
        [
            ("full", False, 6, 6),
            ("full", True, 8, 6),
            ("lora", False, 4, 4),
            ("lora", True, 6, 4),
            ("qlora", True, 6, 4),
        ],
    )
    def test_passes_through_the_weights(self, method, checkpointing, layers, head):
        """6N for full training, 4N for frozen weights, 2N more for recomputed layers; the head is never recomputed."""
        model = shape("Llama-3-8B")
        step = Step(method, checkpointing=checkpointing)
        adapters = 0 if method == "full" else model.lora_params(16) * (8 if checkpointing else 6)
        expected = layers * model.linear_params + head * model.vocab * model.hidden + adapters
        assert expected == work(model, step, 1, 0).flops

    def test_attention_is_causal_and_quadratic(self):
        """2 S Q a token and layer forward, twice that backward: four times as much for twice the length."""
        model, step = shape("Llama-3-8B"), Step("lora", checkpointing=False)
        assert 3 * 2 * 32 * 4096 * 2048**2 == work(model, step, 0, 2048**2).flops

    def test_only_4_bit_weights_are_unpacked(self):
        """LoRA unpacks nothing; QLoRA reads and writes each weight in every pass: three with checkpointing, else two."""
        model = shape("Llama-3-8B")
        assert 0 == work(model, Step("lora"), 1, 1).unpacked_bytes
        three, two = (work(model, Step("qlora", checkpointing=on), 1, 1).unpacked_bytes for on in (True, False))
        assert pytest.approx(1.5) == three / two
        assert pytest.approx(3 * model.linear_params * (2 + 4.127 / 8)) == three


class TestTwoRegimes:
    def test_short_batches_wait_and_long_ones_compute(self):
        """Below the corner the time hardly depends on tokens; above it, it is proportional to them."""
        rates, step = spec_rates("A100", *CARDS["A100"]), Step("lora")
        short = [seconds(QWEN_7B, step, seq=seq, rates=rates)["arithmetic"] for seq in (16, 64)]
        long = [seconds(QWEN_7B, step, seq=seq, rates=rates)["arithmetic"] for seq in (4096, 8192)]
        assert 1.05 > short[1] / short[0]
        assert 2.0 < long[1] / long[0] < 2.3

    # Published tokens/s: Qwen's README (LoRA rank 64, checkpointing, A100, 8 micro-batches of 1 a step) and
    # AnswerDotAI/fsdp_qlora's tables (two cards, DDP).
    @pytest.mark.parametrize(
        ("model", "card", "gpus", "method", "batch", "seq", "measured"),
        [
            (QWEN_7B, "A100", 1, "lora", 1, 256, 1706.7),
            (QWEN_7B, "A100", 1, "lora", 1, 1024, 2925.7),
            (QWEN_7B, "A100", 1, "lora", 1, 8192, 3076.8),
            (QWEN_14B, "A100", 1, "lora", 1, 512, 1706.7),
            (QWEN_14B, "A100", 1, "lora", 1, 4096, 1927.5),
            (LLAMA_2_7B, "RTX 3090", 2, "lora", 4, 2048, 2380.4),
            (LLAMA_2_7B, "RTX 3090", 2, "qlora", 8, 2048, 2396.7),
            (LLAMA_2_7B, "RTX 4090", 2, "lora", 4, 2048, 4799.0),
            (LLAMA_2_7B, "RTX 4090", 2, "qlora", 8, 2048, 4660.3),
        ],
    )
    def test_published_runs_lie_in_the_range(self, model, card, gpus, method, batch, seq, measured):
        """From the data sheet alone: within 25 %, and the printed range holds the measured time."""
        step = Step(method, rank=64)
        accumulation = 8 if card == "A100" else gpus
        found = duration(
            model,
            step,
            Load.uniform(batch, seq, accumulation),
            spec_rates(card, *CARDS[card], geforce=card != "A100"),
            link=Link(gpus),
        )
        assert 0.8 <= found.tokens_per_s / measured <= 1.25
        assert found.low_s <= found.tokens / measured <= found.high_s

    @pytest.mark.parametrize(
        ("card", "method", "batch", "seq", "measured"),
        [
            ("RTX 3090", "lora", 1, 512, 201.9),
            ("RTX 3090", "lora", 1, 2048, 678.7),
            ("RTX 3090", "qlora", 1, 512, 484.6),
            ("RTX 4090", "lora", 6, 2048, 4360.0),
        ],
    )
    def test_sharded_weights_wait_for_the_wire(self, card, method, batch, seq, measured):
        """FSDP over PCIe: small batches wait for the weights, 4-bit weights travel faster, large batches hide it."""
        rates = spec_rates(card, *CARDS[card], geforce=card != "A100")
        found = duration(
            LLAMA_2_7B, Step(method, rank=64), Load.uniform(batch, seq, 2), rates, link=Link(2, sharded=True)
        )
        assert 0.75 <= found.tokens_per_s / measured <= 1.3


class TestDuration:
    def test_padding_costs_time_and_packing_saves_it(self):
        """Rows of unequal length in one batch compute on padding; packed they do not."""
        lengths = [50, 1000] * 32
        model, step = shape("SmolLM2-135M"), Step("lora")
        padded = duration(model, step, Load.of(compose(lengths, Feed(batch=8))), PLAIN)
        packed = duration(model, step, Load.of(compose(lengths, Feed(batch=8, packing="bfd", max_length=1024))), PLAIN)
        assert padded.padding > 0.4
        assert 0 == packed.padding
        assert packed.seconds < 0.65 * padded.seconds
        assert "of the work is padding" in str(padded)

    def test_grouping_by_length_saves_padding(self):
        """The same rows, sorted into batches of like length, pad less."""
        lengths = [50, 1000] * 64
        by_order = {
            order: duration(
                shape("SmolLM2-135M"), Step("lora"), Load.of(compose(lengths, Feed(batch=8, order=order))), PLAIN
            )
            for order in ("random", "group_by_length")
        }
        assert by_order["group_by_length"].padding < 0.2 < by_order["random"].padding

    def test_max_steps_ends_it(self):
        """Three of ten steps take three tenths of the time."""
        model, step = shape("SmolLM2-135M"), Step("lora")
        batches = list(compose([128] * 20, Feed(accumulation=2)))
        whole, part = (duration(model, step, Load.of(batches, most), PLAIN) for most in (None, 3))
        assert (3, 6) == (part.steps, part.micro_batches)
        assert pytest.approx(0.3) == part.seconds / whole.seconds

    def test_full_training_pays_for_its_optimizer(self):
        """Two states of every weight are read and written each step."""
        model = shape("Llama-3-8B")
        found = seconds(model, Step("full"))
        assert pytest.approx(model.params * 16 / 1e12) == found["optimizer"]

    def test_shows_parts_range_and_basis(self):
        """The table says what it rests on; as_dict is JSON-ready."""
        found = duration(QWEN_7B, Step("qlora"), Load.uniform(1, 1024, 8), spec_rates("A100", *CARDS["A100"]))
        assert "By A100's data sheet: 52% of 312 TFLOPS" in str(found)
        assert found.low_s < found.seconds < found.high_s
        data = json.loads(json.dumps(found.as_dict()))
        assert pytest.approx(data["seconds"], abs=0.01) == sum(data["parts"].values())

    def test_no_batch_is_an_error(self):
        """A time of nothing is not zero, it is a mistake."""
        with pytest.raises(NbkitError, match="There is no batch"):
            duration(QWEN_7B, Step("lora"), Load.of([]), PLAIN)


def run_rows(each, steps, start=100.0):
    """Metrics of a run whose steps take `each` seconds."""
    return [{"time": start + number * each, "step": number, "loss": 1.0} for number in range(1, steps + 1)]


class TestRemaining:
    def test_follows_the_runs_own_steps(self):
        """After thirty steps of 2 s, seventy more take 140 s, with a narrow range."""
        left = remaining(run_rows(2.0, 30), 100)
        assert (70, pytest.approx(140)) == (left.steps_left, left.seconds)
        assert 130 < left.low_s < left.high_s < 150
        assert "from the run's own 28 steps" in str(left)

    def test_the_first_step_warms_up(self):
        """A first step of a minute does not count."""
        rows = run_rows(2.0, 10)
        rows[0]["time"] -= 60
        assert pytest.approx(180) == remaining(rows, 100).seconds

    def test_a_pause_is_not_a_step_but_an_evaluation_is(self):
        """A night's sleep between two rows is left out; a regular evaluation goes on costing."""
        rows = run_rows(1.0, 40)
        for row in rows[20:]:
            row["time"] += 8 * 3600
        assert pytest.approx(60) == remaining(rows, 100).seconds
        slow = run_rows(1.0, 40)
        for number, row in enumerate(slow):
            row["time"] += number // 10 * 5  # 5 s of evaluation every ten steps
        assert 75 < remaining(slow, 100).seconds < 95

    def test_early_on_the_prediction_counts_too(self):
        """With few steps the prediction is mixed in; from twenty on it is not."""
        ahead = duration(shape("SmolLM2-135M"), Step("lora"), Load.uniform(1, 128, steps=100), PLAIN)
        rows = run_rows(2 * ahead.step_s, 6)
        early = remaining(rows, 100, ahead)
        assert ahead.step_s < early.step_s < 2 * ahead.step_s
        late = remaining(run_rows(2 * ahead.step_s, 50), 100, ahead)
        assert pytest.approx(2 * ahead.step_s) == late.step_s
        assert pytest.approx(ahead.seconds) == remaining([], 100, ahead).seconds

    def test_a_finished_run_has_nothing_left(self):
        """Zero seconds, not a negative number."""
        assert 0 == remaining(run_rows(1.0, 10), 10).seconds

    def test_without_steps_or_prediction_it_says_so(self):
        """One row gives no interval."""
        with pytest.raises(NbkitError, match="no two training steps yet"):
            remaining(run_rows(1.0, 1), 10)

    def test_a_run_corrects_the_rates(self):
        """Rates taken from a run predict that run."""
        rates = spec_rates("A100", *CARDS["A100"])
        ahead = duration(QWEN_7B, Step("qlora"), Load.uniform(1, 512, steps=50), rates)
        mended = with_run(rates, ahead, run_rows(3 * ahead.step_s, 50))
        again = duration(QWEN_7B, Step("qlora"), Load.uniform(1, 512, steps=50), mended)
        assert pytest.approx(3, rel=0.01) == again.seconds / ahead.seconds
        assert "the run's own 48 steps on this machine" == again.basis


def test_human_times():
    """A unit a person would choose."""
    assert ["20 ms", "5.0 s", "42 s", "12 min", "2.0 h", "3.0 days"] == [
        human(value) for value in (0.02, 5, 42, 720, 7200, 259200)
    ]
