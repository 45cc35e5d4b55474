"""How rows become batches: compared with the batches of a real SFTTrainer."""

from __future__ import annotations

import random

import pytest

from nbkit.data import TokenStats
from nbkit.errors import DataError, NbkitError
from nbkit.memory.batches import Batch, Feed, compose, lengths_of

LENGTHS = [random.Random(0).randint(3, 40) for _ in range(3)] + [40, 3, 17, 17, 38, 5, 29, 11, 23, 8, 31, 26, 19, 2]


def real_batches(folder, **options):
    """What a real trainer's data loader gives in two epochs: [(rows, width, the rows' numbers)]; and its Feed."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = Tokenizer(WordLevel({"a": 0, "<pad>": 1, "<eos>": 2}, unk_token="a"))
    config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    args = SFTConfig(output_dir=str(folder), per_device_train_batch_size=4, gradient_accumulation_steps=3, use_cpu=True,
                     bf16=False, report_to=[], activation_checkpointing=False, **options)  # fmt: skip
    trainer = SFTTrainer(
        model=LlamaForCausalLM(config),
        args=args,
        train_dataset=Dataset.from_dict({"input_ids": [[row + 3] * size for row, size in enumerate(LENGTHS)]}),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"),
    )
    loader = trainer.get_train_dataloader()
    found = []
    for _ in range(2):
        for batch in loader:
            ids = batch["input_ids"]
            found.append((*ids.shape, tuple(sorted(set(ids.flatten().tolist()) - {1}))))
    return found, Feed.from_args(args)


@pytest.mark.train
class TestAgainstTheTrainer:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"max_length": 20, "shuffle_dataset": True},
            {"seed": 7, "pad_to_multiple_of": 8, "dataloader_drop_last": True},
            {"data_seed": 5},
            {"train_sampling_strategy": "sequential"},
            {"packing": True, "max_length": 48},
            {"packing": True, "max_length": 16, "packing_strategy": "bfd_split"},
            {"packing": True, "max_length": 32, "packing_strategy": "wrapped"},
        ],
        ids=lambda options: ", ".join(options) or "as it comes",
    )
    def test_batches_are_the_trainers(self, tmp_path, options):
        """Size, width and order of every micro-batch of two epochs are those of SFTTrainer's own data loader."""
        real, feed = real_batches(tmp_path, **options)
        ours = list(compose(LENGTHS, feed, epochs=2))
        assert [(count, width) for count, width, _ in real] == [(batch.count, batch.width) for batch in ours]
        if not feed.packing:  # which of equally long rows share a pack is pyarrow's choice
            assert [rows for *_, rows in real] == [tuple(sorted({row + 3 for row in batch.rows})) for batch in ours]

    def test_group_by_length_meets_the_longest_row_first(self, tmp_path):
        """Its later batches depend on a random state nobody knows; the first holds the longest row in both."""
        real, feed = real_batches(tmp_path, train_sampling_strategy="group_by_length")
        first = next(iter(compose(LENGTHS, feed)))
        assert (4, 40) == real[0][:2] == (first.count, first.width)


class TestCompose:
    def test_steps_are_counted_as_the_trainer_counts(self):
        """Three micro-batches a step; an epoch's last step may be smaller, and the next epoch begins a new one."""
        steps = [batch.step for batch in compose([5] * 16, Feed(batch=4, accumulation=3), epochs=2)]
        assert [1, 1, 1, 2, 3, 3, 3, 4] == steps

    def test_several_gpus_share_a_step(self):
        """Two GPUs take the batches in turn, so a step holds twice as many."""
        assert [1, 1, 2, 2] == [batch.step for batch in compose([5] * 8, Feed(batch=2, world=2))]

    def test_padding_counts_as_work_and_not_as_tokens(self):
        """A batch of 3 and 7 computes on 14 tokens, 10 of them real; attention runs over 2 x 7 x 7 pairs."""
        feed = Feed(batch=2, order="sequential")
        assert [Batch(1, (0, 1), 2, 7, 10, 98)] == list(compose([3, 7], feed))
        assert 14 == next(iter(compose([3, 7], feed))).processed

    def test_packs_have_no_padding_and_attend_within_rows(self):
        """Rows of 3 and 5 in a pack of 8 are one sequence of 8 whose attention covers 9 + 25 pairs."""
        (batch,) = compose([3, 5], Feed(packing="bfd", max_length=8))
        assert (1, 8, 8, 34) == (batch.count, batch.width, batch.tokens, batch.pairs)

    def test_rows_without_a_trained_token_are_dropped_as_trl_does(self):
        """A prompt that fills max_length leaves nothing to learn: the row is in no batch."""
        stats = TokenStats(total=(10, 20, 10), trained=(5, 2, 5), first=(5, 18, 5), max_length=None, source="x")
        rows = [batch.rows for batch in compose(stats, Feed(max_length=16, order="sequential"))]
        assert [(0,), (2,)] == rows
        assert 3 == len(list(compose(stats, Feed(max_length=None))))

    def test_what_is_no_length_is_refused(self):
        """Texts, floats, zeros and nothing at all are errors that say what is wanted."""
        for wrong in (["text"], [1.5], [0], 7):
            with pytest.raises(DataError, match="Lengths are wanted"):
                lengths_of(wrong)
        with pytest.raises(DataError, match="There are no rows"):
            lengths_of([])

    @pytest.mark.parametrize("wrong", [{"batch": 0}, {"max_length": 0}, {"packing": "bfd", "max_length": None}])
    def test_nonsense_is_refused(self, wrong):
        """A batch of nothing, a limit of nothing, packing into nothing."""
        with pytest.raises(NbkitError):
            Feed(**wrong)
