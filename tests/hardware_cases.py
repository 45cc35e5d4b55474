"""Recorded facts: one healthy machine, and for each of the doctor's rules what makes it ill. Data only.

A case is a name and the facts that differ from HEALTHY, by path: "machine.gpus.0.name". The texts of errors are those
that the libraries print.
"""

from __future__ import annotations

import copy
from typing import Any

GIB = 2**30
MIB = 2**20


def _disk(place: str, path: str, **changes: Any) -> dict[str, Any]:
    told = {
        "place": place, "path": path, "exists": True, "mount": "/", "fs": "ext4", "free_bytes": 600 * GIB,
        "total_bytes": 1000 * GIB, "network": False, "memory_backed": False, "writable": True, "kind": "nvme",
        "device": "259:1", "inodes": 60_000_000, "free_inodes": 50_000_000,
        "read": {"mb_s": 3000, "read_mb": 1200, "cache": "bypassed"},
    }  # fmt: skip
    return {**told, **changes}


def _package(name: str, version: str | None = None, state: str = "ok", error: str | None = None) -> dict[str, Any]:
    return {"name": name, "state": state, "version": version, "error": error}


HEALTHY: dict[str, Any] = {
    "machine": {
        "gpus": [{
            "index": 0, "name": "NVIDIA GeForce RTX 4090", "uuid": "GPU-1", "compute_capability": [8, 9],
            "total_bytes": 24564 * MIB, "free_bytes": 24000 * MIB, "used_bytes": 64 * MIB, "reserved_bytes": 500 * MIB,
            "pcie": {"generation": 1, "max_generation": 4, "width": 16, "max_width": 16}, "mig": False, "throttle": [],
            "processes": [], "clocks": {"sm_mhz": 210, "max_sm_mhz": 3105}, "utilisation": 0, "ecc": False,
            "compute_mode": "default", "display": False, "power": {"now_w": 20.0, "limit_w": 450.0, "default_w": 450.0},
            "celsius": 35,
        }],
        "gpu_reason": None,
        "driver": {"driver": "580.95.05", "cuda": "13.0", "source": "NVML"},
        "environment": {},
        "cpu": {"model": "AMD Ryzen 9", "logical": 32, "physical": 16, "affinity": 32, "quota": None, "flags": ["avx2"]},
        "memory": {"total_bytes": 64 * GIB, "available_bytes": 55 * GIB, "swap_total_bytes": 8 * GIB, "swap_free_bytes": 8 * GIB,
                   "cgroup": None},
        "python": {"version": "3.12.3", "executable": "~/.venv/bin/python", "prefix": "~/.venv", "kind": "venv"},
        "system": {"os": "Ubuntu 24.04", "kernel": "6.8.0", "machine": "x86_64", "libc": "glibc 2.39"},
        "packages": {"torch": "2.13.0+cu128", "torchvision": "0.28.0+cu128", "bitsandbytes": "0.50.2", "flash-attn": None,
                     "transformers": "5.23.0", "trl": "1.16.0", "peft": "0.21.0"},
        "flags": {"container": False, "wsl": False, "colab": False, "kaggle": False, "slurm": False, "sagemaker": False},
        "cuda": {"libcuda": ["/usr/lib/x86_64-linux-gnu"], "libcudart": [], "toolkits": [],
                 "runtime_wheels": ["nvidia-cuda-runtime-cu12 12.8.90"], "library_path_with_cuda": [],
                 "kernel_module": "580.95.05"},
        "accelerators": {"tpu": None, "amd": [], "apple": None},
        "disks": [
            _disk("models (HF_HOME)", "~/.cache/huggingface"),
            _disk("data (HF_DATASETS_CACHE)", "~/.cache/huggingface/datasets"),
            _disk("temporary (TMPDIR)", "/tmp"),
            _disk("working directory", "~/work"),
            _disk("runs (NBKIT_RUNS)", "~/runs"),
            _disk("shared memory (/dev/shm)", "/dev/shm", fs="tmpfs", memory_backed=True, kind="memory", total_bytes=32 * GIB,
                  free_bytes=32 * GIB, read={}),
        ],
    },
    "stack": {
        "driver": "580.95.05", "driver_cuda": "13.0", "gpu_reason": "", "torch": _package("torch", "2.13.0+cu128"),
        "torch_cuda": "12.8", "cuda_available": True,
        "architectures": ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"],
        "bitsandbytes": _package("bitsandbytes", "0.50.2"), "bf16": {"value": True, "reason": "RTX 4090"}, "seconds": 4.0,
        "four_bit": _package("four_bit"), "torchvision": _package("torchvision", "0.28.0+cu128"),
        "flash_attn": _package("flash_attn", state="absent"), "hip": None,
    },
    "wanted": {"dtype": "bfloat16", "attention": "sdpa", "train_batch": 4, "eval_batch": 4, "checkpointing": True,
               "inputs_require_grad": True, "peft": True, "trainable_dtypes": ["float32"], "devices": ["cuda:0"],
               "family": "llama", "disk_gib": 45.0},
    "error": "",
}  # fmt: skip

