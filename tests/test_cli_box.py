"""The verbs about boxes, as a person or a script types them: a real sshd on loopback."""

from __future__ import annotations

import json
import shlex
import sys

import pytest
from click.testing import CliRunner

from nbkit import remote
from nbkit.cli import main
from nbkit.errors import NbkitError
from nbkit.memory import plan
from tests import sshd
from tests.waiting import until

HERE = shlex.quote(sys.executable)


@pytest.fixture
def run(server, tmp_path, monkeypatch):
    """Run a verb in this process, with the server's configuration."""
    monkeypatch.setenv("NBKIT_STATE", str(tmp_path / "state"))
    return lambda *words: CliRunner().invoke(main, [*words, "-F", str(server.config)])


def test_check_of_a_host_is_that_of_a_machine(run):
    """The same parts as for this machine, under the host's name; --json is JSON on stdout."""
    shown = run("check", "box")
    assert 0 == shown.exit_code, shown.output
    for text in ("box\n", "Disks and caches", "QLoRA"):
        assert text in shown.output
    assert "box" == json.loads(run("check", "box", "--json").stdout)["name"]


def test_fit_on_a_host_is_for_its_hardware(run, server):
    """The plan is for the box under its name, with its memory; a card is another place."""

    def look():
        """What the verb tells and the box itself, while nothing else took or gave memory."""
        told = json.loads(run("fit", "embedded", "--on", "box", "--json").stdout)
        with remote.connect("box", config=server.config) as box:
            there = plan("embedded", box.check())
        return (told, there) if told["room_gib"] == pytest.approx(there.place.room_gib, rel=0.2) else None

    told, there = until(look, "the same room twice")
    assert "RAM of box" == told["place"] == there.place.name
    assert run("fit", "embedded", "--on", "box").output.startswith("SmolLM2-135M on RAM of box: ")
    assert 2 == run("fit", "embedded", "--on", "box", "--gpu", "T4").exit_code
    assert 3 == run("fit", "embedded", "--on", f"127.0.0.1:{sshd.free_port()}").exit_code
    refused = CliRunner().invoke(main, ["fit", "embedded", "--gpu", "T4", "-F", str(server.config)])
    assert (2, True) == (refused.exit_code, "name it with --on HOST" in refused.output)


def test_doctor_of_a_host_draws_the_path(run):
    """The path stands above the findings; a Python without Jupyter is a blocker."""
    shown = run("doctor", "box", "--fast", "--python", "python3 -S")
    assert 5 == shown.exit_code
    assert shown.output.startswith("The path to box\n  ● laptop")
    assert "✗ Jupyter" in shown.output
    assert "Doctor: " in shown.output
    healthy = run("doctor", "box", "--fast", "--python", HERE, "--json")
    told = json.loads(healthy.stdout)
    assert (told["exit_code"], True) == (healthy.exit_code, told["ok"])


def test_doctor_of_a_host_that_is_off(run):
    """Unreachable is exit code 3, with the path as JSON; a name no shell may see is a usage error."""
    refused = run("doctor", f"127.0.0.1:{sshd.free_port()}", "--json")
    told = json.loads(refused.stdout)
    assert (3, False, "failed") == (refused.exit_code, told["ok"], told["path"][1]["state"])
    assert 2 == run("doctor", "-oProxyCommand=x y").exit_code


def test_hosts_as_a_table_and_as_json(run):
    """Each host's GPUs stand beside whether it answers."""
    assert "free memory" in run("hosts").output
    (told,) = json.loads(run("hosts", "--json").stdout)
    assert ("box", "127.0.0.1", [], True, None) == tuple(
        told[key] for key in ("host", "hostname", "through", "answers", "error")
    )
    assert told["round_trip_ms"] > 0
    assert isinstance(told["gpus"], list)
    (told,) = json.loads(run("hosts", "--no-try", "--json").stdout)
    assert (None, None, None) == (told["answers"], told["round_trip_ms"], told["gpus"])
    assert "answers" not in run("hosts", "--no-try").output


