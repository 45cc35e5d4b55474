"""The catalogue: figures against published ones, names as people and drivers write them, doubts shown."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files

import pytest

from nbkit.errors import NbkitError
from nbkit.hardware import CARDS, Gpu, card, gpu, spec_of
from nbkit.hardware.specs import catalogue, derive_tflops, table, variants

MISSION = (
    "RTX 3060", "RTX 3070", "RTX 3080", "RTX 3090", "RTX 4090", "RTX 5060", "RTX 5070", "RTX 5080", "RTX 5090", "RTX A4000",
    "RTX A5000", "RTX A6000", "T4", "V100-16GB", "V100-32GB", "L4", "A10G", "L40S", "A100-40GB", "A100-80GB",
    "H100-80GB", "H100-80GB PCIe", "H200", "B200", "TPU v2", "TPU v3", "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e",
)  # fmt: skip
# Dense fp16 with float32 accumulation, from the makers' sheets: the derivation is judged by them, not made from them.
PUBLISHED = {
    "T4": 65.0, "A100-40GB": 312.0, "RTX A4000": 76.7, "RTX A5000": 111.1, "RTX A6000": 154.8, "A10": 125.0,
    "RTX 3060": 25.5, "RTX 3090": 71.0, "RTX 4090": 165.2, "RTX 5090": 209.5, "L40S": 362.0, "L4": 121.0, "V100-16GB": 125.0,
    "H100-80GB": 989.4, "H200": 989.4, "B200": 2250.0,
}  # fmt: skip


class TestFigures:
    @pytest.mark.parametrize("name", MISSION)
    def test_every_card_of_the_mission_is_listed(self, name):
        """Each has memory, usable memory, bandwidth, a peak, sources and a date."""
        one = gpu(name)
        assert name == one.name
        assert 0.88 * one.memory_gib < one.usable_gib <= one.memory_gib
        assert one.bandwidth_gbs >= 200
        assert one.train_tflops >= 25
        assert one.source
        assert one.figures_source
        assert "2026-11-30" == one.date

    @pytest.mark.parametrize(("name", "expected"), PUBLISHED.items())
    def test_peaks_agree_with_the_sheets(self, name, expected):
        """The rate used is within 1.5 % of the maker's dense figure."""
        assert pytest.approx(expected, rel=0.015) == gpu(name).tflops["fp16"]

    def test_the_derivation_alone_is_within_a_tenth(self):
        """Without the sheets' figures the formula overstates the datacentre cards by at most 9 %, and none by less."""
        data = json.loads((files("nbkit.hardware") / "specs.json").read_text())
        for row in data["gpus"]:
            if row["name"] in PUBLISHED:
                derived = derive_tflops({**row, "sheet_tflops": {}}, data["architectures"])["fp16"]
                assert 0.99 < derived / PUBLISHED[row["name"]] < 1.09, row["name"]

    @pytest.mark.parametrize(
        ("name", "expected"), [("T4", 130), ("A100-40GB", 624), ("RTX 3090", 284), ("H100-80GB", 1979), ("L40S", 733)]
    )
    def test_integers_run_at_full_rate_on_every_card(self, name, expected):
        """GeForce cards halve float32 accumulation, not integers; TF32 is half of fp16."""
        assert pytest.approx(expected, rel=0.015) == gpu(name).tflops["int8"]
        assert "tf32" not in gpu("T4").tflops
        assert pytest.approx(156, rel=0.01) == gpu("A100-40GB").tflops["tf32"]

    def test_bf16_begins_with_ampere(self):
        """Cards below compute capability 8.0 have no bf16 rate; TPUs have."""
        without = {one.name for one in catalogue() if not one.bf16}
        assert {"P100", "T4", "V100-16GB", "V100-32GB", "RTX 2080 Ti"} == without
        assert without == {one.name for one in catalogue() if "bf16" not in one.tflops}

    def test_usable_is_less_than_the_label(self):
        """No CUDA card offers its label, and an estimate says that it is one."""
        assert [] == [one.name for one in CARDS if not 8 / 9 * one.label_gb < one.usable_gib < one.label_gb]
        assert [] == [one.name for one in CARDS if one.measured == one.source.startswith("label")]

    def test_what_is_from_memory_is_marked(self):
        """The table stars figures without a source, and only those; a laptop's rates carry their doubt."""
        shown = table("B200", "T4", "TPU v4", "TPU v6e").as_dicts()
        assert ["7700*", "320", "1228*", "1638"] == [row["GB/s"] for row in shown]
        assert ["2250", "-", "275*", "918"] == [row["bf16"] for row in shown]
        assert "from memory, not verified" in str(table("T4"))
        assert [] == [one.name for one in catalogue() if (one.form == "laptop") != ("power limit" in one.note)]

    def test_json(self):
        """A row survives a round trip."""
        found = json.loads(json.dumps(gpu("L4").as_dict()))
        assert ("L4", 22.03, True, 121.0) == (
            found["name"],
            found["usable_gib"],
            found["bf16"],
            found["tflops"]["bf16"],
        )


