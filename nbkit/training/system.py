"""What the machine does while a run goes on: one reading a second, by a thread that no step waits for."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any

import psutil

from nbkit.hardware.parts import GIB
from nbkit.hardware.probe import Nvml, NvmlError, memory_facts

EVERY_S = 1.0


class Sampler:
    """Hands a reading to `write` every second until `stop`.

    A reading: cpu_percent (of this process, 100 a core; data loader workers are not counted), rss_gib, ram_used_gib and
    ram_gib (of the container where it has a limit), and with a GPU gpu_percent, gpu_used_gib and gpu_gib. What cannot be
    read is left out, never 0; the first reading without a GPU says why under `gpu_reason`.
    """

    def __init__(self, write: Callable[[dict[str, Any]], None], every_s: float = EVERY_S) -> None:
        self._write = write
        self._every_s = every_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="system", daemon=True)

    def start(self) -> Sampler:
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread; waits for it at most two seconds (a driver that hangs does not hold up the run)."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _work(self) -> None:
        gpu = Gpu()
        process = psutil.Process()
        process.cpu_percent()  # counts from here
        told = ""
        while not self._end.wait(self._every_s):
            values = machine(process)
            values.update(gpu.read())
            if gpu.reason != told:
                told = gpu.reason
                values["gpu_reason"] = told
            self._write(values)


def machine(process: psutil.Process) -> dict[str, Any]:
    """CPU and main memory; what this system does not tell is left out."""
    found: dict[str, Any] = {"cpu_percent": process.cpu_percent(), "rss_gib": round(process.memory_info().rss / GIB, 3)}
    try:
        memory = memory_facts()
        limit = memory["cgroup"] or {"limit_bytes": memory["total_bytes"], "free_bytes": memory["available_bytes"]}
        total = min(limit["limit_bytes"], memory["total_bytes"])
        used = max(total - limit["free_bytes"], memory["total_bytes"] - memory["available_bytes"])
    except (OSError, KeyError, TypeError):  # no /proc: not Linux
        whole = psutil.virtual_memory()
        total, used = whole.total, whole.total - whole.available
    return {**found, "ram_used_gib": round(min(used, total) / GIB, 3), "ram_gib": round(total / GIB, 3)}


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class Gpu:
    """The GPU that torch calls cuda:0 in this process, by NVML. `reason` says why nothing is read; empty when it is."""

    def __init__(self) -> None:
        self.reason = ""
        self._nvml: Nvml | None = None
        self._device = ctypes.c_void_p()
        try:
            nvml = Nvml()
            nvml.call("nvmlInit_v2")
            self._find(nvml)
        except (OSError, NvmlError, ValueError) as error:
            self.reason = f"no GPU is watched: {error}"
        else:
            self._nvml = nvml

    def _find(self, nvml: Nvml) -> None:
        """Raises: ValueError when CUDA_VISIBLE_DEVICES hides every GPU, or names a slice of one."""
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
        first = "0" if chosen is None else chosen.split(",")[0].strip()
        if first.isdigit():
            nvml.call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(int(first)), ctypes.byref(self._device))
        elif first.startswith("GPU-"):
            nvml.call("nvmlDeviceGetHandleByUUID", first.encode(), ctypes.byref(self._device))
        else:
            raise ValueError(f"CUDA_VISIBLE_DEVICES={chosen!r} names no whole GPU")

    def read(self) -> dict[str, Any]:
        """gpu_percent, gpu_used_gib, gpu_gib; the percentage is left out where the driver does not tell it."""
        if self._nvml is None:
            return {}
        try:
            memory = self._nvml.memory(self._device)
        except NvmlError as error:
            self.reason = f"the GPU cannot be read any more: {error}"
            return {}
        found = {"gpu_used_gib": round(memory["used_bytes"] / GIB, 3), "gpu_gib": round(memory["total_bytes"] / GIB, 3)}
        rates = _Utilization()
        try:
            self._nvml.call("nvmlDeviceGetUtilizationRates", self._device, ctypes.byref(rates))
        except NvmlError as error:
            self.reason = f"the GPU's utilisation is not told: {error}"
            return found
        return {**found, "gpu_percent": int(rates.gpu)}
