"""The facts of one machine as a JSON object: GPUs, processor, memory, disks, Python, packages.

This file is also the program a remote box runs: its text is sent to `python3 -` there. So it uses the standard library
only, runs on Python 3.8, imports nothing of nbkit and tells nothing that identifies a person (no host name, no address,
the home directory shown as ~). Each part runs in a thread with a time limit, because a dead network mount or a broken
driver blocks instead of failing; a part that fails is {"error": text}, and the others are still told.

Source: NVML reference (function and struct layouts of nvml.h), Linux cgroup-v1 and cgroup-v2 documentation, proc(5).
Not covered: AMD and Intel GPUs, TPUs, Apple silicon.
"""

# os.path answers False where Path.exists of Python 3.8 raises (no permission on a parent):
# ruff: noqa: PTH100, PTH110, PTH111, PTH112, PTH116, PTH118, PTH119, PTH120, PTH123, PTH207
from __future__ import annotations

import contextlib
import ctypes
import glob
import json
import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from importlib import metadata
from typing import Any, Callable, Iterator  # noqa: UP035 - the box may run Python 3.8

READ_S = 0.4  # of reading a disk; finding a file takes at most as long again
GPU_LIMIT_S = 8.0  # a driver without persistence mode takes seconds to wake; only then is this reached
PART_LIMIT_S = 3.0  # a busy machine takes a second for what is a tenth otherwise
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
    "flash-attn",
    "xformers",
    "triton",
    "deepspeed",
    "unsloth",
    "wandb",
    "torchvision",
    "torchaudio",
    "torch_xla",
    "jax",
    "libtpu",
    "liger-kernel",
    "kernels",
    "numpy",
    "gguf",
    "jupyterlab",
    "jupyter_server",
    "ipykernel",
    "ipywidgets",
    "anywidget",
    "nbkit-llm",
)
# Told as they are set; none of them holds a secret.
ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_HOME", "CUDA_LAUNCH_BLOCKING", "BNB_CUDA_VERSION", "LD_LIBRARY_PATH",
    "LD_PRELOAD", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "TRANSFORMERS_CACHE", "NCCL_P2P_DISABLE", "NCCL_IB_DISABLE",
    "NCCL_SHM_DISABLE", "NVIDIA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PJRT_DEVICE", "TPU_ACCELERATOR_TYPE", "COLAB_GPU",
    "COLAB_TPU_ADDR", "CONDA_PREFIX", "VIRTUAL_ENV", "PYTHONPATH",
)  # fmt: skip
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16")
NETWORK_FS = ("nfs", "cifs", "smb", "lustre", "beegfs", "ceph", "glusterfs", "9p", "afs", "gpfs", "wekafs", "fuse.")
TPUS = {"0x005e": "v4", "0x0062": "v5p", "0x0063": "v5e", "0x006f": "v6e", "0x0076": "v7"}
COMPUTE_MODES = {0: "default", 1: "exclusive thread", 2: "prohibited", 3: "exclusive process"}
THROTTLE = {
    0x4: "power cap", 0x8: "hardware slowdown", 0x20: "too hot (software)", 0x40: "too hot (hardware)",
    0x80: "power brake",
}  # fmt: skip


