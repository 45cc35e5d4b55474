"""Stores and mounts by reference: a real sshd, a real S3 client, an S3 server on this machine (moto)."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import sys
from hashlib import md5
from pathlib import Path

import pytest
from click.testing import CliRunner

import nbkit.cli
from nbkit.errors import MissingPackageError, RemoteCommandError, TransferError, UnreachableError
from nbkit.remote import connect, stores
from nbkit.remote.references import parse
from nbkit.remote.there import store as store_there
from tests import boxes, s3_server, sshd
from tests.test_remote_transfer_odd import deep

FILES = {"a.jsonl": b'{"a": 1}\n', "sub/bïg file.bin": bytes(range(256)) * 9000, "empty": b""}
MIB = 1 << 20
# Two parts as S3 has them, neither as long as a block of ours; four blocks.
PARTS = (b"".join(number.to_bytes(4, "little") for number in range(17 * MIB // 4)), bytes(range(250)) * 50_000)
LARGE = b"".join(PARTS)
needs_s3 = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("moto", "s3fs", "boto3", "flask")),
    reason="needs an S3 server and client: pip install 'moto[s3,server]' 's3fs'",
)


@pytest.fixture(scope="module")
def store():
    """A store that holds FILES, among them the mark of a folder as S3's own console makes it, and LARGE."""
    with s3_server.serving(**{f"data/{name}": content for name, content in FILES.items()}) as store:
        store.put("data/sub/", b"")
        store.put_parts("large.bin", *PARTS)
        yield store


@pytest.fixture
def s3(store, monkeypatch, tmp_path):
    """The store; this machine has no credentials for it, and does not look for those of a cloud machine."""
    store.quiet()
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in {**s3_server.NOBODY, "HOME": str(tmp_path / "home"), "NBKIT_CACHE": str(tmp_path / "cache"),
                        "AWS_ENDPOINT_URL": store.endpoint}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    forget_clients()
    return store


