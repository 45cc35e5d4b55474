"""What is broken in a fresh model is mended, and shown to be broken without the mend."""

from __future__ import annotations

import pytest

from nbkit import models
from nbkit.errors import ModelError
from tests import tiny

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two real layers of the embedded model."""
    return tiny.save_two_layers(models.embedded(), tmp_path_factory.mktemp("tiny"))


class TestPrepare:
    def test_pad_token_that_hides_the_end_is_replaced(self, folder):
        """pad == eos would leave the end of a turn out of the loss."""
        model, tokenizer = tiny.load_four_bit(folder)
        tokenizer.pad_token = tokenizer.eos_token
        repairs = models.prepare(model, tokenizer)
        assert "<|endoftext|>" == tokenizer.pad_token
        assert tokenizer.pad_token_id == model.config.pad_token_id
        assert "mended" in str(repairs)

    def test_a_tokenizer_without_template_is_refused(self, folder):
        """The error says that the instruct variant is wanted."""
        model, tokenizer = tiny.load_four_bit(folder)
        tokenizer.chat_template = None
        with pytest.raises(ModelError, match="has no chat template") as caught:
            models.prepare(model, tokenizer)
        assert "instruct variant" in caught.value.hint

    def test_a_model_that_was_evaluated_first_is_refused(self, folder):
        """Repacked weights cannot be mended; training would go on with wrong gradients."""
        import torch

        if not models.self_test("cpu").trap:
            pytest.skip("this CPU does not repack 4-bit weights (no AVX512-BF16)")
        model, tokenizer = tiny.load_four_bit(folder)
        model.eval()
        with torch.no_grad():
            model(torch.tensor([[1, 2, 3]]))
        with pytest.raises(ModelError, match="were repacked by an evaluation"):
            models.prepare(model, tokenizer)


class TestGradients:
    def test_evaluation_does_not_change_the_gradients_of_a_prepared_model(self, folder):
        """Cosine 1 between the gradients before and after an evaluation; on an AVX512-BF16 CPU far less without the mend."""
        mended = self._cosine(folder, prepare=True)
        assert mended > 0.9999
        if models.self_test("cpu").trap:
            assert self._cosine(folder, prepare=False) < 0.9

    @staticmethod
    def _cosine(folder, *, prepare):
        import torch

        model, tokenizer = tiny.load_four_bit(folder)
        if prepare:
            models.prepare(model, tokenizer)
        ids = torch.arange(2, 66).view(2, 32)
        first_layer = model.model.layers[0].input_layernorm.weight

        def gradient():
            model.train()
            model.zero_grad()
            first_layer.requires_grad_(True)
            model(ids, labels=ids).loss.backward()
            if first_layer.grad is None:  # no gradient flowed at all
                return torch.zeros(first_layer.numel())
            return first_layer.grad.flatten().clone()

        before = gradient()
        model.eval()
        with torch.no_grad():
            model(ids)
        return float(torch.nn.functional.cosine_similarity(before, gradient(), dim=0))


def test_self_test_passes_and_reads_well():
    """The hardware notebook's self-test: right gradients here, and a sentence that says whether the trap is present."""
    result = models.self_test("cpu")
    assert result.ok
    assert "Gradient self-test on cpu: passed" in str(result)
    assert ("AVX512-BF16" in str(result)) is True
