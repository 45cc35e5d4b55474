"""What fits where: verdicts by the range, for this machine, for its GPUs, and for cards one might rent."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest

import nbkit
from nbkit.errors import NbkitError
from nbkit.hardware import Gpu, Memory, probe
from nbkit.memory import Shape, fits

METHODS = ("full", "lora", "qlora")


def verdicts(found, model, target=""):
    """yes, tight or no for full, LoRA and QLoRA."""
    return tuple(found.of(model, method, target).verdict for method in METHODS)


@pytest.fixture
def machine():
    """This machine without its GPUs, and with 16 GiB of free memory and 4 cores."""
    here = probe()
    memory = Memory(total_gib=32, available_gib=16, limit_gib=None, swap_gib=0)
    return replace(here, gpus=(), memory=memory, cpu=replace(here.cpu, usable=4.0, flags=()))


def t4(**changes):
    """A T4 with 14.7 GiB, all free."""
    given = {"index": 0, "name": "Tesla T4", "total_gib": 15.0, "free_gib": 14.7, "compute_capability": (7, 5),
             "driver": "580", "cuda": "13.0", "reserved_gib": 0.26}  # fmt: skip
    return Gpu(**{**given, **changes})


class TestVerdicts:
    def test_is_the_vocabulary_of_nbkit(self):
        """nbkit.fits is this function."""
        assert nbkit.fits is importlib.import_module("nbkit.memory").fits

    @pytest.mark.parametrize(
        ("card", "model", "expected"),
        [
            ("T4", "SmolLM2-135M", ("yes", "yes", "yes")),
            ("T4", "Llama-3.2-3B", ("no", "yes", "yes")),
            ("T4", "Mistral-7B", ("no", "tight", "yes")),
            ("T4", "Llama-3.3-70B", ("no", "no", "no")),
            ("RTX 3060", "Llama-3-8B", ("no", "no", "yes")),
            ("RTX 4090", "Llama-2-13B", ("no", "no", "yes")),
            ("A100-40GB", "Llama-2-13B", ("no", "yes", "yes")),
            ("H100-80GB", "Llama-3-8B", ("yes", "yes", "yes")),
            ("H100-80GB", "Llama-3.3-70B", ("no", "no", "yes")),
        ],
    )
    def test_cards_hold_what_they_are_known_to_hold(self, card, model, expected):
        """16 GB cards train 7B in 4 bit, 24 GB cards 13B, 80 GB cards 70B in 4 bit or 8B in full."""
        assert expected == verdicts(fits(gpu=card), model)

    def test_the_range_decides(self):
        """yes needs the high end, tight the low end; the memory between them is tight, exactly at the ends it is not."""
        fit = fits(gpu="T4").of("Mistral-7B", "lora")
        low, high = fit.estimate.low_gib, fit.estimate.high_gib
        rooms = (high, high - 0.01, low, low - 0.01)
        assert ("yes", "tight", "tight", "no") == tuple(
            replace(fit, target=replace(fit.target, room_gib=room)).verdict for room in rooms
        )

    def test_a_no_names_what_is_too_large(self):
        """A cell says its range in GiB, and a refusal names the largest share."""
        found = fits(gpu="T4")
        assert "no 14.9-18.9 (weights)" == str(found.of("Llama-3-8B", "lora"))
        assert str(found.of("Llama-3-8B", "full")).endswith("(optimizer)")
        assert "yes 6.3-8.4" == str(found.of("Llama-3-8B", "qlora"))

    def test_longer_and_wider_steps_need_more(self):
        """Sequence length and micro-batch enter the answer."""
        assert "yes" == fits(gpu="T4").of("Llama-3-8B", "qlora").verdict
        assert "no" == fits(gpu="T4", seq=8192, micro_batch=4).of("Llama-3-8B", "qlora").verdict


class TestHere:
    def test_a_gpu_is_judged_by_what_is_free_now(self, machine):
        """Memory that other processes hold does not count, and the title says that they hold it."""
        busy = fits(replace(machine, gpus=(t4(free_gib=5.0),)))
        assert "no" == busy.of("Llama-3-8B", "qlora").verdict
        assert "What fits: GPU 0, T4, 9.7 GiB held by others" == str(busy).splitlines()[0]
        assert "yes" == fits(replace(machine, gpus=(t4(),))).of("Llama-3-8B", "qlora").verdict

    def test_the_emptiest_visible_gpu_counts(self, machine):
        """Of several GPUs the one with most free memory is judged; a hidden one is not looked at."""
        gpus = (t4(free_gib=2.0), t4(index=1), t4(index=2, total_gib=80, free_gib=79, visible=False))
        assert "GPU 1, T4" == fits(replace(machine, gpus=gpus)).targets[0].name

    def test_without_bf16_full_training_is_dearer_and_said_so(self, machine):
        """A T4 computes in float16, keeps float32 weights for full training, and the reason is below the table."""
        found = fits(replace(machine, gpus=(t4(),)))
        assert "float16" == found.targets[0].dtype
        note = "T4: compute capability 7.5 has no bf16: full training keeps float32 weights and computes in float16."
        assert note in found.table().notes

    def test_without_a_gpu_memory_and_time_decide(self, machine):
        """RAM is judged in float32, and a time for each model says what is sensible on these cores."""
        found = fits(machine)
        assert ("yes", "yes", "yes") == verdicts(found, "SmolLM2-135M")
        assert ("no", "no", "yes") == verdicts(found, "Mistral-7B")
        times = {row["model"]: row["100,000 tokens"] for row in found.table().as_dicts()}
        assert ("5 min", "4 h", "2 days") == (times["SmolLM2-135M"], times["Mistral-7B"], times["Llama-3.3-70B"])
        text = str(found)
        assert "Room: 16.0 GiB, RAM available now." in text
        assert "168 tokens/s for 135M with 4-bit weights on 2 cores" in text
        assert "an order of magnitude, no more" in text


class TestCards:
    def test_several_cards_stand_side_by_side(self):
        """A column a card with its usable memory, and in each cell the richest method that fits."""
        table = fits(gpu=["T4", "A100-40GB"]).table()
        assert ["model", "parameters", "T4 (14.7 GiB)", "A100-40GB (39.6 GiB)"] == list(table.columns)
        rows = {row[0]: tuple(row[1:]) for row in table.rows}
        assert ("7.2B", "QLoRA", "LoRA") == rows["Mistral-7B"]
        assert ("70.6B", "no", "QLoRA, tight") == rows["Llama-3.3-70B"]
        assert "No bf16 on T4: full training there keeps float32 weights." in table.notes

    def test_the_notes_state_the_program_and_the_doubt(self):
        """What was assumed, and how sure the numbers are, stands below both tables."""
        for found in (fits(gpu="L4", seq=512), fits(gpu=["L4", "T4"], seq=512)):
            text = str(found)
            assert "In GiB, by formula: ±10% of the live tensors, plus 0.3 to 1.0 GiB for CUDA." in text
            assert "For 1 x 512 tokens, gradient checkpointing, AdamW, TRL's fused loss, LoRA rank 16" in text

    def test_an_unknown_card_is_a_usage_error(self):
        """The error is the card table's own."""
        with pytest.raises(NbkitError, match="No card named 'K80' in nbkit's table"):
            fits(gpu="K80")

    def test_a_model_of_ones_own_is_judged(self):
        """`models` takes any shape, and only those are in the table."""
        mine = Shape("mine", 2, 64, 128, 4, 2, 16, 1000, tied=True)
        found = fits(gpu="T4", models=[mine])
        assert ["mine"] == [row["model"] for row in found.table().as_dicts()]
        with pytest.raises(NbkitError, match="No row for Llama-3-8B with lora"):
            found.of("Llama-3-8B", "lora")

    def test_json_has_a_row_a_model_method_and_card(self):
        """as_dicts gives verdict, range and room as numbers."""
        row = next(one for one in fits(gpu="T4").as_dicts() if (one["model"], one["method"]) == ("Mistral-7B", "full"))
        assert {"model", "method", "target", "verdict", "low_gib", "high_gib", "room_gib", "largest"} == set(row)
        assert ("no", 14.74, "optimizer") == (row["verdict"], row["room_gib"], row["largest"])
