"""The embedded model: converted once, checked, and able to speak."""

from __future__ import annotations

import importlib
import json
import os

import pytest

from nbkit import atomic, models
from nbkit.errors import ModelError, StorageError

pytestmark = pytest.mark.train
module = importlib.import_module("nbkit.models.embedded")  # the package's attribute of this name is the function


@pytest.fixture(scope="module")
def folder():
    """The conversion in the cache; made on first use."""
    return models.embedded()


def test_holds_safetensors_tokenizer_and_template(folder):
    """What from_pretrained needs is there; no pickle is."""
    names = set(os.listdir(folder))
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt"))]


def test_carries_no_trace_of_this_machine(folder):
    """No path, no flag of a local read, no quantisation left over from the GGUF."""
    for name in ("config.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        assert str(folder.parent) not in text
        assert "local_files_only" not in text
        assert "quantization_config" not in text
    assert "_model_name_or_path" not in json.loads((folder / "config.json").read_text())


def test_speaks_sense(folder):
    """It knows the capital of France, and ends its turn."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(output)
    assert tokenizer.eos_token_id == output[-1]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_damaged_copy_is_not_used(folder, tmp_path):
    """One flipped byte in the cached weights is found."""
    import shutil

    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    assert module._intact(copy)
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(10_000_000)
        byte = file.read(1)
        file.seek(10_000_000)
        file.write(bytes([byte[0] ^ 1]))
    assert not module._intact(copy)


def test_a_wrong_source_is_refused(tmp_path):
    """A GGUF with another sha256 is not converted."""
    (tmp_path / module.GGUF).write_bytes(b"GGUF")
    with pytest.raises(
        ModelError, match="is not the file nbkit knows: sha256 " + atomic.sha256(tmp_path / module.GGUF)
    ):
        module._check(tmp_path / module.GGUF)


def test_a_cache_that_cannot_be_written_is_explained(tmp_path):
    """A cache below a file is an error that names the path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Could not write"):
        models.embedded(tmp_path / "file" / "cache")
