"""Rules about the driver and the GPUs themselves."""

from __future__ import annotations

from nbkit.hardware.facts import Facts
from nbkit.hardware.machine import BF16_SINCE
from nbkit.hardware.parts import Gpu, Process
from nbkit.hardware.rules import Hit, Rule, seen

_HELD_GIB = 0.5  # less is a context or a display


def _mismatch(facts: Facts) -> Hit | None:
    machine = facts.machine
    if "Driver/library version mismatch" in machine.gpu_reason:
        return seen(machine.gpu_reason)
    driver = machine.gpus[0].driver if machine.gpus else None
    if driver and machine.cuda.kernel_module and machine.cuda.kernel_module != driver:
        return seen(f"library {driver}", f"loaded kernel module {machine.cuda.kernel_module}")
    return None


def _compat(facts: Facts) -> Hit | None:
    first = facts.machine.cuda.libcuda[:1]
    if not first or "compat" not in first[0] or not facts.gpus:
        return None
    broken = facts.stack is not None and facts.stack.cuda_available is False
    where = f"the loader meets {first[0]} before the driver's own libcuda"
    return seen(where, *(["torch sees no GPU"] if broken else []), severity="blocker" if broken else "warning")


def _hidden(facts: Facts) -> Hit | None:
    machine = facts.machine
    if machine.gpus and not machine.visible_gpus:
        chosen = machine.environment.get("CUDA_VISIBLE_DEVICES", "")
        return seen(f"{len(machine.gpus)} GPUs", f"CUDA_VISIBLE_DEVICES={chosen!r}")
    return None


def _no_driver(facts: Facts) -> Hit | None:
    reason = facts.machine.gpu_reason
    if not facts.machine.gpus and "on the PCI bus" in reason:
        return seen(reason)
    return None


def _lost(facts: Facts) -> Hit | None:
    if "GPU is lost" not in facts.machine.gpu_reason:
        return None
    return seen(facts.machine.gpu_reason, severity="warning" if facts.gpus else "blocker")


def _exclusive(facts: Facts) -> Hit | None:
    found = [gpu for gpu in facts.gpus if gpu.compute_mode != "default"]
    if not found:
        return None
    held = [f"process {one.pid} holds it" for gpu in found for one in _others(facts, gpu)]
    bad = bool(held) or any(gpu.compute_mode == "prohibited" for gpu in found)
    modes = [f"GPU {gpu.index}: {gpu.compute_mode}" for gpu in found]
    return seen(*modes, *held, severity="blocker" if bad else "warning")


def _others(facts: Facts, gpu: Gpu) -> list[Process]:
    return [one for one in gpu.processes if one.pid != facts.own_pid]


def _held(facts: Facts) -> Hit | None:
    evidence = []
    notebook = False
    for gpu in facts.gpus:
        others = [one for one in _others(facts, gpu) if one.gib is None or one.gib >= _HELD_GIB]
        own = sum(one.gib or 0.0 for one in gpu.processes if one.pid == facts.own_pid)
        free = gpu.free_gib
        short = free is not None and gpu.usable_gib - free - own > max(1.0, 0.05 * gpu.usable_gib)
        if others or short:
            room = "" if free is None else f", {free:.1f} of {gpu.usable_gib:.1f} GiB free"
            evidence.append(f"GPU {gpu.index}{room}")
            for one in others:
                kind = "a notebook kernel" if one.notebook else one.name or "unknown program"
                size = "unknown" if one.gib is None else f"{one.gib:.1f} GiB"
                evidence.append(f"process {one.pid} ({kind}): {size}")
            notebook = notebook or any(one.notebook for one in others)
        if gpu.mig:
            evidence.append(f"GPU {gpu.index}: MIG is on, a program gets a slice of the memory")
    if not evidence:
        return None
    fix = "shut the other notebook's kernel down (Kernel > Shut Down), or: nbkit check" if notebook else None
    return seen(*evidence, fix=fix)


def _throttled(facts: Facts) -> Hit | None:
    evidence = []
    for gpu in facts.gpus:
        if gpu.throttle:
            evidence.append(f"GPU {gpu.index}: clocks held down now: {', '.join(gpu.throttle)}")
        limit, usual = gpu.power_limit_w, gpu.power_default_w
        if limit and usual and limit < 0.9 * usual:
            evidence.append(f"GPU {gpu.index}: limited to {limit:.0f} W, its default is {usual:.0f} W")
        if gpu.pcie:
            evidence.append(f"GPU {gpu.index}: {gpu.pcie}: loading and offloading take that much longer")
    return seen(*evidence) if evidence else None


def _p2p(facts: Facts) -> Hit | None:
    cards = [gpu for gpu in facts.gpus if "RTX 40" in gpu.name]
    set_ = {"NCCL_P2P_DISABLE", "NCCL_IB_DISABLE"} & set(facts.machine.environment)
    if len(cards) > 1 and len(set_) < 2:
        return seen(f"{len(cards)} x {cards[0].short_name}", "NCCL_P2P_DISABLE and NCCL_IB_DISABLE are not both set")
    return None


