"""push, pull and sync over a real sshd: what arrives, what is refused, what is left after a fault."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nbkit import remote
from nbkit.errors import RemoteCommandError, TransferError, UnreachableError
from nbkit.remote import program
from nbkit.remote.there import frames
from nbkit.remote.there import transfer as there
from nbkit.remote.there.delta import FINEST as FINE
from nbkit.remote.there.place import Part, check
from nbkit.remote.there.receive import Receiver
from nbkit.remote.there.tree import Entry, part_of, stays_inside
from tests import boxes, sshd
from tests.chaos import transfer as chaos

MIB = 1 << 20
NASTY = [b"a b", b'it\'s "q"', b"new\nline", b"-rf", b"caf\xe9 \xff", b"$HOME `id` ;", "ü".encode(), b"x" * 255, b"..."]


box = boxes.box


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def put(path: Path, size: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content(size, seed))
    return path


def parts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.nbkit-part"))


def move(box, way: str, source: Path, dst: Path, **options):
    """Push or pull; both ends are on this machine."""
    if way == "push":
        return remote.push(box, source, str(dst), **options)
    return remote.pull(box, str(source), dst, **options)


WAYS = pytest.mark.parametrize("way", ["push", "pull"])


class TestFiles:
    @WAYS
    @pytest.mark.parametrize("size", [0, 1, MIB, 3 * MIB + 17])
    def test_a_file_arrives_whole(self, box, tmp_path, way, size):
        """Content, mode and time are the source's, and nothing else is left."""
        source = put(tmp_path / "a.bin", size)
        source.chmod(0o640)
        os.utime(source, ns=(10**18, 10**18 + 123456789))
        done = move(box, way, source, tmp_path / "b.bin")
        got = (tmp_path / "b.bin").stat()
        assert content(size) == (tmp_path / "b.bin").read_bytes()
        assert (0o640, 10**18 + 123456789) == (stat.S_IMODE(got.st_mode), got.st_mtime_ns)
        assert (1, size) == (done.files, done.bytes)
        assert [] == parts(tmp_path)

    @WAYS
    def test_a_tree_with_nasty_names_arrives(self, box, tmp_path, way):
        """Spaces, quotes, newlines, leading dashes and bytes that are no UTF-8 arrive as they are."""
        top = os.fsencode(tmp_path / "t")
        (tmp_path / "t/deep/empty").mkdir(parents=True)
        for number, name in enumerate(NASTY):
            Path(os.fsdecode(top + b"/deep/" + name)).write_bytes(b"%d" % number)
        move(box, way, tmp_path / "t", tmp_path / "u")
        got = {name: Path(os.fsdecode(top[:-1] + b"u/deep/" + name)).read_bytes() for name in NASTY}
        assert {name: b"%d" % number for number, name in enumerate(NASTY)} == got
        assert (tmp_path / "u/deep/empty").is_dir()

    def test_into_a_folder_or_under_a_new_name(self, box, tmp_path):
        """A folder as DST takes the source under its own name, anything else is the new name."""
        source = put(tmp_path / "a", 5)
        (tmp_path / "in").mkdir()
        remote.push(box, [source, put(tmp_path / "b", 6)], str(tmp_path / "in"))
        remote.push(box, source, str(tmp_path / "new"))
        assert {"a", "b"} == {path.name for path in (tmp_path / "in").iterdir()}
        assert content(5) == (tmp_path / "new").read_bytes()

    def test_what_is_there_is_not_sent_again(self, box, tmp_path):
        """A file of the same size and time is left alone; `check` sees that its content differs."""
        source = put(tmp_path / "a", 2 * MIB)
        remote.push(box, source, str(tmp_path / "b"))
        assert (0, 1) == ((done := remote.push(box, source, str(tmp_path / "b"))).files, done.same)
        time = (tmp_path / "b").stat().st_mtime_ns
        put(tmp_path / "b", 2 * MIB, seed=1)
        os.utime(tmp_path / "b", ns=(time, time))
        assert 1 == remote.push(box, source, str(tmp_path / "b"), check=True).files
        assert content(2 * MIB) == (tmp_path / "b").read_bytes()

    def test_only_blocks_that_differ_are_sent(self, box, tmp_path):
        """Of an older version there, equal blocks are taken from it."""
        source = put(tmp_path / "a", 8 * MIB)
        older = bytearray(content(8 * MIB))
        older[3 * MIB] ^= 1
        (tmp_path / "b").write_bytes(older + b"more")
        done = remote.push(box, source, str(tmp_path / "b"))
        assert (FINE, 8 * MIB - FINE) == (done.sent, done.kept)
        assert content(8 * MIB) == (tmp_path / "b").read_bytes()

    @WAYS
    def test_what_moved_is_not_sent(self, box, tmp_path, way):
        """Of an older version, bytes that stand elsewhere now are copied there: a line more at the start sends a line."""
        old = content(8 * MIB)
        source = put(tmp_path / "a", 1)
        source.write_bytes(b"a line more\n" + old[: 5 * MIB] + old[5 * MIB + 9 :])
        (tmp_path / "b").write_bytes(old)
        done = move(box, way, source, tmp_path / "b")
        assert source.read_bytes() == (tmp_path / "b").read_bytes()
        assert 12 <= done.sent <= 12 + FINE
        assert done.kept + done.sent == 8 * MIB + 3
        assert [] == parts(tmp_path)

    @pytest.mark.parametrize(
        ("links", "expected"), [("copy", ["in", "real"]), ("follow", ["in", "out", "real"]), ("skip", ["real"])]
    )
    def test_links_as_asked(self, box, tmp_path, links, expected):
        """Links are copied where they stay inside, followed, or left out; what is left out is told."""
        put(tmp_path / "t/real", 5)
        put(tmp_path / "outside", 6)
        (tmp_path / "t/in").symlink_to("real")
        (tmp_path / "t/out").symlink_to("../outside")
        (tmp_path / "t/loop").symlink_to(".") if links == "follow" else None
        done = remote.push(box, tmp_path / "t", str(tmp_path / "u"), links=links)
        assert expected == sorted(path.name for path in (tmp_path / "u").iterdir())
        assert (links == "copy") == (tmp_path / "u/in").is_symlink()
        assert {"copy": 1, "follow": 1, "skip": 2}[links] == len(done.notes)

    def test_dry_run_writes_nothing(self, box, tmp_path):
        """It names what would be sent and deleted."""
        put(tmp_path / "t/a", 5)
        put(tmp_path / "u/b", 5)
        done = remote.sync(box, tmp_path / "t", str(tmp_path / "u"), delete=True, dry_run=True)
        assert (("a",), ("b",)) == (done.names, done.deleted)
        assert ["b"] == [path.name for path in (tmp_path / "u").iterdir()]

    @pytest.mark.parametrize("down", [False, True])
    def test_sync_deletes_only_when_asked(self, box, tmp_path, down):
        """The contents become the same; what is too much goes with `delete`."""
        put(tmp_path / "t/d/a", 5)
        put(tmp_path / "u/old/x", 5)
        source, dst = tmp_path / "t", tmp_path / "u"
        remote.sync(box, source, dst, down=down)
        assert {"d", "old"} == {path.name for path in dst.iterdir()}
        assert ("old",) == remote.sync(box, source, dst, down=down, delete=True).deleted
        assert {"d"} == {path.name for path in dst.iterdir()}

    def test_several_streams(self, box, tmp_path, monkeypatch):
        """A push over a long link is striped over several channels, and arrives the same."""
        monkeypatch.setattr("nbkit.remote.transfer._LONG_S", 0.0)
        source = put(tmp_path / "a", 33 * MIB + 5)
        remote.push(box, source, str(tmp_path / "b"))
        assert content(33 * MIB + 5) == (tmp_path / "b").read_bytes()

    @pytest.mark.parametrize(("older", "opened"), [(0, False), (1, True)], ids=["the same", "of other content"])
    def test_several_streams_where_an_older_version_is(self, box, tmp_path, monkeypatch, older, opened):
        """They cost round trips, so they are opened only once it has shown that much has to go over."""
        monkeypatch.setattr("nbkit.remote.transfer._LONG_S", 0.0)
        helpers, start = [], sys.modules[remote.push.__module__]._helper
        monkeypatch.setattr("nbkit.remote.transfer._helper", lambda *words: helpers.append(words) or start(*words))
        source = put(tmp_path / "a", 33 * MIB + 5)
        put(tmp_path / "b", 33 * MIB, seed=older)
        done = remote.push(box, source, str(tmp_path / "b"))
        assert content(33 * MIB + 5) == (tmp_path / "b").read_bytes()
        assert (33 * MIB if older else 0) + 5 == done.sent
        assert opened == bool(helpers)

    @pytest.mark.parametrize("where", ["here", "there"])
    def test_what_is_there_cannot_be_told(self, box, tmp_path, monkeypatch, where):
        """Where the telling breaks off, the transfer ends with that, and does not wait for what will never come."""
        source, old = put(tmp_path / "a", 3 * MIB), put(tmp_path / "b", 3 * MIB, seed=1)

        def broken(path, basis):
            yield b"\0" * 48
            raise RuntimeError("as broken as can be")

        if where == "here":
            monkeypatch.setattr("nbkit.remote.there.receive.tell", broken)
        else:
            bundle = program.bundle
            monkeypatch.setattr(
                "nbkit.remote.program.bundle",
                lambda *names: bundle(*names).replace(
                    "def _anchor(", "def _anchor(content):\\n    1 / 0\\ndef _unused("
                ),
            )
        with pytest.raises(TransferError, match="what is there already cannot be told"):
            move(box, "pull" if where == "here" else "push", source, old)
        assert content(3 * MIB, seed=1) == old.read_bytes()

    @pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="no batch scheduling on this system")
    @pytest.mark.parametrize("way", ["push", "pull"])
    def test_its_threads_are_batch_jobs_while_it_lasts(self, box, tmp_path, way):
        threads = {0, getattr(box.session.engine, "native_id", 0)}

        def scheduled():
            return {os.sched_getscheduler(thread) for thread in threads}

        seen = []
        move(box, way, put(tmp_path / "a", 3 * MIB), tmp_path / "b", progress=lambda _: seen.append(scheduled()))
        assert seen
        assert all(each == {os.SCHED_BATCH} for each in seen)
        assert scheduled() == {os.SCHED_OTHER}

    def test_progress_is_told(self, box, tmp_path):
        """The last word is that everything is over."""
        told = []
        remote.push(box, put(tmp_path / "a", 3 * MIB), str(tmp_path / "b"), progress=told.append)
        assert (3 * MIB, 3 * MIB) == (told[-1].done, told[-1].total)


