"""Transfers onto file systems that refuse something, or tell nothing: no locks, no blocks, a quota, no look into a folder."""

from __future__ import annotations

import contextlib
import errno
import os

import pytest

from nbkit import remote
from nbkit.errors import TransferError
from tests import refusing
from tests.chaos.transfer import small_disk
from tests.test_remote_transfer_odd import as_nobody, box, put, root_only

__all__ = ["box"]
MIB = 1 << 20
LOCKS = pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=os.strerror)


@pytest.fixture
def refusing_box(server, tmp_path):
    """A box whose Python is refused a system call."""
    refusing.need()

    def connect(call: str, error: int):
        python = refusing.python(tmp_path / "python", call, error)
        return remote.connect("box", config=server.config, python=python)

    return connect


class TestNoLocks:
    @LOCKS
    def test_files_arrive_and_it_is_said(self, refusing_box, tmp_path, error):
        """Lustre without `-o flock`, NFS without a lock service: that nobody is kept away is a note, once."""
        for name in ("1", "2"):
            put(tmp_path / "a" / name, name)
        with refusing_box("flock", error) as box:
            done = remote.push(box, tmp_path / "a", str(tmp_path / "b"))
        assert ("the disk has no file locks: have nothing else write there until this is done",) == done.notes
        assert ["1", "2"] == [(tmp_path / "b" / name).read_text() for name in ("1", "2")]

    def test_another_error_of_locking_is_one(self, refusing_box, tmp_path):
        """It is not taken for a file system that has none."""
        put(tmp_path / "a", "text")
        with (
            refusing_box("flock", errno.EIO) as box,
            pytest.raises(TransferError, match=r"could not write .*Input/output error"),
        ):
            remote.push(box, tmp_path / "a", str(tmp_path / "b"))
        assert not (tmp_path / "b").exists()


class TestQuota:
    def test_that_is_used_up_is_not_a_full_disk(self, refusing_box, tmp_path):
        """Said with what shows the limits; the old file stands."""
        put(tmp_path / "a", "new")
        put(tmp_path / "b", "old")
        with (
            refusing_box("pwrite64", errno.EDQUOT) as box,
            pytest.raises(TransferError, match=r"your quota there is used up: could not write .*/b\.") as caught,
        ):
            remote.push(box, tmp_path / "a", str(tmp_path / "b"))
        assert "quota -s shows the limits" in caught.value.hint
        assert "old" == (tmp_path / "b").read_text()


class TestFsync:
    def test_that_fails_is_no_success(self, refusing_box, tmp_path):
        """Nothing takes its name that is not on the disk."""
        put(tmp_path / "a", "new")
        put(tmp_path / "b", "old")
        with (
            refusing_box("fsync", errno.EIO) as box,
            pytest.raises(TransferError, match=r"could not write .*Input/output error"),
        ):
            remote.push(box, tmp_path / "a", str(tmp_path / "b"))
        assert "old" == (tmp_path / "b").read_text()

    @root_only
    def test_of_a_folder_that_may_not_be_opened(self, tmp_path):
        """A drop box: files may be put there, nobody may look. What is written there is whole all the same."""
        put(tmp_path / "a", "text")
        (tmp_path / "drop").mkdir()
        (tmp_path / "drop").chmod(0o733)
        assert 1 == as_nobody(tmp_path, sources=["a"], dst="drop/b")["files"]
        assert "text" == (tmp_path / "drop/b").read_text()


@root_only
def test_no_inode_for_a_folder(box, tmp_path):
    """It is the first of several that are to be made which does not fit."""
    with small_disk(tmp_path / "disk", 4 * MIB, files=2) as disk:
        put(disk / "file")
        with pytest.raises(TransferError, match=r"the disk takes no more files: could not make .*/x/y"):
            remote.push(box, put(tmp_path / "a"), f"{disk}/x/y/", parents=True)


@root_only
class TestTellsNothing:
    def test_of_its_blocks(self, box, tmp_path):
        """A file system that does not say how large it is takes what it takes."""
        with small_disk(tmp_path / "disk", 0) as disk:
            assert not os.statvfs(disk).f_blocks
            remote.push(box, put(tmp_path / "a"), str(disk / "b"))
            assert "text" == (disk / "b").read_text()

    def test_of_its_inodes(self, box, tmp_path):
        """Some count none: full is full, then."""
        put(tmp_path / "a", "x" * (3 * MIB))
        with small_disk(tmp_path / "disk", 4 * MIB) as disk:
            assert not os.statvfs(disk).f_files

            def fill(_):
                with contextlib.suppress(OSError), (disk / "filler").open("ab", buffering=0) as file:
                    while True:
                        file.write(bytes(MIB))

            with pytest.raises(TransferError, match="the disk is full: could not write"):
                remote.push(box, tmp_path / "a", str(disk / "b"), progress=fill)
