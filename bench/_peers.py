"""The peers of `bench memory`: installed once, pinned, in an environment of their own; asked over JSON."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench import CannotRunError
from nbkit import atomic, folders

PINS = Path(__file__).resolve().parent.parent / "requirements" / "bench-memory.txt"
WORKER = Path(__file__).with_name("_peer_worker.py")
# Those that read numbers only, in their own environment; those that want torch, in ours with torch-kitsune on the path.
APART, TORCH = ("vramcalc", "ftuneai", "fitscout", "canifinetune"), ("kitsune", "accelerate")
NEEDS_TORCH = "torch-kitsune"
INSTALL_S, ANSWER_S = 300.0, 300.0


@dataclass(frozen=True)
class Question:
    """One measured run, in words that every peer can be told.

    Attributes:
        config: The model's config.json.
        params: Its exact parameter count.
        targets: LoRA's target modules, in transformers' Llama names.
        kind: What was measured: the allocator's `allocated` or `reserved` bytes, or the whole `device`.
    """

    id: str
    config: dict[str, Any]
    params: int
    method: Literal["full", "lora", "qlora"]
    rank: int
    targets: tuple[str, ...]
    batch: int
    seq: int
    checkpointing: bool
    optimizer: str = "adamw"
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    amp: bool = False
    attn: Literal["sdpa", "eager", "flash"] = "sdpa"
    double_quant: bool = True
    gpu_gib: float = 80.0
    n_gpu: int = 1
    sharding: str = ""
    kind: Literal["allocated", "reserved", "device"] = "allocated"


@dataclass(frozen=True)
class Answer:
    """What a peer said of one question: a figure, or why there is none."""

    gib: float | None = None
    unsupported: str = ""
    failed: str = ""


@dataclass(frozen=True)
class Peers:
    """An installed set: where, and the versions."""

    folder: Path
    versions: dict[str, str] = field(default_factory=dict)

    def ask(self, questions: Sequence[Question]) -> dict[str, list[Answer]]:
        """Each peer's answers, in the order of the questions.

        Raises: CannotRunError when a worker dies, with the end of what it said.
        """
        asked = [asdict(one) for one in questions]
        apart = _run([str(self.folder / "venv" / "bin" / "python"), "-I", str(WORKER)], APART, asked, {})
        path = {"PYTHONPATH": str(self.folder / "torch"), "HF_HUB_OFFLINE": "1"}
        ours = _run([sys.executable, str(WORKER)], TORCH, asked, path)
        return {name: [Answer(**one) for one in answers] for name, answers in {**apart, **ours}.items()}


def _run(
    command: list[str], peers: Sequence[str], asked: list[dict[str, Any]], extra: dict[str, str]
) -> dict[str, list[dict[str, Any]]]:
    text = json.dumps({"peers": peers, "questions": asked})
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
            check=False,
            env={**os.environ, **extra},
        )
    except subprocess.TimeoutExpired as error:
        raise CannotRunError(f"{', '.join(peers)} gave no answer in {ANSWER_S:.0f} s") from error
    if done.returncode:
        raise CannotRunError(f"{', '.join(peers)} failed: {done.stderr.strip()[-400:]}")
    found: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    return found


def pins() -> dict[str, str]:
    """Name to version, from requirements/bench-memory.txt."""
    lines = (line.partition("#")[0].strip() for line in PINS.read_text().splitlines())
    return dict(line.split("==") for line in lines if line)  # type: ignore[misc]  # every line is name==version


def installed() -> Peers:
    """The peers' environment, made on first use and whenever a pin changes (40 MB, about half a minute).

    Raises: CannotRunError when pip cannot install them.
    """
    wanted = pins()
    key = hashlib.sha256(f"{sys.version_info[:2]} {sorted(wanted.items())}".encode()).hexdigest()[:12]
    folder = folders.cache() / "bench" / f"memory-{key}"
    with _alone(folder.with_suffix(".lock")):
        if not (folder / "ready").exists():
            print(f"bench: installing the peers, once, in {folder}", file=sys.stderr)
            venv.create(folder / "venv", with_pip=True, clear=True)
            pip = [str(folder / "venv" / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps"]
            pip += ["--disable-pip-version-check", "--only-binary", ":all:"]
            _pip([*pip, *(f"{name}=={version}" for name, version in wanted.items() if name != NEEDS_TORCH)])
            _pip([*pip, "--target", str(folder / "torch"), f"{NEEDS_TORCH}=={wanted[NEEDS_TORCH]}"])
            atomic.write_text(folder / "ready", "")
    return Peers(folder, wanted)


def _pip(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_S, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise CannotRunError(f"pip did not end in {INSTALL_S:.0f} s") from error
    if done.returncode:
        raise CannotRunError(f"the peers cannot be installed: {done.stderr.strip()[-400:]}")


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
