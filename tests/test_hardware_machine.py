"""A Machine from the probe's facts: what it shows, what it decides, and the reasons."""

from __future__ import annotations

import importlib
import json
import os
import re

import pytest

import nbkit
from nbkit.hardware import Choice, Machine, probe

facts = importlib.import_module("nbkit.hardware.probe").facts
GIB = 2**30


def gpu(name="Tesla T4", capability=(7, 5), *, index=0, uuid="GPU-aaaa", **changes):
    """A GPU as the probe tells it."""
    told = {
        "index": index, "name": name, "uuid": uuid, "compute_capability": list(capability) if capability else None,
        "total_bytes": 15 * GIB, "free_bytes": 10 * GIB, "used_bytes": 5 * GIB, "reserved_bytes": GIB // 4,
        "pcie": {"generation": 1, "max_generation": 3, "width": 16, "max_width": 16}, "mig": False, "throttle": [],
        "processes": [],
    }  # fmt: skip
    return {**told, **changes}


def machine(*gpus, reason=None, environment=None, **parts):
    """This machine, with these GPUs and parts in place of its own."""
    driver = (
        {"driver": "580.95", "cuda": "13.1", "source": "NVML"} if gpus else dict.fromkeys(("driver", "cuda", "source"))
    )
    given = {"gpus": list(gpus), "gpu_reason": reason, "driver": driver, "environment": environment or {}}
    return Machine.from_facts({**facts(), **given, **parts})


A100 = {"name": "NVIDIA A100-SXM4-40GB", "capability": (8, 0), "uuid": "GPU-a100"}


class TestProbe:
    def test_gives_a_machine_under_all_three_names(self):
        """nbkit.probe and nbkit.hardware.probe are the function, although a module bears that name too."""
        assert nbkit.probe is probe is nbkit.hardware.probe
        assert isinstance(probe(), Machine)

    def test_what_cannot_be_read_is_a_problem_not_a_crash(self):
        """A machine with failed parts is still shown, and names each of them."""
        broken = {"error": "no answer within 1.5 s"}
        found = machine(cpu=broken, memory=broken, system=broken, disks=[{"place": "data", "path": "/x", **broken}])
        assert (
            "cpu: no answer within 1.5 s", "memory: no answer within 1.5 s", "system: no answer within 1.5 s",
            "disk data: no answer within 1.5 s",
        ) == found.problems  # fmt: skip
        assert "Not read: disk data: no answer within 1.5 s" in str(found)


class TestDtype:
    @pytest.mark.parametrize(
        ("gpus", "device", "dtype", "reason"),
        [
            ([gpu()], "cuda", "float16", "T4: compute capability 7.5 has no bf16"),
            (
                [gpu("Tesla V100-SXM2-16GB", (7, 0))],
                "cuda",
                "float16",
                "V100-SXM2-16GB: compute capability 7.0 has no bf16",
            ),
            ([gpu(**A100)], "cuda", "bfloat16", "A100-SXM4-40GB: compute capability 8.0 has bf16"),
            ([gpu(**A100), gpu(index=1)], "cuda", "float16", "T4: compute capability 7.5 has no bf16"),
            ([gpu("NVIDIA GeForce RTX 3090", None)], "cuda", "float16", "RTX 3090: compute capability unknown"),
        ],
    )
    def test_follows_the_compute_capability(self, gpus, device, dtype, reason):
        """bf16 is chosen from compute capability 8.0 on, by the oldest visible GPU, and the reason names it."""
        found = machine(*gpus)
        assert (device, Choice(dtype, reason)) == (found.device, found.dtype)
        assert Choice(dtype == "bfloat16", reason) == found.bf16

    @pytest.mark.parametrize("flag", ["amx_tile", "avx512_bf16"])
    def test_a_cpu_trains_in_float32(self, flag):
        """Without a GPU the choice is float32; a processor with bf16 instructions adds that they are worth measuring."""
        plain, quick = (machine(cpu={**facts()["cpu"], "flags": flags}) for flags in (["avx2"], ["avx2", flag]))
        assert ("cpu", Choice("float32", "no GPU: float32 runs well on every CPU")) == (plain.device, plain.dtype)
        assert not plain.bf16
        doubt = f"; {flag} may make bfloat16 faster, which nbkit.settings measures before training"
        assert plain.dtype.reason + doubt == quick.dtype.reason

    def test_a_choice_is_true_as_its_value_is(self):
        """`if machine.bf16:` means what it says, and the text holds the reason."""
        assert [True, False] == [bool(Choice(value, "why")) for value in (True, False)]
        assert ["no (why)", "float16 (why)"] == [str(Choice(False, "why")), str(Choice("float16", "why"))]


