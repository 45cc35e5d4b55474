"""Memory predicted by running the step on fake tensors: published runs, guards, and a real step of this machine."""

from __future__ import annotations

import warnings

import pytest

from nbkit.errors import ModelError, NbkitError
from nbkit.memory import Program, predict

pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def llama(**changes):
    """A small Llama config: 9 layers, so that two shallow runs are extrapolated."""
    from transformers import LlamaConfig

    sizes = {
        "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 9, "num_attention_heads": 8,
        "num_key_value_heads": 2, "vocab_size": 2048, "max_position_embeddings": 512, "dtype": "bfloat16",
    }  # fmt: skip
    return LlamaConfig(**{**sizes, **changes})


def lora(**changes):
    """LoRA on all linear maps."""
    from peft import LoraConfig

    return LoraConfig(**{"r": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **changes})


def nf4():
    """QLoRA's quantisation."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


class TestPublishedRuns:
    # vramcalc 0.1.2 README, RTX A6000: bench.py holds outputs through the backward and keeps gradient buffers.
    @pytest.mark.parametrize(
        ("model", "measured_gb", "adapted", "checkpointing"),
        [
            ("meta-llama/Llama-3.2-1B", 13.76, False, True),
            ("meta-llama/Llama-3.1-8B", 20.55, True, True),
        ],
    )
    def test_an_exact_program_is_within_one_per_cent(self, model, measured_gb, adapted, checkpointing):
        """A loop that is described as it is gives the peak that was measured on a GPU."""
        adapter = lora(r=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]) if adapted else None
        found = predict(
            model,
            peft_config=adapter,
            batch=1,
            seq=2048,
            dtype="bfloat16",
            checkpointing=checkpointing,
            program=Program.plain_loop(holds_outputs="backward", set_to_none=False),
        )
        assert measured_gb * 1e9 / 2**30 == pytest.approx(found.allocated_gib, rel=0.01)

    def test_the_program_decides(self):
        """Holding the outputs through the backward costs exactly the 16-bit logits."""
        loop = Program.plain_loop(holds_outputs="no", set_to_none=False)
        options = {"batch": 2, "seq": 256, "checkpointing": False}
        config = llama(num_hidden_layers=2)
        freed = predict(config, program=loop, **options).allocated_gib
        held = predict(config, program=loop.but(holds_outputs="backward"), **options).allocated_gib
        assert 2 * 256 * 2048 * 2 / 2**30 == pytest.approx(held - freed, rel=1e-3)


class TestPrediction:
    def test_parts_add_up_and_the_peak_has_a_place(self):
        """The parts are the allocated peak; phase and operator are named; the range holds the device's figure."""
        found = predict(llama(num_hidden_layers=6), peft_config=lora(), quantization_config=nf4(), batch=2, seq=256)
        assert found.allocated_gib == pytest.approx(sum(found.parts.values()))
        assert found.peak is not None
        assert found.peak.phase in {"forward", "backward", "optimizer"}
        assert found.peak.operator
        assert found.low_gib < found.device_gib < found.high_gib
        assert "fake step" == found.basis
        assert "<svg" in found._repr_html_()
        assert {"download", "checkpoints", "merge"} == found.disk.keys()
        assert "Disk " in str(found)
        assert 3 < found.host_gib
        assert found.versions["torch"]

    def test_depths_agree_with_the_whole_model(self):
        """Two shallow runs, extrapolated, give the bytes of the run at full depth."""
        from nbkit.memory import depth, fake, step

        config = llama(num_hidden_layers=6)
        job = step.Job(fake.Wanted(config, "bfloat16", peft_config=lora()), Program.trl(), 2, 256, {}, accumulates=True)
        chosen = depth.depths(config, list)
        assert (3, 4) == chosen.shallow
        assert 6 == chosen.full
        shallow = depth.peak([step.run(job, layers, edge=chosen.edge).tally for layers in chosen.to_run], chosen)
        whole = step.run(job, None).tally.peak[1].live
        assert whole == pytest.approx(shallow.live, rel=1e-4)

    def test_the_fused_head_never_holds_the_logits(self):
        """TRL's loss needs less than the plain one by at least the logits' 12 bytes, where the vocabulary is large."""
        config = llama(vocab_size=64000, num_hidden_layers=2)
        fused = predict(config, peft_config=lora(), batch=2, seq=512).allocated_gib
        plain = predict(config, peft_config=lora(), batch=2, seq=512, program=Program.trl().but(loss="plain"))
        assert 0.5 < plain.allocated_gib - fused

    def test_checkpointing_and_four_bits_save(self):
        """Checkpointing keeps fewer activations, NF4 smaller weights; both are seen in their own part."""
        config = llama(hidden_size=512, intermediate_size=2048, num_hidden_layers=3, vocab_size=512)
        kept = predict(config, peft_config=lora(), batch=2, seq=512, checkpointing=False)
        saved = predict(config, peft_config=lora(), batch=2, seq=512, checkpointing=True)
        packed = predict(config, peft_config=lora(), quantization_config=nf4(), batch=2, seq=512, checkpointing=True)
        assert kept.parts["activations"] > 2 * saved.parts["activations"]
        assert saved.parts["weights"] > 2 * packed.parts["weights"]

    def test_a_chunked_loss_needs_less_than_the_plain_one(self):
        """The log-softmax's copy exists a piece at a time; a head in pieces has no whole logits, which are 2 bytes each."""
        options = {"batch": 1, "seq": 512, "checkpointing": False}
        config, logits = llama(num_hidden_layers=1, vocab_size=32000), 512 * 32000 / 2**30
        programs = (
            Program.plain_loop(holds_outputs="no"),
            Program.plain_loop(holds_outputs="no", loss="chunked", chunk=64),
            Program.plain_loop(holds_outputs="no", loss="chunked", chunk=64, chunked_head=True),
        )
        plain, chunked, headed = (predict(config, program=one, **options).allocated_gib for one in programs)
        assert 2 * logits < plain - chunked
        assert headed < chunked + 0.001 * logits  # a scalar of the graph dies sooner or later: 512 B

    @pytest.mark.parametrize("optimizer", ["adamw fused", "adamw 8-bit", "adamw paged 8-bit", "adamw paged", "adamw"])
    def test_optimizers(self, optimizer):
        """Every optimizer steps on fakes; paged states count for the device's high end only."""
        options = {"batch": 1, "seq": 64, "checkpointing": False}
        program = Program.plain_loop(optimizer=optimizer)
        found = predict(llama(num_hidden_layers=1, hidden_size=512), program=program, **options)
        paged = [note for note in found.notes if "Paged" in note]
        assert ("paged" in optimizer) == bool(paged)

    def test_the_disk_is_that_of_the_run(self, tmp_path):
        """Epochs, limits and rows of the arguments decide; a folder is not downloaded; an unlimited number is said."""
        from trl import SFTConfig

        llama(num_hidden_layers=1).save_pretrained(tmp_path)
        options = {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "bf16": False,
            "report_to": [],
            "max_length": 64,
        }
        rows, adapter = [60] * 10, lora()
        one = predict(str(tmp_path), SFTConfig(**options, num_train_epochs=1, save_strategy="epoch"), peft_config=adapter,
                      dataset=rows)  # fmt: skip
        three = predict(str(tmp_path), SFTConfig(**options, num_train_epochs=3, save_strategy="epoch"), peft_config=adapter,
                        dataset=rows)  # fmt: skip
        never = predict(llama(num_hidden_layers=1), SFTConfig(**options, save_strategy="no"), peft_config=adapter)
        unknown = predict(llama(num_hidden_layers=1), SFTConfig(**options), peft_config=adapter)
        assert 0 == one.disk["download"]
        assert 44 * 600 / 2**30 == pytest.approx(one.disk["cache"])
        assert 3 * one.disk["checkpoints"] == pytest.approx(three.disk["checkpoints"])
        assert 0 == never.disk["checkpoints"]
        assert never.disk["download"] > 0
        assert any("every checkpoint stays" in note for note in unknown.notes)

    def test_arguments_are_read(self):
        """Batch, length, accumulation and checkpointing come from the trainer's own arguments."""
        from trl import SFTConfig

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            args = SFTConfig(
                per_device_train_batch_size=3, max_length=96, use_cpu=True, bf16=False, report_to=[],
                gradient_accumulation_steps=2, optim="adamw_torch",
            )  # fmt: skip
        found = predict(llama(num_hidden_layers=1), args, peft_config=lora(), gpu="T4")
        assert (3, 96) == (found.batch, found.seq)
        assert "trl.SFTTrainer" == found.program.name


