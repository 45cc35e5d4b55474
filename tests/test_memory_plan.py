"""The plan: the mission's own questions answered, single changes that work, offers compared, code that runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import nbkit
from nbkit.errors import ModelError, NbkitError
from nbkit.hardware import Gpu, Memory, probe
from nbkit.memory import Rates, Shape, plan
from nbkit.memory.changes import Change
from nbkit.memory.place import place
from nbkit.memory.subject import subject

DOCS = Path(__file__).parent.parent / "docs" / "planning.md"


def verdicts(found):
    """The better of with and without checkpointing, for full, LoRA and QLoRA."""
    order = ("yes", "tight", "no")
    return tuple(
        min((found.of(method, on).verdict for on in (True, False)), key=order.index)
        for method in ("full", "lora", "qlora")
    )


@pytest.fixture
def machine():
    """This machine without its GPUs, with 16 GiB of free memory and 4 cores."""
    here = probe()
    memory = Memory(total_gib=32, available_gib=16, limit_gib=None, swap_gib=0)
    return replace(here, gpus=(), memory=memory, cpu=replace(here.cpu, usable=4.0, flags=()))


class TestTheMissionsQuestions:
    @pytest.mark.parametrize(
        ("model", "where", "expected", "best", "how"),
        [
            # 24 GB trains 7B with 16-bit LoRA and with QLoRA, never in full.
            ("Mistral-7B", "RTX 4090", ("no", "yes", "yes"), ("lora", True), "one"),
            ("Mistral-7B", "RTX 3090", ("no", "yes", "yes"), ("lora", True), "one"),
            # 16 GB trains 7B in 4 bit.
            ("Mistral-7B", "T4", ("no", "tight", "yes"), ("qlora", True), "one"),
            # 13B: LoRA on an A100-40; on two RTX 4090 QLoRA on each, or LoRA with shared weights.
            ("Llama-2-13B", "A100-40GB", ("no", "yes", "yes"), ("lora", True), "one"),
            ("Llama-2-13B", "2x RTX 4090", ("no", "yes", "yes"), ("qlora", True), "each"),
            ("Llama-2-13B", "RTX 4090", ("no", "no", "yes"), ("qlora", True), "one"),
            # 70B: in 4 bit on one 80 GB card, in 16 bit on four, not on one of 24 GB.
            ("Llama-2-70B", "A100-80GB", ("no", "no", "yes"), ("qlora", True), "one"),
            ("Llama-2-70B", "4x A100-80GB", ("no", "yes", "yes"), ("lora", True), "sharded"),
            ("Llama-2-70B", "RTX 4090", ("no", "no", "no"), None, None),
        ],
    )
    def test_answers(self, model, where, expected, best, how):
        """Which methods fit, which to take, and on several GPUs in which way."""
        found = plan(model, where)
        assert expected == verdicts(found)
        chosen = found.best
        assert best == (chosen and (chosen.method, chosen.checkpointing))
        assert how == (chosen and chosen.how)

    def test_published_runs_agree(self):
        """LitGPT ran Llama-2-13B LoRA (q,v) at 35.5 GiB on an A100-40, and answer.ai 7B LoRA at 22.0 on each of two 3090."""
        one = plan("Llama-2-13B", "A100-40GB", seq=1304, batch=1, rank=8, targets="attention").of("lora", False).memory
        assert one.low_gib < 38.12e9 / 2**30 < one.high_gib
        two = plan("Llama-2-7B", "2x RTX 3090", seq=2048, batch=4, rank=64)
        copy = two.surface.at("lora", True, 4, 2048, rank=64, gpus=2, how="each")
        assert copy.low_gib < 22.04 < copy.high_gib

    def test_the_document_shows_these_answers(self):
        """docs/planning.md says what the plan says today; tools: python -m tests.test_memory_plan writes it."""
        assert document() == DOCS.read_text(encoding="utf-8")

    def test_a_refusal_is_explained(self):
        """What does not fit is named with the share that is too large and the change that would mend it."""
        said = plan("Llama-2-70B", "RTX 4090").explain()
        assert said.startswith("Llama-2-70B on RTX 4090: nothing fits. Even QLoRA, checkpointing needs 3")
        assert "the largest share is weights. What would make it fit: " in said


class TestOptions:
    def test_the_largest_batch_and_row_are_exact(self):
        """They fit for sure; one more does not."""
        found = plan("Mistral-7B", "RTX 4090", seq=2048)
        one, room = found.of("qlora"), found.place.room_gib
        assert found.surface.at("qlora", True, one.largest_batch, 2048).high_gib <= room
        assert found.surface.at("qlora", True, one.largest_batch + 1, 2048).high_gib > room
        assert found.surface.at("qlora", True, 1, one.longest_seq + 1).high_gib > room

    def test_batch_and_accumulation_make_the_effective_batch(self):
        """The micro-batch is the largest that fits and divides it, on one GPU and on several."""
        for where, count in (("RTX 4090", 1), ("2x RTX 4090", 2)):
            for one in plan("Mistral-7B", where, effective_batch=16).options:
                assert 16 == one.batch * one.accumulation * count
                assert "yes" != one.verdict or one.batch <= one.largest_batch

    def test_data_decides_length_and_time(self):
        """Rows of the data set the length and the tokens; packing saves the padding's time."""
        rows = [100, 900] * 200
        found = plan("Mistral-7B", "RTX 4090", rows)
        assert (900, sum(rows)) == (found.wish.seq, found.tokens)
        packed = plan("Mistral-7B", "RTX 4090", rows, packing=True)
        assert packed.of("lora").time.seconds < 0.7 * found.of("lora").time.seconds
        assert 512 == plan("Mistral-7B", "RTX 4090", rows, seq=512).wish.seq

    def test_measured_rates_replace_the_data_sheet(self):
        """Twice the arithmetic takes about half the time, and the notes name the measurement."""
        slow, fast = (plan("Mistral-7B", "RTX 4090", rates=Rates(r, 0.0, 1e12, 0.1, "a test")) for r in (5e13, 1e14))
        assert pytest.approx(2, rel=0.05) == slow.of("lora").time.seconds / fast.of("lora").time.seconds
        assert "by a test" in str(slow)

    def test_without_a_gpu_the_ram_decides(self, machine):
        """A CPU plan is in float32, in RAM, and says that its time is an order of magnitude."""
        found = plan("embedded", machine)
        assert ("cpu", "float32") == (found.place.device, found.place.dtype)
        assert ("yes", "yes", "yes") == verdicts(found)
        assert "an order of magnitude" in str(found)

    def test_gpus_of_this_machine_count_together(self, machine):
        """Two equal visible GPUs are planned as two; a different one is not mixed in."""
        gpu = Gpu(index=0, name="NVIDIA GeForce RTX 4090", total_gib=24.0, free_gib=23.0, compute_capability=(8, 9),
                  driver="580", cuda="13.0", reserved_gib=0.4)  # fmt: skip
        small = replace(gpu, index=2, name="Tesla T4", total_gib=15.0, free_gib=14.7, compute_capability=(7, 5))
        found = place(replace(machine, gpus=(gpu, replace(gpu, index=1, free_gib=22.9), small)))
        assert (2, 22.9, "bfloat16") == (found.count, found.room_gib, found.dtype)

    def test_a_row_beyond_the_positions_is_doubted(self):
        """The embedded model's positions end at 8,192."""
        assert any("8,192 positions" in note for note in plan("embedded", "T4", seq=9000).notes)


