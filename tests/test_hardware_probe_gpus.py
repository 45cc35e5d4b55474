"""GPUs and other accelerators as the probe finds them: real libraries, programs and files, made for the test."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys

import pytest

from tests.nvml import compiled
from tests.probed import on_a_box, probe, tree
from tests.waiting import until

# Layouts and numbers as nvml.h has them, written apart from the probe's own.
NVML = r"""
#include <string.h>
typedef struct dev { int index; } *nvmlDevice_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } nvmlMemory_v2_t;
typedef struct { unsigned int gpu, memory; } nvmlUtilization_t;
typedef struct { unsigned int pid; unsigned long long usedGpuMemory; unsigned int gi, ci; } nvmlProcessInfo_t;
#define GIB (1ull << 30)
#define MIB (1ull << 20)
static struct dev devices[2] = {{0}, {1}};
static int ready;
#define DEVICE(d) if (!ready) return 1; if ((d) != devices && (d) != devices + 1) return 2;
const char *nvmlErrorString(int code) {
  return code == 18 ? "Driver/library version mismatch" : code == 15 ? "GPU is lost" : "some error";
}
int nvmlInit_v2(void) { ready = !INIT_CODE; return INIT_CODE; }
int nvmlShutdown(void) { ready = 0; return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { if (!ready) return 1; *n = COUNT; return 0; }
int nvmlSystemGetDriverVersion(char *s, unsigned n) {
  if (!ready) return 1;
  if (n < 80) return 7;
  strcpy(s, "580.95.05");
  return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned i, nvmlDevice_t *d) {
  if (!ready) return 1;
  if (i > 1) return 15;
  *d = devices + i;
  return 0;
}
int nvmlDeviceGetName(nvmlDevice_t d, char *s, unsigned n) {
  DEVICE(d) strcpy(s, d->index ? "NVIDIA GeForce RTX 3090" : "Tesla T4"); return 0;
}
int nvmlDeviceGetUUID(nvmlDevice_t d, char *s, unsigned n) {
  DEVICE(d) strcpy(s, d->index ? "GPU-bbbb" : "GPU-aaaa"); return 0;
}
int nvmlDeviceGetCudaComputeCapability(nvmlDevice_t d, int *major, int *minor) {
  DEVICE(d) *major = d->index ? 8 : 7; *minor = d->index ? 6 : 5; return 0;
}
int nvmlDeviceGetMemoryInfo(nvmlDevice_t d, nvmlMemory_t *m) {
  DEVICE(d) m->total = 15 * GIB; m->free = 10 * GIB; m->used = 5 * GIB; return 0;
}
int nvmlDeviceGetCurrPcieLinkGeneration(nvmlDevice_t d, unsigned *v) { DEVICE(d) *v = 1; return 0; }
int nvmlDeviceGetMaxPcieLinkGeneration(nvmlDevice_t d, unsigned *v) { DEVICE(d) *v = 3; return 0; }
int nvmlDeviceGetCurrPcieLinkWidth(nvmlDevice_t d, unsigned *v) { DEVICE(d) *v = d->index ? 8 : 16; return 0; }
int nvmlDeviceGetMaxPcieLinkWidth(nvmlDevice_t d, unsigned *v) { DEVICE(d) *v = 16; return 0; }
int nvmlDeviceGetMigMode(nvmlDevice_t d, unsigned *now, unsigned *later) {
  DEVICE(d) if (d->index) return 3; *now = 1; *later = 0; return 0;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t d, unsigned long long *v) {
  DEVICE(d) *v = d->index ? 0x4 | 0x40 : 0x1; return 0;
}
int nvmlDeviceGetClockInfo(nvmlDevice_t d, int kind, unsigned *v) {
  DEVICE(d) if (kind != 1 && kind != 2) return 2; *v = kind == 1 ? 300 : 405; return 0;
}
int nvmlDeviceGetMaxClockInfo(nvmlDevice_t d, int kind, unsigned *v) {
  DEVICE(d) if (kind != 1 && kind != 2) return 2; *v = kind == 1 ? 1590 : 5001; return 0;
}
int nvmlDeviceGetUtilizationRates(nvmlDevice_t d, nvmlUtilization_t *u) { DEVICE(d) u->gpu = 93; u->memory = 41; return 0; }
int nvmlDeviceGetEccMode(nvmlDevice_t d, int *now, int *later) {
  DEVICE(d) if (d->index) return 3; *now = 1; *later = 1; return 0;
}
int nvmlDeviceGetComputeMode(nvmlDevice_t d, int *v) { DEVICE(d) *v = d->index ? 3 : 0; return 0; }
int nvmlDeviceGetDisplayActive(nvmlDevice_t d, int *v) { DEVICE(d) *v = d->index; return 0; }
int nvmlDeviceGetPowerUsage(nvmlDevice_t d, unsigned *v) { DEVICE(d) *v = 28500; return 0; }
int nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t d, unsigned *v) { DEVICE(d) *v = 200000; return 0; }
int nvmlDeviceGetPowerManagementDefaultLimit(nvmlDevice_t d, unsigned *v) { DEVICE(d) *v = 350000; return 0; }
int nvmlDeviceGetTemperature(nvmlDevice_t d, int sensor, unsigned *v) {
  DEVICE(d) if (sensor) return 2; *v = 41; return 0;
}
#ifdef OLD_DRIVER
int nvmlSystemGetCudaDriverVersion(int *v) { if (!ready) return 1; *v = 11040; return 0; }
#else
int nvmlSystemGetCudaDriverVersion_v2(int *v) { if (!ready) return 1; *v = 13010; return 0; }
int nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t d, nvmlMemory_v2_t *m) {
  DEVICE(d) if (m->version != 0x2000028) return 25;
  m->total = 15 * GIB; m->reserved = 266 * MIB; m->free = 10 * GIB; m->used = 5 * GIB - 266 * MIB; return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t d, unsigned *n, nvmlProcessInfo_t *rows) {
  DEVICE(d)
  unsigned have = d->index ? 50 : 2, room = *n;
  *n = have;
  if (room < have) return 7;
  for (unsigned i = 0; i < have; i++) {
    rows[i].pid = 1000 + i; rows[i].usedGpuMemory = i == 1 ? ~0ull : (i + 1) * GIB; rows[i].gi = rows[i].ci = ~0u;
  }
  return 0;
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t d, unsigned *n, nvmlProcessInfo_t *rows) {
  DEVICE(d) rows[0].pid = 1000; rows[0].usedGpuMemory = GIB; *n = 1; return 0;
}
#endif
"""


@pytest.fixture(scope="module")
def nvml(tmp_path_factory):
    """A function that builds an NVML library and gives its path."""
    folder = tmp_path_factory.mktemp("nvml")

    @functools.cache
    def build(init=0, count=2, old=False):
        options = [f"-DINIT_CODE={init}", f"-DCOUNT={count}", *(["-DOLD_DRIVER"] if old else [])]
        return compiled(NVML, folder / f"libnvidia-ml-{init}-{count}-{old}.so.1", *options)

    return build


class TestNvml:
    def test_reads_each_gpu_through_ctypes(self, nvml):
        """Names, memory, compute capability, versions, link, MIG and throttling come through with their own layouts."""
        found = on_a_box(nvml())
        assert {"driver": "580.95.05", "cuda": "13.1", "source": "NVML"} == found["driver"]
        assert found["gpu_reason"] is None
        first, second = found["gpus"]
        assert ("Tesla T4", "GPU-aaaa", [7, 5]) == (first["name"], first["uuid"], first["compute_capability"])
        assert ("NVIDIA GeForce RTX 3090", "GPU-bbbb", [8, 6]) == (
            second["name"], second["uuid"], second["compute_capability"]
        )  # fmt: skip
        memory = [first[f"{kind}_bytes"] for kind in ("total", "reserved", "free", "used")]
        assert [15 * 2**30, 266 * 2**20, 10 * 2**30, 5 * 2**30 - 266 * 2**20] == memory
        assert {"generation": 1, "max_generation": 3, "width": 8, "max_width": 16} == second["pcie"]
        assert (True, False) == (first["mig"], second["mig"])
        assert [[], ["power cap", "too hot (hardware)"]] == [first["throttle"], second["throttle"]]

    def test_reads_clocks_power_and_modes(self, nvml):
        """Clocks now and at most, utilisation, ECC, exclusive mode, a display, power limit and temperature are told."""
        first, second = on_a_box(nvml())["gpus"]
        assert {"sm_mhz": 300, "max_sm_mhz": 1590, "memory_mhz": 405, "max_memory_mhz": 5001} == first["clocks"]
        assert (93, True, "default", False) == tuple(
            first[k] for k in ("utilisation", "ecc", "compute_mode", "display")
        )
        assert (None, "exclusive process", True) == tuple(second[k] for k in ("ecc", "compute_mode", "display"))
        assert {"now_w": 28.5, "limit_w": 200.0, "default_w": 350.0} == first["power"]
        assert 41 == first["celsius"]

    def test_lists_who_holds_memory(self, nvml):
        """A process is told once with its larger share, unknown bytes are None, and a long list is asked for again."""
        first, second = on_a_box(nvml())["gpus"]
        assert [(1000, 2**30), (1001, None)] == [(one["pid"], one["bytes"]) for one in first["processes"]]
        assert (50, 1049, 50 * 2**30) == (
            len(second["processes"]),
            *(second["processes"][-1][k] for k in ("pid", "bytes")),
        )

    def test_a_holder_is_named_but_not_its_arguments(self):
        """A process is told by its kind: a notebook kernel is recognised, its command line stays where it is."""
        code = "import time; time.sleep(30)  # python -m ipykernel_launcher"
        child = subprocess.Popen([sys.executable, "-c", code])
        try:
            until(lambda: probe._process(child.pid)["notebook"], "the kernel's command line")
            found = probe._process(child.pid)
        finally:
            child.kill()
            child.wait(timeout=10)
        assert {"name", "notebook"} == set(found)
        assert found["name"].startswith("python")
        assert {"name": None, "notebook": False} == probe._process(2**22 + 1)

    def test_an_old_driver_gives_what_it_has(self, nvml):
        """Without the newer calls, memory comes from the first version and the rest is simply not told."""
        found = on_a_box(nvml(old=True))
        assert "11.4" == found["driver"]["cuda"]
        assert (15 * 2**30, None, []) == tuple(
            found["gpus"][0][k] for k in ("total_bytes", "reserved_bytes", "processes")
        )

    def test_a_lost_gpu_does_not_hide_the_others(self, nvml):
        """Two GPUs answer and the third is named as lost."""
        found = on_a_box(nvml(count=3))
        assert [0, 1] == [gpu["index"] for gpu in found["gpus"]]
        assert "GPU 2: GPU is lost (NVML code 15)" == found["gpu_reason"]

    def test_a_mismatched_driver_is_told_in_its_own_words(self, nvml, tmp_path):
        """A library newer than the loaded kernel module gives no GPUs and NVML's reason."""
        found = on_a_box(nvml(init=18), path=tmp_path)
        assert [] == found["gpus"]
        assert found["gpu_reason"].startswith(
            "NVML: Driver/library version mismatch (NVML code 18); nvidia-smi: not on PATH"
        )

    def test_a_driver_without_gpus_says_so(self, nvml):
        """A working driver that counts no GPU is not taken for a missing driver."""
        assert "NVML counts no GPU" == on_a_box(nvml(count=0))["gpu_reason"]

    def test_runs_on_python_3_8(self, nvml):
        """An old Python on the box gives the same GPUs."""
        for name in ("python3.8", "python3.9", "python3.10"):
            python = shutil.which(name)
            if python and subprocess.run([python, "-c", ""], check=False, capture_output=True).returncode == 0:
                found = on_a_box(nvml(), python=python, path=os.environ["PATH"])
                assert ["Tesla T4", "NVIDIA GeForce RTX 3090"] == [gpu["name"] for gpu in found["gpus"]]
                return
        pytest.skip("needs a python3.8, python3.9 or python3.10 on PATH")