class NvmlError(Exception):
    """An NVML call that did not succeed; `code` is NVML's own number."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} (NVML code {code})")
        self.code = code


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _MemoryV2(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint), ("total", ctypes.c_ulonglong), ("reserved", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong),
    )  # fmt: skip


class _Process(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint), ("bytes", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint), ("compute_instance", ctypes.c_uint),
    )  # fmt: skip


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class Nvml:
    """The calls this probe needs, on the first NVML library that loads."""

    def __init__(self) -> None:
        wanted = os.environ.get("NBKIT_NVML_LIBRARY")
        # WSL and Colab keep the library outside the loader's path.
        usual = ["libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1", "/usr/lib64-nvidia/libnvidia-ml.so.1"]
        failures = []
        for name in [wanted] if wanted else usual:
            try:
                self.library = ctypes.CDLL(name)
            except OSError as error:
                absent = "cannot open shared object file" in str(error)
                failures.append(
                    f"{name} not found" + ("" if wanted else " (no NVIDIA driver)") if absent else str(error)
                )
            else:
                return
        raise OSError(failures[0])

    def call(self, name: str, *arguments: Any) -> None:
        """Call `name`; NvmlError when it fails or when this driver is too old to have it."""
        try:
            function = getattr(self.library, name)
        except AttributeError:
            raise NvmlError(13, "Function Not Found: " + name) from None
        code = function(*arguments)
        if code:
            self.library.nvmlErrorString.restype = ctypes.c_char_p
            raise NvmlError(code, (self.library.nvmlErrorString(code) or b"unknown error").decode(errors="replace"))

    def text(self, name: str, *before: Any) -> str:
        buffer = ctypes.create_string_buffer(96)
        self.call(name, *before, buffer, ctypes.c_uint(len(buffer)))
        return buffer.value.decode(errors="replace")

    def number(self, name: str, *before: Any, kind: Any = ctypes.c_uint) -> int:
        value = kind()
        self.call(name, *before, ctypes.byref(value))
        return int(value.value)

    def pair(self, name: str, device: Any) -> list[int]:
        first, second = ctypes.c_int(), ctypes.c_int()
        self.call(name, device, ctypes.byref(first), ctypes.byref(second))
        return [first.value, second.value]

    def clocks(self, device: Any) -> dict[str, Any]:
        """MHz now and at most, of the multiprocessors and of the memory."""
        found: dict[str, Any] = {}
        for name, kind in (("sm", 1), ("memory", 2)):
            for word, call in (("", "nvmlDeviceGetClockInfo"), ("max_", "nvmlDeviceGetMaxClockInfo")):
                found[word + name + "_mhz"] = _or_none(self.number, call, device, ctypes.c_uint(kind))
        return found

    def utilisation(self, device: Any) -> int | None:
        """Percent of the last sample period in which a kernel ran."""
        rates = _Utilization()
        with contextlib.suppress(NvmlError):
            self.call("nvmlDeviceGetUtilizationRates", device, ctypes.byref(rates))
            return int(rates.gpu)
        return None

    def memory(self, device: Any) -> dict[str, Any]:
        """v2 tells what the driver keeps for itself, which is why a 16 GB card offers less to torch."""
        new = _MemoryV2(version=ctypes.sizeof(_MemoryV2) | 2 << 24)
        old = _Memory()
        with contextlib.suppress(NvmlError):
            self.call("nvmlDeviceGetMemoryInfo_v2", device, ctypes.byref(new))
            return {
                "total_bytes": new.total,
                "free_bytes": new.free,
                "used_bytes": new.used,
                "reserved_bytes": new.reserved,
            }
        self.call("nvmlDeviceGetMemoryInfo", device, ctypes.byref(old))
        return {"total_bytes": old.total, "free_bytes": old.free, "used_bytes": old.used, "reserved_bytes": None}

    def processes(self, device: Any) -> list[dict[str, Any]]:
        """Who holds memory there; bytes is None where the driver does not say (WSL, other containers)."""
        found: dict[int, int | None] = {}
        for kind in ("Compute", "Graphics"):
            with contextlib.suppress(NvmlError):
                for one in self._processes(f"nvmlDeviceGet{kind}RunningProcesses_v3", device):
                    held = None if one.bytes == 2**64 - 1 else int(one.bytes)
                    found[one.pid] = max(held or 0, found.get(one.pid) or 0) or None
        return [{"pid": pid, "bytes": held, **_process(pid)} for pid, held in sorted(found.items())]

    def _processes(self, name: str, device: Any) -> list[Any]:
        room = 32
        for _ in range(3):  # the list may grow between two calls
            count, rows = ctypes.c_uint(room), (_Process * room)()
            try:
                self.call(name, device, ctypes.byref(count), rows)
            except NvmlError as error:
                if error.code != 7:  # INSUFFICIENT_SIZE: count now says how many there are
                    raise
                room = count.value + 8
            else:
                return list(rows[: count.value])
        return []


def _or_none(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return function(*arguments, **options)
    except NvmlError:
        return None


def _process(pid: int) -> dict[str, Any]:
    """What kind of program it is; nothing of its arguments is told."""
    command = _read(f"/proc/{pid}/cmdline")
    return {"name": _read(f"/proc/{pid}/comm").strip() or None, "notebook": "ipykernel" in command}


def _nvml_gpu(nvml: Nvml, index: int) -> dict[str, Any]:
    device = ctypes.c_void_p()
    nvml.call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device))
    reasons = _or_none(nvml.number, "nvmlDeviceGetCurrentClocksThrottleReasons", device, kind=ctypes.c_ulonglong) or 0
    gpu = {
        "index": index,
        "name": nvml.text("nvmlDeviceGetName", device),
        "uuid": _or_none(nvml.text, "nvmlDeviceGetUUID", device),
        "compute_capability": _or_none(nvml.pair, "nvmlDeviceGetCudaComputeCapability", device),
        "pcie": {
            "generation": _or_none(nvml.number, "nvmlDeviceGetCurrPcieLinkGeneration", device),
            "max_generation": _or_none(nvml.number, "nvmlDeviceGetMaxPcieLinkGeneration", device),
            "width": _or_none(nvml.number, "nvmlDeviceGetCurrPcieLinkWidth", device),
            "max_width": _or_none(nvml.number, "nvmlDeviceGetMaxPcieLinkWidth", device),
        },
        "mig": (_or_none(nvml.pair, "nvmlDeviceGetMigMode", device) or [0])[0] == 1,
        "throttle": [text for bit, text in THROTTLE.items() if reasons & bit],
        "processes": nvml.processes(device),
        "clocks": nvml.clocks(device),
        "utilisation": nvml.utilisation(device),
        "ecc": _yes(_or_none(nvml.pair, "nvmlDeviceGetEccMode", device)),
        "compute_mode": COMPUTE_MODES.get(_or_none(nvml.number, "nvmlDeviceGetComputeMode", device) or 0),
        "display": bool(_or_none(nvml.number, "nvmlDeviceGetDisplayActive", device)),
        "power": {
            "now_w": _watts(nvml, "nvmlDeviceGetPowerUsage", device),
            "limit_w": _watts(nvml, "nvmlDeviceGetEnforcedPowerLimit", device),
            "default_w": _watts(nvml, "nvmlDeviceGetPowerManagementDefaultLimit", device),
        },
        "celsius": _or_none(nvml.number, "nvmlDeviceGetTemperature", device, ctypes.c_uint(0)),
    }
    gpu.update(nvml.memory(device))
    return gpu


def _yes(pair: list[int] | None) -> bool | None:
    return None if pair is None else pair[0] == 1


def _watts(nvml: Nvml, name: str, device: Any) -> float | None:
    milliwatts = _or_none(nvml.number, name, device)
    return None if milliwatts is None else milliwatts / 1000


def _from_nvml() -> dict[str, Any]:
    nvml = Nvml()
    nvml.call("nvmlInit_v2")
    try:
        number = _or_none(nvml.number, "nvmlSystemGetCudaDriverVersion_v2", kind=ctypes.c_int) or _or_none(
            nvml.number, "nvmlSystemGetCudaDriverVersion", kind=ctypes.c_int
        )
        cuda = f"{number // 1000}.{number % 1000 // 10}" if number else None
        gpus = []
        for index in range(nvml.number("nvmlDeviceGetCount_v2")):
            try:
                gpus.append(_nvml_gpu(nvml, index))
            except NvmlError as error:  # one lost GPU does not hide the others
                gpus.append({"index": index, "error": str(error)})
        return {
            "gpus": gpus,
            "driver": _or_none(nvml.text, "nvmlSystemGetDriverVersion"),
            "cuda": cuda,
            "source": "NVML",
        }
    finally:
        _or_none(nvml.call, "nvmlShutdown")


def _run(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=3, check=False)
    output = done.stdout.decode(errors="replace").strip()
    if done.returncode:
        raise OSError(f"exit code {done.returncode}: {output[:300]}")
    return output


def _from_nvidia_smi() -> dict[str, Any]:
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/lib/wsl/lib:/opt/bin")
    if not program:
        raise OSError("not on PATH")
    # The last column is unknown to old drivers, which then refuse the whole query.
    columns = ["index", "name", "uuid", "memory.total", "memory.free", "memory.used", "driver_version", "compute_cap"]
    form = "--format=csv,noheader,nounits"
    try:
        text = _run([program, "--query-gpu=" + ",".join(columns), form])
    except OSError:
        text = _run([program, "--query-gpu=" + ",".join(columns[:-1]), form])
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.count(",") >= 6]
    holders: dict[str, list[dict[str, Any]]] = {}
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        for line in _run([program, "--query-compute-apps=gpu_uuid,pid,used_memory", form]).splitlines():
            uuid, pid, used = [*line.split(","), "", ""][:3]
            if pid.strip().isdigit():
                holders.setdefault(uuid.strip(), []).append(
                    {"pid": int(pid), "bytes": _mib(used), **_process(int(pid))}
                )
    gpus = []
    for row in rows:
        level = re.match(r"(\d+)\.(\d+)$", row[7]) if len(row) > 7 else None
        gpus.append({
            "index": int(row[0]), "name": row[1], "uuid": row[2], "processes": holders.get(row[2], []),
            "compute_capability": [int(level.group(1)), int(level.group(2))] if level else None,
            "total_bytes": _mib(row[3]), "free_bytes": _mib(row[4]), "used_bytes": _mib(row[5]), "reserved_bytes": None,
            "pcie": {}, "mig": False, "throttle": [], "clocks": {}, "power": {},
        })  # fmt: skip
    return {"gpus": gpus, "driver": rows[0][6] if rows else None, "cuda": None, "source": "nvidia-smi"}


def _mib(text: str) -> int | None:
    """MiB as nvidia-smi prints it, in bytes; None for its [N/A] and [Not Supported]."""
    return int(text) * 2**20 if text.strip().isdigit() else None


def gpu_facts() -> dict[str, Any]:
    """NVML, else nvidia-smi, else no GPUs and the reason."""
    reasons = []
    sources: list[tuple[str, Callable[[], dict[str, Any]]]] = [("NVML", _from_nvml), ("nvidia-smi", _from_nvidia_smi)]
    for name, source in sources:
        try:
            found = source()
        except (NvmlError, OSError, subprocess.TimeoutExpired, ValueError) as error:
            reasons.append(f"{name}: {error}")
        else:
            lost = [f"GPU {gpu['index']}: {gpu['error']}" for gpu in found["gpus"] if "error" in gpu]
            found["gpus"] = [gpu for gpu in found["gpus"] if "error" not in gpu]
            return {**found, "reason": "; ".join(lost) or (None if found["gpus"] else f"{name} counts no GPU")}
    on_bus = sum(
        _read(path).strip() == "0x10de" and _read(os.path.dirname(path) + "/class").startswith("0x03")
        for path in glob.glob("/sys/bus/pci/devices/*/vendor")
    )
    if on_bus:
        reasons.append(
            f"{on_bus} NVIDIA device(s) on the PCI bus, so a driver is missing or hidden from this container"
        )
    return {"gpus": [], "driver": None, "cuda": None, "source": None, "reason": "; ".join(reasons)}


def tpu_facts(root: str = "/") -> dict[str, Any] | None:
    """Google TPU chips of this host: on the PCI bus, else as device files, else named by the environment; None without."""
    version, chips = None, 0
    for path in glob.glob(root + "sys/bus/pci/devices/*/vendor"):
        folder = os.path.dirname(path)
        device = _read(folder + "/device").strip()
        if _read(path).strip() == "0x1ae0" and (device in TPUS or device == "0x0027"):
            chips += 1
            older = "v2" if _read(folder + "/subsystem_device").strip() == "0x004e" else "v3"
            version = TPUS.get(device, older)
    named = os.environ.get("TPU_ACCELERATOR_TYPE") or ("colab" if "COLAB_TPU_ADDR" in os.environ else None)
    files = glob.glob(root + "dev/accel[0-9]*") or (glob.glob(root + "dev/vfio/[0-9]*") if chips or named else [])
    if not chips and not named and not glob.glob(root + "dev/accel[0-9]*"):
        return None
    return {"version": version, "chips": chips or len(files), "device_files": len(files), "type": named}


def amd_facts(root: str = "/") -> list[dict[str, Any]]:
    """AMD GPUs, from the amdgpu driver's files."""
    targets = []
    for path in sorted(glob.glob(root + "sys/class/kfd/kfd/topology/nodes/*/properties")):
        number = re.search(r"^gfx_target_version (\d+)", _read(path), re.MULTILINE)
        if number and int(number.group(1)):  # 90010 is gfx90a: the last two digits are hexadecimal
            value = int(number.group(1))
            targets.append(f"gfx{value // 10000}{value // 100 % 100:x}{value % 100:x}")
    found: list[dict[str, Any]] = []
    for path in sorted(glob.glob(root + "sys/class/drm/card[0-9]*/device/mem_info_vram_total")):
        folder = os.path.dirname(path)
        if _read(folder + "/vendor").strip() != "0x1002":
            continue
        total, used = _read(path).strip(), _read(folder + "/mem_info_vram_used").strip()
        found.append({
            "index": len(found), "name": _read(folder + "/product_name").strip() or "AMD GPU",
            "total_bytes": int(total or 0), "used_bytes": int(used or 0),
            "target": targets[len(found)] if len(found) < len(targets) else None,
            "rocm": _read(root + "opt/rocm/.info/version").strip() or None,
        })  # fmt: skip
    return found


