"""nbkit.evaluation.loss: the number is TRL's, and taking it leaves the model as it was."""

from __future__ import annotations

import pytest

from nbkit.evaluation.encode import encode
from nbkit.evaluation.loss import RowLoss, completion_loss, mean_loss, row_losses
from tests import evaluated, tiny

pytestmark = pytest.mark.train


def gradient(model, tokenizer):
    """The gradient of one training step with respect to all adapter weights, flat."""
    import torch

    model.train()
    ids = torch.tensor([encode(tokenizer, evaluated.ROWS)[0].ids])
    model(input_ids=ids, labels=ids).loss.backward()
    found = torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.requires_grad])
    model.zero_grad()
    return found


class TestLoss:
    def test_is_the_trainers_own(self, tmp_path):
        """TRL's SFTTrainer, which pads and masks by itself, evaluates to the same loss."""
        trainer = tiny.trainer(
            evaluated.two_layers(), rows=4, output_dir=str(tmp_path), per_device_eval_batch_size=4, disable_tqdm=True
        )
        expected = trainer.evaluate()["eval_loss"]
        rows = [row for row in tiny_rows() if row["id"].startswith("seen")]
        assert expected == pytest.approx(completion_loss(trainer.model, trainer.processing_class, rows), rel=1e-4)

    def test_each_row_is_what_it_is_alone(self):
        """Row by row, without padding and with all logits, the sums are the same: batching changes nothing."""
        import torch

        model, tokenizer = evaluated.tuned()
        examples = encode(tokenizer, [*evaluated.ROWS, *evaluated.OTHER])
        found = row_losses(model, examples)
        model.eval()
        for example, row in zip(examples, found, strict=True):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([example.ids])).logits[0]
            target = torch.tensor(example.ids[example.start :])
            alone = torch.nn.functional.cross_entropy(logits[example.start - 1 : -1], target, reduction="sum")
            assert float(alone) == pytest.approx(row.nll, rel=1e-4, abs=1e-4)
            assert len(target) == row.tokens

    def test_does_not_depend_on_the_size_of_batches(self, monkeypatch):
        """A budget so small that each row is a batch gives the same losses, in the order of the rows."""
        model, tokenizer = evaluated.tuned()
        examples = encode(tokenizer, evaluated.ROWS)
        together = row_losses(model, examples)
        monkeypatch.setattr("nbkit.evaluation.loss._TOKENS_A_BATCH_CPU", 1)
        seen = []
        alone = row_losses(model, examples, seen.append)
        assert [1, 2, 3, 4] == seen
        assert [row.nll for row in together] == pytest.approx([row.nll for row in alone], rel=1e-4)

    def test_works_where_a_model_gives_all_logits(self, monkeypatch):
        """A model whose forward knows no logits_to_keep is scored from its full logits."""
        model, tokenizer = evaluated.tuned()
        expected = completion_loss(model, tokenizer, evaluated.ROWS)
        base, forward = model.get_base_model(), model.get_base_model().forward

        def plain(input_ids=None, attention_mask=None, use_cache=None, **rest):
            assert "logits_to_keep" not in rest
            return forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

        monkeypatch.setattr(base, "forward", plain)
        assert expected == pytest.approx(completion_loss(model, tokenizer, evaluated.ROWS), rel=1e-5)

    def test_weighs_tokens_and_not_rows(self):
        """The mean is per token: a long row counts for more."""
        assert 1.25 == mean_loss([RowLoss(30.0, 30), RowLoss(20.0, 10)])


class TestModelIsLeftAlone:
    def test_every_module_keeps_its_mode(self):
        """A module that was frozen in eval mode inside a training model is so afterwards; also after an error."""
        model, tokenizer = evaluated.tuned()
        frozen = model.get_input_embeddings()
        model.train()
        frozen.eval()
        before = {name: module.training for name, module in model.named_modules()}
        completion_loss(model, tokenizer, evaluated.ROWS)
        assert before == {name: module.training for name, module in model.named_modules()}
        with pytest.raises(ZeroDivisionError):
            row_losses(model, encode(tokenizer, evaluated.ROWS), lambda done: 1 // 0)
        assert before == {name: module.training for name, module in model.named_modules()}

    def test_training_goes_on_with_the_right_gradient(self):
        """On a 4-bit model that nobody prepared, the gradient after scoring is the one before (see models.prepare)."""
        import torch

        model, tokenizer = tiny.load_four_bit(evaluated.two_layers())
        model = evaluated.with_adapter(model)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(0))
        before = gradient(model, tokenizer)
        completion_loss(model, tokenizer, evaluated.ROWS)
        after = gradient(model, tokenizer)
        assert 1.0 == pytest.approx(float(torch.nn.functional.cosine_similarity(before, after, dim=0)), abs=1e-4)
        assert 0 < float(before.norm())


def tiny_rows():
    """The rows that tiny.trainer evaluates on."""
    from nbkit.data import tickets

    return tickets.generate(train=4, held_out=4)["seen"]
