"""Setting a box up: a real sshd, a real pip, small packages from a folder; once from nbkit's own lock."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from nbkit import remote
from nbkit.errors import RemoteCommandError
from nbkit.remote import setup as setups
from tests import sshd

PACKAGES = 25


def little_wheel(folder, name, content=b"", version="1.0"):
    """A wheel of one module; its path."""
    stem = f"{name}-{version}"
    files = {
        f"{name}.py": b"__version__ = '1.0'\n" + content,
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{stem}.dist-info/RECORD": b"",
    }
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, data in files.items():
            archive.writestr(inside, data)
    return path


def pin(path):
    name = path.name.partition("-")[0]
    return (name, f"{name}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder of wheels that stands for the index."""
    folder = tmp_path_factory.mktemp("shelf")
    for number in range(PACKAGES):
        little_wheel(folder, f"little{number:02d}")
    return folder


def request_of(paths, own):
    return {
        "pins": [pin(path) for path in paths],
        "torch": "",
        "builds": (),
        "wheel": {"name": own.name, "content": base64.b64encode(own.read_bytes()).decode()},
        "imports": [own.name.partition("-")[0]],
    }


@pytest.fixture(scope="module")
def request_(shelf, tmp_path_factory):
    """A request for all of the shelf."""
    own = little_wheel(tmp_path_factory.mktemp("own"), "own")
    return request_of(sorted(shelf.glob("little*")), own)


@pytest.fixture
def server(tmp_path, shelf, monkeypatch):
    """An sshd with a home of its own; pip there knows the shelf alone."""
    monkeypatch.setenv("NBKIT_STATE", str(tmp_path / "state"))
    option = f"SetEnv HOME={tmp_path}/sshd PIP_NO_INDEX=1 PIP_FIND_LINKS={shelf} PIP_CONFIG_FILE=/dev/null"
    with sshd.running(tmp_path / "sshd", option) as running:
        yield running


@pytest.fixture
def box(server):
    with remote.connect("box", config=server.config) as opened:
        yield opened


class Lines(list):
    """The lines of a log; can be waited for from another thread."""

    def wait(self, text, timeout_s=60):
        end = time.monotonic() + timeout_s
        while not any(text in line for line in self):
            assert time.monotonic() < end, f"no {text!r} in {self}"
            time.sleep(0.05)


def python_that(folder, does):
    """Shell words for a python3 that does something first."""
    (folder / "first").mkdir()
    (folder / "first" / "sitecustomize.py").write_text(f"import sys\n{does}\n")
    return f"PYTHONPATH={shlex.quote(str(folder / 'first'))} python3"


