"""Transfers of trees that are not all files: what is left out, cannot be read, stands in the way, or was not asked for."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nbkit import remote
from nbkit.errors import TransferError
from nbkit.remote.there import frames
from nbkit.remote.there.place import check
from nbkit.remote.there.receive import Receiver
from nbkit.remote.there.send import Sender
from nbkit.remote.there.tree import Entry
from tests import boxes
from tests.chaos.transfer import small_disk
from tests.waiting import until

DOWN = pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
root_only = pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")


box = boxes.box


def put(path: Path, text: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def deep(top: Path, levels: int = 17) -> None:
    """Folders in folders, until a path to the innermost is longer than the system takes."""
    top.mkdir()
    handle = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d" * 250, dir_fd=handle)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=handle))
    os.close(handle)


def both_ends(request: dict, sends: list[str] | None = None) -> dict:
    """A transfer within this process, as whoever it is, of what was asked for or of what the sender chooses; the receiver's
    word."""
    ours, theirs = socket.socketpair()
    request = {
        "links": "copy", "contents": False, "many": False, "parents": True, "check": False, "dry_run": False,
        "delete": False, **request,
    }  # fmt: skip
    sender = Sender(frames.Frames(ours.recv_into, ours.sendall), {**request, "sources": sends or request["sources"]})

    def send():
        with ours, contextlib.suppress(*([EOFError, OSError] if sends else [])):
            sender.run()

    thread = threading.Thread(target=send)
    thread.start()
    with theirs:
        done = Receiver(frames.Frames(theirs.recv_into, theirs.sendall), request).run()
    thread.join(10)
    return done


def as_nobody(folder: Path, **request) -> dict:
    """The same as a user who may not do everything, with `folder` to work in."""
    folder.chmod(0o777)
    program = (
        "import json, os, sys\n"
        "from tests.test_remote_transfer_odd import both_ends\n"
        "import glob, fnmatch, shutil, concurrent.futures.thread, encodings.idna\n"
        f"os.chdir({str(folder)!r}); os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"print(json.dumps(both_ends({request!r})))\n"
    )
    here = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=here, capture_output=True, text=True, timeout=60, check=False
    )
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


class TestDelete:
    @DOWN
    @pytest.mark.parametrize("dry_run", [True, False], ids=["dry", "wet"])
    def test_spares_what_the_source_has_and_does_not_send(self, box, tmp_path, down, dry_run):
        """A link out of the tree is left out; what stands there under its name is not deleted for that. Nor is the beginning of
        a file that is to come."""
        put(tmp_path / "a/file")
        (tmp_path / "a/data").symlink_to("/mnt/large")
        os.mkfifo(tmp_path / "a/pipe")
        for name in ("data/100GB", "pipe", "old", ".big.nbkit-part"):
            put(tmp_path / "b" / name)
        done = remote.sync(box, tmp_path / "a", tmp_path / "b", down=down, delete=True, dry_run=dry_run)
        assert ("old",) == done.deleted
        assert (tmp_path / "b/data/100GB").exists()
        assert (tmp_path / "b/.big.nbkit-part").exists()

    @DOWN
    def test_spares_everything_where_something_cannot_be_read(self, box, tmp_path, down):
        """Here a path that is too long for the system: the rest goes over, it is said, and nothing is deleted."""
        source = tmp_path / "a-longer-name-than-that-of-the-other"
        deep(source)
        put(source / "file")
        put(tmp_path / "b/old")
        done = remote.sync(box, source, tmp_path / "b", down=down, delete=True, dry_run=True)
        assert ((), True) == (done.deleted, "cannot be read: File name too long" in done.notes[0])
        with pytest.raises(TransferError, match=r"cannot be read: File name too long. What could be sent is over") as e:
            remote.sync(box, source, tmp_path / "b", down=down, delete=True)
        assert "is it yours to read?" == e.value.hint
        assert (tmp_path / "b/file").exists()
        assert (tmp_path / "b/old").exists()

    @DOWN
    @pytest.mark.parametrize("there", ["file", "folder", "link", "pipe"])
    @pytest.mark.parametrize("here", ["file", "folder", "link"])
    def test_of_what_is_of_another_kind(self, box, tmp_path, down, here, there):
        """A file where a folder is to go, and the reverse, is refused; with `delete` it is replaced, and named."""
        put(tmp_path / "elsewhere/keep")
        make = {
            "file": lambda at: put(at, at.parent.name),
            "folder": lambda at: put(at / "in", at.parent.name),
            "link": lambda at: at.symlink_to("../elsewhere" if at.parent.name == "b" else "other"),
            "pipe": os.mkfifo,
        }
        for folder, kind in (("a", here), ("b", there)):
            (tmp_path / folder).mkdir()
            make[kind](tmp_path / folder / "x")
        put(tmp_path / "a/other")
        source, dst, x = tmp_path / "a", tmp_path / "b", tmp_path / "b/x"
        replaced = (here == "folder") != (there == "folder") or there == "pipe"
        if replaced:
            shown = "device, pipe or socket" if there == "pipe" else there
            with pytest.raises(TransferError, match=f"b/x is a {shown}, and a {here} was to go there") as caught:
                remote.sync(box, source, dst, down=down)
            assert "--delete" in caught.value.hint or "what it leads to" in caught.value.hint
            assert not (dst / "other").exists()
        told = remote.sync(box, source, dst, down=down, delete=True, dry_run=True)
        done = remote.sync(box, source, dst, down=down, delete=True)
        assert (("x",) if replaced else ()) == told.deleted == done.deleted
        assert {"file": stat.S_ISREG, "folder": stat.S_ISDIR, "link": stat.S_ISLNK}[here](x.lstat().st_mode)
        assert here != "folder" or (x / "in").read_text() == "a"
        assert (tmp_path / "elsewhere/keep").exists()


class TestLeftOut:
    def test_what_says_that_it_is_empty_and_is_not(self, box, tmp_path):
        """A file of /proc would arrive empty, with the sha256 of nothing."""
        with pytest.raises(TransferError, match="says that it is empty and is not"):
            remote.pull(box, "/proc/cpuinfo", tmp_path)
        assert [] == list(tmp_path.iterdir())

    def test_a_pipe_in_the_place_of_a_file(self, box, tmp_path):
        """A file that became a pipe since it was looked at is not waited for."""
        put(tmp_path / "a/1", "x" * (4 << 20))
        put(tmp_path / "a/2")

        def change(now):
            if (tmp_path / "a/2").is_file():
                (tmp_path / "a/2").unlink()
                os.mkfifo(tmp_path / "a/2")

        with pytest.raises(TransferError, match="b/2: changed while"):
            remote.push(box, tmp_path / "a", str(tmp_path / "b"), progress=change)

    @DOWN
    def test_what_leads_nowhere_or_is_unfinished(self, box, tmp_path, down):
        """Links that are followed and lead nowhere, or to each other; what a transfer was cut off at: notes, no failure."""
        put(tmp_path / "a/file")
        put(tmp_path / "a/.big.nbkit-part")
        for name, target in (("gone", "nothing"), ("one", "two"), ("two", "one")):
            (tmp_path / "a" / name).symlink_to(target)
        put(tmp_path / "b/gone")
        done = remote.sync(box, tmp_path / "a", tmp_path / "b", down=down, links="follow", delete=True)
        assert [
            ".big.nbkit-part is an unfinished file of a transfer: left out",
            "gone cannot be read (No such file or directory): left out",
            "one cannot be read (Too many levels of symbolic links): left out",
            "two cannot be read (Too many levels of symbolic links): left out",
        ] == list(done.notes)
        assert ["file", "gone"] == sorted(path.name for path in (tmp_path / "b").iterdir())

    @DOWN
    def test_more_notes_than_a_frame_holds(self, box, tmp_path, down):
        """All links of a folder with many that lead elsewhere are told, there and back."""
        (tmp_path / "a").mkdir()
        for number in range(8000):
            (tmp_path / f"a/{number:0200}").symlink_to("/" + "elsewhere/" * 40)
        done = remote.sync(box, tmp_path / "a", tmp_path / "b", down=down)
        assert 8000 == len(done.notes)
        assert sum(map(len, done.notes)) > 4 << 20

    @root_only
    def test_a_folder_of_somebody_else(self, tmp_path):
        """lost+found stops nobody: the rest goes over, and it is told."""
        put(tmp_path / "a/file")
        put(tmp_path / "a/lost+found/x").parent.chmod(0o700)
        done = as_nobody(tmp_path, sources=["a"], dst="b")
        assert [["a/lost+found", "cannot be read: Permission denied", "is it yours to read?"]] == done["failed"]
        assert (tmp_path / "b/file").exists()


class TestInto:
    @root_only
    def test_folders_that_are_read_only(self, tmp_path):
        """A tree with such folders arrives, and arrives again when it changed; they are read-only afterwards."""
        put(tmp_path / "a/in/file").parent.chmod(0o555)
        for text, own in (("one", 0), ("another", 0o2000)):
            put(tmp_path / "a/in/file", text)
            if own:  # its group's, since
                (tmp_path / "b/in").chmod(0o555 | own)
            assert 1 == as_nobody(tmp_path, sources=["a"], dst="b", contents=True)["files"]
            assert text == (tmp_path / "b/in/file").read_text()
            assert oct(0o555 | own) == oct(stat.S_IMODE((tmp_path / "b/in").stat().st_mode))

    @root_only
    def test_a_folder_of_somebody_else(self, tmp_path):
        """In a folder that a group shares files are written; that its mode and time cannot be set is a note."""
        put(tmp_path / "a/in/file")
        (tmp_path / "b/in").mkdir(parents=True)
        (tmp_path / "b/in").chmod(0o777)
        done = as_nobody(tmp_path, sources=["a"], dst="b", contents=True)
        assert (1, ["b/in is somebody else's: its mode and time stay as they are"]) == (done["files"], done["notes"])

    @root_only
    @pytest.mark.parametrize("name", ["x", "old"], ids=["in the way", "too much"])
    def test_what_is_to_be_deleted_and_somebody_elses(self, tmp_path, name):
        """A folder that cannot be deleted, for what is in it is not ours, is named."""
        put(tmp_path / "a/x")
        put(tmp_path / "b" / name / "in")
        (tmp_path / "b").chmod(0o777)
        with pytest.raises(AssertionError, match=rf"StoppedError: no permission to write b/{name} "):
            as_nobody(tmp_path, sources=["a"], dst="b", contents=True, delete=True)
        assert (tmp_path / "b" / name / "in").exists()

    @root_only
    def test_a_folder_that_somebody_else_keeps(self, tmp_path):
        """Where nothing may be written the file says so, and the others go over."""
        put(tmp_path / "a/in/file")
        put(tmp_path / "a/other")
        (tmp_path / "b/in").mkdir(parents=True)
        (tmp_path / "b").chmod(0o777)
        done = as_nobody(tmp_path, sources=["a"], dst="b", contents=True)
        (failed,) = done["failed"]
        assert ["", "no permission to write b/in/file (Permission denied)", "choose a folder that is yours"] == failed
        assert (tmp_path / "b/other").exists()

    @pytest.mark.parametrize(("there", "after"), [(0o2755, 0o2755), (0o2770, 0o2755), (0o3577, 0o3755)])
    def test_the_folder_of_a_group_stays_one(self, box, tmp_path, there, after):
        """Its mode is the source's; what gives its group to new files, and keeps others from deleting them, is its own."""
        put(tmp_path / "a/in/file").parent.chmod(0o755)
        (tmp_path / "b/in").mkdir(parents=True)
        (tmp_path / "b/in").chmod(there)
        remote.sync(box, tmp_path / "a", tmp_path / "b")
        assert oct(after) == oct(stat.S_IMODE((tmp_path / "b/in").stat().st_mode))

    @pytest.mark.parametrize("link", [False, True])
    def test_a_pipe_is_not_replaced(self, box, tmp_path, link):
        """Nor is /dev/null, or /dev/stdout, which is a link to what is no file."""
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "link").symlink_to("pipe")
        with pytest.raises(TransferError, match="is neither a file nor a folder"):
            remote.push(box, put(tmp_path / "a"), str(tmp_path / ("link" if link else "pipe")))
        assert (tmp_path / "pipe").is_fifo()
        assert (tmp_path / "link").is_symlink()


