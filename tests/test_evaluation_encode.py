"""nbkit.evaluation.encode: rows become the tokens that training uses."""

from __future__ import annotations

import pytest

from nbkit.errors import DataError, ModelError
from nbkit.evaluation.encode import encode
from tests import evaluated

pytestmark = pytest.mark.train


@pytest.fixture
def tokenizer():
    """A tokenizer of its own for each test: some take its template away."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(evaluated.two_layers())


class TestEncode:
    def test_the_completion_starts_after_the_generation_prompt(self, tokenizer):
        """What is counted is the answer, the end of turn and what the template writes after it."""
        (example,) = encode(tokenizer, evaluated.ROWS[:1])
        assert '{"colour": "green", "n": 1}<|im_end|>\n' == tokenizer.decode(example.ids[example.start :])
        assert example.ids[: example.start] == example.prompt_ids
        assert ("row-0", "Grass?", '{"colour": "green", "n": 1}') == (example.id, example.prompt_text, example.expected)
        assert len(example.ids) - example.start == example.counted

    def test_strings_end_with_the_end_token_once(self, tokenizer):
        """A plain completion gets the end token that training gives it; one that has it already gets no second."""
        rows = [{"prompt": "2+2=", "completion": " 4"}, {"prompt": "2+2=", "completion": " 4<|im_end|>"}]
        first, second = encode(tokenizer, rows)
        assert " 4<|im_end|>" == tokenizer.decode(first.ids[first.start :])
        assert first.ids == second.ids
        assert " 4" == first.expected == second.expected
        assert ("0", "1") == (first.id, second.id)

    def test_plain_text_counts_from_its_second_token(self, tokenizer):
        """A row of text has a loss on all it can predict, and nothing to answer."""
        (example,) = encode(tokenizer, [{"text": "The sea is salty."}])
        assert 1 == example.start
        assert () == example.prompt_ids

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"id": "a", "instruction": "x"}, "Row a has no 'prompt' and 'completion'; it has: id, instruction."),
            ({"prompt": "x"}, "Row 0 has no 'prompt' and 'completion'; it has: prompt."),
            (
                {"prompt": "x", "completion": [{"role": "assistant", "content": "y"}]},
                "Row 0: its prompt is 'x' (str), not a list of messages",
            ),
            (
                {"prompt": [{"role": "user", "content": None}], "completion": [{"role": "assistant", "content": "y"}]},
                "Row 0: its prompt is \"[{'role': 'user', 'content': None}]\" (list), not a list of messages",
            ),
            (
                {
                    "prompt": [{"role": "user", "content": "x"}],
                    "completion": [{"role": "assistant", "content": "y"}] * 2,
                },
                "Row 0: its completion has 2 messages, and scoring generates one.",
            ),
            ({"text": ""}, "Row 0 has no completion tokens to score"),
        ],
    )
    def test_other_rows_are_refused_by_name(self, tokenizer, row, message):
        """The error names the row and what is wrong with it, and the hint shows the form that is wanted."""
        with pytest.raises(DataError) as caught:
            encode(tokenizer, [row])
        assert caught.value.message.startswith(message)
        assert caught.value.hint

    def test_no_rows_are_refused(self, tokenizer):
        """A score of nothing would be a division by zero further down."""
        with pytest.raises(DataError, match="There are no rows to score"):
            encode(tokenizer, [])

    def test_conversations_need_a_template(self, tokenizer):
        """Without a chat template the error says what to choose instead; strings still work."""
        tokenizer.chat_template = None
        with pytest.raises(ModelError, match="no chat template") as caught:
            encode(tokenizer, evaluated.ROWS)
        assert "instruct variant" in caught.value.hint
        assert 1 == len(encode(tokenizer, [{"prompt": "a", "completion": "b"}]))
