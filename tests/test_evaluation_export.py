"""nbkit.evaluation.export: what is written is the model that was trained, or nothing is written."""

from __future__ import annotations

import importlib
import json
import types

import pytest

from nbkit.errors import ModelError, StorageError
from nbkit.evaluation import check_folder, completion_loss, export
from nbkit.evaluation.encode import encode
from nbkit.evaluation.export import Evidence, evidence
from tests import evaluated

pytestmark = pytest.mark.train
module = importlib.import_module("nbkit.evaluation.export")  # the package's attribute of this name is the verb


def reloaded(folder):
    """Model and tokenizer of a folder, as a stranger reads it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The tuned model, exported once; the losses of the caller's model before and after."""
    model, tokenizer = evaluated.tuned()
    before = completion_loss(model, tokenizer, evaluated.ROWS)
    result = export(model, tokenizer, tmp_path_factory.mktemp("export") / "merged", rows=evaluated.ROWS)
    return result, before, completion_loss(model, tokenizer, evaluated.ROWS)


class TestExport:
    def test_the_folder_is_as_good_as_the_model(self, exported):
        """Read anew without PEFT and without 4 bits, it has the loss that was promised and answers the same."""
        result, before, _ = exported
        model, tokenizer = reloaded(result.path)
        assert result.loss_after == pytest.approx(completion_loss(model, tokenizer, evaluated.ROWS), rel=1e-4)
        assert before == pytest.approx(result.loss_before, rel=1e-6)
        assert result.loss_before + 0.01 >= result.loss_after
        assert (4, 4, 4) == (result.agreeing, result.answers, result.rows)
        assert "LlamaForCausalLM" == type(model).__name__

    def test_the_callers_model_is_only_read(self, exported):
        """Its loss is the same to the last bit, and it still has its adapter and its 4-bit layers."""
        _, before, after = exported
        model, _ = evaluated.tuned()
        assert before == after
        assert any(type(module).__name__ == "Linear4bit" for module in model.modules())
        assert model.peft_config

    def test_the_files_say_nothing_of_this_machine(self, exported):
        """No path, no quantisation, no flags of the local read stand in any JSON file; weights are bf16 safetensors."""
        from safetensors import safe_open

        result, _, _ = exported
        names = {file.name for file in result.path.iterdir()}
        assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
        assert {"tokenizer_config.json", "chat_template.jinja"} <= names
        for file in result.path.glob("*.json"):
            text = file.read_text()
            for secret in (str(evaluated.two_layers()), "is_local", "_name_or_path", "quantization_config", "/tmp"):
                assert secret not in text, file.name
        with safe_open(result.path / "model.safetensors", "pt") as weights:
            assert {"BF16"} == {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        assert "bfloat16" == json.loads((result.path / "config.json").read_text())["dtype"]

    def test_the_record_has_no_path(self, exported):
        """The base model's folder is not its name, and the numbers hold the export's name only."""
        result, _, _ = exported
        assert "" == result.base
        assert "merged" == result.as_dict()["path"]
        assert "same greedy answers" in str(result)
        json.dumps(result.as_dict())

    def test_generation_settings_end_an_answer(self, exported):
        """The exported settings name the end of turn and the tokenizer's pad token: it stops in other people's hands."""
        result, _, _ = exported
        _, tokenizer = reloaded(result.path)
        settings = json.loads((result.path / "generation_config.json").read_text())
        assert [tokenizer.convert_tokens_to_ids("<|im_end|>")] == settings["eos_token_id"]
        assert tokenizer.pad_token_id == settings["pad_token_id"]
        assert tokenizer.pad_token_id == json.loads((result.path / "config.json").read_text())["pad_token_id"]

    def test_a_number_format_that_rounds_too_much_is_passed_over(self, tmp_path, monkeypatch):
        """Where the bfloat16 folder is worse, float16 is tried next and kept; one that was asked for is refused."""
        real, read = module.evidence, []

        def noticed(model, tokenizer, examples, name=""):
            found = real(model, tokenizer, examples, name)
            if name == "after export":
                read.append(name)
                return Evidence(found.loss + 1.0, found.answers) if len(read) == 1 else found
            return found

        monkeypatch.setattr(module, "evidence", noticed)
        model, tokenizer = evaluated.tuned()
        result = export(model, tokenizer, tmp_path / "merged", rows=evaluated.ROWS[:1])
        assert ("float16", 2) == (result.dtype, len(read))
        assert "float16" == json.loads((result.path / "config.json").read_text())["dtype"]
        read.clear()
        with pytest.raises(ModelError, match="other was not kept"):
            export(model, tokenizer, tmp_path / "other", rows=evaluated.ROWS[:1], dtype="bfloat16")
        assert not (tmp_path / "other").exists()

    @pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}])
    def test_merges_what_peft_merges(self, tmp_path, options):
        """On a plain model the merged weights are those of PEFT's own merge, for LoRA, DoRA and rsLoRA, in float32."""
        import torch

        model, tokenizer = evaluated.base(four_bit=False)
        model = evaluated.with_adapter(model, **options)
        evaluated.train(model, tokenizer, steps=2, rows=evaluated.ROWS[:1])
        export(model, tokenizer, tmp_path / "merged", rows=evaluated.ROWS[:1], dtype="float32", base="owner/name")
        found = reloaded(tmp_path / "merged")[0].state_dict()
        expected = model.merge_and_unload().state_dict()
        assert expected.keys() == found.keys()
        for name, weight in expected.items():
            assert torch.allclose(weight, found[name], atol=1e-6), name

    def test_layers_without_an_adapter_leave_4_bits_too(self, tmp_path):
        """With LoRA on two kinds of layers only, the others are written in full precision as well."""
        from peft import LoraConfig, get_peft_model

        model, tokenizer = evaluated.base()
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
        result = export(model, tokenizer, tmp_path / "merged", rows=evaluated.ROWS[:2], dtype="float32")
        assert result.loss_before == pytest.approx(result.loss_after, rel=1e-4)

    def test_a_module_that_was_trained_whole_is_written(self, tmp_path):
        """modules_to_save: the trained copy of a norm goes into the export, the original does not."""
        import torch
        from peft import LoraConfig, get_peft_model

        model, tokenizer = evaluated.base()
        config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["model.norm"], task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
        with torch.no_grad():
            norm = model.get_base_model().model.norm.modules_to_save["default"]
            norm.weight.mul_(1.5)
        result = export(model, tokenizer, tmp_path / "merged", rows=evaluated.ROWS[:2], dtype="float32")
        assert result.loss_before == pytest.approx(result.loss_after, rel=1e-4)
        assert torch.allclose(norm.weight, reloaded(result.path)[0].model.norm.weight)