SMI = """#!/bin/sh
case "$*" in
  *compute_cap*) [ -n "$OLD" ] && { echo 'Field "compute_cap" is not a valid field to query.'; exit 2; }
    echo '0, NVIDIA A10G, GPU-cccc, 23028, 20000, 3028, 535.104.05, 8.6' ;;
  *query-gpu*) echo '0, NVIDIA A10G, GPU-cccc, 23028, [N/A], 3028, 535.104.05' ;;
  *query-compute-apps*) echo 'GPU-cccc, 4242, 2048'; echo 'GPU-cccc, 4243, [N/A]' ;;
esac
"""


@pytest.fixture
def smi(tmp_path):
    """A folder with a nvidia-smi that answers as the real one prints."""
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(0o755)
    return tmp_path


class TestNvidiaSmi:
    def test_answers_where_nvml_is_absent(self, smi):
        """Without the library, the program's table gives the same facts, less the CUDA version."""
        found = on_a_box(path=smi)
        assert {"driver": "535.104.05", "cuda": None, "source": "nvidia-smi"} == found["driver"]
        (gpu,) = found["gpus"]
        assert ("NVIDIA A10G", [8, 6], 23028 * 2**20, 20000 * 2**20) == (
            gpu["name"], gpu["compute_capability"], gpu["total_bytes"], gpu["free_bytes"]
        )  # fmt: skip
        assert [(4242, 2**31), (4243, None)] == [(one["pid"], one["bytes"]) for one in gpu["processes"]]

    def test_an_old_program_does_not_know_the_compute_capability(self, smi):
        """The query is repeated without the unknown column; what is not available is None."""
        (gpu,) = on_a_box(path=smi, OLD="1")["gpus"]
        assert (None, None, 23028 * 2**20) == (gpu["compute_capability"], gpu["free_bytes"], gpu["total_bytes"])

    def test_neither_is_an_honest_none(self, tmp_path):
        """No library and no program: no GPUs, and the reason names both."""
        found = on_a_box(path=tmp_path)
        assert [] == found["gpus"]
        assert found["gpu_reason"].startswith("NVML: /nowhere/libnvidia-ml.so.1 not found; nvidia-smi: not on PATH")

    def test_a_program_that_fails_is_quoted(self, smi):
        """The exit code and the words of a failing nvidia-smi are in the reason."""
        (smi / "nvidia-smi").write_text("#!/bin/sh\necho 'Failed to initialize NVML: Unknown Error'\nexit 255\n")
        assert "nvidia-smi: exit code 255: Failed to initialize NVML: Unknown Error" in on_a_box(path=smi)["gpu_reason"]


