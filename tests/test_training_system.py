"""Readings of the machine: what cannot be read is left out and explained, never zero."""

from __future__ import annotations

import threading

import pytest

from nbkit.training.system import Gpu, Sampler
from tests.nvml import compiled
from tests.waiting import until

# Layouts as nvml.h has them, written apart from the code's own; utilisation fails on the card that MIG has cut up.
NVML = r"""
#include <string.h>
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned int gpu, memory; } rates;
static int devices[2];
const char *nvmlErrorString(int code) { return code == 3 ? "Not Supported" : "Unknown Error"; }
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { if (i > 1) return 2; *d = devices + i; return 0; }
int nvmlDeviceGetHandleByUUID(const char *s, void **d) { if (strcmp(s, "GPU-bbbb")) return 6; *d = devices + 1; return 0; }
int nvmlDeviceGetMemoryInfo_v2(void *d, memory_v2 *m) {
  if (m->version != 0x2000028) return 25;
  m->total = 16ull << 30; m->used = (d == devices ? 4ull : 2ull) << 30; return 0;
}
int nvmlDeviceGetUtilizationRates(void *d, rates *r) { if (d != devices) return 3; r->gpu = 87; r->memory = 5; return 0; }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The path of that library."""
    return compiled(NVML, tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1")


@pytest.fixture
def visible(monkeypatch):
    """Set CUDA_VISIBLE_DEVICES, or None for absent."""

    def chosen(value):
        if value is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)

    return chosen


class TestGpu:
    def test_is_the_one_torch_uses(self, library, visible, monkeypatch):
        """The first of CUDA_VISIBLE_DEVICES, by number or by id; the first of all without it."""
        monkeypatch.setenv("NBKIT_NVML_LIBRARY", library)
        for value, used in ((None, 4.0), ("0", 4.0), ("1,0", 2.0), ("GPU-bbbb", 2.0)):
            visible(value)
            assert (used, 16.0) == (Gpu().read()["gpu_used_gib"], Gpu().read()["gpu_gib"])

    def test_utilisation_that_is_not_told_is_left_out(self, library, visible, monkeypatch):
        """The memory is there, the percentage is not, and the reason says why."""
        monkeypatch.setenv("NBKIT_NVML_LIBRARY", library)
        visible("0")
        assert 87 == Gpu().read()["gpu_percent"]
        visible("1")
        gpu = Gpu()
        assert {"gpu_used_gib", "gpu_gib"} == set(gpu.read())
        assert "the GPU's utilisation is not told: Not Supported (NVML code 3)" == gpu.reason

    def test_without_a_driver_there_is_a_reason(self, visible, monkeypatch):
        """No zero that a chart would draw."""
        monkeypatch.setenv("NBKIT_NVML_LIBRARY", "/nowhere/libnvidia-ml.so.1")
        visible(None)
        gpu = Gpu()
        assert {} == gpu.read()
        assert "no GPU is watched: /nowhere/libnvidia-ml.so.1 not found" == gpu.reason


def test_sampler_writes_and_ends(monkeypatch):
    """A row each time, the reason once, and no thread afterwards."""
    monkeypatch.setenv("NBKIT_NVML_LIBRARY", "/nowhere/libnvidia-ml.so.1")
    rows = []
    sampler = Sampler(rows.append, every_s=0.02).start()
    until(lambda: len(rows) > 2, "three rows")
    sampler.stop()
    assert [True, False] == ["gpu_reason" in row for row in rows[:2]]
    assert {"cpu_percent", "rss_gib", "ram_used_gib", "ram_gib"} == set(rows[1])
    assert 0 < rows[1]["rss_gib"] < rows[1]["ram_gib"]
    assert "system" not in {thread.name for thread in threading.enumerate()}