class TestGate:
    def test_merging_into_4_bits_is_refused(self, tmp_path):
        """The folder that `merge_and_unload` makes of a 4-bit model has lost the fine-tune; the check finds it."""
        model, tokenizer = evaluated.base()
        model = evaluated.with_adapter(model)
        evaluated.train(
            model, tokenizer, steps=8
        )  # a light fine-tune, as real ones are: a heavy one outgrows the 4-bit grid
        before = evidence(model, tokenizer, encode(tokenizer, evaluated.ROWS))
        naive = model.merge_and_unload()
        naive.save_pretrained(tmp_path / "naive")
        tokenizer.save_pretrained(tmp_path / "naive")
        with pytest.raises(ModelError) as caught:
            check_folder(tmp_path / "naive", evaluated.ROWS, before)
        assert f"before the export it was {before.loss:.4f}" in caught.value.message
        assert "naive was not kept: its held-out loss is" in caught.value.message
        assert "merging into 4-bit weights" in caught.value.hint

    def test_nothing_is_left_under_the_name(self, tmp_path, monkeypatch):
        """When the folder is worse, what stood there before stays, and no staging folder remains."""
        model, tokenizer = evaluated.tuned()
        (tmp_path / "merged").mkdir()
        (tmp_path / "merged" / "old.txt").write_text("kept")
        monkeypatch.setattr(module, "save_merged", without_the_adapter)
        with pytest.raises(ModelError, match="merged was not kept: its held-out loss is"):
            export(model, tokenizer, tmp_path / "merged", rows=evaluated.ROWS)
        assert ["merged"] == [file.name for file in tmp_path.iterdir()]
        assert "kept" == (tmp_path / "merged" / "old.txt").read_text()

    @pytest.mark.parametrize(
        ("before", "tolerance", "kept"),
        [(1.0, 0.02, True), (0.985, 0.02, True), (0.97, 0.02, False), (0.97, 0.05, True)],
    )
    def test_how_much_worse_is_too_much(self, monkeypatch, before, tolerance, kept):
        """Relative tolerance, at least 0.01 nats; the folder's loss is 1.0 here."""
        monkeypatch.setattr(module, "evidence", lambda *_: Evidence(1.0, ()))
        if kept:
            assert (
                1.0
                == check_folder(evaluated.two_layers(), evaluated.ROWS, Evidence(before, ()), tolerance=tolerance).loss
            )
        else:
            with pytest.raises(
                ModelError, match=r"loss is 1\.0000, before the export it was 0\.9700 \(allowed: 0\.9894\)"
            ):
                check_folder(evaluated.two_layers(), evaluated.ROWS, Evidence(before, ()), tolerance=tolerance)

    def test_a_loss_that_is_not_a_number_is_refused(self, monkeypatch):
        """NaN compares as neither better nor worse; it is refused."""
        monkeypatch.setattr(module, "evidence", lambda *_: Evidence(float("nan"), ()))
        with pytest.raises(ModelError, match="its held-out loss is nan"):
            check_folder(evaluated.two_layers(), evaluated.ROWS, Evidence(1.0, ()))

    def test_a_lost_chat_template_is_found(self, exported, tmp_path):
        """The folder's own tokenizer is used: without its template the rows cannot be read, and the check says so."""
        import shutil

        result, before, _ = exported
        shutil.copytree(result.path, tmp_path / "bare")
        (tmp_path / "bare" / "chat_template.jinja").unlink()
        with pytest.raises(ModelError, match="no chat template"):
            check_folder(tmp_path / "bare", evaluated.ROWS, Evidence(before, ()))


