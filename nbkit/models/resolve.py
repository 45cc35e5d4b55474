"""Which model is meant: the embedded one, a folder, or a hub id; said before anything heavy is loaded."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from nbkit.errors import ModelError, require
from nbkit.models.embedded import embedded

EMBEDDED = "embedded"


def resolve(model: str | Path) -> str:
    """What to give to `from_pretrained` for `model`.

    Args:
        model: "embedded", a local folder that holds a config.json, or a hub id such as "Qwen/Qwen2.5-7B-Instruct".
    Returns: A path or the hub id, as a string. A hub id's config.json is in the local hub cache afterwards.
    Raises: ModelError for a folder without a model, an unknown id, a gated repository, or no network; within seconds.
    """
    text = str(model)
    if text == EMBEDDED:
        return str(embedded())
    path = Path(text).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file():
            return str(path)
        hint = "it holds an adapter: load its base model, then PeftModel.from_pretrained" if _is_adapter(path) else (
            "give the folder that holds config.json and the safetensors files"
        )  # fmt: skip
        raise ModelError(f"{path} holds no model: there is no config.json in it.", hint=hint)
    if path.is_file() or text.startswith(("/", "./", "../", "~")):
        raise ModelError(f"{path} is not a folder with a model.", hint="give a folder, a hub id, or 'embedded'")
    return _hub(text)


def _is_adapter(path: Path) -> bool:
    return (path / "adapter_config.json").is_file()


def _hub(repo: str) -> str:
    require("huggingface_hub", "transformers", extra="train")
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(repo, "config.json"), str):
            return repo
        _reachable(repo)
        hf_hub_download(repo, "config.json")
    except errors.HFValidationError as error:
        raise ModelError(
            f"{repo!r} is neither a folder here nor a hub id ('owner/name').",
            hint="check the spelling; 'embedded' is the model that comes with nbkit",
        ) from error
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{repo} is gated: its owner asks for an agreement first.",
            hint=f"accept it on the model's page, then: hf auth login      (model: {repo})",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"The hub has no model {repo!r} (or it is private and you are not logged in).",
            hint="check the spelling on the hub; for a private model: hf auth login",
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise ModelError(
            f"{repo} has no config.json: it is not a transformers model.", hint="look for a repository with safetensors"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError) as error:
        raise _no_network(repo, str(error).splitlines()[0]) from error
    return repo


def _reachable(repo: str) -> None:
    """Fail in seconds without a network; the hub's own client retries for half a minute first."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise _no_network(repo, "HF_HUB_OFFLINE is set")
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return  # the way out is a proxy's business: let the client try
    hub = urlsplit(constants.ENDPOINT)
    address = (hub.hostname or "", hub.port or (443 if hub.scheme == "https" else 80))
    try:
        socket.create_connection(address, timeout=5).close()
    except OSError as error:
        raise _no_network(repo, f"{address[0]}: {error}") from error


def _no_network(repo: str, reason: str) -> ModelError:
    return ModelError(
        f"{repo} is not in the local hub cache, and the hub cannot be reached ({reason}).",
        hint="connect and run again, give a local folder, or use MODEL = 'embedded', which needs no network",
    )