class TestNewName:
    @pytest.mark.parametrize("way", ["push", "pull"])
    def test_of_a_folder_goes_on_under_it(self, box, tmp_path, way):
        """Cut off, or refused in part, a folder stands there half: the same command fills it, and makes none below it."""
        source, dst = tmp_path / "a", tmp_path / "b"
        put(source / "1", "x" * (3 << 20))
        put(source / "2")

        class CutError(Exception):
            pass

        def move(**options):
            if way == "push":
                return remote.push(box, source, str(dst), **options)
            return remote.pull(box, str(source), dst, **options)

        def cut(_):
            raise CutError

        with pytest.raises(CutError):
            move(progress=cut)
        until(lambda: dst.exists() and not (dst / "1").exists(), "a beginning")
        assert ("b/1", "b/2") == move(dry_run=True).names
        move()
        assert ["1", "2"] == sorted(path.name for path in dst.iterdir())
        assert source.stat().st_mtime_ns == dst.stat().st_mtime_ns
        move()
        assert ["1", "2", "a"] == sorted(path.name for path in dst.iterdir())

    def test_goes_on_where_a_file_failed(self, box, tmp_path):
        """One that changed while it was sent: the folder is not whole, and the same command makes it so."""
        put(tmp_path / "a/1", "x" * (4 << 20))
        put(tmp_path / "a/2")

        def change(_):
            put(tmp_path / "a/2", "longer than it was")

        with pytest.raises(TransferError, match="b/2: changed while"):
            remote.push(box, tmp_path / "a", str(tmp_path / "b"), progress=change)
        remote.push(box, tmp_path / "a", str(tmp_path / "b"))
        assert ["1", "2"] == sorted(path.name for path in (tmp_path / "b").iterdir())

    def test_a_folder_that_is_named_as_one_is_gone_into(self, box, tmp_path, monkeypatch):
        """With a slash behind it, for several sources, or as `.`, it is what they go into, whatever was cut off in it."""
        put(tmp_path / "a/x")
        put(tmp_path / "z/x")
        put(tmp_path / "b/.nbkit-part", "a")
        for sources, dst in ((tmp_path / "a", f"{tmp_path}/b/"), ([tmp_path / "a", tmp_path / "z"], f"{tmp_path}/b")):
            remote.push(box, sources, dst)
            assert (tmp_path / "b/a/x").exists()
        assert (tmp_path / "b/z/x").exists()
        put(tmp_path / "c/.nbkit-part", "a")
        monkeypatch.chdir(tmp_path / "c")
        remote.pull(box, str(tmp_path / "a"), ".")
        assert (tmp_path / "c/a/x").exists()

    def test_that_cannot_be_marked(self, box, tmp_path):
        """What says whose beginning it is has become a link: it is not written through."""
        put(tmp_path / "a/x")
        put(tmp_path / "kept", "a")
        (tmp_path / "b").mkdir()
        (tmp_path / "b/.nbkit-part").symlink_to("../kept")
        with pytest.raises(TransferError, match=r"could not write .*b/\.nbkit-part: Too many levels of symbolic links"):
            remote.push(box, tmp_path / "a", str(tmp_path / "b"))
        assert "a" == (tmp_path / "kept").read_text()

    def test_of_another_is_not_taken_for_it(self, box, tmp_path):
        """What was cut off is gone on with by the same source alone."""
        put(tmp_path / "b/.nbkit-part", "a")
        put(tmp_path / "other/x")
        remote.push(box, tmp_path / "other", str(tmp_path / "b"))
        assert (tmp_path / "b/other/x").exists()


