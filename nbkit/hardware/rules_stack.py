"""Rules about torch, bitsandbytes and what they load."""

from __future__ import annotations

from nbkit.hardware.facts import Facts, has_kernels, version
from nbkit.hardware.rules import Hit, Rule, seen
from nbkit.hardware.stack import Package

# uv knows PyTorch's own indexes by the name of the CUDA version; `auto` reads the driver.
_WHEELS = "pip install uv && uv pip install --reinstall torch --torch-backend="
_TRAIN = 'pip install "nbkit-llm[train]"'


def _ending(one: Package, kind: str) -> Hit | None:
    """How a package failed to load: it hung, it took the process down, or it said why."""
    error = one.error or ""
    if one.state != "broken":
        return None
    was = (
        "hang"
        if error.startswith("no answer")
        else "crash"
        if error.startswith(("ended by", "Python exited"))
        else "error"
    )
    return seen(f"{one.name} {one.version or ''}".strip() + f": {error}") if was == kind else None


def _torch_error(facts: Facts) -> Hit | None:
    return _ending(facts.stack.torch, "error") if facts.stack else None


def _torch_crash(facts: Facts) -> Hit | None:
    return _ending(facts.stack.torch, "crash") if facts.stack else None


def _torch_hang(facts: Facts) -> Hit | None:
    return _ending(facts.stack.torch, "hang") if facts.stack else None


def _absent(facts: Facts) -> Hit | None:
    machine = facts.machine
    if (
        machine.packages
        and machine.packages.get("torch") is None
        and (facts.stack is None or facts.stack.torch.state == "absent")
    ):
        return seen(f"no torch in {machine.python_path}")
    return None


def _old_gpu(facts: Facts) -> Hit | None:
    return _without_kernels(facts, newest=False)


def _new_gpu(facts: Facts) -> Hit | None:
    return _without_kernels(facts, newest=True)


def _without_kernels(facts: Facts, *, newest: bool) -> Hit | None:
    stack = facts.stack
    if stack is None or not stack.torch_cuda or not stack.architectures:
        return None
    for gpu in facts.gpus:
        level = gpu.compute_capability
        if level and not has_kernels(gpu, stack.architectures) and (level >= (10, 0)) == newest:
            kernels = f"torch {stack.torch.version} for CUDA {stack.torch_cuda} has kernels for: {' '.join(stack.architectures)}"
            return seen(f"{gpu.short_name} is sm_{level[0]}{level[1]}", kernels)
    return None


def _old_driver(facts: Facts) -> Hit | None:
    stack, gpus = facts.stack, facts.machine.gpus
    if stack is None or not gpus or not stack.torch_cuda or stack.cuda_available:
        return None
    driver, built = version(gpus[0].cuda), version(stack.torch_cuda)
    if driver and driver[:2] < built[:2]:
        return seen(
            f"driver {gpus[0].driver} reaches CUDA {gpus[0].cuda}", f"torch is built for CUDA {stack.torch_cuda}"
        )
    return None


def _cpu_build(facts: Facts) -> Hit | None:
    stack = facts.stack
    if stack and facts.gpus and stack.torch.state == "ok" and stack.torch_cuda is None and stack.hip is None:
        return seen(f"torch {stack.torch.version} is a CPU build", f"{facts.gpus[0].short_name} stays unused")
    return None


def _blind(facts: Facts) -> Hit | None:
    stack = facts.stack
    if stack and facts.gpus and stack.torch_cuda and stack.cuda_available is False and _old_driver(facts) is None:
        return seen(f"torch {stack.torch.version} for CUDA {stack.torch_cuda}: cuda.is_available() is False")
    return None


def _bitsandbytes(facts: Facts) -> Hit | None:
    stack = facts.stack
    asked = facts.machine.environment.get("BNB_CUDA_VERSION")
    found = _ending(stack.bitsandbytes, "error") if stack else None
    if found:
        return seen(*found.evidence, *([f"BNB_CUDA_VERSION={asked}"] if asked else []))
    if asked and stack and stack.torch_cuda and asked != stack.torch_cuda.replace(".", ""):
        return seen(f"BNB_CUDA_VERSION={asked}", f"torch is built for CUDA {stack.torch_cuda}", severity="warning")
    return None


def _bitsandbytes_ended(facts: Facts) -> Hit | None:
    if facts.stack is None:
        return None
    return _ending(facts.stack.bitsandbytes, "crash") or _ending(facts.stack.bitsandbytes, "hang")


def _no_bitsandbytes(facts: Facts) -> Hit | None:
    if facts.torch_works() and facts.stack and facts.stack.bitsandbytes.state == "absent":
        return seen("bitsandbytes is not installed")
    return None