class TestVisible:
    @pytest.mark.parametrize(
        ("chosen", "expected"),
        [
            (None, [True, True]), ("", [False, False]), ("-1", [False, False]), ("1", [False, True]),
            ("0,1", [True, True]), ("0,-1,1", [True, False]), ("GPU-bb", [False, True]), (" 1 , 0", [True, True]),
        ],
    )  # fmt: skip
    def test_follows_cuda_visible_devices(self, chosen, expected):
        """Indices and identifiers choose, and an entry that CUDA does not know ends the list."""
        environment = {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}
        found = machine(gpu(), gpu(**A100, index=1) | {"uuid": "GPU-bbbb"}, environment=environment)
        assert expected == [one.visible for one in found.gpus]

    def test_hidden_gpus_leave_the_cpu(self):
        """A machine whose GPUs are all hidden trains on its processor, and the table says why."""
        found = machine(gpu(), environment={"CUDA_VISIBLE_DEVICES": ""})
        assert "cpu" == found.device
        assert "hidden by CUDA_VISIBLE_DEVICES" in str(found)


class TestMemoryAndCpu:
    def test_a_container_limit_holds(self):
        """What is available is what the container may still take, and the cores are what it may use."""
        memory = {"total_bytes": 64 * GIB, "available_bytes": 60 * GIB, "swap_total_bytes": 0, "swap_free_bytes": 0,
                  "cgroup": {"limit_bytes": 8 * GIB, "free_bytes": 6 * GIB}}  # fmt: skip
        cpu = {"model": "X", "logical": 64, "physical": 32, "affinity": 16, "quota": 1.5, "flags": []}
        found = machine(memory=memory, cpu=cpu)
        assert (64, 6, 8, 1.5) == (
            found.memory.total_gib, found.memory.available_gib, found.memory.limit_gib, found.cpu.usable
        )  # fmt: skip
        row = next(line for line in str(found).splitlines() if line.startswith("RAM"))
        assert ["RAM", "6.0 GiB available of 64.0 GiB", "container limit 8.0 GiB, no swap"] == re.split(r" {2,}", row)
        assert "X, 1.5 of 64 logical cores usable" in str(found)


class TestShow:
    def test_the_table_says_what_a_gpu_is_and_who_holds_it(self):
        """A GPU row tells free and usable memory with units, the driver, a narrow link, throttling and other processes."""
        mine, other = {"pid": os.getpid(), "bytes": GIB}, {"pid": 77, "bytes": 3 * GIB}
        unknown = {"pid": 78, "bytes": None}
        found = machine(gpu(processes=[mine, other, unknown], throttle=["power cap"], mig=True,
                            pcie={"width": 4, "max_width": 16}))  # fmt: skip
        row = next(line for line in str(found).splitlines() if line.startswith("GPU 0"))
        assert "Tesla T4, 10.0 GiB free of 14.8 GiB usable" in row
        for part in ("compute capability 7.5", "driver 580.95 for CUDA 13.1", "PCIe x4 of x16 lanes", "slowed now: power cap",
                     "MIG on", "held by process 77 (3.0 GiB), 78 (? GiB)"):  # fmt: skip
            assert part in row

    def test_no_gpu_gives_the_reason(self):
        """The table of a machine without a GPU says what was looked for and not found."""
        assert "GPU       none" in str(machine(reason="NVML: libnvidia-ml.so.1 not found"))
        assert "NVML: libnvidia-ml.so.1 not found" in machine(reason="NVML: libnvidia-ml.so.1 not found")._repr_html_()

    def test_storage_warns_of_slow_and_false_disks(self):
        """Network disks, memory-backed folders and read-only places are marked."""
        common = {"mount": "/", "free_bytes": 5 * GIB, "total_bytes": 10 * GIB, "network": False, "memory_backed": False,
                  "writable": True, "exists": True}  # fmt: skip
        found = machine(disks=[
            {**common, "place": "models", "path": "~/hf", "fs": "nfs4", "network": True},
            {**common, "place": "shm", "path": "/dev/shm", "fs": "tmpfs", "memory_backed": True, "writable": False},
        ]).storage()  # fmt: skip
        assert ["network disk: loading is slow", "files here eat main memory, not writable"] == [
            row["remark"] for row in found.as_dicts()
        ]
        assert 5.0 == found.as_dicts()[0]["free GiB"]

    def test_versions_are_read_without_importing(self):
        """Named packages are listed in that order; an absent one is told."""
        found = machine(packages={"torch": None, "trl": "1.16.0"}).versions("trl", "torch")
        assert [("trl", "1.16.0"), ("torch", "not installed")] == list(found.rows)

    def test_json_holds_what_was_decided(self):
        """`nbkit check --json` prints attributes and choices, and survives a round trip."""
        found = json.loads(json.dumps(machine(gpu()).as_dict()))
        assert ("cuda", "float16", False) == (found["device"], found["dtype"]["value"], found["bf16"]["value"])
        assert [7, 5] == found["gpus"][0]["compute_capability"]