def test_a_build_that_torch_has_not(run):
    """Said before anything is dialled."""
    found = run("setup", "nowhere", "--torch", "cuda12")
    assert (2, True) == (found.exit_code, "'cuda12' is no build of torch" in found.stderr)


def test_a_build_that_looks_like_one(run, server, tmp_path, monkeypatch):
    """cu999 is refused at once, with those that there are, from the library too; what PyTorch builds is not."""
    for name in ("cu999", "cu99", "rocm", "CU128", "2.13.0"):
        found = run("setup", "nowhere.invalid", "--torch", name)
        assert (2, True) == (found.exit_code, f"{name!r} is no build of torch" in found.stderr), found.output
        assert "cpu, cu126, cu128, cu129, cu130, cu132" in found.stderr
    for name in ("cpu", "xpu", "cu126", "cu132", "rocm7.2"):
        assert 3 == run("setup", "nowhere.invalid", "--torch", name).exit_code
    with (
        remote.connect("box", config=server.config) as box,
        pytest.raises(NbkitError, match="no build of torch") as caught,
    ):
        remote.setup.setup(box, torch="cu999")
    assert 2 == caught.value.exit_code
    refused = run("setup", "nowhere.invalid", "--torch", "cpu", "--without", "train")
    assert (2, True) == (refused.exit_code, "--without train leaves torch out" in refused.stderr)


def test_a_hint_names_the_host(run, server):
    """A line to paste holds the name that was typed, also where the box made the sentence."""
    assert f"Fix:  nbkit runs --on box -F {server.config}\n" in run("logs", "none", "--on", "box").stderr


def test_a_configuration_that_is_not_there(tmp_path):
    """A mistyped -F is a usage error, not a machine without hosts; a hint of two lines stays beside the path."""
    found = CliRunner().invoke(main, ["hosts", "-F", str(tmp_path / "none")])
    assert (2, "") == (found.exit_code, found.stdout)
    assert "there is no file" in found.stderr
    assert 0 == CliRunner().invoke(main, ["hosts", "-F", "none"]).exit_code


def test_a_fix_of_two_lines_stays_beside_the_path(server, tmp_path):
    """Each line of the drawing begins in its gutter."""
    config = tmp_path / "config"
    config.write_text(server.config.read_text().replace(str(server.known_hosts), str(tmp_path / "nobody")))
    shown = CliRunner().invoke(main, ["doctor", "box", "-F", str(config)])
    assert 4 == shown.exit_code
    assert f"nbkit trust box -F {config} SHA256:" in shown.stdout
    assert {" "} == {line[0] for line in shown.stdout.splitlines()[1:]}
    assert all(line.startswith(("  │", "  ●", "  ✗", "  ○")) for line in shown.stdout.splitlines()[1:])


def test_setup_uses_a_python_that_is_there(run):
    """--python is checked and remembered: the next verb starts it without being told."""
    shown = run("setup", "box", "--python", HERE)
    assert 0 == shown.exit_code, shown.output
    assert "box is set up" in shown.output
    told = json.loads(run("check", "box", "--json").stdout)
    assert ".".join(map(str, sys.version_info[:3])) == told["python"]


def test_setup_without_a_python(run):
    """A wrong --python is an error with its fix; together with options of a new environment it is a usage error."""
    wrong = run("setup", "box", "--python", "/no/such")
    assert (1, True) == (wrong.exit_code, "has no Python at '/no/such'" in wrong.stderr)
    assert 2 == run("setup", "box", "--python", HERE, "--without", "train").exit_code


def test_stop_without_a_setup(run):
    """Nothing to stop is said, not an error."""
    stopped = run("setup", "box", "--stop")
    assert (0, True) == (stopped.exit_code, "No setup is at work there." in stopped.stderr)
