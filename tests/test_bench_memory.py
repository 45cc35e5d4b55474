"""The benchmark of memory predictions: what it counts as an answer, how it sums up, and accelerate's own figure."""

from __future__ import annotations

import json

import pytest

from bench import CannotRunError, Figures, Goal, _memory_calls, _memory_rows, _peer_worker, _peers, memory
from bench.memory import Case, _decisions, _sum_up, _targets
from nbkit.display import Table

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "vocab_size": 256, "tie_word_embeddings": False,
}  # fmt: skip
PARAMS = 2 * 256 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64
QUESTION = _peers.Question("a", CONFIG, PARAMS, "full", 0, (), 1, 32, checkpointing=False)


def asked(peer, **changes):
    """One peer's answer, in this process."""
    (found,) = _peer_worker.answer(peer, [{**vars(QUESTION), **changes}])
    return found


class TestPins:
    def test_every_pin_is_exact(self):
        """All peers are named with one version each."""
        pins = _peers.pins()
        assert {*_peers.APART, _peers.NEEDS_TORCH} <= set(pins)
        assert all(version and version[0].isdigit() for version in pins.values())


class TestWorker:
    def test_a_peer_that_is_not_there_is_a_failure_and_not_the_end(self):
        """The benchmark goes on and counts it."""
        assert "ModuleNotFoundError" in asked("fitscout")["failed"]

    def test_what_a_peer_cannot_be_told_is_unsupported(self):
        """With the reason, before its package is even needed."""
        assert {"unsupported": "full fine-tuning only"} == asked("accelerate", method="lora")
        assert {"unsupported": "more than one GPU"} == asked("accelerate", n_gpu=2)

    @pytest.mark.parametrize(
        ("names", "known"),
        [
            (["q_proj", "v_proj"], "attention"),
            (["q_proj", "k_proj", "v_proj", "o_proj"], "attention_all"),
            (["q_proj", "down_proj"], "all_linear"),
        ],
    )
    def test_targets_become_the_nearest_a_peer_knows(self, names, known):
        """q and v; all of attention; everything."""
        assert known == _peer_worker.targets({"targets": names})

    def test_fused_maps_stand_for_what_they_hold(self):
        """Phi's and Qwen's names in Llama's."""
        assert ("k_proj", "o_proj", "q_proj", "v_proj") == _targets({"c_attn", "dense"})

    @pytest.mark.train
    def test_accelerate_says_what_its_own_command_says(self):
        """16 B a parameter in fp32 and 8 in mixed precision: its 'Training using Adam'."""
        assert PARAMS * 16 / 2**30 == pytest.approx(asked("accelerate", dtype="fp32")["gib"], rel=1e-3)
        assert PARAMS * 8 / 2**30 == pytest.approx(asked("accelerate", dtype="bf16")["gib"], rel=1e-3)


class TestRows:
    def test_every_row_is_asked_or_left_out_for_a_reason(self):
        """No row falls away in silence, and no description fails."""
        rows, why = _memory_rows.rows(), {}
        for row in rows:
            try:
                options = _memory_calls.call(row).options
                cap = int(row.fields["seq_len"])
                assert options["seq"] == (max(options["dataset"]) if "dataset" in options else cap)
                assert 0.7 * cap < options["seq"] <= cap
            except _memory_calls.LeftOutError as error:
                why[row.id] = str(error)
        assert 260 == len(rows)
        assert {"a note calls it SUSPECT"} == {why[one] for one in ("r041", "r044", "r051")}
        assert len(why) < len(rows) / 2

    def test_lengths_have_the_published_mean(self):
        """A log-normal's quantiles, without what is longer than the longest row that is kept."""
        found = _memory_calls.lengths(3234.4, 2547.5, 91, 19548, 2000)
        assert 3234 == pytest.approx(sum(found) / len(found), rel=0.02)
        kept = _memory_calls.lengths(3234.4, 2547.5, 91, 2048, 2000)
        below = sum(one < 1500 for one in found) / sum(one < 2048 for one in found)
        assert (2000, 2046) <= (len(kept), max(kept)) <= (2000, 2048)
        assert below == pytest.approx(sum(one < 1500 for one in kept) / 2000, abs=0.01)

    def test_swift_s_rows_are_what_was_read_at_its_21st_micro_batch(self):
        """21 batches, on a card whose end is known."""
        row = next(one for one in _memory_rows.rows() if one.id == "r237")
        options = _memory_calls.call(row).options
        assert 2 * 21 == len(options["dataset"])
        assert "A100-80GB" == options["gpu"]

    def test_one_framework_can_be_run_alone(self):
        """No other row is asked, and one that does not exist is said with those that do."""
        with pytest.raises(CannotRunError, match="there is: fsdp_qlora"):
            memory.run("nosuch")
        figures = memory.run("torchtitan")
        assert [] == figures.records
        assert any("torchtitan" in map(str, row) for row in figures.tables[-1].rows)

    def test_a_run_that_fits_and_is_refused_counts(self):
        """By the share that its low end is above the card; a full card that is promised room likewise."""
        by_id = {row.id: row for row in _memory_rows.rows()}
        cases = [
            Case(by_id["r011"], _memory_calls.Call(None), low_gib=50.0, high_gib=60.0),
            Case(by_id["r272"], _memory_calls.Call(None), low_gib=5.0, high_gib=8.0),
        ]
        refused, promised = _decisions(cases).rows
        assert [2, 1, 1] == list(refused[1:4])
        assert [1, 1, 1] == list(promised[1:4])


class TestSums:
    def test_median_worst_and_short_by_a_tenth(self):
        """Signs are kept for the worst; only what falls short by more than 10 % endangers a run."""
        assert ("5.0%", "-30%", 1) == _sum_up([0.02, -0.05, -0.30, 0.04, 0.11])
        assert ("-", "-", 0) == _sum_up([])

    def test_figures_print_and_dump(self):
        """Goals stand last for a person; the record of each row is in the JSON."""
        figures = Figures("T", [Table(["a"], [[1]])], [Goal("one", 0.02, 0.01), Goal("two", 0.01, 0.01)], [{"id": "r"}])
        assert not figures.holds
        assert "MISSED" in figures.table()
        assert figures.table().splitlines()[-1].endswith("holds")
        assert [{"id": "r"}] == json.loads(json.dumps(figures.as_dict()))["records"]