def apple_facts() -> dict[str, Any] | None:
    """Apple silicon: the chip and the memory that its GPU shares; None elsewhere."""
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return None
    said = dict(
        line.split(": ", 1)
        for line in _run(["sysctl", "machdep.cpu.brand_string", "hw.memsize", "hw.ncpu"]).splitlines()
        if ": " in line
    )
    wired = 0  # what the GPU may take, in MiB; 0 is the system's own choice, about three quarters
    with contextlib.suppress(OSError, ValueError, subprocess.TimeoutExpired):
        wired = int(_run(["sysctl", "-n", "iogpu.wired_limit_mb"]))
    cores = None
    with contextlib.suppress(OSError, ValueError, subprocess.TimeoutExpired):
        shown = json.loads(_run(["system_profiler", "-json", "SPDisplaysDataType"]))
        cores = shown["SPDisplaysDataType"][0].get("sppci_cores")
    return {
        "chip": said.get("machdep.cpu.brand_string", "Apple silicon"), "gpu_cores": cores,
        "total_bytes": int(said.get("hw.memsize", 0)), "gpu_limit_bytes": wired * 2**20 or None,
    }  # fmt: skip


def cuda_facts(root: str = "/") -> dict[str, Any]:
    """Where the loader finds CUDA: driver libraries, toolkits, and what LD_LIBRARY_PATH puts before them."""
    listed = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    usual = [
        "usr/local/cuda/compat", "usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib/aarch64-linux-gnu", "usr/lib64-nvidia",
        "usr/lib/wsl/lib",
    ]  # fmt: skip
    found: dict[str, list[str]] = {"libcuda": [], "libcudart": []}
    for folder in listed + [root + path for path in usual]:
        for name, places in found.items():
            if glob.glob(os.path.join(folder, name + ".so*")) and folder not in places:
                places.append(folder)
    kernel = re.search(r"Kernel Module\D*([\d.]+)", _read(root + "proc/driver/nvidia/version"))
    wheels = set()
    for folder in sys.path:
        for path in glob.glob(folder + "/nvidia_cuda_runtime*.dist-info"):
            name, _, version = os.path.basename(path)[: -len(".dist-info")].rpartition("-")
            wheels.add(name.replace("_", "-") + " " + version)
    return {
        **found,
        "toolkits": sorted({os.path.realpath(path) for path in glob.glob(root + "usr/local/cuda-[0-9]*")}),
        "runtime_wheels": sorted(wheels),
        "library_path_with_cuda": [
            f for f in listed if glob.glob(os.path.join(f, "libcud[an]*.so*")) or "cuda" in f.lower()
        ],
        "kernel_module": kernel.group(1) if kernel else None,
    }


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def cgroup_folders(controller: str, root: str = "/sys/fs/cgroup", listing: str = "/proc/self/cgroup") -> Iterator[str]:
    """Folders that may limit this process, its own first; versions 1 and 2. An ancestor's limit holds too."""
    for line in _read(listing).splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        joined = os.path.join(root, names)  # version 1 mounts cpu,cpuacct under that name or under each
        base = joined if os.path.isdir(joined) else os.path.join(root, controller)
        steps = [step for step in path.split("/") if step and step != ".."]
        for end in range(len(steps), -1, -1):
            yield os.path.join(base, *steps[:end])