class TestRoom:
    def test_too_little_memory_is_said_before_the_work(self, tmp_path, monkeypatch):
        """The error has what is needed and what is free."""
        import psutil

        model, tokenizer = evaluated.tuned()
        monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=2**20))
        with pytest.raises(
            ModelError, match=r"Exporting 0\.04 billion parameters needs 0\.1 GiB of memory, and 0\.0 GiB"
        ):
            export(model, tokenizer, tmp_path / "merged", rows=evaluated.ROWS)
        assert [] == list(tmp_path.iterdir())

    def test_too_little_disk_is_said_before_the_work(self, tmp_path, monkeypatch):
        """The same for the disk."""
        model, tokenizer = evaluated.tuned()
        monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=2**20))
        with pytest.raises(StorageError, match=r"The export needs 0\.07 GiB"):
            export(model, tokenizer, tmp_path / "deep" / "merged", rows=evaluated.ROWS)

    def test_a_model_without_an_adapter_is_refused(self, tmp_path):
        """It needs no merging; save_pretrained does."""
        model, tokenizer = evaluated.base()
        with pytest.raises(ModelError, match="has no adapter"):
            export(model, tokenizer, tmp_path / "merged", rows=evaluated.ROWS)


def without_the_adapter(model, folder, **_):
    """A merge gone wrong, for real: the base model's folder."""
    import shutil

    shutil.copytree(evaluated.two_layers(), folder, dirs_exist_ok=True)
    return 1
