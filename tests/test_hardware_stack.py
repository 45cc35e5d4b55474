"""The training stack, asked in real child processes of a Python that holds what each test puts there."""

from __future__ import annotations

import json
import sys
import time
import venv
from pathlib import Path

import pytest

from nbkit.hardware import probe, stack
from nbkit.hardware.stack import Package

GOOD_TORCH = """
print("a library that talks", end=" ")
class version: cuda = "13.0"
class cuda:
    is_available = staticmethod(lambda: {gpu})
    get_arch_list = staticmethod(lambda: ["sm_80", "sm_90"])
__version__ = "9.9+cu130"
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A Python with nothing installed."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    return folder / "bin" / "python"


@pytest.fixture
def ask(bare, tmp_path, monkeypatch):
    """A function that asks the stack of a Python that can import these files."""

    def run(files=None, timeout_s=20.0):
        for name, text in (files or {}).items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(sys, "executable", str(bare))
        return stack(probe(), timeout_s=timeout_s)

    return run


class TestStack:
    def test_nothing_installed_is_a_clear_line(self, ask):
        """Without torch the table says what to install, and nothing is raised."""
        found = ask()
        assert ("absent", "absent", False) == (found.torch.state, found.bitsandbytes.state, found.ok)
        assert 'training needs it: pip install "nbkit-llm[train]"' in str(found)
        assert "QLoRA needs it: pip install &quot;nbkit-llm[train]&quot;" in found._repr_html_()

    def test_reads_versions_from_a_stack_that_talks(self, ask):
        """What the libraries print does not disturb the answer."""
        files = {"bitsandbytes/__init__.py": "__version__ = '1.2'", "bitsandbytes/cextension.py": "lib = object()"}
        found = ask({"torch.py": GOOD_TORCH.format(gpu=True), **files})
        assert Package("torch", "ok", "9.9+cu130") == found.torch
        assert Package("bitsandbytes", "ok", "1.2") == found.bitsandbytes
        assert ("13.0", True, ("sm_80", "sm_90")) == (found.torch_cuda, found.cuda_available, found.architectures)
        assert "built for CUDA 13.0, sees a GPU; kernels: sm_80 sm_90" in str(found)
        assert "9.9+cu130" == json.loads(json.dumps(found.as_dict()))["torch"]["version"]

    def test_an_import_error_is_quoted(self, ask):
        """A torch that cannot load its libraries is broken with its own words, and bitsandbytes is not blamed."""
        broken = "raise ImportError('libcudart.so.13: not there')"
        found = ask({"torch.py": broken, "bitsandbytes.py": "import torch"})
        assert "ImportError: libcudart.so.13: not there" == found.torch.error
        assert ("broken", "not tried") == (found.torch.state, found.bitsandbytes.state)

    def test_a_hang_ends_with_its_time(self, ask):
        """A torch that never comes back, with a child of its own, costs the limit and is named."""
        began = time.monotonic()
        hangs = "import subprocess, time\nsubprocess.Popen(['sleep', '30'])\ntime.sleep(30)"
        found = ask({"torch.py": hangs}, timeout_s=2.0)
        assert 20 > time.monotonic() - began
        assert "no answer within 2 s while importing it" == found.torch.error

    def test_a_crash_is_named(self, ask):
        """A library that aborts the process does not end this one, and the signal is told."""
        assert "ended by SIGABRT while importing it" == ask({"torch.py": "import os\nos.abort()"}).torch.error

    def test_what_came_before_a_crash_is_kept(self, ask):
        """torch's answer stands when bitsandbytes takes the process down."""
        found = ask({"torch.py": GOOD_TORCH.format(gpu=False), "bitsandbytes.py": "import os\nos._exit(3)"})
        assert ("ok", "broken") == (found.torch.state, found.bitsandbytes.state)
        assert "Python exited with code 3 while importing it" == found.bitsandbytes.error

    @pytest.mark.parametrize(("gpu", "state"), [(True, "broken"), (False, "ok")])
    def test_bitsandbytes_without_its_binary(self, ask, gpu, state):
        """Its stand-in library is a fault where a GPU would need the binary, and none on a CPU."""
        library = "class lib: formatted_error = '\\n  CUDA SETUP ERROR:\\n\\n  Missing dependency: libcudart.so\\n'"
        files = {"bitsandbytes/__init__.py": "", "bitsandbytes/cextension.py": library}
        found = ask({"torch.py": GOOD_TORCH.format(gpu=gpu), **files})
        assert state == found.bitsandbytes.state
        assert ("CUDA SETUP ERROR: Missing dependency: libcudart.so" if gpu else None) == found.bitsandbytes.error

    @pytest.mark.parametrize(
        ("error", "state"), [("CUDA error: out of memory", "not tried"), ("kernel not found", "broken")]
    )
    def test_a_taken_gpu_is_not_blamed_on_bitsandbytes(self, ask, error, state):
        """A 4-bit layer that fails for want of memory was not tried; one that fails otherwise is broken, with its words."""
        layer = f"class nn:\n    def Linear4bit(*args, **options): raise RuntimeError({error!r})\n"
        torch = GOOD_TORCH.format(gpu=True) + "float32 = None\n"
        files = {"bitsandbytes/__init__.py": layer, "bitsandbytes/cextension.py": "lib = object()"}
        found = ask({"torch.py": torch, **files})
        assert Package("four_bit", state, None, f"RuntimeError: {error}") == found.four_bit

    @pytest.mark.train
    def test_the_installed_stack_loads(self):
        """The torch and bitsandbytes of this environment come up in the child."""
        from importlib.metadata import version

        found = stack(probe(), timeout_s=300)  # a busy machine may take long
        assert ("ok", version("torch")) == (found.torch.state, found.torch.version)
        assert ("ok", version("bitsandbytes")) == (found.bitsandbytes.state, found.bitsandbytes.version)
        assert "ok" == found.four_bit.state
        assert Path(sys.executable).exists()