class TestInstall:
    def test_makes_an_environment_and_remembers_it(self, server, box, request_, tmp_path):
        """All packages are there, the marker too, and the next connection starts that Python; its name has a space."""
        env, said = tmp_path / "my env", Lines()
        found = setups.carry_out(box, request_, path=str(env), say=said.append)
        assert {"own": "1.0"} == found.versions
        assert any(f"{PACKAGES} of {PACKAGES} packages" in line for line in said)
        assert (env / "nbkit-setup.json").exists()
        with remote.connect("box", config=server.config) as again:
            assert (
                str(env)
                == again.call("import json, sys, little24\nprint(json.dumps({'prefix': sys.prefix}))")["prefix"]
            )
            again.python = "python3"
            assert found == setups.carry_out(again, request_, path=str(env), say=said.append)
        assert said[-1].endswith("is complete already")

    def test_a_kill_leaves_no_environment_and_the_next_goes_on(self, server, box, request_, tmp_path):
        """Killed in the middle: an error that says so, nothing remembered, no marker; the same call completes it."""
        env, said = tmp_path / "env", Lines()
        failed = []

        def work():
            try:
                setups.carry_out(box, request_, path=str(env), say=said.append)
            except RemoteCommandError as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        said.wait(f"10 of {PACKAGES} packages")
        os.killpg(int(next(Path(server.folder).rglob("jobs/*/pid")).read_text()), signal.SIGKILL)
        thread.join(60)
        assert "was ended before it was done" in failed[0].message
        assert not (env / "nbkit-setup.json").exists()
        assert "python3" == remote.connect("box", config=server.config).python
        next(env.rglob("little03-1.0.dist-info/INSTALLER")).unlink()  # as if it was cut off there
        setups.carry_out(box, request_, path=str(env), say=said.append)
        assert any("installing again what was cut off: little03" in line for line in said)
        assert any("packages are there already" in line for line in said)
        assert (env / "nbkit-setup.json").exists()

    def test_a_lost_link_does_not_end_it(self, server, box, request_, tmp_path):
        """The connection is cut in the middle: it is made again, and every line of the log arrives once."""
        said = Lines()
        thread = threading.Thread(
            target=setups.carry_out, args=(box, request_), kwargs={"path": str(tmp_path / "env"), "say": said.append}
        )
        thread.start()
        said.wait(f"10 of {PACKAGES} packages")
        server.cut()
        thread.join(120)
        assert any("the link is lost" in line for line in said)
        log = next(Path(server.folder).rglob("jobs/*/log")).read_text().splitlines()
        assert log == [line for line in said if line in log]
        assert log[-1].endswith("done")

    def test_a_second_one_attaches(self, server, box, request_, tmp_path):
        """While one is at work, the same call follows it and ends with the same result."""
        said, other, done = Lines(), Lines(), []
        where = str(tmp_path / "env")
        thread = threading.Thread(
            target=lambda: done.append(setups.carry_out(box, request_, path=where, say=said.append))
        )
        thread.start()
        said.wait("making ")
        with remote.connect("box", config=server.config) as second:
            found = setups.carry_out(second, request_, path=where, say=other.append)
        thread.join(120)
        assert done == [found]
        assert "a setup is at work there already" in other

    def test_stop_ends_it(self, box, request_, tmp_path):
        """A stop ends what is at work there; without one it says so."""
        where, said, failed = str(tmp_path / "env"), Lines(), []
        assert not setups.stop(box, path=where)

        def work():
            with pytest.raises(RemoteCommandError, match="was ended") as caught:
                setups.carry_out(box, request_, path=where, say=said.append)
            failed.append(caught.value)

        thread = threading.Thread(target=work)
        thread.start()
        said.wait("making ")
        assert setups.stop(box, path=where)
        thread.join(60)
        assert failed

    def test_a_wrong_hash_is_refused(self, box, request_, tmp_path):
        """A package that is not the locked one ends the setup, with pip's reason."""
        name, text = request_["pins"][0]
        wrong = {**request_, "pins": [(name, text[:-10] + "0" * 9 + "\n")]}
        with pytest.raises(RemoteCommandError, match=r"Installing little00 failed: ERROR: .*DO NOT MATCH"):
            setups.carry_out(box, wrong, path=str(tmp_path / "env"), say=Lines().append)

    def test_the_first_build_that_is_there(self, box, request_, shelf, tmp_path):
        """Builds of torch are tried in order; one that the index does not have is passed over, and that is said."""
        little_wheel(shelf, "torch", version="1.0+cpu")
        said = Lines()
        wanted = {**request_, "pins": [], "torch": "torch==1.0", "builds": ("cu999", "cpu")}
        found = setups.carry_out(box, wanted, path=str(tmp_path / "env"), reason="because", say=said.append)
        assert "cpu (because)" == found.torch
        assert any("there is no torch==1.0+cu999" in line for line in said)


def old_python(version):
    """A Python of that version, from PATH or from pyenv."""
    found = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}*/bin/python")]
    for python in filter(None, found):
        if subprocess.run([python, "-c", ""], check=False, capture_output=True).returncode == 0:
            return str(python)
    pytest.skip(f"needs a Python {version} on PATH")


def test_python3_that_is_too_old_is_passed_over(tmp_path):
    """On many a cluster python3 is 3.6, and a newer one stands beside it."""
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python3").chmod(0o755)
    (tmp_path / "head").symlink_to(shutil.which("head"))
    show = ["/bin/sh", "-c", f"echo {setups.FIRST}"]

    def first():
        path = {"PATH": str(tmp_path)}
        return subprocess.run(show, env=path, capture_output=True, text=True, check=True).stdout

    assert "python3\n" == first()
    (tmp_path / "python3.12").symlink_to(sys.executable)
    assert "python3.12\n" == first()


