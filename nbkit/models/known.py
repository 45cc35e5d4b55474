"""Configs of well-known models, for questions about a model that need no network: memory, fit, plan."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from typing import Any

from nbkit.errors import ModelError


@dataclass(frozen=True)
class Known:
    """One entry of known.json.

    Attributes:
        ids: Hub ids that share these sizes.
        params: Parameters, as transformers counts them.
        config: Keywords for AutoConfig.for_model, model_type among them; only what decides sizes.
    """

    ids: tuple[str, ...]
    source: str
    params: int
    config: dict[str, Any]


@functools.cache
def all_known() -> tuple[Known, ...]:
    """Every entry, smallest families first."""
    text = resources.files("nbkit.models").joinpath("known.json").read_text(encoding="utf-8")
    return tuple(
        Known(tuple(one["ids"]), one["source"], one["params"], one["config"]) for one in json.loads(text)["models"]
    )


def known(name: str) -> Known | None:
    """The entry for a hub id or for the part after the slash, letter case aside; None when it is not listed."""
    wanted = name.lower().strip("/")
    for one in all_known():
        for repo in one.ids:
            if wanted in {repo.lower(), repo.lower().partition("/")[2]}:
                return one
    return None


def similar(name: str) -> list[str]:
    """Listed hub ids that look like `name`."""
    ids = [repo for one in all_known() for repo in one.ids]
    by_name = {repo.lower().partition("/")[2]: repo for repo in ids}
    found = get_close_matches(name.lower().rpartition("/")[2], by_name, n=3, cutoff=0.6)
    return [by_name[one] for one in found]


def config_of(entry: Known) -> Any:
    """The transformers config object of an entry.

    Raises: ModelError when the installed transformers does not know the type.
    """
    from transformers import AutoConfig

    options = dict(entry.config)
    kind = options.pop("model_type")
    try:
        config = AutoConfig.for_model(kind, **options)
    except ValueError as error:
        raise ModelError(
            f"The installed transformers does not know models of type {kind!r}.", hint="pip install -U transformers"
        ) from error
    config.architectures = [_architecture(config)]
    return config


def _architecture(config: Any) -> str:
    return re.sub(r"Config$", "ForCausalLM", type(config).__name__)
