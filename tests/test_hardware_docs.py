"""The page about hardware says what the code says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nbkit.hardware import Machine
from nbkit.hardware.advice import tier
from tests.hardware_cases import HEALTHY, facts_of
from tools import hardware_docs


class TestPage:
    def test_the_tables_are_up_to_date(self):
        """docs/hardware.md is what `python -m tools.hardware_docs` writes."""
        page = hardware_docs.PAGE.read_text()
        assert hardware_docs.rendered(page) == page, "run: python -m tools.hardware_docs"

    def test_a_page_without_a_place_is_refused(self):
        """A table that was dropped from the page is noticed."""
        with pytest.raises(SystemExit, match="no place for the table 'rules'"):
            hardware_docs.rendered("nothing")


class TestAdvice:
    def verdicts(self, changes=None, **parts):
        """Verdict and use by part, on the healthy machine with these changes."""
        machine = replace(Machine.from_facts(facts_of(changes or {})["machine"]), **parts)
        return {row["part"]: (row["verdict"], row["enough for"]) for row in machine.advice().as_dicts()}

    def test_a_good_machine_is_enough(self):
        """24 GB, 64 GB of RAM and 600 GB of NVMe are what the usual advice asks for."""
        found = self.verdicts()
        assert ["ok", "ok", "ok"] == [verdict for verdict, _ in found.values()]
        assert "QLoRA of 7-13B" in found["GPU"][1]
        assert "15 GB load in 5 s" in found["disk"][1]

    def test_a_small_machine_is_told_what_it_can_do(self):
        """Without a GPU, with 8 GB of RAM in a container and a full, slow disk, each part says so."""
        gib = 2**30
        found = self.verdicts({
            "machine.gpus": [], "machine.memory.cgroup": {"limit_bytes": 8 * gib, "free_bytes": 7 * gib},
            "machine.disks.0.free_bytes": 30 * gib, "machine.disks.0.read": {"mb_s": 90, "read_mb": 36, "cache": "dropped"},
        })  # fmt: skip
        assert ["short", "short", "slow"] == [verdict for verdict, _ in found.values()]
        assert "a 7B LoRA with merge and GGUF needs 45 GB; 15 GB load in 167 s" in found["disk"][1]

    @pytest.mark.parametrize(("usable", "expected"), [(14.74, "QLoRA of 7-8B"), (22.0, "QLoRA of 7-13B"), (79.3, "QLoRA of 70B"),
                                                      (7.8, "QLoRA of 3B"), (2.0, "models below 1B")])  # fmt: skip
    def test_the_tier_follows_the_usable_memory(self, usable, expected):
        """A T4, an L4, an A100-80GB, an RTX 3070 and a small card are for different models."""
        assert tier(usable)[1].startswith(expected)

    def test_the_notebook_view_folds_disks_and_advice(self):
        """In a notebook one value shows everything, and what a person named stays text."""
        disks = [{**HEALTHY["machine"]["disks"][0], "path": "/data/<script>"}]
        shown = Machine.from_facts({**HEALTHY["machine"], "disks": disks})._repr_html_()
        assert 2 == shown.count("<details>")
        assert "<script>" not in shown
        assert "&lt;script&gt;" in shown