class TestCuda:
    def test_what_the_loader_finds_first(self, tmp_path, monkeypatch):
        """LD_LIBRARY_PATH comes before the usual places; toolkits and the loaded module are told."""
        ours = tmp_path / "opt" / "cuda" / "compat"
        root = tree(tmp_path, {
            "opt/cuda/compat/libcuda.so.1": "", "usr/lib/x86_64-linux-gnu/libcuda.so.1": "", "usr/local/cuda-12.4/version": "",
            "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue\n",
        })  # fmt: skip
        monkeypatch.setenv("LD_LIBRARY_PATH", f"{ours}:/nowhere")
        found = probe.cuda_facts(root)
        assert [str(ours), f"{root}usr/lib/x86_64-linux-gnu"] == found["libcuda"]
        assert [str(ours)] == found["library_path_with_cuda"]
        assert ([str(tmp_path / "usr/local/cuda-12.4")], "580.95.05") == (found["toolkits"], found["kernel_module"])


class TestOtherAccelerators:
    @pytest.mark.parametrize(
        ("device", "subsystem", "version"),
        [
            ("0x0063", "0x0000", "v5e"),
            ("0x006f", "0x0000", "v6e"),
            ("0x0027", "0x004e", "v2"),
            ("0x0027", "0x004f", "v3"),
        ],
    )
    def test_tpu_chips_are_counted_on_the_bus(self, tmp_path, monkeypatch, device, subsystem, version):
        """Google's PCI ids give the version, the device files are counted beside; other Google devices are no TPU."""
        monkeypatch.delenv("TPU_ACCELERATOR_TYPE", raising=False)
        monkeypatch.delenv("COLAB_TPU_ADDR", raising=False)
        chip = {"vendor": "0x1ae0\n", "device": f"{device}\n", "subsystem_device": f"{subsystem}\n"}
        files = {f"sys/bus/pci/devices/0000:0{n}/{name}": text for n in range(4) for name, text in chip.items()}
        files |= {"sys/bus/pci/devices/0000:09/vendor": "0x1ae0", "sys/bus/pci/devices/0000:09/device": "0x0042"}
        root = tree(tmp_path, files | {f"dev/vfio/{n}": "" for n in range(4)})
        assert {"version": version, "chips": 4, "device_files": 4, "type": None} == probe.tpu_facts(root)

    def test_a_tpu_named_by_the_environment(self, tmp_path, monkeypatch):
        """Without its own devices, a TPU virtual machine's variable tells what it is; without anything there is none."""
        monkeypatch.delenv("COLAB_TPU_ADDR", raising=False)
        monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-8")
        found = probe.tpu_facts(tree(tmp_path, {"dev/accel0": "", "dev/accel1": ""}))
        assert (2, "v5litepod-8") == (found["chips"], found["type"])
        monkeypatch.delenv("TPU_ACCELERATOR_TYPE")
        assert probe.tpu_facts(f"{tmp_path}/empty/") is None

    def test_amd_gpus_are_read_from_the_drivers_files(self, tmp_path):
        """Memory, architecture and ROCm version come from sysfs; another maker's card is left out."""
        card = {"vendor": "0x1002", "mem_info_vram_total": str(64 * 2**30), "mem_info_vram_used": str(2**30),
                "product_name": "AMD Instinct MI210"}  # fmt: skip
        files = {f"sys/class/drm/card0/device/{name}": text for name, text in card.items()}
        files |= {"sys/class/drm/card1/device/vendor": "0x8086", "sys/class/drm/card1/device/mem_info_vram_total": "1"}
        files |= {"sys/class/kfd/kfd/topology/nodes/0/properties": "gfx_target_version 0\n",
                  "sys/class/kfd/kfd/topology/nodes/1/properties": "cpu_cores_count 0\ngfx_target_version 90010\n",
                  "opt/rocm/.info/version": "6.2.1-116\n"}  # fmt: skip
        (found,) = probe.amd_facts(tree(tmp_path, files))
        assert ("AMD Instinct MI210", "gfx90a", "6.2.1-116") == (found["name"], found["target"], found["rocm"])
        assert (64 * 2**30, 2**30) == (found["total_bytes"], found["used_bytes"])

    @pytest.mark.skipif(sys.platform == "darwin", reason="needs a machine that is no Mac")
    def test_elsewhere_there_is_no_apple(self):
        """The macOS part asks nothing on another system."""
        assert probe.apple_facts() is None
