"""Secrets do not reach logs, records or errors."""

from __future__ import annotations

import pytest

from nbkit.redact import redact, redacted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("token hf_abcdefghijklmnopqrstuv used", "token *** used"),
        ("http://127.0.0.1:8888/lab?token=0123abcd&x=1", "http://127.0.0.1:8888/lab?token=***&x=1"),
        ("https://ana:secret@host/x", "https://***@host/x"),
        ("key sk-abcdefghijklmnopqrstuv", "key ***"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----", "***"),
        ("AKIAABCDEFGHIJKLMNOP", "***"),
    ],
)
def test_redact_hides_known_forms(text, expected):
    """Each known form of a secret is replaced, and the rest of the text is kept."""
    assert expected == redact(text)


def test_redacted_hides_by_name_and_keeps_special_tokens():
    """A hub token is hidden by its name; a tokenizer's special tokens are no secrets."""
    given = {"hub_token": "abc", "eos_token": "</s>", "pad_token": "<pad>", "n": [{"password": "x"}], "api_key": None}
    expected = {
        "hub_token": "***",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "n": [{"password": "***"}],
        "api_key": None,
    }
    assert expected == redacted(given)
