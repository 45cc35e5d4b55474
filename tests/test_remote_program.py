"""Programs sent to the box: a real sshd, a real python3 behind it."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import nbkit.remote
from nbkit import ssh
from nbkit.errors import RemoteCommandError
from nbkit.remote import program
from tests import sshd

ROOMS = {"nbkit.remote.there": nbkit.remote, "nbkit.ssh.there": ssh}
THERE = [path for room in ROOMS.values() for path in sorted((Path(room.__file__).parent / "there").glob("*.py"))]
NEIGHBOURS = {*ROOMS, *(f"nbkit.{path.parts[-3]}.there.{path.stem}" for path in THERE)}


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    with sshd.running(tmp_path_factory.mktemp("sshd")) as box, ssh.connect("box", config=box.config) as session:
        yield session


class TestCall:
    def test_request_goes_in_and_answer_comes_out(self, session):
        """A program gets its request as REQUEST, whatever it holds, and its last line is the answer."""
        nasty = "a 'b' \"c\" $HOME `id`\n\\ ü -rf"
        source = "import json\nprint('talk')\nprint(json.dumps({'back': REQUEST['text']}))"
        assert {"back": nasty} == program.call(session, source, {"text": nasty})

    def test_program_reads_what_follows(self, session):
        """What follows the request on stdin is the program's."""
        source = "import json, sys\nprint(json.dumps({'rest': sys.stdin.buffer.read().decode()}))"
        content = program.opening(source, {}) + b"more"
        result = session.run(program.command(), input=content)
        assert {"rest": "more"} == program.answer(session, result.stdout, result.stderr, result.status, "python3")

    def test_nothing_stands_in_the_process_list(self, session):
        """Neither the program nor its request can be read in `ps`."""
        source = "import json\nprint(json.dumps({'argv': open('/proc/self/cmdline').read()}))"
        assert "s3cret" not in program.call(session, source, {"token": "s3cret"})["argv"]

    @pytest.mark.parametrize(
        ("source", "python", "message"),
        [
            ("import json\nprint(json.dumps({'error': 'No room', 'hint': 'make some'}))", "python3", "No room."),
            ("raise ValueError('deep inside')", "python3", "failed on .*ValueError: deep inside"),
            ("", "/no/such/python", "has no Python at '/no/such/python'"),
            ("", "sed q; python3", "the login shell there reads what is meant for our program"),
            ("", "echo closed.; false", "A program of nbkit failed on .*: closed."),
        ],
    )
    def test_failure_says_what_happened(self, session, source, python, message):
        """An error that the program reports, one that it does not, and a missing Python each read as one sentence."""
        with pytest.raises(RemoteCommandError, match=message):
            program.call(session, source, {}, python=python)

    def test_csh_takes_the_line(self):
        """It has no line end within quotes, and acts on "!" within them; tcsh itself was tried by hand."""
        assert not {"\n", "!"}.intersection(program.command())


# A notebook is executed with what must be there for it (without, `nbkit run` says so before it is sent), and a kernel is
# listened to with what it speaks itself.
BEYOND = {"notebook": {"nbformat", "nbclient", "jupyter_client"}, "listen": {"zmq"}}


class TestThere:
    @pytest.mark.parametrize("path", THERE, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
    def test_is_plain_old_python(self, path):
        """A program for the box parses as Python 3.8 and imports the standard library and its neighbours only."""
        tree = ast.parse(path.read_text(), feature_version=program.OLDEST)
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        tops = {name.partition(".")[0] for name in names - NEIGHBOURS}
        assert BEYOND.get(path.stem, set()) == tops - set(sys.stdlib_module_names)
