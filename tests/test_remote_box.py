"""A box: a real sshd on loopback, and the Python behind it."""

from __future__ import annotations

import copy
import json
import platform
import shlex
import sys

import pytest

from nbkit import remote
from nbkit.errors import RemoteCommandError
from nbkit.hardware import Machine, probe
from nbkit.remote import box as boxes
from nbkit.remote import hosts, trace
from tests import sshd
from tests.hardware_cases import HEALTHY


@pytest.fixture(autouse=True)
def _own_state(tmp_path, monkeypatch):
    """What is remembered of boxes stays in this test."""
    monkeypatch.setenv("NBKIT_STATE", str(tmp_path / "state"))


class TestConnect:
    def test_runs_programs_by_text(self, server):
        """A box runs a program's text in its python3 and hands back the answer."""
        with remote.connect("box", config=server.config) as box:
            source = "import json, sys\nprint(json.dumps({'twice': 2 * REQUEST['n'], 'major': sys.version_info[0]}))"
            assert {"twice": 42, "major": 3} == box.call(source, {"n": 21})
            assert "alive" in repr(box)
        assert "lost" in repr(box)

    def test_remembers_the_python(self, server):
        """A remembered Python is used by every later connection, one that is given goes before it."""
        with remote.connect("box", config=server.config) as box:
            assert "python3" == box.python
            boxes.remember(box.session.route, "/no/such/python")
        with remote.connect("box", config=server.config) as box:
            assert "/no/such/python" == box.python
            with pytest.raises(RemoteCommandError, match="has no Python at '/no/such/python'"):
                box.call("print({})")
        with remote.connect("box", config=server.config, python="python3") as box:
            assert "python3" == box.python


class TestLook:
    def test_check_tells_the_machine(self, server):
        """The box's facts come from its own Python, under the name that the user gave it."""
        with remote.connect("box", config=server.config, python=shlex.quote(sys.executable)) as box:
            found = box.check()
        assert ("box", platform.python_version()) == (found.name, found.python)
        assert found.memory.total_gib == pytest.approx(probe().memory.total_gib)
        assert "box" == str(found).splitlines()[0]

    def test_doctor_applies_the_same_rules(self, server):
        """The rules over the box's facts find what they find here, without taking this process for the box's."""
        with remote.connect("box", config=server.config, python=shlex.quote(sys.executable)) as box:
            found = box.doctor(fast=True, error="CUDA error: no kernel image is available for execution on the device")
        assert {one.id for one in found.found.findings} >= {"gpu-too-new"}
        assert (5, None) == (found.exit_code, found.path.broken)

    def test_imports_run_on_the_box(self, server, tmp_path):
        """torch is imported by the box's Python in a child there: one that crashes is a finding, not the end."""
        folder = tmp_path / "a b"
        (folder / "torch-2.13.0.dist-info").mkdir(parents=True)
        (folder / "torch-2.13.0.dist-info" / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n"
        )
        (folder / "torch.py").write_text("import os\nos.abort()\n")
        python = f"PYTHONPATH={shlex.quote(str(folder))} python3"
        with remote.connect("box", config=server.config, python=python) as box:
            found = box.doctor()
        assert "torch-crash" in {one.id for one in found.found.blockers}

    def test_what_the_box_says_is_harmless(self, server):
        """Characters that a terminal acts on are shown, not sent."""
        python = "HF_HOME=$(printf 'a\\033]0;b\\007') python3"
        with remote.connect("box", config=server.config, python=python) as box:
            told = box.check().environment["HF_HOME"]
        assert "a\\x1b]0;b\\x07" == told