class TestPages:
    """A file's own pages in place of what was read of it."""

    def sent(self, monkeypatch, file: int, read: bytes, at: int = 0) -> bytes:
        out, into = os.pipe()
        with os.fdopen(out, "rb") as reader, os.fdopen(into, "wb", buffering=0) as stdout:
            monkeypatch.setattr(sys, "stdout", stdout)
            there._Spliced(stdout.write)(file, at, memoryview(read))
            monkeypatch.undo()
            stdout.close()
            return reader.read()

    def test_are_taken(self, tmp_path, monkeypatch):
        """What the file holds then goes out, not what was read: the sha256 at the other end tells the two apart."""
        with put(tmp_path / "a", 9000).open() as file:
            assert content(9000)[5:8005] == self.sent(monkeypatch, file.fileno(), bytes(8000), at=5)

    def test_of_a_file_that_shrank(self, tmp_path, monkeypatch):
        """As many bytes go out as were announced."""
        with put(tmp_path / "a", 3000).open() as file:
            assert content(3000) + bytes(5000) == self.sent(monkeypatch, file.fileno(), bytes(8000))

    def test_cannot_be_had(self, monkeypatch):
        """Where the system does not do it, what was read goes out."""
        out, into = os.pipe()
        with os.fdopen(out, "rb"), os.fdopen(into, "wb"):
            assert content(8000) == self.sent(monkeypatch, out, content(8000))


