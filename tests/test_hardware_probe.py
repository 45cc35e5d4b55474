"""The probe, run as a box runs it: limits, disks, and the whole."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.probed import SOURCE, on_a_box, probe


class TestCgroup:
    def folders(self, folder, controller, text):
        """The cgroup folders for a /proc/self/cgroup of that text, in a tree under `folder`."""
        listing = folder / "listing"
        listing.write_text(text)
        return list(probe.cgroup_folders(controller, str(folder), str(listing)))

    def write(self, folder, **files):
        """Files of one cgroup."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(f"{text}\n")

    def test_version_2_takes_the_tightest_ancestor(self, tmp_path):
        """A limit set on a parent holds for the child; page cache counts as free."""
        self.write(tmp_path / "pod", memory__max=8 * 2**30, memory__current=5 * 2**30, cpu__max="150000 100000",
                   memory__stat=f"anon 1\ninactive_file {2 * 2**30}")  # fmt: skip
        self.write(tmp_path / "pod" / "task", memory__max="max", memory__current=1, cpu__max="max 100000")
        expected = {"limit_bytes": 8 * 2**30, "free_bytes": 5 * 2**30}
        assert expected == probe.memory_limit(self.folders(tmp_path, "memory", "0::/pod/task\n"))
        assert 1.5 == probe.cpu_quota(self.folders(tmp_path, "cpu", "0::/pod/task\n"))

    def test_version_1_reads_its_own_names(self, tmp_path):
        """A folder a controller, cpu with cpuacct; no limit is written as a huge number."""
        text = "4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n"
        self.write(tmp_path / "memory" / "docker" / "a", memory__limit_in_bytes=2**62)
        self.write(tmp_path / "memory", memory__limit_in_bytes=4 * 2**30, memory__usage_in_bytes=3 * 2**30,
                   memory__stat=f"total_inactive_file {2**30}")  # fmt: skip
        self.write(tmp_path / "cpu,cpuacct" / "docker" / "a", cpu__cfs_quota_us=200000, cpu__cfs_period_us=100000)
        expected = {"limit_bytes": 4 * 2**30, "free_bytes": 2 * 2**30}
        assert expected == probe.memory_limit(self.folders(tmp_path, "memory", text))
        assert 2.0 == probe.cpu_quota(self.folders(tmp_path, "cpu", text))

    def test_no_limit_is_none(self, tmp_path):
        """A process without limits has no limit, in either version."""
        self.write(tmp_path / "memory", memory__limit_in_bytes=2**63 - 4096)
        self.write(tmp_path / "cpu", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
        text = "4:memory:/\n3:cpu:/\n0::/\n"
        assert probe.memory_limit(self.folders(tmp_path, "memory", text)) is None
        assert probe.cpu_quota(self.folders(tmp_path, "cpu", text)) is None

    def test_a_path_does_not_leave_the_tree(self, tmp_path):
        """A listing from outside a cgroup namespace (/../..) is read at the root, not above it."""
        root = tmp_path / "root"
        root.mkdir()
        assert [root] == [Path(folder) for folder in self.folders(root, "memory", "0::/../..\n")]


class TestDisks:
    def test_a_folder_not_made_yet_is_judged_by_its_parent(self, tmp_path):
        """A cache that does not exist has the free space of the disk it would be made on."""
        found = probe.disk_facts("models", str(tmp_path / "a" / "b"))
        assert (False, str(tmp_path / "a" / "b")) == (found["exists"], found["path"])
        assert shutil.disk_usage(tmp_path).total == found["total_bytes"]

    def test_shared_memory_is_memory(self):
        """Files in /dev/shm eat main memory, and that is told."""
        if not Path("/dev/shm").is_dir():
            pytest.skip("needs /dev/shm")
        found = probe.disk_facts("shm", "/dev/shm")
        assert ("/dev/shm", "tmpfs", True, False) == tuple(
            found[name] for name in ("mount", "fs", "memory_backed", "network")
        )

    @pytest.mark.parametrize(("kind", "network"), [("nfs4", True), ("fuse.sshfs", True), ("ext4", False), ("9p", True)])
    def test_the_longest_mount_decides(self, tmp_path, monkeypatch, kind, network):
        """A network disk mounted inside a local one is told as such, also when its path holds a space."""
        place = tmp_path / "my data"
        place.mkdir()
        listing = tmp_path / "mountinfo"
        escaped = str(place).replace(" ", r"\040")
        listing.write_text(f"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:50 / {escaped} rw shared:1 - {kind} box:/x rw\n")
        found = probe.mounts(str(listing))
        assert [(str(place), kind, "0:50"), ("/", "ext4", "8:1")] == found
        monkeypatch.setattr(probe, "mounts", lambda: found)
        disk = probe.disk_facts("data", str(place))
        assert (str(place), network) == (disk["mount"], disk["network"])

    @pytest.mark.parametrize(
        ("name", "rotational", "partition", "expected"),
        [("nvme0n1", "0", True, "nvme"), ("sda", "0", True, "ssd"), ("sda", "1", False, "hdd"), ("vda", "1", False, "virtual"),
         ("dm-0", "1", False, "nvme")],
    )  # fmt: skip
    def test_the_kind_of_a_disk_is_the_kernels_word(self, tmp_path, name, rotational, partition, expected):
        """NVMe, SSD and rotating disks are told apart, a partition by its disk, a mapped device by what is under it."""
        disk = tmp_path / "sys/devices/pci0/block" / name
        (disk / "queue").mkdir(parents=True)
        (disk / "queue" / "rotational").write_text(rotational + "\n")
        if name == "dm-0":
            under = tmp_path / "sys/devices/pci0/block/nvme1n1"
            under.mkdir()
            (disk / "slaves").mkdir()
            (disk / "slaves" / "nvme1n1").symlink_to(under)
        leaf = disk / f"{name}p1" if partition else disk
        leaf.mkdir(exist_ok=True)
        (tmp_path / "sys/dev/block").mkdir(parents=True)
        (tmp_path / "sys/dev/block/8:1").symlink_to(leaf)
        assert expected == probe.disk_kind("ext4", "8:1", f"{tmp_path}/")

    def test_what_has_no_disk_is_told_by_its_file_system(self, tmp_path):
        """Network, memory and container file systems are named as such, and nothing is guessed."""
        kinds = [probe.disk_kind(kind, "0:50", f"{tmp_path}/") for kind in ("nfs4", "tmpfs", "overlay", "zfs", None)]
        assert ["network", "memory", "overlay", "unknown", "unknown"] == kinds

    def test_a_disk_is_read_past_the_cache(self, tmp_path):
        """The largest file is read for at most its time; the figure says whether the page cache was in the way."""
        (tmp_path / "model.safetensors").write_bytes(os.urandom(2**20) * 24)
        (tmp_path / "small").write_bytes(b"x")
        found = probe.read_speed(str(tmp_path), [], limit_s=2.0)
        assert found["mb_s"] > 1
        assert 25 >= found["read_mb"] >= 4
        assert found["cache"] in {"bypassed", "dropped"}

    def test_without_a_file_there_is_no_figure(self, tmp_path):
        """An empty cache is not measured, and says so; nothing is written to find out."""
        expected = {"mb_s": None, "reason": "no file of 16 MiB there to read"}
        assert expected == probe.read_speed(str(tmp_path / "not" / "yet"), [], limit_s=0.2)
        assert [] == list(tmp_path.iterdir())

    def test_the_measurement_is_asked_for(self):
        """Only --read-speed reads disks, each device once."""
        done = subprocess.run([sys.executable, "-", "--read-speed"], input=SOURCE, check=True, capture_output=True,
                              text=True, timeout=30)  # fmt: skip
        disks = json.loads(done.stdout)["disks"]
        assert [disk["place"] for disk in disks if not disk["memory_backed"]] == [
            d["place"] for d in disks if "read" in d
        ]
        assert all("read" not in disk for disk in on_a_box()["disks"])


class TestWhole:
    def test_is_quick_complete_and_json(self):
        """Every part is there, none failed, and the whole takes a fraction of a second (20 s on a very busy machine)."""
        began = time.monotonic()
        found = on_a_box(path=os.environ["PATH"])
        assert 20 > time.monotonic() - began
        assert {"cpu", "memory", "python", "system", "packages", "flags", "disks", "gpus", "gpu_reason", "driver",
                "environment", "format", "seconds", "cuda", "accelerators"} == set(found)  # fmt: skip
        assert [] == [name for name, part in found.items() if isinstance(part, dict) and "error" in part]
        assert 6 == len([disk for disk in found["disks"] if disk["total_bytes"] > 0])
        assert found["memory"]["total_bytes"] >= found["memory"]["available_bytes"] > 0
        assert os.cpu_count() == found["cpu"]["logical"]

    def test_the_home_directory_is_not_told(self, tmp_path):
        """Paths under the home directory start with ~, wherever they stand; a longer name beside it stays."""
        home = tmp_path / "ana"
        for name in (home / "hf", tmp_path / "ana2"):
            name.mkdir(parents=True)
        found = on_a_box(HOME=str(home), HF_HOME=str(home / "hf"), TMPDIR=str(tmp_path / "ana2"))
        assert str(home) + "/" not in json.dumps(found)
        paths = [disk["path"] for disk in found["disks"]]
        assert ["~/hf", "~/hf/datasets", str(tmp_path / "ana2")] == paths[:3]

    def test_a_part_that_fails_is_told_and_the_rest_stands(self, monkeypatch):
        """An unreadable part is an error text in its place; the others are as ever."""
        monkeypatch.setattr(probe, "memory_facts", lambda: {}["MemTotal"])
        found = probe.facts()
        assert {"error": "KeyError: 'MemTotal'"} == found["memory"]
        assert found["python"]["version"].startswith("3.")

    def test_a_part_that_hangs_is_given_up(self):
        """A call that does not come back, as on a dead network mount, costs its limit and no more."""
        began = time.monotonic()
        assert {"error": "no answer within 0.2 s"} == probe._start(time.sleep, 20)(0.2)
        assert 5 > time.monotonic() - began

    def test_needs_the_standard_library_only(self):
        """The text that is sent to a box parses as Python 3.8 and imports nothing that has to be installed."""
        tree = ast.parse(SOURCE, feature_version=(3, 8))
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert [] == [name for name in names if name.partition(".")[0] not in sys.stdlib_module_names]
