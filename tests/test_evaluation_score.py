"""nbkit.evaluation.score: the measures, from real answers."""

from __future__ import annotations

import re
import statistics

import pytest

from nbkit.errors import DataError, ModelError
from nbkit.evaluation import completion_loss, score
from nbkit.evaluation.fields import match
from nbkit.evaluation.score import capped
from tests import evaluated

ALL = [*evaluated.ROWS, *evaluated.OTHER]


@pytest.mark.train
class TestScore:
    def test_measures_follow_from_the_outputs(self):
        """Each measure is the mean of what the outputs hold, which are in the order of the rows."""
        model, tokenizer = evaluated.tuned()
        found = score(model, tokenizer, ALL, max_new_tokens=16, batch_size=3, name="tuned")
        outputs = found.outputs
        assert [row["id"] for row in ALL] == [output.id for output in outputs]
        assert [row["completion"][0]["content"] for row in ALL] == [output.expected for output in outputs]
        for output in outputs:
            compared = match(output.expected, output.got)
            assert (compared.exact, compared.right, 2) == (output.exact, output.fields_right, output.fields)
        assert statistics.fmean(output.exact for output in outputs) == found.exact_match
        assert statistics.fmean(output.fields_right / 2 for output in outputs) == found.field_accuracy
        assert completion_loss(model, tokenizer, ALL) == pytest.approx(found.loss, rel=1e-4)
        assert (7, 3, 16, 3) == (found.rows, found.batch_size, found.max_new_tokens, found.latency_rows)
        assert found.tokens_per_s > 0
        assert found.latency_s > 0

    def test_a_fine_tune_shows(self):
        """The rows that were overfitted are answered exactly and stop; the base model gets none right."""
        model, tokenizer = evaluated.tuned()
        tuned = score(model, tokenizer, evaluated.ROWS, max_new_tokens=16, latency_rows=0)
        with model.disable_adapter():
            base = score(model, tokenizer, evaluated.ROWS, max_new_tokens=16, latency_rows=0)
        assert (1.0, 1.0, 1.0) == (tuned.exact_match, tuned.field_accuracy, tuned.stop_rate)
        assert (0.0, 0.0) == (base.exact_match, base.field_accuracy)
        assert base.loss > 5
        assert tuned.loss < 0.5

    def test_text_rows_have_no_field_accuracy(self):
        """Where no JSON is expected there is no field accuracy, and the table shows a dash."""
        model, tokenizer = evaluated.tuned()
        found = score(model, tokenizer, evaluated.GENERAL, max_new_tokens=4, latency_rows=0)
        assert None is found.field_accuracy
        assert None is found.latency_s
        assert re.search(r"field accuracy +-", str(found))
        assert "not measured" in str(found)

    def test_smoke_mode_is_small(self, monkeypatch):
        """NBKIT_SMOKE=1 scores at most 4 rows and 16 new tokens, without the caller's doing."""
        monkeypatch.setenv("NBKIT_SMOKE", "1")
        model, tokenizer = evaluated.tuned()
        found = score(model, tokenizer, ALL, max_new_tokens=400)
        assert (4, 16) == (found.rows, found.max_new_tokens)

    def test_a_tokenizer_without_template_is_refused(self):
        """Before any work the error says what to choose."""
        import copy

        model, tokenizer = evaluated.tuned()
        bare = copy.deepcopy(tokenizer)
        bare.chat_template = None
        with pytest.raises(ModelError, match="no chat template"):
            score(model, bare, ALL)

    def test_works_without_an_adapter(self):
        """A plain model, not quantised, is scored the same way."""
        model, tokenizer = evaluated.base(four_bit=False)
        found = score(model, tokenizer, evaluated.ROWS[:1], max_new_tokens=2, latency_rows=1)
        assert (1, 0.0, 0.0) == (found.rows, found.exact_match, found.stop_rate)


class TestCapped:
    def test_takes_the_first(self):
        """A limit takes the first rows of any iterable; none takes all."""
        assert [{"a": 0}, {"a": 1}] == capped(({"a": i} for i in range(9)), 2)
        assert 9 == len(capped({"a": i} for i in range(9)))

    def test_smoke_mode_caps_both(self, monkeypatch):
        """In smoke mode 4 rows remain, or fewer where fewer were asked for."""
        monkeypatch.setenv("NBKIT_SMOKE", "1")
        assert 4 == len(capped([{}] * 9))
        assert 3 == len(capped([{}] * 9, 3))


def test_no_rows_are_refused():
    """There is nothing to score in no rows; no model is touched for it."""
    pytest.importorskip("transformers")
    with pytest.raises(DataError, match="There are no rows to score"):
        score(None, None, [])