def cpu_quota(folders: list[str]) -> float | None:
    """CPUs that the cgroup quota grants, or None."""
    quotas = []
    for folder in folders:
        pair = _read(folder + "/cpu.max").split() or [
            _read(folder + "/cpu.cfs_quota_us").strip(), _read(folder + "/cpu.cfs_period_us").strip()
        ]  # fmt: skip
        if pair[0].isdigit() and pair[1].isdigit() and int(pair[1]):  # not "max", not -1
            quotas.append(int(pair[0]) / int(pair[1]))
    return min(quotas) if quotas else None


def memory_limit(folders: list[str]) -> dict[str, int] | None:
    """The cgroup memory limit that leaves least room, with the bytes still free under it, or None."""
    limits = []
    for folder in folders:
        limit = (_read(folder + "/memory.max") or _read(folder + "/memory.limit_in_bytes")).strip()
        if not limit.isdigit() or int(limit) >= 2**60:  # "max"; version 1 writes a huge number instead
            continue
        used = (_read(folder + "/memory.current") or _read(folder + "/memory.usage_in_bytes")).strip()
        cache = re.search(r"^(?:total_)?inactive_file (\d+)", _read(folder + "/memory.stat"), re.MULTILINE)
        held = max(0, int(used or 0) - (int(cache.group(1)) if cache else 0))  # page cache is given back on demand
        limits.append({"limit_bytes": int(limit), "free_bytes": max(0, int(limit) - held)})
    return min(limits, key=lambda one: one["free_bytes"]) if limits else None