def _four_bit(facts: Facts) -> Hit | None:
    stack = facts.stack
    if stack is None or stack.bitsandbytes.state != "ok":
        return None
    if stack.four_bit.state == "broken":
        return seen(f"a 64 x 64 layer, forward and backward: {stack.four_bit.error}", severity="blocker")
    gpu = facts.oldest
    if gpu and (gpu.compute_capability or (9, 9)) < (7, 5):
        return seen(f"{gpu.short_name}: compute capability {gpu.capability} is below 7.5")
    if not facts.gpus:
        return seen("no GPU: bitsandbytes uses its CPU kernels", severity="note")
    return None


def _trap(facts: Facts) -> Hit | None:
    if not facts.gpus and "avx512_bf16" in facts.machine.cpu.flags and facts.machine.packages.get("bitsandbytes"):
        return seen(
            "this CPU has avx512_bf16, and there is no GPU", f"bitsandbytes {facts.machine.packages['bitsandbytes']}"
        )
    return None


def _flash(facts: Facts) -> Hit | None:
    gpu, stack = facts.oldest, facts.stack
    old = gpu is not None and (gpu.compute_capability or (9, 9)) < (8, 0)
    if gpu and old and (facts.wanted.attention or "").startswith("flash"):
        return seen(f"attn_implementation={facts.wanted.attention}", f"{gpu.short_name}: {gpu.capability} is below 8.0",
                    severity="blocker")  # fmt: skip
    if stack and stack.flash_attn.state == "broken":
        return seen(f"flash_attn: {stack.flash_attn.error}")
    if gpu and old and facts.machine.packages.get("flash-attn"):
        return seen(
            f"flash-attn {facts.machine.packages['flash-attn']}", f"{gpu.short_name}: {gpu.capability} is below 8.0"
        )
    return None


def _vision(facts: Facts) -> Hit | None:
    torch, vision = (facts.machine.packages.get(name) for name in ("torch", "torchvision"))
    if facts.stack and facts.stack.torchvision.state == "broken":
        return seen(f"torchvision: {facts.stack.torchvision.error}", f"torch {torch}, torchvision {vision}")
    built, have = version(torch), version(vision)
    if len(built) > 1 and len(have) > 1 and built[0] == 2 and have[0] == 0 and have[1] != built[1] + 15:
        return seen(f"torch {torch} goes with torchvision 0.{built[1] + 15}", f"installed: {vision}")
    return None


def _runtimes(facts: Facts) -> Hit | None:
    wheels = facts.machine.cuda.runtime_wheels
    majors = {version(one.rpartition(" ")[2])[:1] for one in wheels}
    return seen(*wheels) if len(majors) > 1 else None


def _library_path(facts: Facts) -> Hit | None:
    folders = [one for one in facts.machine.cuda.library_path if "compat" not in one and "/wsl/" not in one]
    return seen(*(f"LD_LIBRARY_PATH holds {one}" for one in folders)) if folders and facts.machine.gpus else None


