"""nbkit.evaluation.compare: base and tuned on the same rows, and what may be claimed from it."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from nbkit.errors import DataError, ModelError
from nbkit.evaluation import Comparison, Difference, Forgetting, Output, Score, compare, completion_loss
from nbkit.evaluation.compare import pair
from nbkit.evaluation.loss import RowLoss
from tests import evaluated

pytest.importorskip("numpy", reason="numpy comes with the train extra")


def scored(exact: str, *, fields: int = 2, loss: float = 1.0) -> Score:
    """A score of rows that are right (1) or wrong (0), each of two fields of which a wrong one has one right."""
    outputs = tuple(
        Output(
            id=f"r{number}",
            prompt_text=f"question {number}",
            expected="yes",
            got="yes" if right == "1" else "no\nno",
            exact=right == "1",
            fields_right=fields if right == "1" else fields // 2,
            fields=fields,
            stopped=True,
            tokens=3,
            loss=RowLoss(loss * 4, 4),
        )
        for number, right in enumerate(exact)
    )
    rights = [output.exact for output in outputs]
    return Score(
        name="",
        rows=len(outputs),
        loss=loss,
        exact_match=sum(rights) / len(rights),
        field_accuracy=sum(1 if right else 0.5 for right in rights) / len(rights) if fields else None,
        stop_rate=1.0,
        tokens_per_s=10.0,
        latency_s=None,
        latency_rows=0,
        batch_size=8,
        max_new_tokens=16,
        outputs=outputs,
    )


def comparison(base: str, tuned: str, **options) -> Comparison:
    """A comparison on one set of rows."""
    found = pair("held out", 40, scored(base, loss=2.0, **options), scored(tuned, loss=0.5, **options))
    return Comparison((found,), None, 16)


class TestClaims:
    @pytest.mark.parametrize(
        ("base", "tuned", "claim"),
        [
            ("0" * 30, "1" * 28 + "00", "Fine-tuning raises exact match on 1 of 1 set"),
            ("1" * 30, "0" * 10 + "1" * 20, "Fine-tuning lowers exact match on 1 of 1 set"),
            ("01" * 10, "10" * 10, "No clear change in exact match on 1 set"),
            ("0000", "1111", "No clear change in exact match on 1 set"),
        ],
    )
    def test_only_what_was_shown(self, base, tuned, claim):
        """Four rows of four prove nothing (p = 0.125), though the bootstrap interval would say so."""
        assert claim == comparison(base, tuned).claim()

    def test_a_loss_on_one_set_is_named_first(self):
        """Gains on one set do not hide a loss on another."""
        gain = pair("a", 30, scored("0" * 30), scored("1" * 30))
        loss = pair("b", 30, scored("1" * 30), scored("0" * 30))
        claim = Comparison((gain, loss), None, 16).claim()
        assert "Fine-tuning lowers exact match on 1 of 2 sets, raises it on 1" == claim


class TestComparison:
    def test_table(self):
        """One line a measure with its interval; the number of rows, the method and the small sample are said."""
        text = str(comparison("0" * 10, "1" * 9 + "0"))
        assert "held out (10 of 40 rows)  exact match" in text
        assert "0.004" in text
        assert "Greedy, at most 16 new tokens, same prompts; base is the same model, adapter off." in text
        assert "10,000 resamples, seed 0" in text
        assert "Fewer than 20 rows (held out)" in text
        assert "Fewer than" not in str(comparison("0" * 20, "1" * 20))

    def test_side_by_side_hides_neither_successes_nor_failures(self):
        """Each verdict has its turn, however rare; the title counts all; an answer of two lines stays on one."""
        table = comparison("0" * 20 + "11" + "0", "1" * 20 + "01" + "0").side_by_side(4)
        verdicts = [row[-1] for row in table.rows]
        assert ["fixed", "broken, 1 of 2 fields", "both right", "both wrong, 1 of 2 fields"] == verdicts
        assert "held out (23 of 40 rows): 20 fixed, 1 both right, 1 both wrong, 1 broken." == table.title
        assert ("r22", "question 22", "yes", "no no", "no no") == tuple(table.rows[3][:5])

    def test_side_by_side_of_a_named_set(self):
        """A set that was not compared is an error that lists those that were."""
        found = comparison("01", "11")
        assert 2 == len(found.side_by_side(5, set="held out").rows)
        with pytest.raises(DataError, match="No set 'train' was compared") as caught:
            found.side_by_side(set="train")
        assert "held out" in caught.value.hint

    def test_as_dict_is_json(self, tmp_path):
        """All numbers are there under their names, and the file holds the same."""
        found = comparison("0" * 10, "1" * 9 + "0")
        numbers = found.as_dict()["sets"]["held out"]
        assert (10, 40, 0.0, 0.9) == tuple(
            numbers[key] for key in ("rows", "available", "base_exact_match", "tuned_exact_match")
        )
        assert (0.5, 0.95) == (numbers["base_field_accuracy"], numbers["tuned_field_accuracy"])
        assert (2.0, 0.5, -1.5) == (numbers["base_loss"], numbers["tuned_loss"], numbers["loss_difference"]["value"])
        assert {"value": 0.9, "low": 0.7, "high": 1.0, "rows": 10} == numbers["exact_match_difference"]
        assert 2 / 512 == pytest.approx(numbers["mcnemar_p"])
        assert found.as_dict() == json.loads(found.save(tmp_path / "comparison.json").read_text())

    def test_a_broken_model_can_still_be_saved(self, tmp_path):
        """A loss that is not a number becomes null: NaN is not JSON."""
        base, tuned = scored("00"), scored("00")
        nan = dataclasses.replace(
            tuned,
            loss=math.nan,
            outputs=tuple(dataclasses.replace(output, loss=RowLoss(math.nan, 4)) for output in tuned.outputs),
        )
        general = Forgetting(2, 3.0, math.nan, Difference(math.nan, math.nan, math.nan, 2), ())
        found = Comparison((pair("a", 2, base, nan),), general, 16)
        saved = json.loads(found.save(tmp_path / "c.json").read_text())
        assert None is saved["sets"]["a"]["tuned_loss"]
        assert {"value": None, "low": None, "high": None, "rows": 2} == saved["sets"]["a"]["loss_difference"]
        assert None is saved["general"]["tuned_loss"]

    def test_without_fields(self):
        """Where no JSON is expected, there is no line for fields and null in the numbers."""
        found = comparison("01", "11", fields=0)
        assert "field accuracy" not in str(found)
        assert None is found.as_dict()["sets"]["held out"]["field_accuracy_difference"]

    def test_the_figure_says_its_claim(self):
        """Title: the claim and the counts; a line for each measure, with its difference in words."""
        pytest.importorskip("matplotlib")
        figure = comparison("0" * 30, "1" * 30).plot()
        (axes,) = figure.axes
        title = "Fine-tuning raises exact match on 1 of 1 set\nheld out: 30 of 40 rows"
        assert title == axes.get_title(loc="left")
        assert ["held out\nexact match", "held out\nfield accuracy"] == [t.get_text() for t in axes.get_yticklabels()]
        assert "+1.00 [+1.00, +1.00]" in [text.get_text() for text in axes.texts]
        import matplotlib.pyplot as plt

        assert not plt.fignum_exists(figure.number)


@pytest.mark.train
class TestCompare:
    def test_base_is_the_model_without_its_adapter(self):
        """The base's loss is that of the same 4-bit model loaded without any adapter; tuned is that of the PeftModel."""
        model, tokenizer = evaluated.tuned()
        sets = {"seen": evaluated.ROWS, "unseen": evaluated.OTHER}
        found = compare(model, tokenizer, sets, general=evaluated.GENERAL, max_new_tokens=16, limit=3)
        plain, _ = evaluated.base()
        for found_pair in found.sets:
            rows = sets[found_pair.name][:3]
            assert completion_loss(plain, tokenizer, rows) == pytest.approx(found_pair.base.loss, rel=1e-4)
            assert completion_loss(model, tokenizer, rows) == pytest.approx(found_pair.tuned.loss, rel=1e-4)
        seen = found["seen"]
        assert (0.0, 1.0, 3, 4) == (seen.base.exact_match, seen.tuned.exact_match, seen.tuned.rows, seen.available)
        assert ["fixed"] * 3 == seen.verdicts()
        assert "General text, 3 rows: loss" in str(found)

    @pytest.mark.parametrize("trainable", [True, False])
    def test_what_was_trainable_stays_so(self, trainable):
        """PEFT's own switch would make every adapter trainable; a step after comparing changes what it should."""
        model, tokenizer = evaluated.tuned()
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.requires_grad_(trainable)
        try:
            before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
            compare(model, tokenizer, {"seen": evaluated.ROWS[:1]}, max_new_tokens=2)
            assert before == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
            assert trainable is any(before.values())
        finally:
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.requires_grad_(True)

    def test_training_goes_on_afterwards(self):
        """The adapter of a model that was compared trains as if it had not been."""
        losses = []
        for compared in (False, True):
            model, tokenizer = evaluated.base()
            model = evaluated.with_adapter(model)
            evaluated.train(model, tokenizer, steps=2, rows=evaluated.ROWS[:1])
            if compared:
                compare(model, tokenizer, {"a": evaluated.ROWS[:1]}, max_new_tokens=2)
            losses.append(evaluated.train(model, tokenizer, steps=2, rows=evaluated.ROWS[:1]))
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)

    def test_smoke_mode_is_small(self, monkeypatch):
        """NBKIT_SMOKE=1 compares at most 4 rows and 16 new tokens, and says how many of how many."""
        monkeypatch.setenv("NBKIT_SMOKE", "1")
        model, tokenizer = evaluated.tuned()
        found = compare(model, tokenizer, {"all": [*evaluated.ROWS, *evaluated.OTHER]}, max_new_tokens=500)
        assert (4, 7, 16) == (found["all"].base.rows, found["all"].available, found.max_new_tokens)
        assert "all (4 of 7 rows)" in str(found)

    def test_a_model_without_an_adapter_is_refused(self):
        """There is no base to compare it with; the hint says what to give."""
        model, tokenizer = evaluated.base()
        with pytest.raises(ModelError, match="This LlamaForCausalLM has no adapter") as caught:
            compare(model, tokenizer, {"a": evaluated.ROWS})
        assert "PeftModel.from_pretrained" in caught.value.hint

    def test_bad_rows_are_named_with_their_set(self):
        """All sets are read before the first answer is generated."""
        model, tokenizer = evaluated.tuned()
        with pytest.raises(DataError, match="Set 'b': Row 0 has no 'prompt'"):
            compare(model, tokenizer, {"a": evaluated.ROWS, "b": [{"question": "x"}]})
        with pytest.raises(DataError, match="No sets were given"):
            compare(model, tokenizer, {})
