"""The doctor: each rule on recorded facts, silence on a healthy machine, and a broken stack that cannot hurt."""

from __future__ import annotations

import importlib
import json
import re
import sys
import time
import venv
from dataclasses import replace
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from nbkit.cli import main
from nbkit.hardware import Facts, Wanted, diagnose, doctor, probe
from nbkit.hardware.facts import has_kernels, version
from nbkit.hardware.rules import Rule, all_rules, seen
from tests.hardware_cases import CASES, CPU_ONLY, HEALTHY, T4, facts_of

module = importlib.import_module("nbkit.hardware.doctor")  # by path: the attribute is the function


def found_in(changes):
    """Findings by rule, on the healthy machine with these facts changed."""
    facts = Facts.from_dict(json.loads(json.dumps(facts_of(changes))))
    return {one.id: one for one in diagnose(facts)}


class TestRules:
    def test_each_symptom_has_a_rule(self):
        """The 27 symptoms of the collection are covered, each once, and every rule has a name of its own."""
        numbers = [rule.symptom for rule in all_rules() if rule.symptom]
        assert list(range(1, 28)) == sorted(numbers)
        names = [rule.id for rule in all_rules()]
        assert len(names) == len(set(names))

    def test_each_rule_has_facts_that_show_it(self):
        """No rule without a case, no case without a rule."""
        assert {rule.id for rule in all_rules()} == set(CASES)

    @pytest.mark.parametrize("rule", all_rules(), ids=lambda rule: rule.id)
    def test_is_complete(self, rule):
        """A rule says why, what to paste, what it blocks, and where it is from."""
        assert len(rule.explanation) > 40
        assert rule.fix
        assert "    " not in rule.fix.replace("\n    ", ""), (
            "what follows a command is a comment, so that the line can be pasted"
        )
        assert rule.blocks
        assert rule.source
        assert rule.severity in {"blocker", "warning", "note"}

    def test_a_healthy_machine_has_nothing(self):
        """On the recorded healthy machine no rule fires."""
        assert {} == found_in({})

    @pytest.mark.parametrize(
        ("rule", "changes"), [(rule, changes) for rule, cases in CASES.items() for changes in cases],
        ids=[f"{rule}-{n}" for rule, cases in CASES.items() for n in range(len(cases))],
    )  # fmt: skip
    def test_fires_on_its_facts(self, rule, changes):
        """The changed facts bring this rule's finding, with the values seen."""
        found = found_in(changes)
        assert rule in found
        assert found[rule].evidence
        assert "" not in found[rule].evidence

    def test_no_fact_sets_off_a_crowd(self):
        """One fault is told once or with its direct consequences: at most four findings each."""
        crowds = {rule: sorted(found) for rule, cases in CASES.items() for c in cases if len(found := found_in(c)) > 4}
        assert {} == crowds

    def test_a_machine_without_a_gpu_is_no_fault(self):
        """A CPU-only machine with a CPU build of torch gets a note about 4-bit, nothing worse."""
        assert {"four-bit-slow": "note"} == {name: one.severity for name, one in found_in(CPU_ONLY).items()}

    def test_a_t4_is_told_about_bf16_only(self):
        """A T4 with a fitting torch works: the doctor warns of bf16 and of nothing else."""
        assert ["no-bf16"] == list(found_in(T4))

    def test_an_old_card_is_not_called_new(self):
        """A V100 and an RTX 50 card both lack kernels; each is told for its own reason."""
        ids = [
            {name for name in found_in(CASES[rule][0]) if name.startswith("gpu-too")}
            for rule in ("gpu-too-old", "gpu-too-new")
        ]
        assert [{"gpu-too-old"}, {"gpu-too-new"}] == ids

    def test_a_rule_that_fails_does_not_hide_the_rest(self):
        """An unexpected fact is reported as a note on the rule, and the others are still applied."""
        rules = (Rule("odd", 0, "blocker", ("GPU",), "x", "y", lambda facts: {}["missing"]),
                 Rule("next", 0, "note", ("GPU",), "x", "y", lambda facts: seen("here")))  # fmt: skip
        found = diagnose(Facts.from_dict(HEALTHY), rules)
        assert [("odd", "note"), ("next", "note")] == [(one.id, one.severity) for one in found]
        assert ("the rule failed: KeyError: 'missing'",) == found[0].evidence

    def test_the_worst_comes_first(self):
        """Blockers precede warnings, warnings notes."""
        found = found_in({"wanted.devices": ["cuda:0", "cpu"], "machine.environment": {"HF_HUB_OFFLINE": "1"},
                          "machine.disks.5.total_bytes": 2**20})  # fmt: skip
        assert ["offloaded-parts", "shm-small", "hub-offline"] == list(found)

    def test_secrets_in_an_error_are_hidden(self):
        """What an error quotes is redacted before it is shown."""
        text = "OSError: [Errno 28] No space left on device: https://u:secret@host/x?token=hf_abcdefghijklmnopqrstuv"
        assert "secret" not in found_in({"error": text})["disk-full"].evidence[0]
        assert "hf_abc" not in found_in({"error": text})["disk-full"].evidence[0]