RULES: tuple[Rule, ...] = (
    Rule(
        "torch-absent", 0, "note", ("full", "LoRA", "QLoRA"),
        "Training needs torch, transformers, trl and peft; looking at machines and tunnels does not.",
        _TRAIN, _absent, r"No module named '?torch\b", "packaging",
    ),
    Rule(
        "torch-import", 0, "blocker", ("full", "LoRA", "QLoRA"),
        "torch is installed and cannot be imported: mostly a library that is missing or of another version.",
        "pip install --force-reinstall torch  # with LD_LIBRARY_PATH unset",
        _torch_error, source="child process",
    ),
    Rule(
        "torch-crash", 0, "blocker", ("full", "LoRA", "QLoRA"),
        "Importing torch ends the process: in a notebook the kernel would die without a word.",
        "pip install --force-reinstall torch  # then: python -X faulthandler -c 'import torch'",
        _torch_crash, source="child process",
    ),
    Rule(
        "torch-hang", 0, "blocker", ("full", "LoRA", "QLoRA"),
        "Importing torch does not come back: a network disk, an antivirus, or a driver that does not answer.",
        "python -X importtime -c 'import torch'  # shows where; put the environment on a local disk",
        _torch_hang, source="child process",
    ),
    Rule(
        "gpu-too-old", 1, "blocker", ("GPU",),
        "This torch has no kernels for so old a card: wheels for CUDA 12.8 and newer leave Volta and Pascal out.",
        _WHEELS + "cu126  # the last that has them; on AWS rather leave p3 for g5 or g6",
        _old_gpu, source="pytorch#172352, pytorch#190385, unsloth#5876",
    ),
    Rule(
        "gpu-too-new", 2, "blocker", ("GPU",),
        "This torch is older than the card: it has no kernels for it.",
        _WHEELS + "cu128  # or newer",
        _new_gpu, r"sm_1\d\d is not compatible with the current PyTorch|no kernel image is available", "pytorch#167244",
    ),
    Rule(
        "driver-too-old", 3, "blocker", ("GPU",),
        "torch was built for a newer CUDA than the driver reaches, so it sees no GPU.",
        "update the NVIDIA driver, or take torch for your driver: " + _WHEELS + "cu126",
        _old_driver, r"NVIDIA driver on your system is too old", "pytorch#4546",
    ),
    Rule(
        "torch-cpu-build", 6, "blocker", ("GPU",),
        "There is a GPU, and torch was installed without CUDA.",
        _WHEELS + "cu128", _cpu_build, r"Torch not compiled with CUDA enabled", "pytorch install page",
    ),
    Rule(
        "torch-sees-no-gpu", 0, "blocker", ("GPU",),
        "Driver and torch fit each other, and still torch sees no GPU: a stale process, an environment or a container.",
        "restart the kernel; then: python -c 'import torch; torch.cuda.init()'  # tells the reason",
        _blind, r"CUDA unknown error|No CUDA GPUs are available", "torch source",
    ),
    Rule(
        "bitsandbytes-broken", 7, "blocker", ("QLoRA",),
        "bitsandbytes found no binary for this CUDA: 4-bit weights and 8-bit optimizers raise on first use.",
        "unset BNB_CUDA_VERSION; pip install -U bitsandbytes",
        _bitsandbytes, r"CUDA Setup failed despite|bitsandbytes CUDA binary", "bitsandbytes#966, #1559, #572",
    ),
    Rule(
        "bitsandbytes-crash", 0, "blocker", ("QLoRA",),
        "Importing bitsandbytes ends the process or does not come back: the kernel would go with it.",
        "pip install -U --force-reinstall bitsandbytes  # with LD_LIBRARY_PATH unset",
        _bitsandbytes_ended, source="child process",
    ),
    Rule(
        "bitsandbytes-absent", 0, "warning", ("QLoRA",),
        "Without bitsandbytes there are no 4-bit weights and no 8-bit optimizer.",
        _TRAIN, _no_bitsandbytes, r"requires? (?:the latest version of )?bitsandbytes", "packaging",
    ),
    Rule(
        "four-bit-slow", 8, "warning", ("QLoRA",),
        "4-bit layers work here through slow paths, or do not work: QLoRA saves memory and costs much of the speed.",
        "take LoRA in 16 bit where it fits; on a CPU keep to models of some hundred million parameters",
        _four_bit, source="bitsandbytes diagnostics",
    ),
    Rule(
        "cpu-gradient-trap", 0, "note", ("QLoRA",),
        "On such CPUs bitsandbytes repacks 4-bit weights during an evaluation and then trains with wrong gradients, silently. "
        "nbkit.models.prepare prevents it.",
        "nbkit.models.self_test()  # shows it in a second",
        _trap, source="docs/log.md",
    ),
    Rule(
        "flash-attention", 13, "warning", ("flash attention",),
        "FlashAttention 2 needs Ampere or newer, and a build for exactly this torch.",
        'attn_implementation="sdpa"  # and: pip uninstall -y flash-attn',
        _flash, r"FlashAttention only supports Ampere|flash_attn.*undefined symbol|undefined symbol.*flash",
        "flash-attention#762, ms-swift#1603",
    ),
    Rule(
        "torchvision-mismatch", 0, "warning", ("loading",),
        "torchvision of another torch fails on import, and transformers fails with it, although no image is used.",
        "pip install --force-reinstall torch torchvision  # together, from one index",
        _vision, r"operator torchvision::nms does not exist", "torchvision compatibility table",
    ),
    Rule(
        "several-cuda-runtimes", 0, "warning", ("GPU",),
        "pip installed CUDA runtimes of different major versions into one environment: which is loaded first decides.",
        "make a fresh environment: python -m venv .venv && .venv/bin/" + _TRAIN,
        _runtimes, source="packaging",
    ),
    Rule(
        "library-path", 0, "warning", ("GPU", "QLoRA"),
        "LD_LIBRARY_PATH puts a system CUDA before the one that torch brought: symbols go missing or versions mix.",
        "unset LD_LIBRARY_PATH  # then restart the kernel",
        _library_path, r"undefined symbol: (?:cu|__nv)|libcu\w+\.so[.\d]*: (?:version|cannot open)", "bitsandbytes#572",
    ),
)  # fmt: skip