def forget_clients():
    """s3fs keeps a client for each set of options, and with it the credentials that were found first."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


box = boxes.box


@pytest.fixture
def bare(server):
    """A box whose Python has no s3fs."""
    with connect("box", config=server.config, python=f"{sys.executable} -I -S") as box:
        yield box


@contextlib.contextmanager
def able(server, s3, keys):
    """A box whose Python has s3fs, and these credentials."""
    path = os.pathsep.join(filter(None, sys.path))
    settings = {**s3_server.NOBODY, **keys, "AWS_ENDPOINT_URL": s3.endpoint, "PYTHONPATH": path}
    words = " ".join(["env", *(f"{name}={value}" for name, value in settings.items())])
    with connect("box", config=server.config, python=f"{words} {sys.executable}") as box:
        yield box


@pytest.fixture(params=["here", "there"])
def way(request, server, s3, monkeypatch):
    """A box to which the store comes through here, and one that reads it itself, while this machine could not."""
    if request.param == "there":
        with able(server, s3, s3_server.KEYS) as box:
            yield box
    else:
        for name, value in s3_server.KEYS.items():
            monkeypatch.setenv(name, value)
        with connect("box", config=server.config, python=f"{sys.executable} -I -S") as box:
            yield box


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@needs_s3
class TestS3:
    def test_a_tree(self, way, s3, tmp_path):
        """Every object below a prefix, with spaces, other letters and no bytes at all; the second time none is read."""
        stored = stores.push(way, parse("s3://bucket/data"), str(tmp_path / "to"))
        assert FILES == tree(tmp_path / "to" / "data")
        assert (3, 0) == (stored.files, stored.unchecked)
        assert {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()} == stored.sha256
        s3.asked.clear()
        assert 0 == stores.push(way, parse("s3://bucket/data"), str(tmp_path / "to")).fetched
        assert [] == s3.asked

    def test_who_read_it_is_told(self, server, bare, s3, tmp_path, monkeypatch):
        """The box where it can, else this machine, and why."""
        with able(server, s3, s3_server.KEYS) as box:
            assert "on the box" == stores.push(box, parse("s3://bucket/data/empty"), str(tmp_path / "a")).read
        for name, value in s3_server.KEYS.items():
            monkeypatch.setenv(name, value)
        forget_clients()
        told = stores.push(bare, parse("s3://bucket/data/empty"), str(tmp_path / "b")).read
        assert "here (its Python has no s3fs)" == told
        with able(server, s3, {}) as box:  # the package, and no credentials
            told = stores.push(box, parse("s3://bucket/data/a.jsonl"), str(tmp_path / "c")).read
        assert "here (NoCredentialsError: Unable to locate credentials)" == told

    def test_one_object(self, way, s3, tmp_path):
        """A key is one file, under its own name; what went up in parts is checked by S3's md5 of their md5s."""
        stored = stores.push(way, parse("s3://bucket/large.bin"), str(tmp_path / "to"))
        assert {"large.bin": LARGE} == tree(tmp_path / "to")
        assert (len(LARGE), 0) == (stored.fetched, stored.unchecked)

    def test_goes_on_after_a_cut(self, way, s3, tmp_path):
        """A store that breaks off leaves what was read before; the same command reads the rest alone."""
        s3.cut["large.bin"] = 20 * MIB
        with pytest.raises(RemoteCommandError, match="Reading it broke off") as caught:
            stores.push(way, parse("s3://bucket/large.bin"), str(tmp_path / "to"))
        assert "it goes on where it stopped" in caught.value.hint
        assert [] == [name for name in tree(tmp_path / "to") if "nbkit-part" not in name]
        s3.quiet()
        assert len(LARGE) - 16 * MIB == stores.push(way, parse("s3://bucket/large.bin"), str(tmp_path / "to")).fetched
        assert {"large.bin": LARGE} == tree(tmp_path / "to")
        assert 16 * MIB == min(start for _, start in s3.asked)

    def test_goes_on_after_the_link_was_cut(self, s3, tmp_path):
        """A box that reads while its link breaks keeps what it has."""
        with sshd.running(tmp_path / "sshd") as own:  # the module's connection is on the other one
            s3.seen = lambda key, start: own.cut() if start == 8 * MIB else None
            with able(own, s3, s3_server.KEYS) as box, pytest.raises(UnreachableError):
                stores.push(box, parse("s3://bucket/large.bin"), str(tmp_path / "to"))
            s3.quiet()
            with able(own, s3, s3_server.KEYS) as box:
                stores.push(box, parse("s3://bucket/large.bin"), str(tmp_path / "to"))
        assert {"large.bin": LARGE} == tree(tmp_path / "to")

    def test_goes_on_with_what_was_read_here(self, bare, s3, tmp_path, monkeypatch):
        """What this machine has read and could not send on is sent the next time, and then removed."""
        for name, value in s3_server.KEYS.items():
            monkeypatch.setenv(name, value)
        (tmp_path / "to").mkdir()
        (tmp_path / "to" / "data").write_text("in the way")
        with pytest.raises(TransferError):
            stores.push(bare, parse("s3://bucket/data"), str(tmp_path / "to"))
        (tmp_path / "to" / "data").unlink()
        s3.asked.clear()
        assert 0 == stores.push(bare, parse("s3://bucket/data"), str(tmp_path / "to")).fetched
        assert FILES == tree(tmp_path / "to" / "data")
        assert [] == s3.asked
        assert {} == {name: b for name, b in tree(tmp_path / "cache").items() if not name.endswith(".lock")}

    @pytest.mark.parametrize(("key", "content"), [("large.bin", LARGE), ("data/a.jsonl", FILES["a.jsonl"])])
    def test_one_flipped_bit_is_read_again(self, way, s3, tmp_path, key, content):
        """What is not as the store's md5 says is read anew, from its start."""
        s3.flip[key] = 1
        stores.push(way, parse(f"s3://bucket/{key}"), str(tmp_path / "to"))
        assert [content] == list(tree(tmp_path / "to").values())
        assert 2 == s3.asked.count((key, 0))

    @pytest.mark.parametrize("key", ["large.bin", "data/a.jsonl"])
    def test_a_wrong_checksum(self, way, s3, tmp_path, key):
        """What is twice wrong is refused by name, with both md5s; nothing of it stays."""
        s3.flip[key] = 9
        with pytest.raises(
            RemoteCommandError, match=r"is twice not what the store tells: \d+ bytes, md5 [0-9a-f-]+, and not"
        ):
            stores.push(way, parse(f"s3://bucket/{key}"), str(tmp_path / "to"))
        assert {} == tree(tmp_path / "to")

    def test_a_part_that_a_cut_damaged(self, way, s3, tmp_path):
        """What a cut left is part of what the md5 judges: a wrong byte in it is found, and all is read anew."""
        s3.cut["large.bin"] = 20 * MIB
        with pytest.raises(RemoteCommandError):
            stores.push(way, parse("s3://bucket/large.bin"), str(tmp_path / "to"))
        (part,) = tmp_path.rglob(".large.bin.nbkit-part")
        part.write_bytes(b"x" + part.read_bytes()[1:])
        s3.quiet()
        stores.push(way, parse("s3://bucket/large.bin"), str(tmp_path / "to"))
        assert {"large.bin": LARGE} == tree(tmp_path / "to")
        assert 1 == s3.asked.count(("large.bin", 0))

    def test_an_object_without_an_md5(self, way, s3, tmp_path):
        """The ETag of what a key of KMS encrypts is no md5: it comes, and that nothing checked it is told."""
        s3.put("sealed/x", b"sealed", ServerSideEncryption="aws:kms")
        stored = stores.push(way, parse("s3://bucket/sealed/x"), str(tmp_path / "to"))
        assert {"x": b"sealed"} == tree(tmp_path / "to")
        assert 1 == stored.unchecked
        assert "the store tells no md5 of 1 of these" in str(stored)

    def test_a_name_that_leaves_its_folder(self, way, s3, tmp_path):
        """A key with dots that would lead out is refused."""
        s3.put("evil/../../x", b"1")
        with pytest.raises(RemoteCommandError, match="a name that leaves its folder"):
            stores.push(way, parse("s3://bucket/evil"), str(tmp_path / "to"))
        assert [] == [path for path in tmp_path.rglob("*") if path.name == "x"]

    def test_no_credentials(self, server, bare, s3, tmp_path):
        """Where neither machine has any, both reasons and the ways to get some are told."""
        neither = (
            r"Neither box .its Python has no s3fs. nor this machine .NoCredentialsError: .*can read s3://bucket/data"
        )
        with pytest.raises(RemoteCommandError, match=neither) as caught:
            stores.push(bare, parse("s3://bucket/data"), str(tmp_path / "to"))
        assert "aws configure" in caught.value.hint
        with able(server, s3, {}) as box, pytest.raises(RemoteCommandError, match=r"Neither box .NoCredentials"):
            stores.push(box, parse("s3://bucket/data"), str(tmp_path / "to"))

    def test_no_bucket(self, server, bare, s3, tmp_path, monkeypatch):
        """A bucket that is not there is said, by whoever looked."""
        for name, value in s3_server.KEYS.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(RemoteCommandError, match=r"no s3fs.*The specified bucket does not exist"):
            stores.push(bare, parse("s3://no-such-bucket/data"), str(tmp_path / "to"))
        with (
            able(server, s3, s3_server.KEYS) as box,
            pytest.raises(RemoteCommandError, match=r"Neither box \(.*does not exist\) nor .*does not exist"),
        ):
            stores.push(box, parse("s3://no-such-bucket/data"), str(tmp_path / "to"))

    def test_nothing_there(self, way, s3, tmp_path):
        """A prefix without objects is said to be empty."""
        with pytest.raises(RemoteCommandError, match="s3://bucket/other holds nothing"):
            stores.push(way, parse("s3://bucket/other"), str(tmp_path / "to"))

    def test_from_the_command_line(self, server, s3, tmp_path):
        """`nbkit push s3://...` needs no more; an option that would change nothing there is wrong usage."""
        path = os.pathsep.join(filter(None, sys.path))
        python = f"env {' '.join(f'{k}={v}' for k, v in s3_server.KEYS.items())} AWS_ENDPOINT_URL={s3.endpoint} "
        line = ["push", "s3://bucket/data", f"box:{tmp_path}/to", "--config", str(server.config),
                "--python", f"{python} PYTHONPATH={path} {sys.executable}"]  # fmt: skip
        done = CliRunner().invoke(nbkit.cli.main, line)
        assert 0 == done.exit_code, done.output
        assert FILES == tree(tmp_path / "to" / "data")
        done = CliRunner().invoke(nbkit.cli.main, [*line, "--allow-pickle"])
        assert (2, True) == (done.exit_code, "--allow-pickle is for hf:// references" in done.output)