def cpu_facts() -> dict[str, Any]:
    text = _read("/proc/cpuinfo")
    found = dict(re.findall(r"^(model name|flags|Features)\s*:\s*(.*)$", text, re.MULTILINE))
    flags = (found.get("flags") or found.get("Features") or "").split()
    cores = set(re.findall(r"^physical id\s*:\s*(\d+)(?:\n.+)*?\ncore id\s*:\s*(\d+)", text, re.MULTILINE))
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "model": found.get("model name") or platform.processor() or platform.machine(),
        "logical": os.cpu_count(), "physical": len(cores) or None, "affinity": affinity,
        "quota": cpu_quota(list(cgroup_folders("cpu"))), "flags": [flag for flag in CPU_FLAGS if flag in flags],
    }  # fmt: skip


def memory_facts() -> dict[str, Any]:
    if platform.system() == "Darwin":
        total = int(_run(["sysctl", "-n", "hw.memsize"]))
        pages = dict(re.findall(r"^Pages (\w+):\s+(\d+)", _run(["vm_stat"]), re.MULTILINE))
        free = (int(pages.get("free", 0)) + int(pages.get("inactive", 0))) * os.sysconf("SC_PAGE_SIZE")
        return {
            "total_bytes": total,
            "available_bytes": free,
            "swap_total_bytes": None,
            "swap_free_bytes": None,
            "cgroup": None,
        }
    rows = {
        name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    }
    return {
        "total_bytes": rows["MemTotal"], "available_bytes": rows.get("MemAvailable", rows.get("MemFree")),
        "swap_total_bytes": rows.get("SwapTotal"), "swap_free_bytes": rows.get("SwapFree"),
        "cgroup": memory_limit(list(cgroup_folders("memory"))),
    }  # fmt: skip