class TestChanges:
    @pytest.mark.parametrize(
        ("model", "where", "method", "checkpointing", "options"),
        [
            ("Mistral-7B", "RTX 4090", "lora", False, {}),
            ("Mistral-7B", "T4", "full", True, {}),
            ("Llama-2-13B", "RTX 4090", "lora", True, {}),
            ("Llama-3-8B", "L4", "qlora", True, {"seq": 16384, "batch": 4}),
            ("Llama-2-70B", "2x RTX 4090", "qlora", True, {}),
        ],
    )
    def test_every_change_makes_it_fit(self, model, where, method, checkpointing, options):
        """Planning again with the one thing changed gives a yes."""
        found = plan(model, where, **options)
        changes = found.changes(method, checkpointing)
        assert changes
        for change in changes:
            again = applied(change, model, where, method, checkpointing, options)
            assert "yes" == again, change

    def test_what_fits_needs_no_change(self):
        """An option with a yes has nothing to mend."""
        assert () == plan("Mistral-7B", "RTX 4090").changes("qlora")

    def test_the_least_intrusive_comes_first(self):
        """Checkpointing before another method, another method before another machine."""
        knobs = [change.knob for change in plan("Mistral-7B", "RTX 4090").changes("lora", checkpointing=False)]
        assert "checkpointing" == knobs[0]
        assert knobs.index("method") < knobs.index("card")


