"""Tokens and the loss mask: the same as a real SFTTrainer's, counted and shown."""

from __future__ import annotations

import re

import pytest

from nbkit.data import Marked, TokenStats, chatterbot, convert, marked, read, tickets, token_stats, tokenize_row
from nbkit.data.tokens import percentile
from nbkit.errors import DataError

# Its generation prompt ends in tokens that the whole conversation does not have, as with some thinking models.
UNEVEN = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n{% endif %}"
)


def user(text):
    """A user's turn."""
    return {"role": "user", "content": text}


def assistant(text):
    """An assistant's turn."""
    return {"role": "assistant", "content": text}


# What begins with white space may merge with the end of the prompt; what holds special tokens must not move the mask.
ODD_PAIRS = [
    ("a", "b"),
    ("a ", " b"),
    ("a", "\nb"),
    ("", "x"),
    ("caf\u00e9 \U0001f600", "\u4f60\u597d"),
    ("q", "<|im_end|> z"),
]
CHATS = [
    *tickets.generate(train=8, held_out=2)["train"],
    {"prompt": [user("a"), assistant("b"), user("c")], "completion": [assistant("d")]},
    {"prompt": [user("a")], "completion": [assistant("b"), user("c"), assistant("d")]},
    *({"prompt": [user(q)], "completion": [assistant(a)]} for q, a in ODD_PAIRS),
]
STRINGS = [{"prompt": q, "completion": a} for q, a in [*ODD_PAIRS, ("a", "b<|im_end|>")]]
CASES = {
    "conversational": CHATS,
    "strings": STRINGS,
    "strings beside text": [{**row, "text": row["prompt"]} for row in STRINGS],
    "messages": [{"messages": row["prompt"] + row["completion"]} for row in CHATS],
    "text": [{"text": "Once upon a time"}, {"text": "The end<|im_end|>"}],
}


@pytest.fixture(scope="module")
def tokenizer():
    """The embedded model's own."""
    from transformers import AutoTokenizer

    from nbkit import models

    return AutoTokenizer.from_pretrained(models.embedded())