def _no_bf16(facts: Facts) -> Hit | None:
    gpu = facts.oldest
    if gpu is None or (gpu.compute_capability or (0, 0)) >= BF16_SINCE:
        return None
    return seen(
        f"{gpu.short_name}: compute capability {gpu.capability}", "torch.cuda.is_bf16_supported() says True: emulated"
    )


def _tpu(facts: Facts) -> Hit | None:
    tpu = facts.machine.tpu
    return seen(f"{tpu.chips} TPU chips ({tpu.version or tpu.kind})") if tpu else None


RULES: tuple[Rule, ...] = (
    Rule(
        "driver-mismatch", 5, "blocker", ("GPU",),
        "The driver was updated and its kernel module is still the old one: no program can use the GPU.",
        "sudo reboot  # or, with nothing on the GPU: sudo rmmod nvidia_uvm nvidia && sudo modprobe nvidia",
        _mismatch, r"Driver/library version mismatch", "from memory",
    ),
    Rule(
        "driver-missing", 0, "blocker", ("GPU",),
        "There is an NVIDIA card, and no driver that answers: it is not installed, or hidden from this container.",
        "install the driver, or start the container with: docker run --gpus all ...",
        _no_driver, r"Found no NVIDIA driver on your system", "NVML documentation",
    ),
    Rule(
        "gpu-lost", 0, "blocker", ("GPU",),
        "A GPU fell off the bus: heat, power or hardware.",
        "sudo dmesg | grep -i xid  # then reboot; if it comes back, have the card looked at",
        _lost, r"GPU is lost|fallen off the bus", "NVML documentation",
    ),
    Rule(
        "cuda-compat", 4, "warning", ("GPU",),
        "A forward-compatibility libcuda lies before the driver's own. It serves datacentre cards only: elsewhere CUDA "
        "fails with error 804 although nvidia-smi is fine.",
        "sudo apt-get remove 'cuda-compat-*'  # or take its folder out of LD_LIBRARY_PATH; then restart the container",
        _compat, r"Error 804|forward compatibility was attempted", "pytorch#40671, nvidia-docker#1515",
    ),
    Rule(
        "gpus-hidden", 0, "warning", ("GPU",),
        "CUDA_VISIBLE_DEVICES hides every GPU from programs started here.",
        "unset CUDA_VISIBLE_DEVICES  # then restart the kernel",
        _hidden, source="CUDA programming guide",
    ),
    Rule(
        "exclusive-mode", 0, "warning", ("GPU", "several GPUs"),
        "In exclusive mode one process at a time gets the GPU: a second kernel, or the doctor's own child, fails.",
        "sudo nvidia-smi -c DEFAULT",
        _exclusive, r"busy or unavailable", "nvidia-smi manual",
    ),
    Rule(
        "memory-held", 23, "warning", ("full", "LoRA", "QLoRA"),
        "Others hold memory on the GPU before the run begins; in Jupyter mostly another notebook's kernel.",
        "look at them with nvidia-smi, end those that are yours: kill PID",
        _held, source="from memory",
    ),
    Rule(
        "throttled", 24, "warning", ("full", "LoRA", "QLoRA"),
        "The card runs slower than it could: heat, a power limit, or a narrow PCIe link.",
        "nvidia-smi -q -d PERFORMANCE,CLOCK,POWER  # power: sudo nvidia-smi -pl WATTS; link: reseat the card",
        _throttled, source="NVML documentation",
    ),
    Rule(
        "geforce-40-p2p", 15, "warning", ("several GPUs",),
        "GeForce 40 cards have no peer-to-peer access: NCCL stops with an error, or hangs in the first all_reduce.",
        "export NCCL_P2P_DISABLE=1 NCCL_IB_DISABLE=1  # or start with: accelerate launch",
        _p2p, r"RTX 40\d\d series doesn.t support faster communication", "Qwen-VL#447, nccl-tests#117, accelerate#2328",
    ),
    Rule(
        "no-bf16", 9, "warning", ("bf16",),
        "This GPU has no bf16 arithmetic. torch emulates it and says it is supported: training crawls or overflows.",
        "SFTConfig(fp16=True, bf16=False) and dtype=torch.float16  # nbkit.settings(model) chooses so",
        _no_bf16, source="Soup#387, torch source",
    ),
    Rule(
        "tpu-no-qlora", 0, "note", ("QLoRA",),
        "bitsandbytes has no kernels for TPUs, and torch-xla's last release is far behind torch.",
        "on a TPU: LoRA or full fine-tuning through JAX; for QLoRA take a GPU runtime",
        _tpu, source="docs/hardware.md",
    ),
)  # fmt: skip