def md5s(*parts: bytes) -> bytes:
    return b"".join(md5(part).digest() for part in parts)


class TestMd5:
    @pytest.mark.parametrize("cuts", [(1,), (3, 4, 5), (10,), (7, 1, 100)])
    @pytest.mark.parametrize(
        ("content", "part", "expected"),
        [
            (b"", 0, md5(b"").hexdigest()),
            (b"0123456789", 0, md5(b"0123456789").hexdigest()),
            (b"0123456789", 4, f"{md5(md5s(b'0123', b'4567', b'89')).hexdigest()}-3"),
            (b"01234567", 4, f"{md5(md5s(b'0123', b'4567')).hexdigest()}-2"),
        ],
    )  # fmt: skip
    def test_of_parts(self, content, part, expected, cuts):
        """The sum does not depend on how the bytes come."""
        made, at = store_there.Md5(part), 0
        for size in (*cuts, len(content)):
            made.update(content[at : at + size])
            at += size
        assert expected == made.hexdigest()

    def test_google_tells_it_in_base64(self):
        """Its md5Hash is read, and needs no further question."""
        told = store_there.md5_of(None, "b/x", {"md5Hash": "XrY7u+Ae7tCTyyK7j1rNww=="})
        assert (md5(b"hello world").hexdigest(), 0) == told