def applied(change: Change, model, where, method, checkpointing, options):
    """The verdict with `change` made."""
    found = plan(model, where, **options)
    asked = {**options, "batch": found.of(method, checkpointing).batch}
    if change.knob in {"batch", "seq", "optimizer"}:
        asked[change.knob] = change.value
    if change.knob == "method":
        method = change.value
    if change.knob == "checkpointing":
        checkpointing = True
    if change.knob == "gpus":
        where = f"{change.value} x {found.place.name}"
    if change.knob == "card":
        where = change.value
    return plan(model, where, **asked).of(method, checkpointing).verdict


class TestMarket:
    def test_the_pareto_set_is_what_nobody_beats(self):
        """No deal is cheaper and faster than one of the set, and every other deal is beaten by one of it."""
        deals = plan("Mistral-7B", "RTX 4090").market().deals
        assert len(deals) > 20
        for deal in deals:
            better = [
                o
                for o in deals
                if o.usd <= deal.usd and o.hours <= deal.hours and (o.usd, o.hours) != (deal.usd, deal.hours)
            ]
            assert deal.pareto == (not better)

    def test_only_what_fits_is_offered(self):
        """70B is offered where its option fits for sure; V100 and TPUs are left out."""
        found = plan("Llama-2-70B", "A100-80GB").market()
        assert found.deals
        for deal in found.deals:
            assert "yes" == deal.option.verdict
            assert not deal.offer.spec.is_tpu
            assert deal.offer.spec.compute_capability >= (7, 5)

    def test_costs_are_hours_times_price(self):
        """The run's hours and ten minutes of setting up, times the machine's price."""
        for deal in plan("Mistral-7B", "RTX 4090").market("qlora", provider="Lambda").deals:
            assert ("Lambda", "qlora") == (deal.offer.provider, deal.option.method)
            assert pytest.approx(deal.offer.usd_per_hour * (deal.hours + 1 / 6)) == deal.usd

    def test_shows_dates_and_doubts(self):
        """Prices have their month, times their doubt; as_dict is JSON-ready."""
        found = plan("Mistral-7B", "RTX 4090").market()
        text = str(found)
        for part in ("price of", "*: no other offer is both cheaper and faster", "times off"):
            assert part in text
        assert json.loads(json.dumps(found.as_dict()))["deals"]


class TestCode:
    @pytest.mark.train
    @pytest.mark.parametrize(
        ("where", "method"), [("RTX 4090", "lora"), ("T4", "qlora"), ("H100-80GB", "full"), ("2x RTX 4090", "qlora")]
    )
    def test_the_code_runs_and_says_what_the_plan_says(self, where, method, monkeypatch):
        """The pasted objects carry the option's batch, length, rank and format."""
        from transformers.utils import import_utils

        # SFTConfig refuses bf16 on a machine that has no GPU; the code is for one that has.
        monkeypatch.setattr(import_utils, "is_torch_bf16_gpu_available", lambda: True)
        monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
        found = plan("Mistral-7B", where)
        option = found.chosen(method)
        made: dict = {}
        exec(found.code(method), made)  # it is ours
        args = made["args"]
        assert (option.batch, option.accumulation) == (
            args.per_device_train_batch_size,
            args.gradient_accumulation_steps,
        )
        assert (found.wish.seq, option.checkpointing) == (args.max_length, args.activation_checkpointing)
        assert (found.place.dtype == "float16") == args.fp16
        assert ("peft_config" in made) == (method != "full")
        assert ("quantization_config" in made) == (method == "qlora")

    def test_says_what_was_predicted(self):
        """The first line names model, option, place and range."""
        assert plan("Mistral-7B", "RTX 4090").code("qlora").startswith("# Mistral-7B, QLoRA, on RTX 4090: predicted 1")