class TestEvidence:
    def test_says_the_values(self):
        """A finding quotes what was seen, with units, and the fix fits the case."""
        found = found_in(CASES["memory-held"][0])["memory-held"]
        assert ("GPU 0, 17.0 of 23.5 GiB free", "process 4242 (a notebook kernel): 6.0 GiB") == found.evidence
        assert "shut the other notebook's kernel down" in found.fix
        v100 = found_in(CASES["gpu-too-old"][0])["gpu-too-old"].evidence
        assert "V100-SXM2-16GB is sm_70" == v100[0]
        assert "has kernels for: sm_75 sm_80" in v100[1]

    def test_what_this_kernel_holds_is_no_finding(self):
        """A notebook that asks after loading its model is not told that the GPU is taken; another machine's pid is."""
        mine = {"machine.gpus.0.processes": [{"pid": 77, "bytes": 10 * 2**30, "name": "python", "notebook": True}],
                "machine.gpus.0.free_bytes": 13 * 2**30}  # fmt: skip
        facts = Facts.from_dict(facts_of(mine))
        assert () == diagnose(replace(facts, own_pid=77))
        assert ["memory-held"] == [one.id for one in diagnose(facts)]

    @pytest.mark.parametrize(
        ("changes", "severity"),
        [({"machine.disks.4.free_bytes": 10 * 2**30, "wanted.disk_gib": None}, "warning"),
         ({"machine.disks.4.free_bytes": 2**30, "wanted.disk_gib": None}, "blocker"),
         ({"machine.disks.4.free_bytes": 30 * 2**30}, "blocker")],
    )  # fmt: skip
    def test_little_room_warns_and_none_blocks(self, changes, severity):
        """Ten GiB are a warning; one GiB, or less than the run needs, stops it."""
        assert severity == found_in(changes)["disk-full"].severity

    @pytest.mark.parametrize(
        ("level", "built", "expected"),
        [((8, 6), ["sm_80"], True), ((8, 9), ["sm_90"], False), ((7, 0), ["sm_75", "sm_80"], False), ((9, 0), ["sm_90a"], True),
         ((12, 0), ["sm_90", "compute_90"], True), ((12, 0), ["sm_90"], False), ((10, 0), ["sm_120"], False)],
    )  # fmt: skip
    def test_which_kernels_run_where(self, level, built, expected):
        """Binaries run on the same major version from their minor on, PTX on everything newer."""
        gpu = replace(Facts.from_dict(HEALTHY).gpus[0], compute_capability=level)
        assert expected == has_kernels(gpu, built)

    def test_a_driver_of_the_same_major_is_not_blamed(self):
        """Driver 12.2 runs torch for 12.8 by minor-version compatibility: no finding while torch sees the GPU."""
        assert {} == found_in({"machine.driver.cuda": "12.2"})
        assert (12, 8) == version("12.8+local9")


class TestWanted:
    def test_reads_the_trainers_own_objects(self):
        """Number format, batches and checkpointing come from the arguments, the rest from the model."""
        args = SimpleNamespace(bf16=True, fp16=False, per_device_train_batch_size=2, per_device_eval_batch_size=8,
                               eval_strategy="steps", gradient_checkpointing=True)  # fmt: skip
        trained = SimpleNamespace(dtype="torch.float16", requires_grad=True)
        model = SimpleNamespace(parameters=lambda: [trained], hf_device_map={"": 0, "lm_head": "cpu"}, peft_config={},
                                config=SimpleNamespace(_attn_implementation="sdpa", model_type="llama"))  # fmt: skip
        expected = Wanted("bfloat16", "sdpa", 2, 8, True, False, True, ("float16",), ("cpu", "cuda:0"), "llama")
        assert expected == Wanted.of(args, model)
        assert Wanted() == Wanted.of()

    @pytest.mark.train
    def test_reads_a_real_config_and_model(self):
        """Real TrainingArguments and a tiny PEFT model give the same facts, and the hook that checkpointing needs is seen."""
        from peft import LoraConfig, get_peft_model
        from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

        config = LlamaConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=16
        )
        model = get_peft_model(LlamaForCausalLM(config), LoraConfig(target_modules="all-linear", r=2))
        args = TrainingArguments(use_cpu=True, per_device_eval_batch_size=16, eval_strategy="epoch")
        wanted = Wanted.of(args, model)
        assert ("llama", True, ("float32",), 8, 16) == (
            wanted.family, wanted.peft, wanted.trainable_dtypes, wanted.train_batch, wanted.eval_batch
        )  # fmt: skip
        assert wanted.inputs_require_grad is False
        model.enable_input_require_grads()
        assert Wanted.of(args, model).inputs_require_grad is True


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A Python with nothing installed."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    return folder / "bin" / "python"


