"""`nbkit fit`: answers without torch, teaches in its help, and speaks JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from nbkit.cli import main

ROOT = Path(__file__).parent.parent


def invoke(*words):
    """Run the command in this process."""
    return CliRunner().invoke(main, ["fit", *words])


class TestFit:
    def test_says_which_methods_fit(self):
        """A row a method, the best one marked, a sentence, and what would mend the others."""
        found = invoke("Mistral-7B", "--gpu", "RTX 4090")
        assert 0 == found.exit_code
        assert "Mistral-7B on RTX 4090: 1,024 tokens, 23.5 GiB" in found.output
        assert "> LoRA, checkpointing" in found.output
        assert "LoRA, checkpointing fits with 1" in found.output
        assert "gradient checkpointing" in found.output

    def test_a_method_shows_its_parts_and_code(self):
        """--method adds the bar of parts and the objects to paste."""
        found = invoke("Mistral-7B", "--gpu", "T4", "--method", "qlora", "--seq", "512", "--rank", "8")
        for text in ("# weights 3.8", "of the 14.7 GiB that T4 gives", "BitsAndBytesConfig(", "max_length=512", "r=8"):
            assert text in found.output

    def test_disk(self):
        """The run's disk in a sentence, by item and reason with --method, and as numbers in JSON."""
        found = invoke("Mistral-7B", "--gpu", "RTX 4090")
        assert "download 13.50" in found.output
        table = invoke("Mistral-7B", "--gpu", "RTX 4090", "--method", "qlora")
        assert "one more than save_total_limit" in table.output
        said = json.loads(invoke("Mistral-7B", "--gpu", "RTX 4090", "--json").output)
        by_method = {one["method"]: one["disk"] for one in said["options"]}
        assert {"download", "checkpoints", "merge"} == by_method["lora"].keys()
        assert {"download", "checkpoints"} == by_method["full"].keys()

    def test_nothing_fits_is_exit_code_1(self):
        """A script sees it; the text names the change that would help."""
        found = invoke("Llama-2-70B", "--gpu", "T4")
        assert 1 == found.exit_code
        assert "What would make it fit: " in found.output
        assert 1 == invoke("Mistral-7B", "--gpu", "T4", "--method", "full").exit_code

    def test_rows_that_nothing_trains_on_are_refused(self, tmp_path):
        """A length guessed from columns that no trainer reads would be a silent guess; Alpaca's rows are counted."""
        (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
        found = invoke("Mistral-7B", "--gpu", "T4", "--data", str(tmp_path / "a.jsonl"))
        assert 1 == found.exit_code
        assert "no known format has these columns: a" in found.stderr
        (tmp_path / "b.jsonl").write_text(json.dumps({"instruction": "hi", "output": "ho " * 100}) + "\n")
        assert "Mistral-7B on T4: " in invoke("Mistral-7B", "--gpu", "T4", "--data", str(tmp_path / "b.jsonl")).stdout

    def test_json_is_json(self):
        """Options, changes, explanation; with --method only that one's options; with --market the deals."""
        found = invoke("Mistral-7B", "--gpu", "2x RTX 4090", "--method", "lora", "--market", "--json")
        data = json.loads(found.stdout)
        assert {"lora"} == {one["method"] for one in data["options"]}
        assert (2, True) == (data["gpus"], bool(data["market"]["deals"]))

    def test_data_is_prophesied(self, tmp_path):
        """Rows too long for the method are named; without the model's tokenizer tokens are estimated, and said so."""
        file = tmp_path / "rows.jsonl"
        rows = [{"text": "word " * 200}] * 20 + [{"text": "word " * 60_000}]
        file.write_text("\n".join(map(json.dumps, rows)))
        found = invoke("Mistral-7B", "--gpu", "T4", "--data", str(file), "--method", "qlora", "--batch", "1")
        assert "Length prophecy: these rows run out of memory" in found.stdout
        assert "estimated as characters / 3.5" in found.stderr
        data = json.loads(invoke("Mistral-7B", "--gpu", "T4", "--data", str(file), "--batch", "1", "--json").stdout)
        assert [20] == [doom["row"] for doom in data["prophecy"]["doomed"]]

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (("Mistral-7B", "--gpu", "RTX 409"), "did you mean RTX 4090"),
            (("Mistral-7C", "--gpu", "T4"), "did you mean Mistral-7B"),
            (("Mistral-7B", "--gpu", "TPU v5e"), "is a TPU"),
            (("Mistral-7B", "--seq", "0"), "--seq"),
            (("Mistral-7B", "--method", "dora"), "full"),
            (("Mistral-7B", "--data", "/no/such/file"), "does not exist"),
        ],
    )
    def test_mistakes_are_usage_errors(self, words, text):
        """Exit code 2, and what was meant."""
        found = invoke(*words)
        assert 2 == found.exit_code
        assert text in found.output

    def test_answers_without_torch(self):
        """Neither torch, transformers nor numpy is imported, and it is quick: a laptop with the core alone can ask."""
        code = (
            "import sys\n"
            "for name in ('torch', 'transformers', 'numpy', 'peft', 'trl', 'huggingface_hub'): sys.modules[name] = None\n"
            "from nbkit.cli import main\n"
            "main(['fit', 'meta-llama/Llama-2-13b-hf', '--gpu', 'A100-40GB', '--market'])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120,
                              check=False, stdin=subprocess.DEVNULL)  # fmt: skip
        assert 0 == done.returncode, done.stderr
        assert "Llama-2-13b-hf on A100-40GB" in done.stdout
        assert "Where to train it" in done.stdout