class TestProphecy:
    def test_rows_too_long_for_the_plan_are_named(self):
        """Of rows that the best option cannot take, each is named with the step that meets it."""
        rows = [512] * 300
        rows[123] = 30_000
        found = plan("Mistral-7B", "RTX 4090", seq=512, effective_batch=4).prophecy(rows)
        assert [123] == [doom.row for doom in found.doomed]
        assert 1 <= found.first_step <= 75
        assert plan("Mistral-7B", "RTX 4090", rows, seq=512).prophecy().ok

    def test_without_data_there_is_nothing_to_foresee(self):
        """The error says what to give."""
        with pytest.raises(NbkitError, match="There is no data to look at"):
            plan("Mistral-7B", "T4").prophecy()


class TestQuestions:
    def test_is_the_vocabulary_of_nbkit(self):
        """nbkit.plan is this function."""
        assert nbkit.plan is plan

    @pytest.mark.parametrize(
        ("asked", "name"),
        [("mistral-7b", "Mistral-7B"), ("Llama-2-13b-hf", "Llama-2-13b-hf"), ("Qwen2.5-7B-mine", "Qwen2.5-7B"),
         ("Meta-Llama-3-8B-mine", "Llama-3-8B"), ("embedded", "SmolLM2-135M")],
    )  # fmt: skip
    def test_models_by_name(self, asked, name):
        """A well-known name in any case, a listed one, and a name that begins with one, said so."""
        found = subject(asked)
        assert name == found.shape.name
        assert bool(found.notes) == (asked.lower() not in {name.lower(), "embedded"})

    def test_a_listed_hub_id_needs_no_network(self, monkeypatch):
        """Sizes and positions come from nbkit's own table, exactly."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        found = subject("Qwen/Qwen2.5-14B-Instruct")
        assert (48, 5120, ()) == (found.shape.layers, found.shape.hidden, found.notes)
        assert 32768 <= found.positions

    def test_a_folder_is_read(self, tmp_path):
        """config.json decides, with its positions."""
        config = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128,
                  "num_attention_heads": 4, "vocab_size": 1000, "max_position_embeddings": 512}  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps(config))
        found = subject(str(tmp_path))
        assert (2, 64, 512) == (found.shape.layers, found.shape.hidden, found.positions)
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(ModelError, match="cannot be read"):
            subject(tmp_path)

    def test_a_hub_id_without_a_network_is_taken_by_its_name_and_said_so(self, monkeypatch):
        """The doubt stands below the table; an unknown one is an error."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        found = plan("someone/Mistral-7B-Instruct-mine", "T4")
        assert any("Taken as Mistral-7B, because the config could not be read" in note for note in found.subject.notes)
        assert "Taken as Mistral-7B" in str(found)
        with pytest.raises(ModelError):
            plan("nobody/nothing-1B", "T4")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"model": "Mistral-7X", "where": "T4"}, "did you mean Mistral-7B"),
            ({"model": "Mistral-7B", "where": "RTX 409"}, "did you mean RTX 4090"),
            ({"model": "Mistral-7B", "where": "TPU v5e"}, "is a TPU"),
            ({"model": "Mistral-7B", "where": "0x T4"}, "from 1 to 64 cards"),
            ({"model": "Mistral-7B", "where": "T4", "seq": 0}, "seq=0"),
            ({"model": "Mistral-7B", "where": "T4", "batch": -1}, "batch=-1"),
            ({"model": "Mistral-7B", "where": "T4", "batch": 10**12}, "batch=1,000,000,000,000: a plan goes to 65,536"),
            ({"model": "Mistral-7B", "where": "T4", "seq": 10**12}, "seq=1,000,000,000,000: a plan goes to"),
            ({"model": "Mistral-7B", "where": "T4", "seq": float("nan")}, "seq=nan: it must be a whole number"),
            ({"model": "Mistral-7B", "where": "T4", "rank": "16"}, "rank='16': it must be a whole number"),
            ({"model": "Mistral-7B", "where": "T4", "targets": "all"}, "targets='all' is unknown"),
            ({"model": "Mistral-7B", "where": "T4", "optimizer": "sgd"}, "optimizer='sgd' is unknown"),
            ({"model": " ", "where": "T4"}, "The model's name is empty"),
            ({"model": "/no/model", "where": "T4"}, "There is no folder /no/model"),
            ({"model": __file__, "where": "T4"}, "is a file, not a folder with a model"),
            ({"model": "owner//name", "where": "T4"}, "neither a folder here nor a hub id"),
            ({"model": "Mistral-7B", "where": "T4", "rang": 8}, "wishes are: seq, effective_batch"),
        ],
    )
    def test_nonsense_is_a_usage_error(self, arguments, message):
        """An unknown model, card or wish, and numbers below one, are errors that say what is meant."""
        with pytest.raises(NbkitError) as caught:
            plan(**arguments)
        assert message in str(caught.value)
        assert 2 == caught.value.exit_code

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("[1, 2]", "it is list, not an object with keys"),
            ("null", "it is NoneType, not an object with keys"),
            ('{"text_config": 5}', "it is int, not an object with keys"),
            ('{"model_type": ', "Expecting value"),
            ("[" * 100_000, "cannot be read"),
            (" " * (16 << 20) + "{}", "it has 16,777,218 bytes"),
        ],
    )
    def test_a_config_that_is_none_is_refused(self, tmp_path, content, message):
        """Whatever stands in config.json, the error says why it cannot be read."""
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ModelError, match=message):
            plan(tmp_path, "T4")

    def test_weights_that_are_stored_quantised_are_doubted(self, tmp_path):
        """LoRA and full training are of a 16-bit copy then, which is said."""
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "vocab_size": 100, "model_type": "llama"}  # fmt: skip
        for stored, notes in (({}, 0), ({"quantization_config": {"quant_method": "gptq"}}, 1)):
            (tmp_path / "config.json").write_text(json.dumps({**sizes, **stored}))
            assert notes == sum(
                "stored quantised (gptq)" in note for note in plan(tmp_path, "T4", seq=64).as_dict()["notes"]
            )
        (tmp_path / "config.json").write_text(json.dumps({**sizes, "hidden_size": 10**18}))
        with pytest.raises(ModelError, match="sizes that no model has"):
            plan(tmp_path, "T4")

    def test_a_card_todays_torch_cannot_use_is_said(self):
        """V100: planned, with the doubt."""
        assert "no kernels for compute capability 7.0" in str(plan("Mistral-7B", "V100-16GB"))

    def test_json_is_complete(self):
        """as_dict is JSON-ready and carries options, changes and the explanation."""
        data = json.loads(json.dumps(plan(Shape("mine", 2, 64, 128, 4, 2, 16, 1000, tied=True), "T4").as_dict()))
        assert 6 == len(data["options"])
        assert {"method", "checkpointing", "fits", "changes", "time", "parts"} <= set(data["options"][0])
        assert data["explanation"].startswith("mine on T4: ")

    def test_a_plan_is_quick(self):
        """Far below a second by formula, offers and all."""
        import time

        start = time.perf_counter()
        plan("Llama-2-70B", "A100-80GB").market()
        assert time.perf_counter() - start < 10


