"""nbkit.evaluation.forgetting: what general text says, and how it is read."""

from __future__ import annotations

import math

import pytest

from nbkit.errors import ModelError
from nbkit.evaluation import Difference, Forgetting, completion_loss, forgetting
from nbkit.evaluation.forgetting import PROMPTS
from tests import evaluated


def found(value: float, low: float, high: float) -> Forgetting:
    """A result with this change."""
    return Forgetting(40, 3.1, 3.1 + value, Difference(value, low, high, 40), ())


class TestSentence:
    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ((0.15, 0.05, 0.25), "loss 3.10 -> 3.25 (+0.15 [0.05, 0.25]): it has forgotten a little."),
            ((0.5, 0.4, 0.6), "loss 3.10 -> 3.60 (+0.50 [0.40, 0.60]): it has forgotten a lot."),
            ((0.01, 0.001, 0.02), "loss 3.10 -> 3.11 (+0.01 [0.00, 0.02]): it has forgotten a trace."),
            ((0.1, -0.1, 0.3), "loss 3.10 -> 3.20 (+0.10 [-0.10, 0.30]): no forgetting was shown on these rows."),
            (
                (-0.2, -0.3, -0.1),
                "loss 3.10 -> 2.90 (-0.20 [-0.30, -0.10]): it does better on general text than before.",
            ),
            (
                (math.nan,) * 3,
                "loss 3.10 -> nan (+nan [nan, nan]): the loss is not a number, the tuned model is broken.",
            ),
        ],
    )
    def test_reads_the_numbers(self, change, expected):
        """The words follow from the interval first and the size second."""
        assert f"General text, 40 rows: {expected}" == found(*change).sentence()

    def test_as_dict_holds_the_numbers_and_the_sentence(self):
        """What is saved can be read without this code."""
        numbers = found(0.15, 0.05, 0.25).as_dict()
        assert (40, 3.1, 0.05) == (numbers["rows"], numbers["base_loss"], numbers["loss_difference"]["low"])
        assert "forgotten a little" in numbers["sentence"]


@pytest.mark.train
class TestForgetting:
    def test_compares_the_same_text_with_and_without_the_adapter(self):
        """Two strings are asked as a chat turn, the losses are those of completion_loss on it."""
        model, tokenizer = evaluated.tuned()
        result = forgetting(model, tokenizer, evaluated.GENERAL, max_new_tokens=6)
        chat = [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["completion"]}],
            }
            for row in evaluated.GENERAL
        ]
        assert completion_loss(model, tokenizer, chat) == pytest.approx(result.tuned_loss, rel=1e-4)
        with model.disable_adapter():
            assert completion_loss(model, tokenizer, chat) == pytest.approx(result.base_loss, rel=1e-4)
        assert result.tuned_loss - result.base_loss == pytest.approx(result.change.value)
        assert list(PROMPTS) == [sample.prompt for sample in result.samples]
        assert all(sample.base != sample.tuned for sample in result.samples)
        assert result.sentence() == result.table().title

    def test_plain_text_and_no_questions(self):
        """Rows of text are read as they are; without questions nothing is generated."""
        model, tokenizer = evaluated.tuned()
        result = forgetting(model, tokenizer, [{"text": "The sea is salty."}] * 2, prompts=(), limit=1)
        assert (1, ()) == (result.rows, result.samples)

    def test_smoke_mode_is_small(self, monkeypatch):
        """NBKIT_SMOKE=1 reads at most 4 rows and asks one question."""
        monkeypatch.setenv("NBKIT_SMOKE", "1")
        model, tokenizer = evaluated.tuned()
        result = forgetting(model, tokenizer, evaluated.GENERAL * 3)
        assert (4, 1) == (result.rows, len(result.samples))

    def test_a_model_without_an_adapter_is_refused(self):
        """Nothing can have been forgotten."""
        model, tokenizer = evaluated.base()
        with pytest.raises(ModelError, match="has no adapter"):
            forgetting(model, tokenizer, evaluated.GENERAL)