class TestRefusals:
    @pytest.mark.parametrize(
        ("way", "source", "dst", "message", "fix"),
        [
            ("push", "none", "x", "Cannot read .*none: No such file", "ls -la"),
            ("pull", "none", "x", "box: cannot read .*none: No such file", "ls -la"),
            ("push", "a", "no/where/x", "there is no folder .*no/where", "--parents"),
            ("pull", "a", "no/where/x", "There is no folder .*no/where", "--parents"),
            ("push", "t", "file", "file is a file, not a folder", "move it aside"),
            ("push", "a", "file/x", "file is a file, not a folder", "move it aside"),
            ("push", "a", "has-folder", "has-folder/a is a folder, and a file was to go there", "move it aside"),
            ("push", "fifo", "x", "neither a file nor a folder", "name a file"),
            ("push", "a/", "x", "Cannot read .*a/: Not a directory", "/ behind it"),
        ],
    )
    def test_by_its_cause(self, box, tmp_path, way, source, dst, message, fix):
        """What cannot be done is said with its cause and a fix, and what stood there still does."""
        put(tmp_path / "a", 5)
        put(tmp_path / "t/x", 5)
        put(tmp_path / "file", 6)
        (tmp_path / "has-folder/a").mkdir(parents=True)
        os.mkfifo(tmp_path / "fifo")
        slash = "/" if source.endswith("/") else ""
        with pytest.raises(TransferError, match=message) as caught:
            move(box, way, f"{tmp_path / source}{slash}", tmp_path / dst)
        assert fix in caught.value.hint
        assert 1 == caught.value.exit_code
        assert content(6) == (tmp_path / "file").read_bytes()

    @pytest.mark.parametrize(
        "entries",
        [
            [Entry(b"../x", "file", 1, 0o644, 0, b"")],
            [Entry(b"/etc/x", "file", 1, 0o644, 0, b"")],
            [Entry(b"a/../../x", "file", 1, 0o644, 0, b"")],
            [Entry(b"..", "folder", 0, 0o755, 0, b"")],
            [Entry(b"", "file", 1, 0o644, 0, b"")],
            [Entry(b"a\0b", "file", 1, 0o644, 0, b"")],
            [Entry(b"a", "device", 1, 0o644, 0, b"")],
            [Entry(b"a", "link", 0, 0o777, 0, b"/etc")],
            [Entry(b"a", "link", 0, 0o777, 0, b"../etc")],
            [Entry(b"a", "link", 0, 0o777, 0, b"b"), Entry(b"a/x", "file", 1, 0o644, 0, b"")],
            [Entry(b"a/x", "file", 1, 0o644, 0, b"")],
            [Entry(b"a", "file", 1, 0o644, 0, b"")] * 2,
        ],
    )
    def test_a_hostile_name_is_refused(self, tmp_path, entries):
        """A sender that names what leads out of the destination is refused before anything is written."""
        rows = [[frames.text(e.name), e.kind, e.size, e.mode, e.mtime_ns, frames.text(e.target)] for e in entries]
        said = bytearray()
        sent = frames.Frames(lambda view: 0, said.extend)
        sent.put_json(frames.TREE, rows)
        sent.put_long_json(frames.TREE_END, {"notes": [], "contents": False, "many": False, "left": [], "failed": []})
        sent.flush()
        stream = memoryview(bytes(said))

        def read(view):
            nonlocal stream
            size = min(len(view), len(stream))
            view[:size], stream = stream[:size], stream[size:]
            return size

        (tmp_path / "in").mkdir()
        request = {"dst": str(tmp_path / "in"), "many": False, "contents": False, "parents": False, "check": False,
                   "dry_run": False, "delete": False}  # fmt: skip
        with pytest.raises(frames.StoppedError, match="refused"):
            Receiver(frames.Frames(read, lambda data: None), request).run()
        assert ["in"] == [path.name for path in tmp_path.iterdir()]
        assert [] == list((tmp_path / "in").iterdir())

    def test_no_way_through_a_link_that_stands_there(self, box, tmp_path):
        """A link at the destination is not followed: what it leads to is not written to."""
        put(tmp_path / "t/d/x", 5)
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "u").mkdir()
        (tmp_path / "u/d").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(TransferError, match="is a link, and a folder was to go there"):
            remote.sync(box, tmp_path / "t", str(tmp_path / "u"))
        assert [] == list((tmp_path / "elsewhere").iterdir())

    @pytest.mark.parametrize(
        ("name", "target", "expected"),
        [
            (b"t/a", b"b", True),
            (b"t/d/a", b"../b", True),
            (b"t/a", b"../b", False),
            (b"t/a", b"d/../b", False),
            (b"t/a", b"/t/b", False),
        ],
    )
    def test_where_a_link_leads(self, name, target, expected):
        """A link stays inside its top, and does not climb out of what another link may lead to."""
        assert expected == stays_inside(name, target, contents=False)

    def test_good_names_are_not(self):
        """Three dots, a leading dash and any byte but NUL and / are names."""
        check([Entry(name, "file", 1, 0o644, 0, b"") for name in NASTY], contents=False)

    def test_two_writers_of_one_file(self, box, tmp_path):
        """The second transfer to a name is refused while the first holds its part."""
        part = Part(os.fsencode(tmp_path / "b"), go_on=False)
        with pytest.raises(TransferError, match=r"^Another transfer is writing"):
            remote.push(box, put(tmp_path / "a", 5), str(tmp_path / "b"))
        part.leave()

    @pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
    @WAYS
    def test_no_permission(self, box, tmp_path, way):
        """A folder that cannot be written is named."""
        (tmp_path / "in").mkdir(mode=0o500)
        with pytest.raises(TransferError, match="no permission to write"):
            move(box, way, put(tmp_path / "a", 5), tmp_path / "in")

    def test_an_account_that_is_closed(self, tmp_path_factory, tmp_path):
        """What its shell says in place of our program is the error, with the ssh line that shows the same."""
        folder = tmp_path_factory.mktemp("closed")
        with sshd.running(folder, 'ForceCommand sh -c "echo This account is closed.; exit 1"') as closed, (
            remote.connect("box", config=closed.config)
        ) as box, pytest.raises(RemoteCommandError, match="This account is closed") as caught:  # fmt: skip
            remote.push(box, put(tmp_path / "a", 5), str(tmp_path / "b"))
        assert f"try: ssh -F {closed.config} box python3 --version" == caught.value.hint

    def test_an_account_that_is_closed_while_we_write(self, tmp_path):
        """The same where there is still something to send when it ends: more names than the host lets come at once."""
        names = [f"{'x' * 80}{number}" for number in range(40_000)]
        with sshd.running(tmp_path / "sshd", 'ForceCommand sh -c "echo This account is closed.; exit 1"') as closed, (
            remote.connect("box", config=closed.config)
        ) as box, pytest.raises(RemoteCommandError, match="This account is closed"):  # fmt: skip
            remote.pull(box, names, tmp_path)

    @pytest.mark.parametrize("dst", ["", "~", "/", "."])
    def test_delete_spares_the_home_folder(self, box, tmp_path, dst):
        """`sync data HOST: --delete` would leave nothing there but the data."""
        put(tmp_path / "a/x", 5)
        with pytest.raises(TransferError, match=r"everything in .* would go") as caught:
            remote.sync(box, tmp_path / "a", dst, delete=True)
        assert 2 == caught.value.exit_code
        with pytest.raises(TransferError, match="would go"):
            remote.sync(box, str(tmp_path / "a"), Path.home(), down=True, delete=True)

    def test_a_name_is_written_as_it_is(self, box, tmp_path, monkeypatch):
        """No letter of it becomes a capital because it begins a sentence."""
        monkeypatch.chdir(tmp_path)
        os.mkfifo("pipe")
        with pytest.raises(TransferError, match=r"^pipe is neither a file nor a folder"):
            remote.push(box, "pipe", str(tmp_path / "b"))

    def test_no_python_there(self, server, tmp_path):
        """A box without that Python is said to have none."""
        with remote.connect("box", config=server.config, python="/no/python") as box, pytest.raises(
            Exception, match="has no Python at '/no/python'"
        ):  # fmt: skip
            remote.push(box, put(tmp_path / "a", 5), str(tmp_path / "b"))


