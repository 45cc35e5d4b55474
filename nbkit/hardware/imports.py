"""Import torch and what stands on it in a child process, with a time limit: how far it came, and how it ended.

Like probe.py, this file is also a program that a remote box runs: standard library only, Python 3.8, nothing of nbkit.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import Any

# One JSON line a step, flushed, so that a step that hangs or crashes does not take the earlier ones with it.
_CHILD = """
import importlib.util, json, sys

def tell(**found):
    print("\\n" + json.dumps(found), flush=True)

def four_bit():
    # A 64 x 64 layer, forward and backward: the whole path that QLoRA takes.
    import time, bitsandbytes, torch
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").to(device)
    rows = torch.ones(4, 64, device=device, requires_grad=True)
    began = time.monotonic()
    layer(rows).sum().backward()
    if not bool(torch.isfinite(rows.grad).all()):
        raise ArithmeticError("the gradient through a 4-bit layer is not finite")
    return {"device": device, "seconds": round(time.monotonic() - began, 3)}

for name in ("torch", "bitsandbytes", "four_bit", "torchvision", "flash_attn"):
    if importlib.util.find_spec("bitsandbytes" if name == "four_bit" else name) is None:
        tell(name=name, state="absent")
        continue
    tell(name=name, state="loading")
    try:
        module = None if name == "four_bit" else __import__(name)
        found = {"version": str(getattr(module, "__version__", "unknown"))}
        if name == "four_bit":
            found = four_bit()
        elif name == "torch":
            found["cuda"] = module.version.cuda
            found["hip"] = getattr(module.version, "hip", None)
            found["cuda_available"] = module.cuda.is_available()
            found["architectures"] = module.cuda.get_arch_list()
        elif name == "bitsandbytes":
            # A stand-in that raises on use; without a GPU it is harmless, torch's own operations are used then.
            error = getattr(importlib.import_module("bitsandbytes.cextension").lib, "formatted_error", None)
            found["error"] = error if isinstance(error, str) and sys.modules["torch"].cuda.is_available() else None
    except BaseException as error:
        text = type(error).__name__ + ": " + str(error)
        # Another program has the GPU: that says nothing about bitsandbytes.
        taken = name == "four_bit" and ("out of memory" in text or "busy or unavailable" in text)
        tell(name=name, state="not tried" if taken else "broken", error=text)
    else:
        tell(name=name, state="broken" if found.get("error") else "ok", **found)
"""


def ask(timeout_s: float) -> dict[str, Any]:
    """Run the child in this Python.

    Returns: `steps`, the last JSON line of each by its name, and `ending`, how the child ended.
    """
    # A group of its own: what the child starts must not hold its pipe open after it is ended.
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = child.communicate(timeout=timeout_s)
        code = child.returncode
        ending = f"ended by {signal.Signals(-code).name}" if code < 0 else f"Python exited with code {code}"
    except subprocess.TimeoutExpired:
        ending = f"no answer within {timeout_s:g} s"
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    if ending.startswith("no answer"):
        output, _ = child.communicate()
    steps: dict[str, dict[str, Any]] = {}
    for line in output.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            step = json.loads(line)
            if isinstance(step, dict) and "name" in step:
                steps[step["name"]] = step
    return {"steps": steps, "ending": ending}


if __name__ == "__main__":
    print(json.dumps(ask(**globals()["REQUEST"])))  # put there by nbkit.remote.program