class TestMount:
    @pytest.fixture
    def mount(self, tmp_path):
        for name, content in FILES.items():
            path = tmp_path / "mount" / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path / "mount" / "data"

    def test_is_copied_there(self, box, mount, tmp_path):
        """A folder of a mount is copied on the box; the second time nothing is."""
        stored = stores.push(box, parse(f"file://{mount}"), str(tmp_path / "into"))
        assert FILES == tree(tmp_path / "into" / "data")
        assert (sum(map(len, FILES.values())), "on the box") == (stored.fetched, stored.read)
        assert 0 == stores.push(box, parse(f"file://{mount}"), str(tmp_path / "into")).fetched

    def test_what_changed_comes_again(self, box, mount, tmp_path):
        """A file of another time or size is copied anew."""
        stores.push(box, parse(f"file://{mount}"), str(tmp_path / "into"))
        (mount / "a.jsonl").write_bytes(b"new")
        assert {"a.jsonl"} == set(stores.push(box, parse(f"file://{mount}"), str(tmp_path / "into")).sha256)
        assert b"new" == (tmp_path / "into" / "data" / "a.jsonl").read_bytes()

    def test_a_pipe_is_not_waited_for(self, box, mount, tmp_path):
        """What is no file is refused by name, before anything is copied."""
        os.mkfifo(mount / "pipe")
        with pytest.raises(RemoteCommandError, match="mount/data/pipe is neither a file nor a folder"):
            stores.push(box, parse(f"file://{mount}"), str(tmp_path / "into"))
        assert not (tmp_path / "into").exists()

    def test_a_folder_that_cannot_be_read(self, box, mount, tmp_path):
        """Is not taken for an empty one. Here its path is too long for the system, which root cannot read either."""
        deep(mount / "deep")
        with pytest.raises(RemoteCommandError, match=r"Cannot read .File name too long. the folder .*data/deep"):
            stores.push(box, parse(f"file://{mount}"), str(tmp_path / "into"))
        assert not (tmp_path / "into").exists()

    def test_absent(self, box, tmp_path):
        """A path that the box does not have is said so."""
        with pytest.raises(RemoteCommandError, match="There is no /no/such/mount"):
            stores.push(box, parse("file:///no/such/mount"), str(tmp_path))


@pytest.mark.parametrize(
    ("text", "package", "hint"),
    [("gdrive://folder/data", "gdrive_fsspec", "rclone mount"), ("gs://bucket/data", "gcsfs", r"\[cloud\]")],
)
def test_a_missing_package_is_said(box, tmp_path, text, package, hint):
    """Where neither machine can read a store, the way to it is named: the extra, or a mount."""
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(MissingPackageError, match=package) as caught:
        stores.push(box, parse(text), str(tmp_path))
    assert re.search(hint, caught.value.hint)
