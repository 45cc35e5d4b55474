"""Choices for a machine, each with its reason; machines that are not here come from recorded facts."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from nbkit import models, training
from nbkit.hardware import Gpu, probe
from nbkit.training.settings import pin_one_gpu

pytestmark = pytest.mark.train


def gpu(name, level, total, *, index=0, free=None):
    """A GPU as NVML would report it."""
    free = total if free is None else free
    return Gpu(index, name, total, free, level, "570.1", "12.8", uuid=f"GPU-{index}")


@pytest.fixture
def machine(monkeypatch):
    """This machine with other GPUs in it."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    here = probe()
    return lambda *gpus: dataclasses.replace(here, gpus=gpus, gpu_reason="")


@pytest.fixture(scope="module")
def model():
    """A model whose config can be read."""
    return str(models.embedded())


class TestGpu:
    def test_t4_gets_fp16_and_says_why(self, machine, model):
        """Never torch's is_bf16_supported(), which is True on a T4 by emulation."""
        chosen = training.settings(model, machine=machine(gpu("Tesla T4", (7, 5), 15.8)))
        assert ("float16", False, True) == (chosen.dtype, chosen.bf16, chosen.fp16)
        assert "T4: compute capability 7.5 has no bf16" == chosen.reasons["dtype"]
        assert "paged_adamw_8bit" == chosen.optim

    def test_ampere_gets_bf16(self, machine, model):
        """A large card needs no paged states."""
        chosen = training.settings(model, machine=machine(gpu("NVIDIA A100-SXM4-80GB", (8, 0), 80.0)))
        assert ("bfloat16", True, "adamw_torch_fused") == (chosen.dtype, chosen.bf16, chosen.optim)

    def test_micro_batch_times_accumulation_is_what_was_asked(self, machine, model):
        """Less memory, smaller micro-batch, same effective batch."""
        for free in (1.0, 2.0, 8.0, 40.0):
            chosen = training.settings(
                model, max_length=4096, effective_batch=16, machine=machine(gpu("X", (8, 6), 48.0, free=free))
            )
            assert 16 == chosen.effective_batch
        assert "GiB free (formula)" in chosen.reasons["per_device_train_batch_size"]

    def test_a_full_card_is_said(self, machine, model):
        """Nothing fits: the smallest batch, and a plain sentence."""
        chosen = training.settings(model, max_length=8192, machine=machine(gpu("X", (8, 6), 24.0, free=0.1)))
        assert 1 == chosen.per_device_train_batch_size
        assert "it may not fit" in chosen.reasons["per_device_train_batch_size"]

    def test_the_emptiest_of_several_is_pinned(self, machine, monkeypatch):
        """SFTTrainer refuses several GPUs in one process; the one with most free memory is shown to it."""
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        two = machine(gpu("A", (8, 0), 40.0, free=3.0), gpu("B", (8, 0), 40.0, index=1))
        assert 1 == pin_one_gpu(two).index
        assert "GPU-1" == os.environ["CUDA_VISIBLE_DEVICES"]


class TestCpu:
    def test_choices_hold_on_this_machine(self, machine, model):
        """No paged optimizer, sdpa, and a number format whose reason says what was measured."""
        chosen = training.settings(model, machine=machine())
        assert ("cpu", "sdpa", "adamw_torch", True) == (
            chosen.device, chosen.attn_implementation, chosen.optim, chosen.use_cpu)  # fmt: skip
        assert chosen.dtype in {"float32", "bfloat16"}
        assert "on this CPU" in chosen.reasons["dtype"] or "no bf16 instructions" in chosen.reasons["dtype"]
        assert "Chosen for this machine" in str(chosen)

    def test_a_cpu_without_bf16_instructions_is_not_measured(self, machine):
        """An older CPU computes in fp32."""
        plain = machine()
        plain = dataclasses.replace(plain, cpu=dataclasses.replace(plain.cpu, flags=("avx2",)))
        assert "this CPU has no bf16 instructions" == training.settings("unused", machine=plain).reasons["dtype"]


def test_importing_bitsandbytes_after_settings_is_quiet():
    """The notice about an optional hub kernel, which is harmless, does not reach the notebook."""
    code = (
        "import dataclasses, nbkit; m = nbkit.probe(); nbkit.settings('x', machine=dataclasses.replace(m, gpus=()));"
        "import bitsandbytes"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240)
    assert "gemm_4bit" not in done.stderr
