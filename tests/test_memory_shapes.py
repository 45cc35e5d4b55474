"""Shapes of models: their parameter counts, and how a config is read."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nbkit.errors import ModelError
from nbkit.memory import SHAPES, Shape, shape

# As the hub shows them.
PARAMS = {
    "SmolLM2-135M": 134_515_008,
    "Qwen2.5-0.5B": 494_032_768,
    "TinyLlama-1.1B": 1_100_048_384,
    "Llama-3.2-1B": 1_235_814_400,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Llama-3.2-3B": 3_212_749_824,
    "Mistral-7B": 7_248_023_552,
    "Qwen2.5-7B": 7_615_616_512,
    "Llama-3-8B": 8_030_261_248,
    "Llama-2-13B": 13_015_864_320,
    "Llama-3.3-70B": 70_553_706_496,
}


def config(one, **changes):
    """The transformers config of a shape, as its hub repository has it."""
    import transformers

    kind = {"Qwe": transformers.Qwen2Config, "Mis": transformers.MistralConfig}.get(
        one.name[:3], transformers.LlamaConfig
    )
    given = {
        "vocab_size": one.vocab, "hidden_size": one.hidden, "intermediate_size": one.intermediate,
        "num_hidden_layers": one.layers, "num_attention_heads": one.heads, "num_key_value_heads": one.kv_heads,
        "tie_word_embeddings": one.tied,
    }  # fmt: skip
    return kind(**{**given, **changes})


class TestCounts:
    def test_parameters_are_the_published_ones(self):
        """Each built-in shape has exactly the parameters that its model has."""
        assert PARAMS == {one.name: one.params for one in SHAPES}

    def test_lora_counts_each_adapted_map(self):
        """Rank 16 on all linear maps of Llama-3-8B is 41.9M parameters; on q, k, v, o alone 13.6M."""
        assert 41_943_040 == shape("Llama-3-8B").lora_params(16)
        assert 13_631_488 == shape("Llama-3-8B").lora_params(16, "attention")

    @pytest.mark.train
    @pytest.mark.parametrize("one", SHAPES, ids=lambda one: one.name)
    def test_transformers_builds_the_same(self, one):
        """A model built by transformers on the meta device, one layer and two, grows to the same count."""
        import torch
        from transformers import AutoModelForCausalLM

        counts = []
        for layers in (1, 2):
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config(one, num_hidden_layers=layers))
            counts.append(sum(weight.numel() for weight in model.parameters()))
        assert one.params == counts[0] + (counts[1] - counts[0]) * (one.layers - 1)

    @pytest.mark.train
    @pytest.mark.parametrize("one", SHAPES, ids=lambda one: one.name)
    def test_a_config_gives_the_shape_back(self, one):
        """Reading a transformers config yields the built-in shape."""
        assert one == Shape.from_config(config(one), one.name)


class TestRefusals:
    def test_a_mixture_of_experts_is_refused(self):
        """The formula says that it does not cover experts, instead of a wrong number."""
        with pytest.raises(
            ModelError, match="mixtral is a mixture of experts; the memory formula covers dense decoders only"
        ):
            Shape.from_config(SimpleNamespace(model_type="mixtral", num_local_experts=8))

    def test_an_mlp_without_a_gate_is_refused(self):
        """Phi's two matrices counted as three would be 50 % off: the error names what does answer."""
        with pytest.raises(ModelError, match="phi has an MLP of two matrices") as caught:
            Shape.from_config(SimpleNamespace(model_type="phi", num_attention_heads=32, intermediate_size=8192))
        assert "nbkit.predict" in caught.value.hint

    def test_a_config_without_the_numbers_is_refused(self):
        """A config of another kind names what is missing."""
        with pytest.raises(ModelError) as caught:
            Shape.from_config(SimpleNamespace(model_type="gpt2", n_embd=768))
        assert caught.value.message.startswith("The config of gpt2 lacks what the memory formula needs: ")
        assert "num_attention_heads" in caught.value.message

    def test_an_unknown_name_lists_the_known(self):
        """The error names the nearest model and all others."""
        with pytest.raises(ModelError) as caught:
            shape("llama-3-8bb")
        assert "No model named 'llama-3-8bb' among nbkit's built-in shapes." == caught.value.message
        assert caught.value.hint.startswith("did you mean Llama-3-8B? known: SmolLM2-135M, ")