class TestBadInput:
    def test_target_modules_that_match_nothing(self):
        """The error names the model's linear maps."""
        with pytest.raises(NbkitError) as caught:
            predict(llama(), peft_config=lora(target_modules=["c_attn"]), seq=64)
        assert "q_proj" in caught.value.hint

    @pytest.mark.parametrize(
        "options",
        [{"batch": 0}, {"seq": 0}, {"seq": -5}, {"dtype": "int3"}, {"batch": 10**9}, {"seq": 10**12},
         {"args": {"max_length": 5}}, {"peft_config": "lora"}],
    )  # fmt: skip
    def test_nonsense_values(self, options):
        """Values that no run can have are refused with exit code 2."""
        with pytest.raises(NbkitError) as caught:
            predict(llama(), **{"seq": 64, **options})
        assert 2 == caught.value.exit_code

    def test_a_target_that_no_module_has(self):
        """PEFT passes over it in silence; the answer says so."""
        found = predict(llama(num_hidden_layers=1), peft_config=lora(target_modules=["q_proj", "c_attn"]), seq=64)
        assert any("no module is called c_attn" in note for note in found.notes)

    def test_adapters_wider_than_the_model(self):
        """More adapter than there is to adapt is answered, with the doubt said."""
        found = predict(llama(num_hidden_layers=1), peft_config=lora(r=512), seq=64)
        assert any("r=512 is more than the model's width of 256" in note for note in found.notes)

    def test_adapters_on_layers_that_are_not_there(self):
        """Layers by number: the ninth is found at full depth, the hundredth is an error."""
        found = predict(llama(), peft_config=lora(target_modules=["q_proj"], layers_to_transform=[8]), seq=64)
        assert 8 * (256 + 256) * 4 / 2**30 == pytest.approx(found.parts["adapters"], rel=0.05)
        with pytest.raises(NbkitError) as caught:
            predict(llama(), peft_config=lora(target_modules=["q_proj"], layers_to_transform=[100]), seq=64)
        assert 2 == caught.value.exit_code

    @pytest.mark.parametrize("rank", [float("nan"), "8"])
    def test_a_rank_that_is_no_number(self, rank):
        """What PEFT cannot make of it is said as its refusal."""
        with pytest.raises(NbkitError, match="PEFT refuses this adapter"):
            predict(llama(num_hidden_layers=1), peft_config=lora(r=rank), seq=64)

    @pytest.mark.parametrize(
        "config",
        ["{oops", "{}", '{"model_type": "llama", "num_hidden_layers": 0}', "null",
         '{"model_type": "llama", "num_hidden_layers": "two"}', '{"model_type": "llama", "dtype": "float1024"}',
         '{"model_type": "llama", "hidden_size": 250, "num_attention_heads": 7}'],
    )  # fmt: skip
    def test_a_config_that_makes_no_model(self, tmp_path, config):
        """Not JSON, nothing in it, no layers: an error of the model, with a fix."""
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(ModelError) as caught:
            predict(str(tmp_path), seq=64)
        assert caught.value.hint

    def test_a_missing_model(self, tmp_path, monkeypatch):
        """Neither in the cache nor to be had: an error that names it; a folder without a config likewise."""
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(ModelError, match="nobody/nothing-7B"):
            predict("nobody/nothing-7B", seq=64)
        with pytest.raises(ModelError):
            predict(str(tmp_path), seq=64)

    def test_longer_than_the_positions(self):
        """A rotary model is answered, with the doubt said."""
        found = predict(llama(num_hidden_layers=1), peft_config=lora(), seq=600)
        assert any("512 positions" in note for note in found.notes)

    def test_what_is_not_predicted_is_refused(self):
        """Activations in RAM and a chunked head under autocast are errors that say so, no silent guess."""
        from types import SimpleNamespace

        for options in ({"activation_offloading": True}, {"activation_checkpointing": True, "offload": True}):
            args = SimpleNamespace(
                per_device_train_batch_size=1, max_length=64, gradient_accumulation_steps=1, **options,
                activation_checkpointing_kwargs={"offload": options.get("offload", False)}, packing_strategy="bfd",
            )  # fmt: skip
            with pytest.raises(NbkitError, match="not predicted"):
                predict(llama(num_hidden_layers=1), args, peft_config=lora())
        with pytest.raises(NbkitError, match="chunked_head"):
            Program.torchtune(autocast="bfloat16")

    def test_an_object_that_is_no_model(self):
        """The error says what predict takes."""
        with pytest.raises(NbkitError, match="is no model"):
            predict(42)

    def test_a_folder_with_its_own_code(self, tmp_path):
        """Custom code is not run unless trusted."""
        (tmp_path / "config.json").write_text('{"model_type": "strange", "auto_map": {"AutoConfig": "x.Y"}}')
        with pytest.raises(ModelError, match="code of its own"):
            predict(str(tmp_path))

    def test_an_unknown_type(self, tmp_path):
        """A model type that transformers does not know is an error with a fix."""
        (tmp_path / "config.json").write_text('{"model_type": "nosuch"}')
        with pytest.raises(ModelError) as caught:
            predict(str(tmp_path))
        assert caught.value.hint


class TestKnown:
    def test_sizes_are_those_of_transformers(self):
        """A few entries are built and counted; the table's parameters are right."""
        import torch
        from transformers import AutoModelForCausalLM

        from nbkit.models.known import config_of, known

        for name in ("HuggingFaceTB/SmolLM2-135M", "meta-llama/Llama-3.2-1B", "Qwen/Qwen2.5-0.5B", "google/gemma-2b"):
            entry = known(name)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config_of(entry))
            assert entry.params == sum(one.numel() for one in model.parameters())