def mounts(listing: str = "/proc/self/mountinfo") -> list[tuple[str, str, str]]:
    """(mount point, file system type, major:minor), longest point first; of two on one point the later covers the earlier."""
    found = []
    for line in _read(listing).splitlines():
        left, _, right = line.partition(" - ")
        if right:
            point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal.group(1), 8)), left.split()[4])
            found.append((point, right.split()[0], left.split()[2]))
    found.reverse()
    return sorted(found, key=lambda mount: -len(mount[0]))


def disk_kind(kind: str | None, device: str | None, root: str = "/") -> str:
    """nvme, ssd, hdd, virtual, network, memory, overlay or unknown: what a file system lies on."""
    if kind and kind.startswith(NETWORK_FS):
        return "network"
    if kind in {"tmpfs", "ramfs"}:
        return "memory"
    folder = os.path.realpath(root + "sys/dev/block/" + str(device))
    if not os.path.isdir(folder):
        return "overlay" if kind in {"overlay", "aufs"} else "unknown"
    if not os.path.exists(folder + "/queue"):  # a partition: the disk is its parent
        folder = os.path.dirname(folder)
    lower = glob.glob(folder + "/slaves/*")  # LVM, RAID, encryption: told by the first disk under it
    folder = os.path.realpath(lower[0]) if lower else folder
    name = os.path.basename(folder)
    if name.startswith("nvme"):
        return "nvme"
    if name.startswith(("vd", "xvd")) or "virtio" in folder:
        return "virtual"  # the host knows what is under it; its rotational flag means nothing
    return {"0": "ssd", "1": "hdd"}.get(_read(folder + "/queue/rotational").strip(), "unknown")


