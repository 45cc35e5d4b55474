"""The command line: help that teaches, data on stdout, errors as product."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import nbkit
from nbkit.cli import main
from nbkit.training.record import Recorder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of runs, and quiet defaults."""
    monkeypatch.setenv("NBKIT_RUNS", str(tmp_path))
    return tmp_path


def invoke(*words):
    """Run the command in this process."""
    return CliRunner().invoke(main, list(words))


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help(command):
    """--help works everywhere, says something, and exits 0."""
    result = invoke(command, "--help")
    assert 0 == result.exit_code
    assert len(result.output.splitlines()) > 4


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_stands_in_the_readme(command):
    """A command that the README does not name is a command nobody finds."""

    readme = (Path(__file__).parent.parent / "README.md").read_text()
    assert f"nbkit {command}" in readme or f"make {command}" in readme


def test_version():
    """--version prints the package's version."""
    assert f"nbkit, version {nbkit.__version__}\n" == invoke("--version").output


def test_a_typing_error_is_answered_with_the_verb_that_was_meant():
    """`nbkit tunel` suggests `tunnel`, with the usage exit code."""
    result = invoke("tunel")
    assert 2 == result.exit_code
    assert "Did you mean 'tunnel'?" in result.output


def test_help_lists_each_verb_with_its_sentence():
    """Nothing is cut off."""
    for words in ([], ["kernel"]):
        shown = invoke(*words, "--help").output
        assert "..." not in shown.partition("Commands:")[2]
    assert "Missing argument 'SRC...'" in invoke("push", "gpu-box:").output
    assert "Missing argument 'HOST:DST'" in invoke("push", "data").output


