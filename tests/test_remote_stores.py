"""Stores and mounts by reference: a real sshd, an S3 server on this machine (moto) where it is installed."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nbkit.errors import MissingPackageError, RemoteCommandError
from nbkit.remote import connect, stores
from nbkit.remote.references import parse
from tests import sshd

FILES = {"a.jsonl": b'{"a": 1}\n', "sub/big.bin": bytes(range(256)) * 9000, "empty": b""}
KEYS = {"AWS_ACCESS_KEY_ID": "here", "AWS_SECRET_ACCESS_KEY": "secret-of-here", "AWS_DEFAULT_REGION": "us-east-1"}
needs_s3 = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("moto", "s3fs", "boto3", "flask")),
    reason="needs an S3 server and client: pip install 'moto[s3,server]' 's3fs'",
)


@pytest.fixture(scope="module")
def s3():
    """The address of an S3 server that holds FILES in bucket/data."""
    import boto3

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            endpoint, end = f"http://127.0.0.1:{port}", time.monotonic() + 60
            while time.monotonic() < end:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="x",
                                  aws_secret_access_key="x")  # fmt: skip
            client.create_bucket(Bucket="bucket")
            for name, content in FILES.items():
                client.put_object(Bucket="bucket", Key=f"data/{name}", Body=content)
            yield endpoint
        finally:
            server.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with sshd.running(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def box(server):
    with connect("box", config=server.config) as box:
        yield box


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@needs_s3
class TestS3:
    def test_through_here(self, box, s3, tmp_path, monkeypatch):
        """A box whose Python has no s3fs gets it through this machine, and is told why."""
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": s3}.items():
            monkeypatch.setenv(name, value)
        stored = stores.push(box, parse("s3://bucket/data"), str(tmp_path))
        assert FILES == tree(tmp_path / "data")
        assert (3, "here (its Python has no s3fs)") == (stored.files, stored.read)

    def test_on_the_box(self, server, s3, tmp_path):
        """A box that has s3fs and credentials of its own reads it itself; the second time nothing is read."""
        settings = {**KEYS, "AWS_ENDPOINT_URL": s3, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        words = " ".join(["env", *(f"{name}={value}" for name, value in settings.items())])
        with connect("box", config=server.config, python=f"{words} {sys.executable}") as box:
            stored = stores.push(box, parse("s3://bucket/data"), str(tmp_path))
            assert FILES == tree(tmp_path / "data")
            assert "on the box" == stored.read
            assert 0 == stores.push(box, parse("s3://bucket/data"), str(tmp_path)).fetched

    def test_one_object(self, box, s3, tmp_path, monkeypatch):
        """A key is one file, under its own name."""
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": s3}.items():
            monkeypatch.setenv(name, value)
        stores.push(box, parse("s3://bucket/data/sub/big.bin"), str(tmp_path))
        assert {"big.bin": FILES["sub/big.bin"]} == tree(tmp_path)

    def test_neither_can_read_it(self, box, s3, tmp_path, monkeypatch):
        """Both reasons are told."""
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": s3}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(
            RemoteCommandError, match=r"Neither box .its Python has no s3fs. nor this machine .*holds nothing"
        ):
            stores.push(box, parse("s3://bucket/other"), str(tmp_path))


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
