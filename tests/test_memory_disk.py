"""Disk and RAM: sums computed by hand, every reason said, and a real checkpoint and cache weighed."""

from __future__ import annotations

import pytest

from nbkit.errors import NbkitError
from nbkit.hardware.parts import GIB
from nbkit.memory.disk import disk, host_gib

LORA = {"params": 7_000_000_000, "trained": 40_000_000}


def gib(name, **arguments):
    """GiB of one item."""
    return disk(**{**LORA, **arguments}).as_mapping()[name]


class TestDownload:
    def test_two_bytes_a_parameter_unless_known(self):
        """16 bit by default; a known size is taken as it is; 0 means that it is there."""
        assert 14e9 / GIB == gib("download")
        assert 28e9 / GIB == gib("download", download_dtype_bytes=4)
        assert 5.5 == gib("download", download_bytes=int(5.5 * GIB))
        assert 0 == gib("download", download_bytes=0)


class TestCheckpoints:
    def test_one_more_than_the_limit_is_there_for_a_while(self):
        """A limit of 2 means three on disk: 12 B a trained parameter and 20 MB beside, each."""
        assert 3 * (12 * 40e6 + 20e6) / GIB == gib("checkpoints", save_total_limit=2)

    def test_no_more_than_the_run_writes(self):
        """A run that saves once has one, whatever the limit; one that never saves has none."""
        assert (12 * 40e6 + 20e6) / GIB == gib("checkpoints", save_total_limit=5, saves=1)
        assert 0 == gib("checkpoints", saves=0)

    def test_without_a_limit_every_one_stays(self):
        """Ten saves are ten; without their number the question has no answer."""
        assert 10 * (12 * 40e6 + 20e6) / GIB == gib("checkpoints", save_total_limit=None, saves=10)
        with pytest.raises(NbkitError, match="every checkpoint stays") as failed:
            disk(**LORA, save_total_limit=None)
        assert "save_total_limit=2" in failed.value.hint

    def test_what_a_full_run_saves(self):
        """7B in bf16 with states in bf16: 6 B a parameter, three times with a limit of two: 117 GiB."""
        full = gib("checkpoints", trained=7_000_000_000, trained_bytes=2, state_bytes=4)
        assert 3 * (6 * 7e9 + 20e6) / GIB == full

    def test_a_resized_vocabulary_is_saved_with_the_adapter(self):
        """Embedding parameters at 2 B in each checkpoint."""
        more = gib("checkpoints", embedding_params=500_000_000) - gib("checkpoints")
        assert 3 * 1e9 / GIB == pytest.approx(more)


class TestExports:
    def test_merge_and_gguf(self):
        """16 bit merged; q4_k_m at 4.85 bit, made from an f16 file that is there at the same time."""
        assert 14e9 / GIB == gib("merge", merge=True)
        assert 7e9 * (16 + 4.85) / 8 / GIB == pytest.approx(gib("gguf", gguf="q4_k_m"))
        assert 14e9 / GIB == gib("gguf", gguf="f16")

    def test_only_what_is_asked_for_is_counted(self):
        """A plain run has a download and checkpoints."""
        assert ["download", "checkpoints"] == list(disk(**LORA).as_mapping())

    def test_the_sum_and_the_verdict(self):
        """Everything adds up, and a tenth is kept free."""
        found = disk(**LORA, merge=True, gguf="q8_0", dataset_bytes=10**9, tokens=10**8)
        assert sum(found.as_mapping().values()) == found.gib
        assert found.fits(1.1 * found.gib)
        assert not found.fits(1.05 * found.gib)

    def test_the_table_gives_reasons(self):
        """Each number beside its reason, the sum last."""
        text = str(disk(**LORA, merge=True))
        assert "7.00B parameters at 2 B" in text
        assert "one more than save_total_limit" in text
        assert text.splitlines()[-1].startswith("altogether")


class TestNonsense:
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"params": -1}, "params=-1"),
            ({"trained": -1}, "trained=-1"),
            ({"tokens": -1}, "tokens=-1"),
            ({"save_total_limit": 0}, "save_total_limit=0"),
            ({"saves": -1}, "saves=-1"),
            ({"gguf": "q3"}, "'q3' is unknown"),
        ],
    )
    def test_is_refused(self, wrong, message):
        """With the name and the value."""
        with pytest.raises(NbkitError, match=message):
            disk(**{**LORA, **wrong})


class TestHost:
    def test_one_shard_and_the_process(self):
        """5 GB of a 15 GB download at a time, beside 3 GiB and half a GiB a worker."""
        found, reason = host_gib(15_000_000_000, workers=2)
        assert 3 + 5e9 / GIB + 1 == found
        assert "2 data workers" in reason

    def test_a_small_model_is_one_file(self):
        """No more than there is."""
        assert 3 + 0.27e9 / GIB == host_gib(270_000_000)[0]

    def test_what_is_offloaded_outweighs_a_shard(self):
        """The larger of the two, not their sum: the shards are gone when the states are made."""
        found, reason = host_gib(15_000_000_000, offloaded_gib=40)
        assert 43 == found
        assert "offloaded" in reason


@pytest.mark.train
class TestWeighed:
    def test_a_real_checkpoint(self, tmp_path):
        """Adapter and optimizer states of a real PEFT model, as a Trainer saves them: 4 and 8 B a trained parameter."""
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
        )
        model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=64, target_modules="all-linear"))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        ids = torch.ones(1, 4, dtype=torch.long)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        model.save_pretrained(tmp_path)
        torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        wanted = disk(0, trained=trained, saves=1).as_mapping()["checkpoints"] * GIB - 20e6
        held = sum((tmp_path / name).stat().st_size for name in ("adapter_model.safetensors", "optimizer.pt"))
        assert wanted == pytest.approx(held, rel=0.05)

    def test_a_real_cache(self, tmp_path):
        """Tokenised rows with a mask: 12 B a token, the first of the passes that are counted."""
        from datasets import Dataset

        rows = Dataset.from_dict({"text": ["x"] * 50})
        rows = rows.map(lambda _: {"input_ids": list(range(400)), "completion_mask": [1] * 400})
        rows.save_to_disk(tmp_path)
        held = sum(file.stat().st_size for file in tmp_path.glob("*.arrow"))
        assert 12 == pytest.approx(held / (50 * 400), rel=0.1)