class TestPatterns:
    def test_stand_for_what_they_match(self, box, tmp_path):
        """As with scp: in the folder there, without names that begin with a dot; one match may get a new name."""
        for name in ("a/1.log", "a/2.log", "b/3.log", "a/.4.log", "a/no"):
            put(tmp_path / "there" / name)
        (tmp_path / "here").mkdir()
        remote.pull(box, f"{tmp_path}/there/*/*.log", tmp_path / "here")
        assert ["1.log", "2.log", "3.log"] == sorted(path.name for path in (tmp_path / "here").iterdir())
        remote.pull(box, f"{tmp_path}/there/b/?.log", tmp_path / "new")
        assert (tmp_path / "new").is_file()
        with pytest.raises(TransferError, match=r"There is no folder .*/none"):
            remote.pull(box, f"{tmp_path}/there/a/*.log", tmp_path / "none")

    def test_nothing_matches(self, box, tmp_path):
        """Said as that."""
        with pytest.raises(TransferError, match=r"nothing matches .*\*\.jsonl"):
            remote.pull(box, f"{tmp_path}/*.jsonl", tmp_path)

    def test_sync_fills_in_none(self, box, tmp_path):
        """What it deletes is too much for a guess at what was meant."""
        put(tmp_path / "there/a1/x")
        with pytest.raises(TransferError, match=r"cannot read .*/a\*: No such file"):
            remote.sync(box, f"{tmp_path}/there/a*", tmp_path / "b", down=True, delete=True)

    def test_a_name_goes_before(self, box, tmp_path):
        """A file that is called so is that file."""
        put(tmp_path / "a/[1].log", "brackets")
        put(tmp_path / "a/1.log")
        remote.pull(box, f"{tmp_path}/a/[1].log", tmp_path / "b")
        assert "brackets" == (tmp_path / "b").read_text()


