"""Lines that nbkit prints to be pasted: with -F and --python given, from another folder, in a shell, they do what they say."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import sshd
from tests.laptop import Laptop
from tests.works import COUNT


class Person(Laptop):
    """Has the server in a file of its own, which stands in the folder where the verbs run, not where lines are pasted."""

    def __init__(self, folder, server):
        super().__init__(folder, server)
        self.known = folder / "known"
        (folder / "boxes").write_text(server.config.read_text().replace(str(server.known_hosts), str(self.known)))
        (folder / "boxes").chmod(0o600)
        self.known.write_text(server.known_hosts.read_text())
        self.options = ["-F", "boxes", *self.options[2:]]
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{self.environment['PATH']}"
        for name in ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "XDG_RUNTIME_DIR"):
            self.environment[name] = str(folder / name.lower())
            (folder / name.lower()).mkdir(mode=0o700)

    def paste(self, line: str) -> tuple[int, str]:
        """Exit code of the line in a shell, and all that it says."""
        done = subprocess.run(["bash", "-c", line], cwd="/", env=self.environment, stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, check=False)  # fmt: skip
        return done.returncode, done.stdout


@pytest.fixture
def person(tmp_path, server):
    """Somebody who gives -F FILE to each verb."""
    return Person(tmp_path / "person", server)


def line(begin: str, text: str) -> str:
    """The command behind `begin`: to the line's end, a gap with another way behind it, or what it is said to show."""
    return re.split(r" {6}|\n| shows ", text.partition(begin)[2])[0].strip()


def test_a_key_is_trusted_by_the_line_that_is_shown(person):
    """By `trust` itself, and by any other verb that meets an unknown key."""
    person.known.write_text("")
    code, out, _ = person.run("trust", "box", *person.options[:2])
    assert 4 == code
    told = line(", then\n        ", person.run("check", "box", *person.options)[2])
    assert line("then:", out) == told
    code, said = person.paste(told)
    assert (0, True) == (code, "trusted now" in said), said
    assert 0 == person.run("check", "box", "--json", *person.options)[0]


def test_a_changed_key(person, server):
    """The line that forgets the old key, and shows the new one."""
    person.known.write_text(
        f"[127.0.0.1]:{server.port} {' '.join(Path(f'{server.key}.pub').read_text().split()[:2])}\n"
    )
    told = person.run("check", "box", *person.options)[2].partition("set up anew:\n")[2].splitlines()[0]
    code, said = person.paste(told)
    assert (4, True) == (code, "not trusted" in said), said


def test_a_jump_host_behind_another(person, tmp_path, server):
    """It has no way of its own: the line that trusts it leads through those before it; then comes the box."""
    with sshd.running(tmp_path / "gate") as gate:
        path, known = person.folder / "chain", person.folder / "chain_known"
        gate.write_config(path=path, alias="gate", known=gate.known_hosts)
        server.write_config("ProxyCommand false", path=path, alias="inner", known=known)
        server.write_config("ProxyJump gate,inner", path=path, alias="far", known=known)
        _, _, err = person.run("check", "far", "-F", "chain", *person.options[2:])
        assert "inner (" in err
        assert ", hop 2 of 3) is not known" in err
        told = line(", then\n        ", err)
        assert person.paste(told.rpartition(" SHA256:")[0])[1].rpartition("then:")[2].strip() == told
        code, said = person.paste(told)
        assert (0, True) == (code, "trusted now" in said), said
        assert 0 == person.run("check", "far", "-F", "chain", *person.options[2:])[0]


def test_a_program_that_does_not_run_there(person):
    """`try: ssh ...` goes the same way, also where the words that start Python are a shell's."""
    for words in ("false", "echo no; false"):
        code, _, err = person.run("check", "box", "-F", "boxes", "--python", words)
        assert 1 == code
        assert 255 != person.paste(line("try: ", err))[0], err
    assert (0, "no\n") == person.paste(line("try: ", err).replace("false", "true"))


def test_a_run_is_found_again_from_where_it_was_begun_and_from_elsewhere(person, tmp_path, server):
    """Its id is enough where it began; what another machine prints names the box as that machine reaches it."""
    (person.folder / "count.py").write_text(COUNT)
    _, _, err = person.run("run", "count.py", "--on", "box", "-d", *person.options, "--", "9999", "0.1")
    back, end = line("Back:", err), line("End:", err)
    name = back.split()[-1]
    assert f"nbkit stop {name}" == end
    other = Person(tmp_path / "other", server)
    attached = other.popen("attach", name, "--on", "box", *other.options)
    attached.stdout.readline()
    attached.send_signal(signal.SIGINT)
    _, err = attached.communicate(timeout=60)
    code, said = other.paste(line("End:", err))
    assert 0 == code, said
    assert 143 == other.paste(line("; ", said))[0]
    assert 143 == person.paste(back)[0]
    code, _, err = other.run("stop", name, "--on", "box", *other.options)
    assert (1, 0) == (code, other.paste(line("Fix:", err))[0])


def test_a_sentence_of_the_box(person):
    """The box knows neither our name for it nor how we reach it."""
    _, _, err = person.run("logs", "none", "--on", "box", *person.options)
    assert 0 == person.paste(line("Fix:", err))[0], err


def test_a_kernel_and_a_tunnel(person):
    """Back to the tunnel, the end of it, and which kernels there are."""
    _, _, err = person.run("kernel", "attach", "box", *person.options)
    code, said = person.paste(line("Fix: ", err))
    assert (0, True) == (code, "nbkit-box" in said), said
    assert "Fix:  choose 'Python 3." in person.run("kernel", "logs", "box", *person.options)[2]
    opened = person.popen("tunnel", "box", *person.options)
    opened.stdout.readline()
    opened.send_signal(signal.SIGINT)
    _, err = opened.communicate(timeout=60)
    assert 130 == opened.returncode
    again = subprocess.Popen(["bash", "-c", f"exec {line('Back:', err)}"], cwd="/", env=person.environment,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert again.stdout.readline().startswith("http://127.0.0.1")
    again.send_signal(signal.SIGINT)
    assert "Found Jupyter" in again.communicate(timeout=60)[1]
    code, said = person.paste(line("End:", err))
    assert (0, True) == (code, "Ended" in said), said
