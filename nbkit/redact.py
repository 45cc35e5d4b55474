"""One way to hide a secret: everything nbkit writes to a log, a record or an error goes through here."""

from __future__ import annotations

import re
from typing import Any

_PATTERNS = (
    re.compile(r"\bhf_[A-Za-z0-9]{16,}"),  # Hugging Face
    re.compile(r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}"),  # OpenAI and its like
    re.compile(r"\bwandb_v\d_[A-Za-z0-9_]{16,}"),  # W&B, newer form
    re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}"),  # GitHub
    re.compile(r"\bAKIA[0-9A-Z]{16}\b"),  # AWS key id
    re.compile(r"(?<=[?&]token=)[^&\s\"']+"),  # Jupyter URLs
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),  # user:password in a URL
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL),
)
# `hub_token` hides a secret; `eos_token` and `pad_token` do not.
_SECRET_NAME = re.compile(
    r"(?:(?:^|hub_|hf_|auth_|access_|api_|wandb_|jupyter_)token|(?:^|_)(?:password|passphrase|secret|api_?key|access_key))$",
    re.IGNORECASE,
)
HIDDEN = "***"


def redact(text: str) -> str:
    """`text` with every known form of a token, password or private key replaced by `***`."""
    for pattern in _PATTERNS:
        text = pattern.sub(HIDDEN, text)
    return text


def redacted(value: Any) -> Any:
    """A copy of a JSON-like value, with secrets hidden in strings and under names such as `hub_token`."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {
            key: HIDDEN if isinstance(key, str) and _SECRET_NAME.search(key) and item else redacted(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redacted(item) for item in value]
    return value
