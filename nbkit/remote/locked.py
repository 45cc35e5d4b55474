"""nbkit's own lock, as far as a box needs it: the exact versions, with hashes, of chosen extras and all they need."""

from __future__ import annotations

import re
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata, resources
from io import BytesIO
from pathlib import Path

from nbkit import __version__
from nbkit.errors import NbkitError

DISTRIBUTION = "nbkit-llm"
EXTRAS = ("train", "lab")
_PIN = re.compile(r"^([\w.-]+)==", re.MULTILINE)


@dataclass(frozen=True)
class Pin:
    """One locked package: its name, the packages that ask for it, and the lines that pip reads."""

    name: str
    asked_by: tuple[str, ...]
    text: str


def pins(extras: Iterable[str] = EXTRAS) -> tuple[Pin, ...]:
    """What the core and `extras` need, in the lock's order; torch is not among them.

    Raises: NbkitError when the lock is not there or `extras` holds one that it does not cover.
    """
    chosen = set(extras)
    if chosen - set(EXTRAS):
        raise NbkitError(
            f"The lock covers no extra {', '.join(sorted(chosen - set(EXTRAS)))}.",
            hint=f"choose from {', '.join(EXTRAS)}",
            exit_code=2,
        )
    every = list(_read(_file("lock.txt")))
    wanted = _roots(chosen)
    while True:
        more = {pin.name for pin in every if wanted.intersection(pin.asked_by)} - wanted
        if not more:
            return tuple(pin for pin in every if pin.name in wanted)
        wanted |= more


def torch_pin() -> str:
    """The version of torch, as `torch==2.13.0`."""
    return next(line for line in _file("torch.txt").splitlines() if line.startswith("torch=="))


def wheel() -> tuple[str, bytes]:
    """This nbkit as a wheel, name and content, made from the files that run here: the box gets the same ones."""
    package = Path(__file__).parent.parent
    own = metadata.distribution(DISTRIBUTION)
    stem = f"{DISTRIBUTION.replace('-', '_')}-{__version__}"
    files = {
        f"nbkit/{path.relative_to(package).as_posix()}": path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    files |= {f"nbkit/remote/lock/{name}": _file(name).encode() for name in ("lock.txt", "torch.txt")}
    files[f"{stem}.dist-info/METADATA"] = (own.read_text("METADATA") or "").encode()
    files[f"{stem}.dist-info/entry_points.txt"] = (own.read_text("entry_points.txt") or "").encode()
    files[f"{stem}.dist-info/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: nbkit\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = "".join(f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in files.items())
    files[f"{stem}.dist-info/RECORD"] = f"{record}{stem}.dist-info/RECORD,,\n".encode()
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return f"{stem}-py3-none-any.whl", buffer.getvalue()


def _digest(content: bytes) -> str:
    return urlsafe_b64encode(sha256(content).digest()).rstrip(b"=").decode()


def _file(name: str) -> str:
    """A file of the lock: inside the installed package, or in the clone that it runs from."""
    shipped = resources.files("nbkit.remote").joinpath("lock", name)
    cloned = Path(__file__).parents[2] / "requirements" / name
    for place in (shipped, cloned):
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise NbkitError(
        f"This nbkit has no {name}: its installation is incomplete.",
        hint=f'pip install --force-reinstall "{DISTRIBUTION}"',
    )


def _read(text: str) -> Iterator[Pin]:
    starts = [found.start() for found in _PIN.finditer(text)]
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        block = text[start:end]
        via = block.partition("# via ")[2].strip()
        yield Pin(_name(block.partition("==")[0]), tuple(map(_asker, via.split(", "))), block)


def _asker(text: str) -> str:
    return "lock.in" if text.endswith("lock.in") else _name(text.partition(" ")[0])


def _name(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()


def _roots(extras: set[str]) -> set[str]:
    """Names that the core and `extras` ask for; what only torch or the embedded model need comes with train."""
    found = {"lock.in"} if "train" in extras else set()
    for requirement in metadata.requires(DISTRIBUTION) or []:
        asked = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        if asked is None or asked[1] in extras:
            found.add(_name(re.split(r"[^\w.-]", requirement, maxsplit=1)[0]))
    return found