@pytest.fixture(scope="module")
def trained_on(tokenizer, tmp_path_factory):
    """A function that gives rows to a real SFTTrainer and returns the (ids, loss_mask) it will train on."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model = LlamaForCausalLM(config)

    def prepare(rows, max_length=None, template=None):
        own = tokenizer.chat_template
        tokenizer.chat_template = template or own
        try:
            options = SFTConfig(
                str(tmp_path_factory.mktemp("sft")), max_length=max_length, report_to=[], bf16=False, use_cpu=True
            )
            dataset = read(rows).to_dataset()
            trainer = SFTTrainer(model=model, args=options, train_dataset=dataset, processing_class=tokenizer)
        finally:
            tokenizer.chat_template = own
        return [(row["input_ids"], [label != -100 for label in row["labels"]]) for row in trainer.train_dataset]

    return prepare


@pytest.mark.train
class TestAgainstTheTrainer:
    @pytest.mark.parametrize("case", CASES)
    def test_ids_and_mask_are_those_of_a_real_trainer(self, tokenizer, trained_on, case):
        """tokenize_row gives the tokens and the labels that SFTTrainer trains on, token for token."""
        rows = CASES[case]
        assert trained_on(rows) == [tokenize_row(row, tokenizer) for row in rows]

    def test_a_prompt_that_is_rendered_differently_alone(self, tokenizer, trained_on, monkeypatch):
        """Where the generation prompt is no prefix of the whole, the completion starts where the two diverge."""
        expected = trained_on(CHATS, template=UNEVEN)
        monkeypatch.setattr(tokenizer, "chat_template", UNEVEN)
        assert expected == [tokenize_row(row, tokenizer) for row in CHATS]

    @pytest.mark.parametrize("max_length", [16, 40, 64])
    def test_lost_rows_are_those_the_trainer_drops(self, tokenizer, trained_on, max_length):
        """`lost` counts the rows that SFTTrainer leaves out at this max_length, `truncated` those it cuts."""
        kept = trained_on(CHATS, max_length=max_length)
        stats = token_stats(read(CHATS), tokenizer, max_length=max_length)
        assert len(CHATS) - len(kept) == stats.lost
        whole = [tokenize_row(row, tokenizer) for row in CHATS]
        assert sum(len(ids) > max_length for ids, _ in whole) == stats.truncated
        assert stats.lost > 0 or max_length == 64

    def test_the_completion_and_its_end_are_trained_on(self, tokenizer):
        """The loss counts on the answer and the token that ends it, on nothing of the prompt."""
        ids, loss_mask = tokenize_row({"prompt": [user("Say yes.")], "completion": [assistant("yes")]}, tokenizer)
        counted = [token for token, counts in zip(ids, loss_mask, strict=True) if counts]
        assert "yes<|im_end|>\n" == tokenizer.decode(counted)
        assert ids[-len(counted) :] == counted


@pytest.mark.train
class TestMarked:
    def test_text_marks_the_trained_part(self, tokenizer):
        """As text, the trained part stands in ⟦ ⟧ inside the whole row as the model reads it."""
        row = {"prompt": [{"role": "system", "content": "s"}, user("Hi \u00e9")], "completion": [assistant("Hello")]}
        assert (
            "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nHi \u00e9<|im_end|>\n<|im_start|>assistant\n"
            "⟦Hello<|im_end|>\n⟧\n(20 tokens, ⟦ ⟧ marks the 3 that are trained on)"
        ) == repr(marked(row, tokenizer))

    def test_the_whole_set_is_shown_without_loss(self, tokenizer):
        """The runs of every row together are its tokens decoded, whatever characters it holds."""
        for row in [*CHATS, *convert(chatterbot()[:200:10])]:
            shown = marked(row, tokenizer)
            ids, _ = tokenize_row(row, tokenizer)
            assert tokenizer.decode(ids) == "".join(text for text, _ in shown.runs)


class TestMarkedHtml:
    SHOWN = Marked((("<b>&", False), ("<script>alert(1)</script>", True)), total=9, trained=4)

    def test_is_escaped_and_has_a_legend(self):
        """Markup in the data shows as text; the legend says what the colour means and how much it is."""
        html = self.SHOWN._repr_html_()
        assert "<script" not in html
        assert "<b>" not in html
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
        assert "the 4 of 9 tokens that the loss counts" in html

    def test_takes_its_text_colour_from_the_theme(self):
        """No text colour and no opaque background is set, so it reads in a light and in a dark theme."""
        html = self.SHOWN._repr_html_()
        assert [] == re.findall(r"[^-]color:", html.replace("background-color", ""))
        assert {"rgba(47,158,98,.32)"} == set(re.findall(r"background:([^;\"]+)", html))


class TestTokenStats:
    STATS = TokenStats(tuple(range(1, 101)), (1,) * 99 + (0,), tuple(range(100)), 80, "data.jsonl")

    @pytest.mark.parametrize(("share", "expected"), [(0.01, 1), (0.5, 50), (0.951, 96), (1.0, 100)])
    def test_percentiles_are_values_that_occur(self, share, expected):
        """A percentile is the smallest length that this share of rows does not exceed."""
        assert expected == percentile(tuple(range(1, 101)), share)
        assert 7 == percentile((7,), share)

    def test_counts(self):
        """Totals, cut rows and rows with nothing left to learn are counted."""
        stats = self.STATS
        assert (5050, 99) == (stats.total_tokens, stats.trained_tokens)
        assert (20, 20) == (stats.truncated, stats.lost)

    def test_without_a_limit_only_rows_without_labels_are_lost(self):
        """No max_length cuts nothing; a row without a trained token is lost all the same."""
        stats = TokenStats((5, 5), (2, 0), (3, 5), None, "data.jsonl")
        assert (0, 1) == (stats.truncated, stats.lost)

    @pytest.mark.parametrize(
        ("total", "expected"),
        [((10, 64), 64), ((10, 65), 128), ((100,) * 99 + (190,), 192), ((100,) * 199 + (5000,), 128)],
        ids=["exact", "rounded up", "all fit", "one outlier"],
    )
    def test_suggests_a_max_length(self, total, expected):
        """The suggestion covers all rows, or all but 1 % when the longest are outliers, in steps of 64."""
        assert expected == TokenStats(total, total, (0,) * len(total), None, "x").suggest_max_length

    def test_prints_as_a_table_with_sentences(self):
        """The table ends in the totals, what the limit does, and the suggestion."""
        assert [
            "100 rows",
            "of the rows  tokens, at most  trained, at most",
            "-----------  ---------------  ----------------",
            "50%                       50                 1",
            "90%                       90                 1",
            "95%                       95                 1",
            "99%                       99                 1",
            "all                      100                 1",
            "5,050 tokens in all, 99 (2%) of them trained on.",
            "max_length=80: 20 rows are cut; 20 rows have no trained token left and are dropped by the trainer.",
            "Suggested: max_length=128.",
        ] == str(self.STATS).splitlines()

    def test_plots_both_lengths_and_the_limit(self):
        """The figure has two histograms over all rows and a line at max_length, and is not left open."""
        pyplot = pytest.importorskip("matplotlib.pyplot")
        figure = self.STATS.plot()
        axes = figure.axes[0]
        names = [text.get_text() for text in axes.get_legend().get_texts()]
        assert {"all tokens of a row", "tokens the loss counts", "max_length 80"} == set(names)
        assert [100, 100] == [int(sum(bar.get_height() for bar in bars)) for bars in axes.containers]
        assert [80, 80] == list(axes.lines[0].get_xdata())
        assert [] == pyplot.get_fignums()


class TestRefused:
    def test_a_format_the_trainer_does_not_read(self):
        """Rows must be converted first; the place is named."""
        with pytest.raises(DataError) as caught:
            token_stats(read([{"instruction": "a", "output": "b"}]), tokenizer=None)
        assert "list, row 1: SFTTrainer does not read alpaca rows (instruction, output)." == caught.value.message
        assert "nbkit.data.convert(rows)" in caught.value.hint

    def test_no_chat_template(self):
        """Roles cannot be written without a template."""
        with pytest.raises(DataError, match="has no chat template"):
            tokenize_row({"messages": [user("a"), assistant("b")]}, tokenizer=object())

    def test_half_conversational(self):
        """A prompt of messages with a completion string is refused before TRL joins a list and a string."""
        with pytest.raises(DataError, match="SFTTrainer wants both in one form"):
            tokenize_row({"prompt": [user("a")], "completion": "b"}, tokenizer=object())

    def test_no_rows(self):
        """Nothing can be counted in no rows."""
        with pytest.raises(DataError, match="holds no rows"):
            token_stats(read([{"text": "a"}])[:0], tokenizer=None)