def test_a_shell_completes_verbs_and_hosts(tmp_path):
    """By click's protocol, as bash asks: verbs, the hosts of the configuration, files beside `HOST:`."""
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text("Host gpu-box gpu-old\nHost *.lab\n")
    code = (
        f"from nbkit.ssh import hosts; hosts.home = lambda: {str(tmp_path)!r}\n"
        "from nbkit.cli import main; main(prog_name='nbkit')"
    )

    def completed(line):
        asked = {"_NBKIT_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
        shown = subprocess.run([sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True,
                               timeout=60, check=False)  # fmt: skip
        return shown.stdout.split()

    assert ["plain,tunnel"] == completed("nbkit tun")
    assert ["plain,gpu-box", "plain,gpu-old"] == completed("nbkit tunnel gpu")
    assert ["plain,gpu-old"] == completed("nbkit attach --on gpu-o")
    assert ["plain,gpu-box:", "file,gpu-b"] == completed("nbkit push data gpu-b")


def test_output_that_cannot_be_written(monkeypatch):
    """A full disk under stdout is an error with its cause; a reader that has gone is none."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # nothing is left to be written at the end, then
    words = [sys.executable, "-m", "nbkit.cli", "fit", "Mistral-7B", "--gpu", "T4"]
    with Path("/dev/full").open("wb") as full:
        found = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (1, "Error: No space left on device.") == (found.returncode, found.stderr.splitlines()[0])
    assert "Traceback" not in found.stderr
    there, here = os.pipe()
    os.close(there)
    with os.fdopen(here, "wb") as gone:
        found = subprocess.run(words, stdout=gone, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert "" == found.stderr


def test_json_speaks_json_of_a_usage_error_too():
    """A script that reads stdout learns why there is nothing to read, and what tells more."""
    words = [sys.executable, "-m", "nbkit.cli"]
    for given, message in (
        (["fit", "--json"], "Missing argument 'MODEL'."),
        (["kernel", "list", "--json", "--bad"], "No such option '--bad'."),
    ):
        found = subprocess.run([*words, *given], capture_output=True, text=True, timeout=60, check=False)
        told = json.loads(found.stdout)
        assert (2, 2, message) == (found.returncode, told["exit_code"], told["message"])
        assert told["hint"].endswith(f"{given[0]}{' list' if 'list' in given else ''} --help")
    found = subprocess.run([*words, "run", "a.py", "--on", "x", "--bad", "--", "--json"], capture_output=True, text=True,
                           timeout=60, check=False)  # fmt: skip
    assert (2, "") == (found.returncode, found.stdout)  # that --json is the script's


def test_ctrl_c_is_exit_code_130_and_no_traceback(tmp_path):
    """Whatever a verb does, and also while it is still being loaded."""
    os.mkfifo(tmp_path / "rows.jsonl")
    words = [sys.executable, "-m", "nbkit.cli", "fit", "embedded", "--data", str(tmp_path / "rows.jsonl")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        handle = os.open(tmp_path / "rows.jsonl", os.O_WRONLY)  # returns when the verb reads
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        os.close(handle)
    assert (130, "", "Interrupted.") == (process.returncode, out, err.strip())
    early = (
        "import sys, builtins\nload = builtins.__import__\n"
        "def stop(name, *more):\n"
        "    if name == 'click': raise KeyboardInterrupt\n"
        "    return load(name, *more)\n"
        "builtins.__import__ = stop\nfrom nbkit.cli import main"
    )
    found = subprocess.run([sys.executable, "-c", early], capture_output=True, text=True, timeout=60, check=False)
    assert (130, "") == (found.returncode, found.stderr)


def test_runs_lists_the_newest_first(folder):
    """As a table for a person and as JSON for a script, with the same facts."""
    for name, loss in (("20260101-000000-a", 1.0), ("20260102-000000-b", 0.5)):
        recorder = Recorder(folder / name)
        recorder.row(1, {"loss": loss})
        recorder.set("done", step=1, max_steps=1)
    assert ["20260102-000000-b", "20260101-000000-a"] == [
        line.split()[0] for line in invoke("runs").output.splitlines()[2:]
    ]
    listed = json.loads(invoke("runs", "--json").output)
    assert {"run": "20260102-000000-b", "state": "done", "step": 1, "of": 1, "loss": 0.5, "cause": ""} == listed[0]


def test_no_runs_names_the_folder(folder):
    """An empty list is said on stderr, so that a wrong folder is seen; stdout stays empty."""
    result = invoke("runs")
    assert (0, "") == (result.exit_code, result.stdout)
    assert f"No runs in {folder}" in result.stderr


def test_watch_of_an_ended_run_prints_it_once(folder):
    """A finished run is one line; --json prints its rows and its state."""
    recorder = Recorder(folder / "20260101-000000-a")
    recorder.row(1, {"loss": 1.0})
    recorder.set("done", step=1, max_steps=1)
    assert "20260101-000000-a · done · step 1/1 · loss 1.00\n" == invoke("watch").output
    told = [json.loads(line) for line in invoke("watch", "--json").output.splitlines()]
    assert [("state", "done"), ("row", 1.0)] == [(each["kind"], each.get("loss", each.get("state"))) for each in told]


def test_stop_writes_the_stop_file(folder):
    """The request is a file, so it works from any process."""
    recorder = Recorder(folder / "20260101-000000-a")
    recorder.set("training", step=1, max_steps=9)
    assert 0 == invoke("stop").exit_code
    recorder.look()
    assert recorder.stop_asked


def test_pause_and_unpause_are_a_file(folder):
    """A pause is asked for by a file and ended by taking it away; a run that ended cannot be paused."""
    recorder = Recorder(folder / "20260101-000000-a")
    recorder.set("training", step=1, max_steps=9)
    assert "nbkit unpause 20260101-000000-a" in invoke("pause").stderr
    assert (folder / "20260101-000000-a" / "PAUSE").exists()
    assert 0 == invoke("unpause").exit_code
    for words in (["--host"], ["-F", "none"], ["--python", "python3"]):  # not the newest run of this machine
        assert (2, True) == ((found := invoke("stop", *words)).exit_code, "are for a box: name it" in found.stderr)
    for verb in ("pause", "unpause"):
        assert (2, True) == ((found := invoke(verb, "-F", "none")).exit_code, "name it with --on HOST" in found.stderr)
    assert not (folder / "20260101-000000-a" / "PAUSE").exists()
    recorder.set("done", step=9)
    assert "is not running: done at step 9" in invoke("pause").stderr


def test_an_error_is_a_message_a_fix_and_an_exit_code(folder):
    """No traceback for a user's mistake."""
    result = invoke("watch", "nothing")
    assert 1 == result.exit_code
    assert f"Error: There is no run 'nothing' in {folder}.\n  Fix:  nbkit runs" in result.stderr
    assert "      (it is a host: nbkit stop --host nothing)\n" in invoke("stop", "nothing").stderr
    assert "Traceback" not in result.stderr


def test_check_json_is_json_on_stdout():
    """A script can read what a person sees."""
    done = subprocess.run(
        [sys.executable, "-m", "nbkit.cli", "check", "--json"], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["device"] in {"cpu", "cuda"}
    assert found["memory"]["total_gib"] > 0


def test_check_shows_machine_and_what_fits():
    """The table of a person: hardware, disks, models."""
    output = invoke("check").output
    for text in ("This machine", "Disks and caches", "QLoRA"):
        assert text in output