def disk_facts(place: str, path: str) -> dict[str, Any]:
    path = os.path.abspath(os.path.expanduser(path))
    there = path
    # A cache that is not made yet lies on its parent's disk.
    while not os.path.exists(there) and there != os.path.dirname(there):
        there = os.path.dirname(there)
    real, usage = os.path.realpath(there), shutil.disk_usage(there)
    inside = (mount for mount in mounts() if real == mount[0] or real.startswith(mount[0].rstrip("/") + "/"))
    point, kind, device = next(inside, (None, None, None))
    nodes = os.statvfs(there)
    return {
        "place": place, "path": path, "exists": there == path, "mount": point, "fs": kind, "free_bytes": usage.free,
        "total_bytes": usage.total, "network": bool(kind) and str(kind).startswith(NETWORK_FS),
        "memory_backed": kind in {"tmpfs", "ramfs"}, "writable": os.access(there, os.W_OK),
        "kind": disk_kind(kind, device), "device": device,
        "inodes": nodes.f_files or None, "free_inodes": nodes.f_favail if nodes.f_files else None,
    }  # fmt: skip


def _large_file(folders: list[str], device: int, least: int, limit_s: float) -> str | None:
    """The largest regular file of at least `least` bytes below `folders` on that device, as far as the time allows."""
    began, best = time.monotonic(), (least - 1, "")
    for top in folders:
        for folder, below, names in os.walk(os.path.expanduser(top)):
            below[:] = [name for name in below if not os.path.ismount(os.path.join(folder, name))]
            for name in names:
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError):
                    about = os.lstat(path)
                    if about.st_dev == device and about.st_size > best[0] and about.st_mode & 0o170000 == 0o100000:
                        best = (about.st_size, path)
            if time.monotonic() - began > limit_s or best[0] >= 2**28:
                return best[1] or None
    return best[1] or None


def read_speed(place: str, folders: list[str], limit_s: float = READ_S, least: int = 2**24) -> dict[str, Any]:
    """Sequential read of the largest file found below `place` or `folders`, on the disk of `place`.

    Nothing is written. `cache` is "bypassed" (O_DIRECT), or "dropped" when the kernel was asked to forget the file's
    pages first and may not have: then the figure is an upper bound.
    """
    there = os.path.abspath(os.path.expanduser(place))
    while not os.path.exists(there):
        there = os.path.dirname(there)
    path = _large_file([place, *folders], os.stat(there).st_dev, least, limit_s)
    if path is None:
        return {"mb_s": None, "reason": "no file of 16 MiB there to read"}
    block, done, began = mmap.mmap(-1, 2**22), 0, time.monotonic()
    direct = getattr(os, "O_DIRECT", 0)
    try:
        handle, cache = os.open(path, os.O_RDONLY | direct), "bypassed" if direct else "dropped"
        if direct:
            os.preadv(handle, [block], 0)  # some file systems open and then refuse
    except OSError:
        handle, cache = os.open(path, os.O_RDONLY), "dropped"
    try:
        if cache == "dropped" and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.monotonic()
        while time.monotonic() - began < limit_s:
            count = os.preadv(handle, [block], done)
            done += count
            if count < len(block):
                break
        seconds = time.monotonic() - began
    finally:
        os.close(handle)
    return {"mb_s": round(done / max(seconds, 1e-6) / 1e6), "read_mb": round(done / 1e6), "cache": cache}


def _places() -> dict[str, str]:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    return {
        "models (HF_HOME)": home,
        "data (HF_DATASETS_CACHE)": os.environ.get("HF_DATASETS_CACHE") or os.path.join(home, "datasets"),
        "temporary (TMPDIR)": os.environ.get("TMPDIR") or "/tmp",  # noqa: S108 - looked at, not written to
        "working directory": ".",
        "runs (NBKIT_RUNS)": os.environ.get("NBKIT_RUNS") or "runs",
        "shared memory (/dev/shm)": "/dev/shm",  # noqa: S108
    }


def python_facts() -> dict[str, Any]:
    kind = (
        "conda" if os.path.isdir(sys.prefix + "/conda-meta") else "venv" if sys.prefix != sys.base_prefix else "system"
    )
    return {"version": platform.python_version(), "executable": sys.executable, "prefix": sys.prefix, "kind": kind}


def system_facts() -> dict[str, Any]:
    name = re.search(r'^PRETTY_NAME="?([^"\n]*)', _read("/etc/os-release"), re.MULTILINE)
    return {
        "os": name.group(1) if name else platform.system(), "kernel": platform.release(), "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
    }  # fmt: skip