class TestDoctor:
    def ill(self, bare, tmp_path, monkeypatch, torch, **options):
        """The doctor of a machine whose torch is this text, in a Python of its own."""
        (tmp_path / "torch.py").write_text(torch)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(sys, "executable", str(bare))
        monkeypatch.syspath_prepend(str(tmp_path))
        return doctor(machine=probe(), **options)

    @pytest.mark.parametrize(
        ("torch", "rule"),
        [("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "torch-crash"),
         ("import subprocess, time\nsubprocess.Popen(['sleep', '30'])\ntime.sleep(30)", "torch-hang"),
         ("raise ImportError('libcudart.so.13: not there')", "torch-import")],
    )  # fmt: skip
    def test_a_broken_torch_is_a_finding(self, bare, tmp_path, monkeypatch, torch, rule):
        """A segfault, a hang with a child of its own, and an ImportError each have their rule; this process lives on."""
        began = time.monotonic()
        found = self.ill(bare, tmp_path, monkeypatch, torch, timeout_s=1.5 if rule == "torch-hang" else 30.0)
        assert 20 > time.monotonic() - began
        assert rule in {one.id for one in found.blockers}
        assert {"full", "LoRA", "QLoRA"} <= set(found.blocked)
        assert 5 == found.exit_code

    def test_fast_imports_nothing(self, bare, tmp_path, monkeypatch):
        """With fast=True a torch that would crash is not touched, and that is said."""
        found = self.ill(bare, tmp_path, monkeypatch, "import os\nos.abort()", fast=True)
        assert {"torch-crash", "torch-hang"}.isdisjoint({one.id for one in found.findings})
        assert "Not looked at (fast)" in str(found)

    def test_without_torch_no_child_is_started(self, monkeypatch):
        """Where torch is not installed the doctor is quick, and says what it did not look at."""
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(module, "ask_stack", lambda *args, **options: pytest.fail("a child was started"))
        machine = replace(probe(), packages={"torch": None})
        found = doctor(machine=machine)
        assert 3 > found.seconds
        assert "torch-absent" in {one.id for one in found.findings}
        assert "which are not installed here" in str(found)

    def test_explains_an_exception(self):
        """The exception of a failed run, given as it is, brings the rule that knows it."""
        try:
            raise ValueError("Attempting to unscale FP16 gradients.")
        except ValueError as error:
            found = doctor(error=error, fast=True)
        assert "fp16-trainable" in {one.id for one in found.blockers}

    def test_the_shown_forms_agree(self):
        """Text, HTML, table and JSON tell the same findings."""
        facts = Facts.from_dict(
            facts_of({"machine.disks.5.total_bytes": 64 * 2**20, "wanted.devices": ["cuda:0", "cpu"]})
        )
        found = module.Diagnosis(diagnose(facts), 50, (), 0.2)
        assert "1 blocker, 1 warning (50 rules in 0.2 s); blocked: QLoRA, LoRA" == found.summary
        for shown in (str(found), found._repr_html_(), str(found.table()), json.dumps(found.as_dict())):
            assert "shm-small" in shown
            assert "/dev/shm holds 64 MiB" in shown
        assert not found.ok

    def test_is_in_the_notebooks_vocabulary(self):
        """nbkit.doctor and nbkit.hardware.doctor are the function, although a module bears that name too."""
        import nbkit

        assert doctor is nbkit.doctor is nbkit.hardware.doctor


class TestCommandLine:
    def test_fast_prints_and_exits_by_what_it_found(self):
        """`nbkit doctor --fast --json` prints one object; the exit code is 5 exactly when something blocks."""
        result = CliRunner().invoke(main, ["doctor", "--fast", "--json"])
        found = json.loads(result.stdout)
        assert (0 if found["ok"] else 5) == result.exit_code
        assert len(all_rules()) == found["checked"]

    def test_a_log_is_explained(self, tmp_path):
        """`--log` reads a failed run's output and names the cause, as a blocker with exit code 5."""
        (tmp_path / "train.log").write_text("step 3\nValueError: Attempting to unscale FP16 gradients.\n")
        result = CliRunner().invoke(main, ["doctor", "--fast", "--log", str(tmp_path / "train.log")])
        assert 5 == result.exit_code
        assert re.search(
            r"blocker: fp16-trainable .*\n  Seen:  ValueError: Attempting to unscale FP16 gradients\.", result.stdout
        )

    def test_check_measures_and_advises(self):
        """`nbkit check` shows disks with their speed and the usual advice against this machine."""
        result = CliRunner().invoke(main, ["check"])
        assert 0 == result.exit_code
        assert "What fine-tuning wants, and what is here" in result.stdout