class TestFaults:
    @WAYS
    def test_resume_sends_what_is_missing(self, box, tmp_path, way):
        """Of a part, blocks that are right are kept; a damaged one is sent again."""
        source = put(tmp_path / "a", 10 * MIB)
        part = tmp_path / os.fsdecode(part_of(b"b"))
        damaged = bytearray(content(10 * MIB)[: 6 * MIB + 99])
        damaged[2 * MIB + 5] ^= 1
        part.write_bytes(damaged)
        done = move(box, way, source, tmp_path / "b")
        assert (5 * MIB + 99, 5 * MIB - 99) == (done.kept, done.sent)
        assert content(10 * MIB) == (tmp_path / "b").read_bytes()

    @WAYS
    def test_a_cut_leaves_a_part_and_the_old_file(self, tmp_path, way):
        """The link is cut in the middle: the old file still stands, and the next transfer goes on."""
        size = 192 * MIB  # far more than what is on its way: that arrives after the cut too
        source = put(tmp_path / "a", size)
        (tmp_path / "b").write_bytes(b"old")
        with sshd.running(tmp_path / "sshd") as server:

            def cut(now):
                if now.done > 8 * MIB:
                    server.cut()

            with (
                remote.connect("box", config=server.config) as box,
                pytest.raises(UnreachableError, match="broke") as caught,
            ):
                move(box, way, source, tmp_path / "b", progress=cut)
            assert "goes on where it stopped" in caught.value.hint
            assert b"old" == (tmp_path / "b").read_bytes()
            with remote.connect("box", config=server.config) as box:
                done = move(box, way, source, tmp_path / "b")
        assert content(size) == (tmp_path / "b").read_bytes()
        assert done.kept + done.sent == size
        assert done.kept >= 4 * MIB
        assert [] == parts(tmp_path)

    def test_a_source_that_changes_is_not_taken(self, box, tmp_path):
        """A file that changes while it is sent does not arrive; the others do."""
        put(tmp_path / "t/a", 64 * MIB)
        put(tmp_path / "t/b", 5)

        def change(now):
            if now.done < 64 * MIB:
                (tmp_path / "t/a").write_bytes(b"other")

        with pytest.raises(TransferError, match="a: changed while it was being sent"):
            remote.push(box, tmp_path / "t", str(tmp_path / "u"), progress=change)
        assert ["b"] == [path.name for path in (tmp_path / "u").glob("[!.]*")]

    @pytest.mark.parametrize("name", ["a.jsonl", "a.log"])
    def test_lines_that_are_being_appended(self, box, tmp_path, name):
        """With `growing`, what stood in a .jsonl or .log at the start is taken, which is refused otherwise."""
        put(tmp_path / f"t/{name}", 24 * MIB)  # time enough to be appended to
        over = threading.Event()

        def append():
            with (tmp_path / f"t/{name}").open("ab") as file:
                while not over.wait(0.001):
                    file.write(b"more")
                    file.flush()

        writer = threading.Thread(target=append)
        writer.start()
        try:
            with pytest.raises(TransferError, match=f"{name}: changed while it was being sent"):
                remote.sync(box, str(tmp_path / "t"), tmp_path / "u", down=True)
            remote.sync(box, str(tmp_path / "t"), tmp_path / "u", down=True, growing=True)
            remote.sync(box, str(tmp_path / "t"), tmp_path / "u", down=True, growing=True)  # on what is there
        finally:
            over.set()
            writer.join()
        got = (tmp_path / f"u/{name}").read_bytes()
        assert len(got) > 24 * MIB
        assert (tmp_path / f"t/{name}").read_bytes().startswith(got)

    @pytest.mark.skipif(os.getuid() != 0, reason="needs root to mount a small disk")
    @WAYS
    def test_a_full_disk(self, box, tmp_path, way):
        """No room is seen before the first byte, and nothing is written."""
        with chaos.small_disk(tmp_path / "disk", 8 * MIB) as disk:
            with pytest.raises(TransferError, match=r"[Nn]ot enough room: .* [MG]B to come, .* [MG]B free at"):
                move(box, way, put(tmp_path / "a", 9 * MIB), disk / "b")
            assert [] == list(disk.iterdir())

    def test_a_little_chaos(self, tmp_path):
        """The quick form of the faults: nothing corrupt, nothing partial under its own name."""
        tally = chaos.run(tmp_path, seed=1, cuts=6, kills=2, corrupted=4, full=2 if os.getuid() == 0 else 0, changed=1)
        assert (0, 0) == (tally.corrupt, tally.early)
        assert tally.tried >= 13
        assert tally.most_resent <= 8 * MIB


