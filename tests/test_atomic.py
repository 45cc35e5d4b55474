"""Files are whole or absent."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time

import pytest

from nbkit import atomic
from nbkit.errors import StorageError


class TestWriteBytes:
    def test_writes_and_makes_parents(self, tmp_path):
        """The content stands under the name, parents included, with nothing beside it."""
        path = atomic.write_bytes(tmp_path / "a" / "b.bin", b"x")
        assert b"x" == path.read_bytes()
        assert ["b.bin"] == os.listdir(path.parent)

    def test_sets_the_mode_under_any_umask(self, tmp_path):
        """A secret is 0600 even when the umask would allow more."""
        old = os.umask(0)
        try:
            path = atomic.write_text(tmp_path / "s", "x", mode=0o600)
        finally:
            os.umask(old)
        assert 0o600 == path.stat().st_mode & 0o777

    def test_a_name_that_cannot_be_a_folder_is_explained(self, tmp_path):
        """A file where a folder is needed gives a StorageError that names the path."""
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match="Could not write"):
            atomic.write_text(tmp_path / "file" / "x", "y")

    def test_json_refuses_nan(self, tmp_path):
        """NaN is not JSON, and a failed write leaves nothing."""
        with pytest.raises(ValueError, match="not JSON compliant"):
            atomic.write_json(tmp_path / "x.json", {"a": float("nan")})
        assert [] == os.listdir(tmp_path)

    def test_full_disk_leaves_the_old_file(self, small_disk):
        """On a real full file system the error says so and the old content stays."""
        path = atomic.write_text(small_disk / "x", "old")
        with pytest.raises(StorageError, match="The disk is full"):
            atomic.write_bytes(path, b"n" * (4 * 2**20))
        assert "old" == path.read_text()
        assert ["x"] == os.listdir(small_disk)


class TestFolder:
    def test_takes_its_name_at_the_end(self, tmp_path):
        """The folder is not there while it is filled, and whole afterwards."""
        with atomic.folder(tmp_path / "out") as staged:
            (staged / "a").write_text("1")
            assert not (tmp_path / "out").exists()
        assert "1" == (tmp_path / "out" / "a").read_text()

    def test_replaces_an_older_one_whole(self, tmp_path):
        """Files of the older folder do not survive."""
        for name in ("a", "b"):
            with atomic.folder(tmp_path / "out") as staged:
                (staged / name).write_text(name)
        assert ["b"] == os.listdir(tmp_path / "out")
        assert ["out"] == os.listdir(tmp_path)

    def test_an_error_leaves_the_older_one(self, tmp_path):
        """A failure inside the block changes nothing and leaves nothing."""
        with atomic.folder(tmp_path / "out") as staged:
            (staged / "a").write_text("old")
        with pytest.raises(RuntimeError), atomic.folder(tmp_path / "out") as staged:  # noqa: PT012
            (staged / "a").write_text("new")
            raise RuntimeError
        assert "old" == (tmp_path / "out" / "a").read_text()
        assert ["out"] == os.listdir(tmp_path)

    def test_a_kill_leaves_nothing_under_the_name(self, tmp_path):
        """SIGKILL in the middle leaves no folder called `out`."""
        code = (
            "import sys, time; from nbkit import atomic\n"
            "with atomic.folder(sys.argv[1]) as staged:\n"
            "    (staged / 'a').write_text('half'); print('ready', flush=True); time.sleep(60)\n"
        )
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert b"ready\n" == process.stdout.readline()
        finally:
            process.kill()
            process.wait(30)
            process.stdout.close()
        assert not (tmp_path / "out").exists()

    def test_private_means_nobody_else(self, tmp_path):
        """Folders 0700 and files 0600 under any umask, in sub-folders too."""
        old = os.umask(0)
        try:
            with atomic.folder(tmp_path / "out", private=True) as staged:
                (staged / "in").mkdir()
                (staged / "in" / "a").write_text("x")
        finally:
            os.umask(old)
        modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "out", tmp_path / "out/in", tmp_path / "out/in/a")]
        assert [0o700, 0o700, 0o600] == modes

    def test_a_replaced_folder_is_never_away(self, tmp_path):
        """While a folder is replaced over and over, a reader always finds one under the name."""
        with atomic.folder(tmp_path / "out") as staged:
            (staged / "a").write_text("0")
        code = (
            "import sys; from nbkit import atomic\n"
            "for n in range(300):\n"
            "    with atomic.folder(sys.argv[1]) as staged: (staged / 'a').write_text(str(n))\n"
        )
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")])
        missing = looked = 0
        try:
            while process.poll() is None:
                looked += 1
                missing += not (tmp_path / "out").exists()
        finally:
            process.kill()
            process.wait(30)
        if not atomic._exchange(tmp_path / "out", tmp_path / "out"):
            pytest.skip("this file system cannot exchange two names")
        assert (0, True) == (missing, looked > 100)


class TestSweep:
    def test_what_a_killed_process_staged_goes(self, tmp_path):
        """A folder and a file staged by a process that was killed are cleared; nothing else is."""
        code = (
            "import os, signal, sys; from nbkit import atomic\n"
            "with atomic.folder(sys.argv[1] + '/out') as staged:\n"
            "    (staged / 'a').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
        (tmp_path / "mine").mkdir()
        (tmp_path / ".part-of-another-program").write_text("new")
        left = [name for name in os.listdir(tmp_path) if ".out." in name]
        assert left == atomic.sweep(tmp_path)
        assert [".part-of-another-program", "mine"] == sorted(os.listdir(tmp_path))

    def test_what_a_live_process_stages_stays(self, tmp_path):
        """A sweep in the middle of a save, by this process or another, takes nothing from it."""
        with atomic.folder(tmp_path / "out") as staged:
            (staged / "a").write_text("1")
            assert [] == atomic.sweep(tmp_path)
        assert "1" == (tmp_path / "out" / "a").read_text()

    def test_an_older_folder_is_put_back(self, tmp_path):
        """Killed between two renames, where names cannot be exchanged: the older folder returns to its name."""
        dead = f".part-{atomic._machine()}-99999999-5.old.x"
        (tmp_path / dead / "out").mkdir(parents=True)
        (tmp_path / dead / "out" / "a").write_text("old")
        assert [dead] == atomic.sweep(tmp_path)
        assert "old" == (tmp_path / "out" / "a").read_text()


def test_sha256_is_that_of_the_content(tmp_path):
    """The digest equals hashlib's over the bytes."""
    (tmp_path / "x").write_bytes(b"nbkit")
    assert hashlib.sha256(b"nbkit").hexdigest() == atomic.sha256(tmp_path / "x")


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 2 MiB; needs root and mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]
    done = subprocess.run(command, capture_output=True, check=False, timeout=30)
    if done.returncode:
        pytest.skip("no right to mount a small file system")
    yield folder
    for _ in range(20):
        if not subprocess.run(["umount", folder], capture_output=True, check=False, timeout=30).returncode:
            break
        time.sleep(0.1)