SIZES = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 1000,
}  # fmt: skip


class TestBadInput:
    @pytest.mark.parametrize(
        ("config", "text"),
        [
            ("{oops", "cannot be read"),
            ("{}", "lacks what the memory formula needs: num_attention_heads"),
            (json.dumps({"model_type": "llama", **SIZES, "hidden_size": -64}), "sizes that no model has"),
            (json.dumps({"model_type": "llama", **SIZES, "num_hidden_layers": 0}), "sizes that no model has"),
        ],
    )
    def test_a_config_that_makes_no_model(self, tmp_path, config, text):
        """Not JSON, empty, or of impossible sizes: an error that says so, no traceback, exit code 1."""
        (tmp_path / "config.json").write_text(config)
        found = invoke(str(tmp_path), "--gpu", "T4")
        assert 1 == found.exit_code
        assert text in found.output

    @pytest.mark.parametrize("extra", [{}, {"auto_map": {"AutoConfig": "x.Y"}}])
    def test_an_unknown_architecture_is_answered_with_its_doubt(self, tmp_path, extra):
        """The formula counts it like Llama and says that this was not checked; code of its own is named and not run."""
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "strange", **SIZES, **extra}))
        found = invoke(str(tmp_path), "--gpu", "T4")
        assert "not checked on models of type 'strange'" in found.output
        assert ("code of its own that was not run" in found.output) == bool(extra)

    def test_a_model_that_is_not_there(self, tmp_path, monkeypatch):
        """A folder without a config and a hub id that cannot be had are errors that name it."""
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert "holds no config.json" in invoke(str(tmp_path)).output
        assert "nobody/nothing-7B" in invoke("nobody/nothing-7B", "--gpu", "T4").output

    @pytest.mark.parametrize("words", [("--seq", "0"), ("--batch", "0"), ("--rank", "-1"), ("--gpu", "RTX 9999")])
    def test_nonsense_is_a_usage_error(self, words):
        """Exit code 2."""
        assert 2 == invoke("Mistral-7B", "--gpu", "T4", *words).exit_code

    def test_doubts_are_said(self):
        """Rows beyond the positions, and adapters of a higher rank than what they adapt."""
        found = invoke("Mistral-7B", "--gpu", "T4", "--seq", "40000", "--rank", "5000").output
        assert "40,000 tokens are more than the 32,768 positions" in found
        assert "rank=5,000 is more than the 1,024" in found
