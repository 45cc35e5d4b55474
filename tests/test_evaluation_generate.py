"""nbkit.evaluation.generate: batched greedy answers are those of one prompt at a time."""

from __future__ import annotations

import copy
import logging

import pytest

from nbkit.errors import DataError
from nbkit.evaluation.encode import encode
from nbkit.evaluation.generate import end_tokens, greedy
from tests import evaluated

pytestmark = pytest.mark.train
ALL = [*evaluated.ROWS, *evaluated.OTHER]


def answers(model, tokenizer, rows=ALL, *, batch_size=4, max_new_tokens=16):
    """What greedy gives for rows."""
    return greedy(model, tokenizer, encode(tokenizer, rows), max_new_tokens=max_new_tokens, batch_size=batch_size)


class TestGreedy:
    def test_is_what_transformers_generates_alone(self):
        """Left padding, sorting and batching change no answer, and answers come in the order of the rows."""
        import torch

        model, tokenizer = evaluated.tuned()
        model.eval()
        expected = []
        for row in ALL:
            ids = tokenizer.apply_chat_template(
                row["prompt"], add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            out = model.generate(**ids, max_new_tokens=16, do_sample=False)[0, ids["input_ids"].shape[1] :]
            expected.append(tokenizer.decode(out, skip_special_tokens=True))
        assert expected == [answer.text for answer in answers(model, tokenizer)]
        assert 1 < len(set(expected))
        assert torch.is_grad_enabled()

    def test_counts_tokens_to_the_end_token(self):
        """An answer that ended counts its end token and no padding; one that was cut off says so."""
        model, tokenizer = evaluated.tuned()
        for answer in answers(model, tokenizer):
            assert answer.stopped
            assert len(tokenizer(answer.text)["input_ids"]) + 1 == answer.tokens
        for answer in answers(model, tokenizer, max_new_tokens=3):
            assert (False, 3) == (answer.stopped, answer.tokens)

    def test_a_pad_token_that_is_the_end_token_changes_nothing(self):
        """SmolLM2's own files say pad == eos; answers, counts and stops are the same."""
        model, tokenizer = evaluated.tuned()
        expected = answers(model, tokenizer)
        other = copy.deepcopy(tokenizer)
        other.pad_token = other.eos_token
        assert expected == answers(model, other)

    def test_ignores_and_keeps_the_models_own_settings(self):
        """Sampling and a repetition penalty do not enter; the settings object is the same one afterwards, and silent."""
        from transformers import GenerationConfig
        from transformers.utils import logging as hf_logging

        model, tokenizer = evaluated.tuned()
        expected = answers(model, tokenizer)
        kept = model.generation_config
        odd = GenerationConfig(do_sample=True, temperature=0.7, repetition_penalty=3.0, max_length=5, eos_token_id=2)
        model.generation_config = model.get_base_model().generation_config = odd
        messages = []
        handler = logging.Handler(level=logging.WARNING)
        handler.emit = lambda record: messages.append(record.getMessage())
        hf_logging.get_logger("transformers").addHandler(handler)
        try:
            assert expected == answers(model, tokenizer)
            assert odd is model.generation_config is model.get_base_model().generation_config
        finally:
            hf_logging.get_logger("transformers").removeHandler(handler)
            model.generation_config = model.get_base_model().generation_config = kept
        assert [] == messages

    def test_the_tokenizer_is_only_read(self):
        """Its padding side stays what it was."""
        model, tokenizer = evaluated.tuned()
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.padding_side = "right"
        answers(model, tokenizer, evaluated.ROWS[:1])
        assert "right" == tokenizer.padding_side

    def test_a_batch_that_does_not_fit_is_halved(self, monkeypatch):
        """Out of memory on four prompts: twos are tried, no row is lost, and one that alone does not fit is an error."""
        import torch

        model, tokenizer = evaluated.tuned()
        expected = answers(model, tokenizer)
        real, sizes = model.generate, []

        def tight(room):
            def generate(**options):
                sizes.append(len(options["input_ids"]))
                if sizes[-1] > room:
                    raise torch.OutOfMemoryError
                return real(**options)

            return generate

        monkeypatch.setattr(model, "generate", tight(2))
        assert expected == answers(model, tokenizer)
        assert [4, 2, 2, 2, 1] == sizes
        monkeypatch.setattr(model, "generate", tight(0))
        with pytest.raises(torch.OutOfMemoryError):
            answers(model, tokenizer)

    def test_a_prompt_beyond_the_context_is_refused(self):
        """The error names the row, its length and the model's room."""
        model, tokenizer = evaluated.tuned()
        row = {**evaluated.ROWS[0], "prompt": [{"role": "user", "content": "word " * 8200}]}
        with pytest.raises(DataError, match=r"Row row-0 has a prompt of 8,\d+ tokens; .* context of 8,192"):
            answers(model, tokenizer, [row])

    def test_plain_text_has_nothing_to_answer(self):
        """A row without a prompt is refused by name."""
        model, tokenizer = evaluated.tuned()
        with pytest.raises(DataError, match="Row 0 has an empty prompt"):
            answers(model, tokenizer, [{"text": "The sea is salty."}])


class TestEndTokens:
    def test_the_templates_own_end_of_turn_is_among_them(self, monkeypatch):
        """A base model given a chat template names another end token; its fine-tune would ramble on without this."""
        model, tokenizer = evaluated.tuned()
        examples = encode(tokenizer, evaluated.ROWS)
        end, other = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
        renamed = copy.deepcopy(tokenizer)
        renamed.eos_token = "<|endoftext|>"
        monkeypatch.setattr(model.generation_config, "eos_token_id", [other])
        assert [other, end] == end_tokens(model, renamed, examples)

    def test_a_special_token_inside_the_answers_is_not_an_end(self):
        """Only a token that ends every row is taken from the data."""
        model, tokenizer = evaluated.tuned()
        row = {"prompt": "a", "completion": "b <|im_start|> c"}
        assert [tokenizer.eos_token_id] == end_tokens(model, tokenizer, encode(tokenizer, [row, *evaluated.ROWS]))