QUESTIONS = (
    ("Does Mistral-7B train on a 24 GB card?", "Mistral-7B", "RTX 4090"),
    ("Llama-2-13B on an A100 with 40 GB?", "Llama-2-13B", "A100-40GB"),
    ("Llama-2-13B on two RTX 4090?", "Llama-2-13B", "2x RTX 4090"),
    ("Llama-2-70B on one A100 with 80 GB?", "Llama-2-70B", "A100-80GB"),
    ("Llama-2-70B on four of them?", "Llama-2-70B", "4x A100-80GB"),
    ("And on two RTX 4090?", "Llama-2-70B", "2x RTX 4090"),
)


def document() -> str:
    """docs/planning.md."""
    lines = [
        "# Will it fit, and where?",
        "",
        "Answers of `nbkit.plan` for rows of 1,024 tokens, by formula, generated by `python -m tests.test_memory_plan` and",
        "checked by a test. `yes`: the high end of the range fits. `tight`: only the low end. Nothing here was run on those",
        "cards by us; how far the formula was from published runs stands in `nbkit/memory/formula.py` and `docs/log.md`.",
        "",
    ]
    for question, model, where in QUESTIONS:
        found = plan(model, where)
        table = replace(found.table(), title="", notes=())
        lines += [
            f"## {question}",
            "",
            found.explain(),
            "",
            "```text",
            f'$ nbkit fit {model} --gpu "{where}"',
            str(table),
        ]
        lines += ["```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    DOCS.write_text(document(), encoding="utf-8")
