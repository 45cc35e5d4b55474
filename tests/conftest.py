"""What every test shares: no network, no settings of the person who runs it, and honest skips."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import sshd

# Read at import by the libraries themselves, so set before any test module is.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", WANDB_MODE="disabled", TOKENIZERS_PARALLELISM="false")
# A person's own settings would change what the tests see; a test that wants one sets it. NBKIT_CACHE stays: it holds
# the converted model, which is the same for everyone.
for _name in ("NBKIT_SMOKE", "NBKIT_DEBUG", "NBKIT_DISPLAY", "NBKIT_RUNS"):
    os.environ.pop(_name, None)

TRAIN_STACK = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets")


def missing_for(marker: str) -> str:
    """Why a test with this marker cannot run here; empty when it can."""
    if marker == "train":
        absent = [name for name in TRAIN_STACK if importlib.util.find_spec(name) is None]
        return f"needs the train extra ({', '.join(absent)} not installed): make setup" if absent else ""
    if marker == "gpu":
        return "" if Path("/proc/driver/nvidia/version").exists() else "needs an NVIDIA GPU"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with a reason, what this machine cannot run."""
    reasons = {marker: missing_for(marker) for marker in ("train", "gpu")}
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_report_header() -> str:
    """The versions that decide a training result, read without importing anything."""
    found = []
    for name in TRAIN_STACK:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} absent")
    return "stack: " + ", ".join(found)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Sshd]:
    """An sshd on loopback, `box` in its configuration; no run of nbkit is left on it."""
    from tests import works

    with sshd.running(tmp_path_factory.mktemp("sshd")) as server:
        yield server
        works.end_all(server)


@pytest.fixture(scope="module")
def box(server: sshd.Sshd) -> sshd.Sshd:
    """That server, for the tests of ssh; those of nbkit.remote have a connection to it by this name."""
    sshd.need("ssh")
    return server


@pytest.fixture(scope="module")
def echo() -> Iterator[int]:
    """Port of an echo server."""
    from tests.echoing import Echo, Listener, echoing

    with echoing(Listener(("127.0.0.1", 0), Echo)) as server:
        yield server.server_address[1]


@pytest.fixture
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered here, and what this machine's Jupyter has, stay in this test."""
    for name in ("NBKIT_STATE", "XDG_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
        (tmp_path / name.lower()).mkdir()


@pytest.fixture
def entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """jupyter_client finds the provisioner as it does where nbkit is installed."""
    from nbkit.remote.kernels import PROVISIONER

    about = tmp_path / "site" / "nbkit_box-0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: nbkit-box\nVersion: 0\n")
    (about / "entry_points.txt").write_text(
        f"[jupyter_client.kernel_provisioners]\n{PROVISIONER} = nbkit.remote.provisioner:BoxProvisioner\n"
    )
    monkeypatch.syspath_prepend(str(about.parent))


@pytest.fixture
def laptop(tmp_path: Path, server: sshd.Sshd) -> Any:
    """A person's machine that knows `server`."""
    from tests.laptop import Laptop

    return Laptop(tmp_path / "laptop", server)


@pytest.fixture
def own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of runs, and no run or process of one left behind."""
    from tests import little

    monkeypatch.setenv("NBKIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    yield
    little.leave_nothing(tmp_path / "runs")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An IPython kernel whose messages are kept, with runs of its own to watch."""
    from tests.widget_kernel import running

    with running(tmp_path_factory.mktemp("kernel")) as kernel:
        yield kernel
