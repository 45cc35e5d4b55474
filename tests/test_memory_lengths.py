"""The length prophecy: which rows fail, when, and what to do."""

from __future__ import annotations

import json

import pytest

from nbkit.errors import NbkitError
from nbkit.memory.batches import Feed, compose
from nbkit.memory.lengths import prophecy

LENGTHS = [100] * 40
LENGTHS[17], LENGTHS[31] = 900, 700


def peak(rows, tokens):
    """1 GiB of weights and 1 GiB per 1000 tokens."""
    return 1 + rows * tokens / 1000


class TestProphecy:
    def test_names_the_rows_the_memory_and_the_step(self):
        """The two long rows are named with their batch's GiB and the step at which the seeded order meets them."""
        feed = Feed(batch=2, accumulation=2)
        found = prophecy(LENGTHS, 2.0, peak, feed)
        step_of = {row: batch.step for batch in compose(LENGTHS, feed) for row in batch.rows}
        assert {(17, 900, 2.8, step_of[17]), (31, 700, 2.4, step_of[31])} == {
            (doom.row, doom.tokens, round(doom.gib, 3), doom.step) for doom in found.doomed
        }
        assert min(step_of[17], step_of[31]) == found.first_step
        assert not found.ok

    def test_a_short_mate_of_a_long_row_is_not_blamed(self):
        """A row that was only padded to the width of a longer one is innocent."""
        found = prophecy([100, 900], 2.0, peak, Feed(batch=2, order="sequential"))
        assert [1] == [doom.row for doom in found.doomed]

    def test_when_all_goes_through_it_says_how_close(self):
        """The largest batch and the longest row that would still fit are named."""
        found = prophecy(LENGTHS, 4.0, peak, Feed(batch=2))
        assert (True, (), None, 1500) == (found.ok, found.doomed, found.first_step, found.longest_safe)
        assert "The largest micro-batch, 2 x 900 tokens, takes 2.8 of 4.0 GiB" in str(found)

    def test_the_longest_safe_row_is_exact(self):
        """One token more would exceed the budget."""
        found = prophecy(LENGTHS, 2.0, peak, Feed(batch=3))
        assert 333 == found.longest_safe
        assert peak(3, 333) <= 2.0 < peak(3, 334)

    def test_advice_is_computed_not_recited(self):
        """Each piece of advice makes it fit: a smaller batch, a cut with its cost, checkpointing where it is enough."""
        feed = Feed(batch=2, accumulation=4)
        found = prophecy(LENGTHS, 2.0, peak, feed, checkpointed=lambda rows, tokens: 1 + rows * tokens / 4000)
        advice = "\n".join(found.advice)
        assert "Gradient checkpointing: the worst batch then takes 1.4 GiB" in advice
        assert "per_device_train_batch_size=1 with gradient_accumulation_steps=8" in advice
        assert "max_length=448: cuts 2 of 40 rows and 13.0% of the tokens" in advice
        cut = prophecy(LENGTHS, 2.0, peak, Feed(batch=2, max_length=448))
        assert cut.ok

    def test_advice_that_would_not_help_is_not_given(self):
        """Checkpointing that is still too large and a batch that cannot be halved are left out."""
        found = prophecy([4000] * 4, 2.0, peak, Feed(max_length=None), checkpointed=lambda *_: 3.0)
        advice = "\n".join(found.advice)
        assert "checkpointing" not in advice
        assert "per_device_train_batch_size" not in advice
        assert "max_length=960" in advice

    def test_nothing_fits_is_said(self):
        """Where the weights alone are too large, no length helps."""
        found = prophecy(LENGTHS, 0.5, peak, Feed())
        assert 0 == found.longest_safe
        assert any("Not even the shortest row fits" in text for text in found.advice)

    def test_max_length_counts_as_the_trainer_applies_it(self):
        """A limit that cuts the long rows saves them."""
        assert prophecy(LENGTHS, 2.0, peak, Feed(batch=2, max_length=500)).ok

    def test_in_packs_the_length_of_the_pack_is_to_blame(self):
        """Packs are laid end to end: the advice is a shorter pack or fewer of them."""
        found = prophecy([500] * 8, 2.0, peak, Feed(batch=2, packing="bfd", max_length=1000))
        assert 3.0 == found.worst[1]
        assert "max_length=448: packs become that long." in found.advice
        assert prophecy([500] * 8, 2.0, peak, Feed(batch=2, packing="bfd", max_length=448)).ok

    def test_an_order_that_is_only_likely_is_said_to_be(self):
        """For a seeded order the step is stated; for packs it is about."""
        assert "would fail at step" in str(prophecy([900] * 3, 1.5, peak, Feed(order="sequential")))
        assert "would fail at about step" in str(prophecy([900] * 3, 1.5, peak, Feed(packing="bfd")))

    def test_json_and_text_agree(self):
        """as_dict is JSON-ready and carries the same facts."""
        found = prophecy(LENGTHS, 2.0, peak, Feed(batch=2))
        data = json.loads(json.dumps(found.as_dict()))
        assert (found.first_step, 2.8, 40, False) == (
            data["first_step"], data["worst_gib"], data["rows"], data["ok"],
        )  # fmt: skip
        assert str(found).startswith("Length prophecy: these rows run out of memory")

    def test_nonsense_is_refused(self):
        """A budget of nothing is a usage error."""
        with pytest.raises(NbkitError, match="it must be positive"):
            prophecy(LENGTHS, 0, peak, Feed())
