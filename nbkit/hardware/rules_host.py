"""Rules about the computer around the GPU: memory, disks, shared memory, WSL, Colab, the environment."""

from __future__ import annotations

from nbkit.hardware.facts import Facts, version
from nbkit.hardware.parts import Disk
from nbkit.hardware.rules import Hit, Rule, seen

_SHM_GIB = 1.0  # docker gives 64 MB
_ROOM_GIB = 20.0  # a 7B download alone is 15
_FULL_GIB = 2.0
_SLOW_MB_S = 200.0


def _shm(facts: Facts) -> Hit | None:
    disk = facts.disk("shared")
    if disk and disk.total_gib < _SHM_GIB:
        return seen(f"{disk.path} holds {disk.total_gib * 1024:.0f} MiB")
    return None


def _room(facts: Facts) -> Hit | None:
    evidence: list[str] = []
    blocked = False
    for word in ("models", "data", "temporary", "working", "runs"):
        disk = facts.disk(word)
        if disk is None or disk.memory_backed:
            continue
        need = facts.wanted.disk_gib if word in {"models", "runs"} else None
        least = _ROOM_GIB if word in {"models", "runs"} else 2 * _FULL_GIB
        if need is not None and disk.free_gib < need:
            evidence.append(f"{disk.place}: {disk.free_gib:.1f} GiB free in {disk.path}, the run needs {need:.1f} GiB")
            blocked = True
        elif disk.free_gib < least:
            evidence.append(f"{disk.place}: {disk.free_gib:.1f} GiB free in {disk.path}")
            blocked = blocked or disk.free_gib < _FULL_GIB
        if _no_inodes(disk):
            evidence.append(f"{disk.place}: {disk.free_inodes:,} of {disk.inodes:,} inodes left in {disk.path}")
            blocked = blocked or disk.free_inodes == 0
        if not disk.writable:
            evidence.append(f"{disk.place}: {disk.path} is not writable")
            blocked = True
    return seen(*evidence, severity="blocker" if blocked else "warning") if evidence else None


def _no_inodes(disk: Disk) -> bool:
    return bool(disk.inodes and disk.free_inodes is not None and disk.free_inodes < 0.02 * disk.inodes)


def _slow(facts: Facts) -> Hit | None:
    disk = facts.disk("models")
    if disk is None:
        return None
    if disk.read_mb_s is not None and disk.read_mb_s < _SLOW_MB_S:
        seconds = 15000 / disk.read_mb_s
        return seen(
            f"{disk.path}: {disk.read_mb_s:.0f} MB/s ({disk.read_note})", f"a 15 GB model loads in {seconds:.0f} s"
        )
    if disk.kind in {"network", "hdd"} and disk.read_mb_s is None:
        return seen(f"{disk.path} lies on a {'network disk' if disk.network else 'rotating disk'} ({disk.fs})")
    return None


def _in_memory(facts: Facts) -> Hit | None:
    found = [disk for disk in map(facts.disk, ("models", "data", "runs")) if disk and disk.memory_backed]
    return seen(*(f"{disk.place}: {disk.path} is {disk.fs}" for disk in found)) if found else None


def _ram(facts: Facts) -> Hit | None:
    memory = facts.machine.memory
    if not memory.total_gib or memory.available_gib >= 8:
        return None
    limit = memory.limit_gib
    capped = (
        [f"container limit {limit:.1f} of {memory.total_gib:.1f} GiB"] if limit and limit < memory.total_gib else []
    )
    swap = "no swap" if not memory.swap_gib else f"swap {memory.swap_gib:.1f} GiB"
    severity = "blocker" if memory.available_gib < 2 else None
    return Hit((f"{memory.available_gib:.1f} GiB available", *capped, swap), "blocker" if severity else None)


def _limit(facts: Facts) -> Hit | None:
    memory = facts.machine.memory
    if memory.limit_gib and memory.limit_gib < 0.9 * memory.total_gib and memory.available_gib >= 8:
        return seen(f"container limit {memory.limit_gib:.1f} GiB, the machine has {memory.total_gib:.1f} GiB")
    return None


def _wsl(facts: Facts) -> Hit | None:
    if not facts.machine.flags.get("wsl"):
        return None
    folders = facts.machine.cuda.libcuda
    linux = [one for one in folders if "/wsl/" not in one and "compat" not in one]
    if not any("/wsl/" in one for one in folders):
        return seen("no libcuda.so in /usr/lib/wsl/lib")
    if linux:
        return seen(
            f"a Linux driver inside WSL: {linux[0]}",
            fix="sudo apt-get remove --purge '^nvidia-driver-.*' '^libnvidia-.*'",
        )
    broken = facts.stack is not None and facts.stack.cuda_available is False and facts.stack.torch_cuda is not None
    return seen("torch sees no GPU", f"libcuda.so is in {folders[0]}") if broken and facts.gpus else None


def _colab(facts: Facts) -> Hit | None:
    if not facts.machine.flags.get("colab"):
        return None
    evidence = [f"{gpu.short_name}: {gpu.usable_gib:.1f} GiB usable" for gpu in facts.gpus] or [
        "a runtime without a GPU"
    ]
    evidence.append(f"{facts.machine.memory.available_gib:.0f} GiB of RAM")
    runs = facts.disk("runs")
    kept = runs is not None and "/content/drive" in runs.path
    return seen(*evidence, *([] if kept else ["runs are not on Drive: they end with the session"]))


def _offline(facts: Facts) -> Hit | None:
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    found = [
        f"{name}={value}" for name in names if (value := facts.machine.environment.get(name, "0")) not in {"", "0"}
    ]
    return seen(*found) if found else None


