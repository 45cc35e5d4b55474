"""The embedded task: deterministic, checkable, and honest about what was seen in training."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from nbkit.data import tickets

PINNED = "5bfa3fb4f7c0731d"


@pytest.fixture(scope="module")
def splits():
    """The set as notebooks use it."""
    return tickets.generate()


def text_of(rows):
    """All that is said in `rows`, lower-case."""
    return " ".join(row["prompt"][1]["content"] + " " + row["completion"][0]["content"] for row in rows).lower()


def test_has_the_promised_sizes(splits):
    """At least 2,000 rows to train on, 200 in each held-out split, ids unique."""
    assert {"train": 2000, "seen": 200, "unseen": 200} == {name: len(rows) for name, rows in splits.items()}
    assert 2400 == len({row["id"] for rows in splits.values() for row in rows})


def test_same_seed_same_bytes(splits):
    """The rows are pinned: a change of words or of Python's random must be seen, and written into the changelog."""
    assert splits == tickets.generate()
    digest = hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()
    assert digest.startswith(PINNED), digest


def test_another_seed_gives_other_rows(splits):
    """The seed matters."""
    assert splits["train"][0] != tickets.generate(train=10, held_out=10, seed=1)["train"][0]


def test_every_answer_is_in_its_message(splits):
    """Copied fields can be read off the message: nobody, model or person, has to guess."""
    for row in [*splits["train"][:300], *splits["seen"], *splits["unseen"]]:
        message, fields = row["prompt"][1]["content"], tickets.answer(row)
        assert tuple(fields) == tickets.FIELDS
        assert fields["issue"] in tickets.ISSUES
        for name in ("name", "product", "order"):
            assert fields[name] in message, (name, message)


def test_seen_split_combines_anew(splits):
    """No customer, product or message of the seen split was trained on, and all its words were."""
    trained = [tickets.answer(row) for row in splits["train"]]
    for key in ("name", "product"):
        known = {fields[key] for fields in trained}
        assert not known & {tickets.answer(row)[key] for row in splits["seen"]}
    assert not {r["prompt"][1]["content"] for r in splits["train"]} & {
        r["prompt"][1]["content"] for r in splits["seen"]
    }
    words = {word for fields in trained for word in (*fields["name"].split(), *fields["product"].split())}
    for row in splits["seen"]:
        fields = tickets.answer(row)
        assert {*fields["name"].split(), *fields["product"].split()} <= words


def test_unseen_split_has_words_that_training_never_saw(splits):
    """Names, brands and items of the unseen split occur nowhere in training."""
    trained = set(re.findall(r"[a-z]+", text_of(splits["train"])))
    for row in splits["unseen"]:
        fields = tickets.answer(row)
        first, last = fields["name"].lower().split()
        for word in (first, last, *fields["product"].lower().split()):
            assert word not in trained, (word, fields)


def test_unseen_phrasings_are_not_trained():
    """No phrase of the unseen side stands on the training side."""
    for group in ("frames", "orders", "urgent", "calm", "chatter", "signatures", "greetings"):
        assert not set(getattr(tickets._TRAIN, group)) & set(getattr(tickets._UNSEEN, group)), group
    for issue in tickets.ISSUES:
        assert not set(tickets._TRAIN.problems[issue]) & set(tickets._UNSEEN.problems[issue])


def test_asking_for_too_much_is_refused():
    """More rows than the words can be combined to is an error, not an endless loop."""
    with pytest.raises(ValueError, match="rows can be made from the words at hand"):
        tickets.generate(train=20_000, held_out=100)