class TestCommand:
    def nbkit(self, server, *words, folder):
        command = [sys.executable, "-m", "nbkit.cli", words[0], "-F", str(server.config), *words[1:]]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)

    def test_there_and_back(self, server, tmp_path):
        """push, pull and sync as a user types them; `--json` says what was done."""
        put(tmp_path / "a", 5)
        there = tmp_path / "there"
        done = self.nbkit(server, "push", "a", f"box:{there}/", "--parents", "--json", folder=tmp_path)
        assert (0, 5) == (done.returncode, json.loads(done.stdout)["bytes"]), done.stderr
        assert 0 == self.nbkit(server, "pull", f"box:{there}/a", "b", folder=tmp_path).returncode
        assert content(5) == (tmp_path / "b").read_bytes()
        done = self.nbkit(server, "sync", f"box:{there}", "here", folder=tmp_path)
        assert "1 file, 5 B" in done.stdout
        assert content(5) == (tmp_path / "here/a").read_bytes()

    def test_ctrl_c_says_how_to_go_on(self, server, tmp_path):
        """Ctrl-C ends with 130, leaves nothing under the final name and says how to go on; the same command then does."""
        source, dst = put(tmp_path / "a", 128 * MIB), tmp_path / "b"
        command = [sys.executable, "-m", "nbkit.cli", "push", "-F", str(server.config), str(source), f"box:{dst}"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            part = tmp_path / os.fsdecode(part_of(b"b"))
            while process.poll() is None and not (part.exists() and part.stat().st_size > 2 * MIB):
                time.sleep(0.001)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
        assert 130 == process.returncode, said
        assert "the same command goes on" in said
        assert not dst.exists()
        assert part.exists()
        assert 0 == self.nbkit(server, "push", str(source), f"box:{dst}", folder=tmp_path).returncode
        assert content(128 * MIB) == dst.read_bytes()

    def test_ctrl_c_does_not_wait_for_the_other_side(self, box, tmp_path, monkeypatch):
        """What it may still have to say is of no interest then; after an error here, it is waited for."""
        waited = []
        join = threading.Thread.join
        monkeypatch.setattr(threading.Thread, "join", lambda self, *args: (waited.append(self.name), join(self, *args)))
        put(tmp_path / "a", 3 * MIB)
        for error, expected in ((KeyboardInterrupt, 0), (ValueError, 1)):

            def fail(_, error=error):
                raise error

            waited.clear()
            with pytest.raises(error):
                remote.push(box, tmp_path / "a", f"{tmp_path}/b-{error.__name__}", progress=fail)
            assert expected == waited.count("nbkit-transfer-replies")

    @pytest.mark.parametrize(
        ("words", "code", "message"),
        [
            (("push", "a", "b"), 2, "is not HOST:PATH"),
            (("push", "box:a", "b"), 2, "from a host to here is nbkit pull"),
            (("push", "hf://org/model", "b"), 2, "HOST:PATH: 'b' is not HOST:PATH\n"),
            (("pull", "a", "box:"), 2, "from here to a host is nbkit push"),
            (("pull", "box:a", "other:b", "."), 2, "one host"),
            (("sync", "a", "b"), 2, "one of SRC and DST"),
            (("push", "none", "box:"), 1, "Cannot read none"),
            (("push", "box:a", "other:b"), 2, "from a host to another is nbkit pull and then nbkit push"),
            (("pull", "box:a", "other:b"), 2, "a name here that has a colon: ./other:b"),
            (
                ("pull", "box:nowhere", "."),
                1,
                "box: cannot read nowhere: No such file or directory.\n  Fix:  look with: ssh -F ",
            ),
        ],
    )
    def test_wrong_use(self, server, tmp_path, words, code, message):
        """Bad words end with exit code 2, a missing file with 1."""
        done = self.nbkit(server, *words, folder=tmp_path)
        assert code == done.returncode
        assert message in done.stderr