GPU = "machine.gpus.0"
T4 = {f"{GPU}.name": "Tesla T4", f"{GPU}.compute_capability": [7, 5], "wanted.dtype": None}
V100 = {f"{GPU}.name": "Tesla V100-SXM2-16GB", f"{GPU}.compute_capability": [7, 0], "wanted.dtype": None}
CPU_ONLY = {"machine.gpus": [], "machine.gpu_reason": "NVML counts no GPU", "stack.cuda_available": False,
            "stack.torch_cuda": None, "stack.torch.version": "2.13.0+cpu"}  # fmt: skip
OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.52 GiB of which "
    "1.00 GiB is free. Including non-PyTorch memory, this process has 22.50 GiB memory in use. Of the allocated memory "
)


def broken(name: str, error: str) -> dict[str, Any]:
    return {f"stack.{name}": _package(name, state="broken", error=error)}


# rule -> the facts that show it, several ways where there are several
CASES: dict[str, list[dict[str, Any]]] = {
    "driver-mismatch": [
        {"machine.gpus": [], "machine.gpu_reason": "NVML: Driver/library version mismatch (NVML code 18)"},
        {"machine.cuda.kernel_module": "575.57.08"},
        {"error": "Failed to initialize NVML: Driver/library version mismatch"},
    ],
    "driver-missing": [{"machine.gpus": [], "machine.gpu_reason":
                        "NVML: libnvidia-ml.so.1 not found; 1 NVIDIA device(s) on the PCI bus, so a driver is missing"}],
    "gpu-lost": [{"machine.gpu_reason": "GPU 2: GPU is lost (NVML code 15)"}],
    "cuda-compat": [
        {"machine.cuda.libcuda": ["/usr/local/cuda/compat", "/usr/lib/x86_64-linux-gnu"], "machine.flags.container": True},
        {"error": "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 804: forward compatibility was attempted on "
                  "non supported HW"},
    ],
    "gpus-hidden": [{"machine.environment": {"CUDA_VISIBLE_DEVICES": ""}}],
    "exclusive-mode": [
        {f"{GPU}.compute_mode": "exclusive process"},
        {"error": "torch.AcceleratorError: CUDA error: CUDA-capable device(s) is/are busy or unavailable"},
    ],
    "memory-held": [
        {f"{GPU}.processes": [{"pid": 4242, "bytes": 6 * GIB, "name": "python", "notebook": True}],
         f"{GPU}.free_bytes": 17 * GIB},
        {f"{GPU}.free_bytes": 12 * GIB}, {f"{GPU}.mig": True},
    ],
    "throttled": [
        {f"{GPU}.throttle": ["too hot (hardware)"]}, {f"{GPU}.power.limit_w": 250.0},
        {f"{GPU}.pcie": {"generation": 4, "max_generation": 4, "width": 4, "max_width": 16}},
    ],
    "geforce-40-p2p": [
        {"machine.gpus": [HEALTHY["machine"]["gpus"][0], {**HEALTHY["machine"]["gpus"][0], "index": 1, "uuid": "GPU-2"}]},
        {"error": "NotImplementedError: Using RTX 4000 series doesn't support faster communication broadband via P2P or IB."},
    ],
    "no-bf16": [T4, V100],
    "tpu-no-qlora": [{"machine.accelerators.tpu": {"version": "v5e", "chips": 8, "device_files": 8, "type": None}}],
    "torch-absent": [{"machine.packages.torch": None, "stack": None},
                     {"error": "ModuleNotFoundError: No module named 'torch'"}],
    "torch-import": [broken("torch", "ImportError: libcudart.so.13: cannot open shared object file")],
    "torch-crash": [broken("torch", "ended by SIGSEGV while importing it")],
    "torch-hang": [broken("torch", "no answer within 60 s while importing it")],
    "gpu-too-old": [V100],
    "gpu-too-new": [
        {f"{GPU}.name": "NVIDIA GeForce RTX 5090", f"{GPU}.compute_capability": [12, 0],
         "stack.architectures": ["sm_80", "sm_86", "sm_90"], "stack.torch_cuda": "12.4"},
        {"error": "NVIDIA GeForce RTX 5090 with CUDA capability sm_120 is not compatible with the current PyTorch installation."},
        {"error": "RuntimeError: CUDA error: no kernel image is available for execution on the device"},
    ],
    "driver-too-old": [
        {"machine.driver.cuda": "12.2", "stack.cuda_available": False},
        {"error": "RuntimeError: The NVIDIA driver on your system is too old (found version 11040)."},
    ],
    "torch-cpu-build": [
        {"stack.torch_cuda": None, "stack.cuda_available": False, "stack.torch.version": "2.13.0+cpu"},
        {"error": "AssertionError: Torch not compiled with CUDA enabled"},
    ],
    "torch-sees-no-gpu": [
        {"stack.cuda_available": False},
        {"error": "RuntimeError: No CUDA GPUs are available"},
    ],
    "bitsandbytes-broken": [
        broken("bitsandbytes", "CUDA SETUP ERROR: Could not find the bitsandbytes CUDA binary at libbitsandbytes_cuda139.so"),
        {"machine.environment": {"BNB_CUDA_VERSION": "118"}},
        {"error": "RuntimeError: \n        CUDA Setup failed despite GPU being available."},
    ],
    "bitsandbytes-crash": [broken("bitsandbytes", "ended by SIGSEGV while importing it"),
                           broken("bitsandbytes", "no answer within 60 s while importing it")],
    "bitsandbytes-absent": [
        {"stack.bitsandbytes": _package("bitsandbytes", state="absent"), "machine.packages.bitsandbytes": None}
    ],
    "four-bit-slow": [V100, CPU_ONLY, broken("four_bit", "RuntimeError: kernel not found")],
    "cpu-gradient-trap": [{**CPU_ONLY, "machine.cpu.flags": ["avx2", "avx512f", "avx512_bf16"]}],
    "flash-attention": [
        {**T4, "wanted.attention": "flash_attention_2"},
        broken("flash_attn", "ImportError: flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2E"),
        {**T4, "machine.packages.flash-attn": "2.9.1"},
        {"error": "RuntimeError: FlashAttention only supports Ampere GPUs or newer."},
    ],
    "torchvision-mismatch": [
        {"machine.packages.torchvision": "0.25.0"},
        broken("torchvision", "RuntimeError: operator torchvision::nms does not exist"),
    ],
    "several-cuda-runtimes": [
        {"machine.cuda.runtime_wheels": ["nvidia-cuda-runtime 13.0.48", "nvidia-cuda-runtime-cu12 12.4.127"]}
    ],
    "library-path": [
        {"machine.cuda.library_path_with_cuda": ["/usr/local/cuda-11.8/lib64"]},
        {"error": "ImportError: libcublas.so.12: cannot open shared object file: No such file or directory"},
    ],
    "shm-small": [
        {"machine.disks.5.total_bytes": 64 * MIB},
        {"error": "RuntimeError: DataLoader worker (pid 1177) is killed by signal: Bus error."},
    ],
    "disk-full": [
        {"machine.disks.0.free_bytes": 12 * GIB, "wanted.disk_gib": None},
        {"machine.disks.4.free_bytes": 30 * GIB},
        {"machine.disks.2.free_inodes": 12},
        {"machine.disks.4.writable": False},
        {"error": "OSError: [Errno 28] No space left on device"},
    ],
    "disk-slow": [
        {"machine.disks.0.read": {"mb_s": 90, "read_mb": 36, "cache": "bypassed"}},
        {"machine.disks.0.kind": "network", "machine.disks.0.network": True, "machine.disks.0.fs": "nfs4",
         "machine.disks.0.read": {}},
    ],
    "cache-in-memory": [{"machine.disks.0.memory_backed": True, "machine.disks.0.fs": "tmpfs"}],
    "ram-low": [
        {"machine.memory.available_bytes": 5 * GIB},
        {"machine.memory.cgroup": {"limit_bytes": 4 * GIB, "free_bytes": 3 * GIB}},
        {"error": "Loading checkpoint shards:  50%\nKilled\n"},
    ],
    "container-limit": [{"machine.memory.cgroup": {"limit_bytes": 16 * GIB, "free_bytes": 14 * GIB}}],
    "wsl-libcuda": [
        {"machine.flags.wsl": True},
        {"machine.flags.wsl": True, "machine.cuda.libcuda": ["/usr/lib/x86_64-linux-gnu", "/usr/lib/wsl/lib"]},
        {"error": "OSError: libcuda.so: cannot open shared object file: No such file or directory"},
    ],
    "colab-session": [{"machine.flags.colab": True}],
    "hub-offline": [{"machine.environment": {"HF_HUB_OFFLINE": "1"}}],
    "cache-variable": [{"machine.environment": {"TRANSFORMERS_CACHE": "/data/hf"}}],
    "alloc-conf-name": [
        {"machine.environment": {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}},
        {"machine.environment": {"PYTORCH_CUDA_ALLOC_CONF": "a:1", "PYTORCH_ALLOC_CONF": "b:1"}},
    ],
    "launch-blocking": [{"machine.environment": {"CUDA_LAUNCH_BLOCKING": "1"}}],
    "bf16-asked": [
        {**T4, "wanted.dtype": "bfloat16"},
        {"error": "ValueError: Your setup doesn't support bf16/gpu."},
    ],
    "fp16-trainable": [
        {"wanted.dtype": "float16", "wanted.trainable_dtypes": ["float16"]},
        {"error": "ValueError: Attempting to unscale FP16 gradients."},
    ],
    "fp16-overflow": [{"wanted.dtype": "float16", "wanted.family": "gemma3_text"}],
    "fragmentation": [{"error": OOM + "15.00 GiB is allocated by PyTorch, and 6.10 GiB is reserved by PyTorch but unallocated."}],
    "oom-logits": [{"error": "  File torch/nn/functional.py, in cross_entropy\n" + OOM +
                    "22.00 GiB is allocated by PyTorch, and 100.00 MiB is reserved by PyTorch but unallocated."}],
    "oom-evaluation": [
        {"wanted.eval_batch": 8, "wanted.train_batch": 1},
        {"error": "  File transformers/trainer.py, in evaluation_loop\n" + OOM + "22.00 GiB is allocated by PyTorch"},
    ],
    "offloaded-parts": [{"wanted.devices": ["cuda:0", "cpu"]}],
    "no-input-gradients": [
        {"wanted.inputs_require_grad": False},
        {"error": "RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn"},
    ],
}  # fmt: skip


def facts_of(changes: dict[str, Any]) -> dict[str, Any]:
    """HEALTHY with these facts in place of its own."""
    found = copy.deepcopy(HEALTHY)
    for path, value in changes.items():
        *steps, last = path.split(".")
        place: Any = found
        for step in steps:
            place = place[int(step) if isinstance(place, list) else step]
        place[int(last) if isinstance(place, list) else last] = copy.deepcopy(value)
    return found