class TestNames:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("NVIDIA GeForce RTX 3090", "RTX 3090"), ("3090", "RTX 3090"), ("rtx4090", "RTX 4090"), ("Tesla T4", "T4"),
            ("NVIDIA GeForce RTX 3080 Laptop GPU", "RTX 3080 Laptop"), ("RTX 4090 Mobile", "RTX 4090 Laptop"),
            ("a100-80", "A100-80GB"), ("a100 40gb", "A100-40GB"), ("A10040GB", "A100-40GB"), ("A100_40GB", "A100-40GB"),
            ("NVIDIA A100-SXM4-40GB", "A100-40GB"), ("NVIDIA A100 80GB PCIe", "A100-80GB PCIe"), ("H100", "H100-80GB"),
            ("NVIDIA H100 80GB HBM3", "H100-80GB"), ("NVIDIA H100 PCIe", "H100-80GB PCIe"), ("A6000", "RTX A6000"),
            ("Tesla V100-SXM2-16GB", "V100-16GB"), ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
            ("v5litepod", "TPU v5e"), ("tpu-v6e", "TPU v6e"), ("Trillium", "TPU v6e"),
        ],
    )  # fmt: skip
    def test_a_name_is_found_however_it_is_written(self, name, expected):
        """The driver's, a shop's and the cloud's spellings mean the same card."""
        assert expected == gpu(name).name

    @pytest.mark.parametrize(
        ("name", "memory_gib", "expected"),
        [("NVIDIA A100", 79.2, "A100-80GB"), ("A100", 39.4, "A100-40GB"), ("RTX 3060", 8, "RTX 3060 8GB"),
         ("RTX 4060 Ti", 15.7, "RTX 4060 Ti 16GB"), ("T4", 15.0, "T4")],
    )  # fmt: skip
    def test_memory_tells_variants_apart(self, name, memory_gib, expected):
        """Where one name is sold in several sizes, what the driver shows decides."""
        assert expected == gpu(name, memory_gib=memory_gib).name

    @pytest.mark.parametrize(
        ("name", "message", "hint"),
        [
            (
                "RTX 4090 Ti",
                "No card named 'RTX 4090 Ti' in nbkit's table.",
                "did you mean RTX 4090? known: RTX 3060, ",
            ),
            ("MI300X", "No card named 'MI300X' in nbkit's table.", "known: RTX 3060, "),
            ("", "No card named '' in nbkit's table.", "known: RTX 3060, "),
            (
                "RTX 4090 x2",
                "No card named 'RTX 4090 x2' in nbkit's table.",
                'several of one kind are written "2x RTX 4090"',
            ),
            ("T4, L4", "No card named 'T4, L4' in nbkit's table.", 'several of one kind are written "2x RTX 4090"'),
            ("A100", "'A100' is made in several sizes.", "did you mean A100-40GB or A100-80GB?"),
        ],
    )
    def test_an_unknown_name_lists_the_known(self, name, message, hint):
        """The error names what was asked, the nearest card or the sizes to choose from, and is a usage error."""
        with pytest.raises(NbkitError) as caught:
            gpu(name)
        assert message == caught.value.message
        assert caught.value.hint.startswith(hint)
        assert 2 == caught.value.exit_code

    def test_no_two_cards_share_a_name(self):
        """Every name and alias means one card."""
        for one in catalogue():
            for name in (one.name, *one.aliases):
                assert one == gpu(name)

    def test_a_tpu_is_no_card(self):
        """Where CUDA is meant, a TPU is refused with the reason."""
        with pytest.raises(NbkitError, match="TPU v5e is a TPU: QLoRA"):
            card("v5e")
        assert not any(one.is_tpu for one in CARDS)

    def test_a_family_has_its_sizes(self):
        """`A100` covers four cards, a single card's name none but itself."""
        assert ["A100-40GB", "A100-40GB PCIe", "A100-80GB", "A100-80GB PCIe"] == [one.name for one in variants("A100")]
        assert ["L4"] == [one.name for one in variants("L4")]


class TestFound:
    def test_a_found_gpu_keeps_its_own_memory(self):
        """The figures come from the catalogue, the memory from the machine."""
        found = Gpu(0, "NVIDIA GeForce RTX 3080 Laptop GPU", 16.0, 15.0, (8, 6), "580", "13.0", reserved_gib=0.25)
        one = spec_of(found)
        assert ("RTX 3080 Laptop", 15.75, "this machine") == (one.name, one.usable_gib, one.source)
        assert spec_of(replace(found, name="NVIDIA GB300")) is None