def _old_cache_name(facts: Facts) -> Hit | None:
    place = facts.machine.environment.get("TRANSFORMERS_CACHE")
    return seen(f"TRANSFORMERS_CACHE={place}") if place and "HF_HOME" not in facts.machine.environment else None


def _alloc_conf(facts: Facts) -> Hit | None:
    environment = facts.machine.environment
    old, new = environment.get("PYTORCH_CUDA_ALLOC_CONF"), environment.get("PYTORCH_ALLOC_CONF")
    torch = version(facts.machine.packages.get("torch"))
    if old and new and old != new:
        return seen(f"PYTORCH_CUDA_ALLOC_CONF={old}", f"PYTORCH_ALLOC_CONF={new}", severity="warning")
    return (
        seen(f"PYTORCH_CUDA_ALLOC_CONF={old}", f"torch {facts.machine.packages.get('torch')}")
        if old and torch >= (2, 9)
        else None
    )


def _blocking(facts: Facts) -> Hit | None:
    value = facts.machine.environment.get("CUDA_LAUNCH_BLOCKING", "0")
    return seen(f"CUDA_LAUNCH_BLOCKING={value}") if value not in {"", "0"} and facts.gpus else None


RULES: tuple[Rule, ...] = (
    Rule(
        "shm-small", 14, "warning", ("data workers", "several GPUs"),
        "Data workers and NCCL hand tensors over in /dev/shm; where it is small they end with a bus error.",
        "docker run --shm-size=16g ...  # or --ipc=host; without either: dataloader_num_workers=0 and NCCL_SHM_DISABLE=1",
        _shm, r"killed by signal: Bus error|posix_fallocate failed|out of shared memory",
        "nccl#342, nccl#290, Megatron-LM#878, ultralytics#1238",
    ),
    Rule(
        "disk-full", 16, "warning", ("downloads", "full", "LoRA", "QLoRA"),
        "Model, data cache, checkpoints and merged copies each take room: a 7B LoRA with merge and GGUF about 45 GB.",
        "export HF_HOME=/a/larger/disk/hf  # or make room: hf cache prune; du -xh --max-depth=2 ~/.cache",
        _room, r"No space left on device|Disk quota exceeded", "diffusers#4957, LlamaFactory#275, ms-swift#3551",
    ),
    Rule(
        "disk-slow", 17, "warning", ("loading",),
        "Models load as slowly as their disk is read: 15 GB take about 2 minutes at 130 MB/s, 5 seconds at 3 GB/s.",
        "export HF_HOME=/local/nvme/hf  # a disk of this machine",
        _slow, source="docs/hardware.md",
    ),
    Rule(
        "cache-in-memory", 0, "warning", ("downloads",),
        "These folders lie in main memory: what is downloaded there is taken from RAM, and gone after a restart.",
        "export HF_HOME=$HOME/.cache/huggingface",
        _in_memory, source="tmpfs(5)",
    ),
    Rule(
        "ram-low", 18, "warning", ("loading", "full"),
        "Loading needs the largest shard and about 4 GB beside it; past the limit the kernel ends the process without a word.",
        'from_pretrained(..., device_map={"": 0})  # close other programs; without root, swap cannot be added in a container',
        _ram, r"(?m)^Killed$|signal 9|SIGKILL|DefaultCPUAllocator: not enough memory", "text-generation-webui#440",
    ),
    Rule(
        "container-limit", 0, "note", ("loading",),
        "The container may use less memory than the machine shows: programs that read the machine's size are ended.",
        "docker run --memory=... with more, or count with the limit",
        _limit, source="cgroup documentation",
    ),
    Rule(
        "wsl-libcuda", 19, "blocker", ("GPU",),
        "WSL's driver library comes from Windows and lies in /usr/lib/wsl/lib; a Linux driver inside WSL hides it.",
        "export LD_LIBRARY_PATH=/usr/lib/wsl/lib:$LD_LIBRARY_PATH",
        _wsl, r"libcuda\.so(?:\.1)?: cannot open shared object", "bitsandbytes#17, text-generation-webui#367, ollama#5988",
    ),
    Rule(
        "colab-session", 25, "note", ("full",),
        "A Colab session ends after some hours, with its disk; a T4 offers 14.7 GiB, not 16.",
        "from google.colab import drive; drive.mount('/content/drive')  # then NBKIT_RUNS=/content/drive/MyDrive/runs",
        _colab, source="Colab FAQ",
    ),
    Rule(
        "hub-offline", 0, "note", ("downloads",),
        "The hub's libraries were told to use what is already here: a model or data set that is not, fails.",
        "unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE HF_DATASETS_OFFLINE",
        _offline, r"outgoing traffic has been disabled|OfflineModeIsEnabled", "huggingface_hub documentation",
    ),
    Rule(
        "cache-variable", 0, "note", ("downloads",),
        "TRANSFORMERS_CACHE is no longer read: models go to HF_HOME.",
        "export HF_HOME=...; unset TRANSFORMERS_CACHE",
        _old_cache_name, source="transformers 5 migration guide",
    ),
    Rule(
        "alloc-conf-name", 0, "note", ("full", "LoRA", "QLoRA"),
        "PYTORCH_CUDA_ALLOC_CONF has a new name, PYTORCH_ALLOC_CONF; where both are set and differ, one is ignored.",
        "export PYTORCH_ALLOC_CONF=expandable_segments:True; unset PYTORCH_CUDA_ALLOC_CONF",
        _alloc_conf, source="trl#5207, trl#4237",
    ),
    Rule(
        "launch-blocking", 0, "warning", ("full", "LoRA", "QLoRA"),
        "CUDA_LAUNCH_BLOCKING is for debugging: every kernel waits for the one before, training is much slower.",
        "unset CUDA_LAUNCH_BLOCKING  # then restart the kernel",
        _blocking, source="CUDA programming guide",
    ),
)  # fmt: skip