def package_facts() -> dict[str, str | None]:
    found: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def flag_facts() -> dict[str, bool]:
    environment = os.environ
    groups = _read("/proc/1/cgroup")
    return {
        "container": any(map(os.path.exists, ("/.dockerenv", "/run/.containerenv")))
        or "KUBERNETES_SERVICE_HOST" in environment
        or any(word in groups for word in ("docker", "kubepods", "/lxc/")),
        "wsl": "microsoft" in platform.release().lower(),
        "colab": "COLAB_RELEASE_TAG" in environment or "COLAB_GPU" in environment,
        "kaggle": "KAGGLE_KERNEL_RUN_TYPE" in environment,
        "slurm": "SLURM_JOB_ID" in environment,
        "sagemaker": "SM_CURRENT_HOST" in environment or os.path.isdir("/opt/ml/metadata"),
    }  # fmt: skip


def _start(function: Callable[..., Any], *arguments: Any) -> Callable[[float], Any]:
    """Begin `function` in a thread; the call handed back waits for its result, at most so many seconds."""
    result: list[Any] = []
    began = time.monotonic()

    def work() -> None:
        try:
            result.append(function(*arguments))
        except Exception as error:
            result.append({"error": f"{type(error).__name__}: {error}"})

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def wait(limit_s: float) -> Any:
        thread.join(max(0.0, limit_s - (time.monotonic() - began)))
        return result[0] if result else {"error": f"no answer within {limit_s:g} s"}

    return wait


def _hide_home(value: Any, homes: list[str]) -> Any:
    if isinstance(value, str):
        for home in homes:
            value = re.sub(re.escape(home) + r"(?![\w.-])", "~", value)
        return value
    if isinstance(value, dict):
        return {name: _hide_home(item, homes) for name, item in value.items()}
    return [_hide_home(item, homes) for item in value] if isinstance(value, list) else value


def _measured(disks: list[dict[str, Any]]) -> None:
    """Add the read speed to each disk, once a device: of the models' and of the run's place."""
    speeds: dict[Any, Any] = {}
    for disk in disks:
        if "error" in disk or disk["memory_backed"] or disk["device"] is None:
            continue
        if disk["device"] not in speeds:
            speeds[disk["device"]] = _start(read_speed, disk["path"], [sys.prefix])(4 * READ_S)
        disk["read"] = speeds[disk["device"]]


def facts(*, speed: bool = False) -> dict[str, Any]:
    """Everything this probe knows, ready for json.dumps; with `speed` also how fast the disks are read, in a second."""
    began = time.monotonic()
    gpu = _start(gpu_facts)
    parts = {
        "cpu": _start(cpu_facts), "memory": _start(memory_facts), "python": _start(python_facts),
        "system": _start(system_facts), "packages": _start(package_facts), "flags": _start(flag_facts),
        "cuda": _start(cuda_facts),
    }  # fmt: skip
    others = {"tpu": _start(tpu_facts), "amd": _start(amd_facts), "apple": _start(apple_facts)}
    disks = {(place, path): _start(disk_facts, place, path) for place, path in _places().items()}
    found: dict[str, Any] = {name: wait(PART_LIMIT_S) for name, wait in parts.items()}
    found["accelerators"] = {name: wait(2 * PART_LIMIT_S) for name, wait in others.items()}
    found["disks"] = [{"place": place, "path": path, **wait(PART_LIMIT_S)} for (place, path), wait in disks.items()]
    if speed:
        _measured(found["disks"])
    cards = gpu(GPU_LIMIT_S)
    found["gpus"] = cards.get("gpus", [])
    found["gpu_reason"] = cards.get("error") or cards["reason"]
    found["driver"] = {name: cards.get(name) for name in ("driver", "cuda", "source")}
    found["environment"] = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    found["format"] = 2
    found["seconds"] = round(time.monotonic() - began, 3)
    home = os.path.expanduser("~")
    homes = {path for path in (home, os.path.realpath(home)) if len(path) > 1}
    hidden: dict[str, Any] = _hide_home(found, sorted(homes, key=len, reverse=True))
    return hidden


if __name__ == "__main__":
    # nbkit.remote.program puts the request there; by hand: python3 - --read-speed < probe.py
    _asked: dict[str, Any] = globals().get("REQUEST") or {"speed": "--read-speed" in sys.argv}
    print(json.dumps(facts(**_asked)))