class TestPath:
    def test_is_drawn_hop_by_hop(self, server, tmp_path):
        """Laptop, jump host, sshd, Python, Jupyter and GPU stand in order, each with what was measured there."""
        with sshd.running(tmp_path / "inner") as inner:
            config = tmp_path / "config"
            server.write_config(path=config, alias="jump")
            inner.write_config("ProxyJump jump", path=config, alias="inner")
            found = remote.doctor("inner", config=config, fast=True, python=shlex.quote(sys.executable)).path
        assert ["laptop", "jump host", "sshd", "Python", "Jupyter", "GPU"] == [one.name for one in found.steps]
        assert {"ok"} == {one.state for one in found.steps[:5]}
        jump, target = found.steps[1:3]
        assert 0 < jump.round_trip_ms < 10_000
        assert 0 < target.round_trip_ms < 10_000
        assert 0 < target.down_mb_s
        assert 0 < target.up_mb_s
        assert "publickey id_ed25519; host key ssh-ed25519 SHA256:" in target.remark
        assert None is found.broken

    def test_ends_at_the_hop_that_fails(self, server, tmp_path):
        """A refused port behind a jump host: the jump is green, sshd red with its fix, the rest not reached."""
        config = tmp_path / "config"
        server.write_config(path=config, alias="jump")
        with config.open("a") as file:
            file.write(f"Host inner\n  HostName 127.0.0.1\n  Port {sshd.free_port()}\n  ProxyJump jump\n")
        found = remote.doctor("inner", config=config, fast=True)
        states = [one.state for one in found.path.steps]
        assert ["ok", "ok", "failed", "not reached", "not reached", "not reached"] == states
        assert (3, "sshd") == (found.exit_code, found.path.broken.name)
        assert "Fix:" in str(found)

    def test_a_refused_login_is_red(self, server, tmp_path):
        """A key that the box does not know: sshd is red, with the exit code of authentication."""
        key = sshd.keygen(tmp_path / "other")
        config = server.write_config(f"IdentityFile {key}", path=tmp_path / "config", alias="locked")
        found = remote.doctor("locked", config=config, ask=None)
        assert (4, "sshd") == (found.exit_code, found.path.broken.name)

    @pytest.mark.parametrize(
        ("python", "message"),
        [("/no/such/python", "has no Python"), ("sh -c 'echo old' #", "A program of nbkit failed")],
    )
    def test_without_python_the_path_ends_there(self, server, python, message):
        """No Python, or something else under its name, is a red hop and a blocker."""
        found = remote.doctor("box", config=server.config, python=python)
        assert (5, "Python") == (found.exit_code, found.path.broken.name)
        assert message in found.path.broken.remark

    def test_a_python_without_jupyter_is_red(self, server):
        """No jupyter_server there: the fix is the setup; the findings are still told."""
        with remote.connect("box", config=server.config, python="python3 -S") as box:
            found = box.doctor(fast=True)
        assert (5, f"nbkit setup box -F {server.config}") == (found.exit_code, found.path.broken.fix)
        assert found.found is not None


class TestView:
    def test_a_notebook_shows_connection_and_machine(self, server):
        """A cell that ends in a box shows both; a closed one says so and asks nothing."""
        with remote.connect("box", config=server.config) as box:
            html = box._repr_html_()
        assert "SHA256:" in html
        assert "train on" in html
        assert "not connected" in box._repr_html_()

    def test_the_forms_of_an_examination_agree(self, server):
        """Text, HTML, table and JSON name the same hops."""
        with remote.connect("box", config=server.config) as box:
            found = box.doctor(fast=True)
        for name in ("laptop", "sshd", "Python", "Jupyter", "GPU"):
            assert name in str(found)
            assert name in found._repr_html_()
            assert name in str(found.path.table())
            assert name in json.dumps(found.as_dict())


def test_an_account_without_a_shell_has_no_bandwidth(tmp_path_factory):
    """What never went over is not measured; the Python that cannot be started says why."""
    with sshd.running(
        tmp_path_factory.mktemp("closed"), 'ForceCommand sh -c "echo This account is closed.; exit 1"'
    ) as closed:
        found = remote.doctor("box", config=str(closed.config), fast=True)
    way = {step.name: step for step in found.path.steps}
    assert (None, None) == (way["sshd"].down_mb_s, way["sshd"].up_mb_s)
    assert "This account is closed" in way["Python"].remark


class TestHosts:
    def test_shows_what_answers_and_its_gpus(self, server, tmp_path):
        """Each host with a name: the way there, whether it answers, its GPUs; one that does not answer keeps its row."""
        config = server.write_config(path=tmp_path / "config")
        with config.open("a") as file:
            file.write(f"Host off\n  HostName 127.0.0.1\n  Port {sshd.free_port()}\nHost *.example\n  User x\n")
        found = hosts.hosts(config=str(config))
        rows = {row["host"]: row for row in hosts.table(found).as_dicts()}
        assert {"box", "off"} == rows.keys()
        assert rows["box"]["answers"].startswith("yes, ")
        assert trace.gpus(probe()) == rows["box"]["GPUs"]
        assert "Connection refused" in rows["off"]["answers"]
        told = {one.name: one.as_dict() for one in found}
        assert (False, 3) == (told["off"]["answers"], told["off"]["error"]["exit_code"])
        asked_nobody = hosts.hosts(config=str(config), look=False)
        assert "answers" not in hosts.table(asked_nobody, look=False).columns

    def test_a_broken_configuration_keeps_its_row(self, tmp_path):
        """What ssh says of it stands where the answer would."""
        (tmp_path / "config").write_text("Host bad\n  Port abc\n")
        (found,) = hosts.hosts(config=str(tmp_path / "config"))
        assert "Bad port" in str(hosts.table([found]))
        assert (None, False) == (found.as_dict()["port"], found.as_dict()["answers"])

    def test_free_memory_of_several_cards(self):
        """Cards of one kind are counted, their free memory stands card by card."""
        told = copy.deepcopy(HEALTHY["machine"])
        told["gpus"] = [told["gpus"][0], {**told["gpus"][0], "index": 1, "free_bytes": 2**30}]
        machine = Machine.from_facts(told)
        assert ("2x RTX 4090", "23.4 + 1.0 of 23.5 GiB") == (trace.gpus(machine), trace.free(machine))