class TestBadGround:
    def test_no_venv(self, server, request_, tmp_path):
        """Debian without python3-venv: the fix names the package, and the way without root."""
        python = python_that(tmp_path, "sys.modules['ensurepip'] = None")
        with (
            remote.connect("box", config=server.config, python=python) as box,
            pytest.raises(RemoteCommandError, match="cannot make environments: it lacks venv or ensurepip") as caught,
        ):
            setups.carry_out(box, request_, path="~/env")
        assert "apt install python3." in caught.value.hint
        assert "without root" in caught.value.hint

    def test_too_old(self, server):
        """A Python 3.8 runs our programs and is refused for the environment."""
        old = old_python("3.8")
        with remote.connect("box", config=server.config, python=old) as box:
            there = box.call("survey", {"candidates": [], "env": "~/env"})
            with pytest.raises(RemoteCommandError, match=r"nbkit needs Python 3\.11 or newer; there is 3\.8"):
                setups._base(box, there)

    def test_much_too_old(self, server):
        """A Python that cannot even run our programs says its version."""
        old = old_python("2.7")
        with (
            remote.connect("box", config=server.config, python=old) as box,
            pytest.raises(RemoteCommandError, match=r"Python 2\.7 is too old"),
        ):
            box.call("survey", {"candidates": [], "env": "~/env"})

    def test_a_folder_of_somebody_else(self, box, request_, tmp_path):
        """What nbkit did not make is left alone."""
        (tmp_path / "theirs").mkdir()
        (tmp_path / "theirs" / "thesis.tex").write_text("x")
        with pytest.raises(RemoteCommandError, match="holds something that nbkit did not make"):
            setups.carry_out(box, request_, path=str(tmp_path / "theirs"))
        assert ["thesis.tex"] == [found.name for found in (tmp_path / "theirs").iterdir()]

    @pytest.fixture
    def disk(self, tmp_path):
        """A tmpfs of 64 MiB."""
        if os.getuid() != 0 or shutil.which("mount") is None:
            pytest.skip("needs root, to mount a small disk")
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("cannot mount here")
        yield folder
        subprocess.run(["umount", "-l", str(folder)], check=True)

    def test_a_disk_that_is_too_small(self, box, request_, disk):
        """It is looked at before anything is installed."""
        with pytest.raises(RemoteCommandError, match=r"0\.06 GiB are free .* the setup needs 1 GiB") as caught:
            setups.carry_out(box, request_, path=str(disk / "env"))
        assert "--path" in caught.value.hint
        assert [] == list(disk.iterdir())

    def test_a_disk_that_becomes_full(self, box, request_, shelf, disk, monkeypatch):
        """No room in the middle: the cause and the fix, no marker; with room again the same call goes on."""
        monkeypatch.setattr(setups, "LAB_GIB", 0.0)
        monkeypatch.setattr(setups, "AGAIN_GIB", 0.0)
        little_wheel(shelf, "large", b"#" * (16 * 2**20))
        wanted = {**request_, "pins": [*request_["pins"], pin(shelf / "large-1.0-py3-none-any.whl")]}
        (disk / "ballast").write_bytes(bytes(30 * 2**20))
        with pytest.raises(RemoteCommandError, match="The disk became full while installing") as caught:
            setups.carry_out(box, wanted, path=str(disk / "env"), say=Lines().append)
        assert "larger disk" in caught.value.hint
        assert not (disk / "env" / "nbkit-setup.json").exists()
        (disk / "ballast").unlink()
        assert {"own": "1.0"} == setups.carry_out(box, wanted, path=str(disk / "env"), say=Lines().append).versions


class TestAdopt:
    def test_a_python_with_jupyter(self, server, box):
        """It is looked at and remembered, its versions are shown."""
        found = setups.adopt(box, sys.executable)
        assert found.versions["ipykernel"] in str(found)
        with remote.connect("box", config=server.config) as again:
            assert sys.executable == again.python

    def test_a_path_with_spaces(self, box, tmp_path):
        """A path with a space needs no quotes: it is tried in quotes where it does not work as it is."""
        (tmp_path / "my pythons").mkdir()
        (tmp_path / "my pythons" / "py").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (tmp_path / "my pythons" / "py").chmod(0o755)
        found = setups.adopt(box, str(tmp_path / "my pythons" / "py"))
        assert f"'{tmp_path}/my pythons/py'" == found.python

    def test_a_python_without_jupyter(self, server, box):
        """It is refused with what is missing, and nothing is remembered."""
        with pytest.raises(RemoteCommandError, match="has no jupyter_server, ipykernel") as caught:
            setups.adopt(box, "python3 -S")
        assert "python3 -S -m pip install jupyter_server ipykernel" in caught.value.hint
        with remote.connect("box", config=server.config) as again:
            assert "python3" == again.python


def index_answers():
    try:
        socket.create_connection(("pypi.org", 443), timeout=5).close()
    except OSError:
        return False
    return True


@pytest.mark.train
@pytest.mark.timeout(600)
def test_the_lock_itself_on_a_box(tmp_path, monkeypatch):
    """`nbkit setup box --without train` from the lock and the index: the path to the box is green up to Jupyter."""
    from click.testing import CliRunner

    from nbkit.cli import main

    if not index_answers():
        pytest.skip("no package index is reachable")
    monkeypatch.setenv("NBKIT_STATE", str(tmp_path / "state"))
    with sshd.running(tmp_path / "sshd") as running:
        options = ["box", "-F", str(running.config), "--json"]
        result = CliRunner().invoke(main, ["setup", *options, "--without", "train"])
        assert 0 == result.exit_code, result.output
        assert {"nbkit", "jupyter_server", "ipykernel"} == json.loads(result.stdout)["versions"].keys()
        told = json.loads(CliRunner().invoke(main, ["doctor", *options, "--fast"]).stdout)
    assert {"laptop": "ok", "sshd": "ok", "Python": "ok", "Jupyter": "ok"}.items() <= {
        one["name"]: one["state"] for one in told["path"]
    }.items()