class TestAskedFor:
    @pytest.mark.parametrize(
        ("sources", "name", "good"),
        [
            ([b"data.txt"], b"data.txt", True),
            ([b"data.txt"], b".bashrc", False),
            ([b"runs/"], b"runs", True),
            ([b"*.txt"], b"a.txt", True),
            ([b"*"], b".bashrc", False),
            ([b".*"], b".bashrc", True),
            ([b"."], b"any", True),
            ([b"~"], b"ana", True),
            ([b"~/data"], b"ana", False),
        ],
    )
    def test_a_name_that_was_not_is_refused(self, sources, name, good):
        """A box that is asked for one file cannot send another beside it."""
        entries = [Entry(name, "file", 1, 0o644, 0, b"")]
        with contextlib.nullcontext() if good else pytest.raises(frames.StoppedError, match="was not asked for"):
            check(entries, contents=False, sources=sources)

    def test_is_what_the_receiver_asked_for(self, tmp_path):
        """Whatever the other side was told to send."""
        put(tmp_path / ".bashrc")
        (tmp_path / "in").mkdir()
        with pytest.raises(frames.StoppedError, match=r"\.bashrc was not asked for: refused"):
            both_ends({"sources": ["data.txt"], "dst": str(tmp_path / "in")}, sends=[str(tmp_path / ".bashrc")])
        assert [] == list((tmp_path / "in").iterdir())

    def test_one_name_for_each_source(self):
        """What `.` is called only the box knows; that is one name."""
        entries = [Entry(name, "file", 1, 0o644, 0, b"") for name in (b"home", b"more")]
        with pytest.raises(frames.StoppedError, match="more was not asked for"):
            check(entries, contents=False, sources=[b"."])

    def test_the_same_file_twice(self, box, tmp_path):
        """Goes over once; two of one name are refused, as one would be lost."""
        put(tmp_path / "a/x")
        put(tmp_path / "b/x")
        (tmp_path / "in").mkdir()
        same = [tmp_path / "a/x", tmp_path / "b/../a/x"]
        assert 1 == remote.push(box, same, str(tmp_path / "in")).files
        with pytest.raises(TransferError, match="two sources have the name x"):
            remote.push(box, [tmp_path / "a/x", tmp_path / "b/x"], str(tmp_path / "in"))


@root_only
def test_a_disk_that_takes_no_more_files(box, tmp_path):
    """Is not said to be full: there is space, and no inode."""
    for number in range(40):
        put(tmp_path / f"a/{number}")
    with small_disk(tmp_path / "disk", 8 << 20, files=20) as disk:
        with pytest.raises(TransferError, match=r"the disk takes no more files: .* no inodes left"):
            remote.push(box, tmp_path / "a", str(disk / "b"))
        assert [".nbkit-part"] == [path.name for path in disk.rglob("*.nbkit-part")]  # it is not all there
