"""Trust: never laxer than ssh, nothing accepted on first sight, nothing that overrides a change."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nbkit.errors import HostKeyError
from nbkit.ssh import connect, resolve, trust
from nbkit.ssh.known_hosts import Verdict, hashed, judge
from tests.ssh_known_hosts import CASES, Judge, ask_nbkit, ask_ssh, public
from tests.sshd import keygen, need, running
from tests.waiting import until


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    """A server with keys of three types."""
    need("sshd", "ssh", "ssh-keygen")
    with running(tmp_path_factory.mktemp("box"), kinds=("ed25519", "ecdsa", "rsa")) as box:
        yield box


@pytest.fixture
def place(box, tmp_path):
    """An ssh_config for the server with a known_hosts of its own, which is empty."""
    known = tmp_path / "known_hosts"
    known.touch(0o600)
    return box.write_config(path=tmp_path / "config", known=known), known


def names(box):
    return f"[127.0.0.1]:{box.port}"


class TestVerdicts:
    @pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
    def test_a_case_is_judged_as_by_the_real_ssh(self, box, tmp_path, case):
        """ssh's verdict, nbkit's, and the one written down are the same."""
        _, lines, expected = case
        file = tmp_path / "kh"
        file.write_text(lines(public(box.host_keys[0]), public(box.key), public(box.host_keys[2]), names(box)) + "\n")
        assert (expected, expected) == (ask_ssh(box, [file], "127.0.0.1"), ask_nbkit(box, [file], "127.0.0.1"))

    def test_generated_files_are_never_judged_laxer(self, box, tmp_path):
        """Of 30 generated known_hosts files none is OK here that ssh refuses."""
        judge_of = Judge(box)
        outcomes = [(seed, *judge_of.difference(seed, tmp_path)) for seed in range(71_000, 71_030)]
        assert [] == [outcome for outcome in outcomes if outcome[1] == "LAXER"]
        assert sum(outcome[1] == "same" for outcome in outcomes) > 24

    def test_bad_lines_are_said(self, box, tmp_path):
        """A line that is skipped is named by file and number."""
        file = tmp_path / "kh"
        file.write_text("x\n" + public(box.host_keys[0]).line("h")[:-4] + "\n@what h ssh-ed25519 A\n")
        said = judge(public(box.host_keys[0]), "h", 22, [str(file)])
        assert Verdict.UNKNOWN is said.verdict
        assert [f"{file}, line {n}" for n in (1, 2, 3)] == [text.partition(":")[0] for text in said.warnings]

    def test_a_revocation_after_a_tab_counts(self, box, tmp_path):
        """ssh 9.2 overlooks a @revoked that a tab follows; nbkit does not."""
        key, file = public(box.host_keys[0]), tmp_path / "kh"
        file.write_text(f"{key.line('h')}\n@revoked\t{key.line('h')}\n")
        assert Verdict.REVOKED is judge(key, "h", 22, [str(file)]).verdict

    def test_a_file_that_cannot_be_read_refuses(self, box, tmp_path):
        """What it might revoke is not known: fail closed (a folder in its place, which root cannot read either)."""
        with pytest.raises(HostKeyError, match="cannot be read"):
            judge(public(box.host_keys[0]), "h", 22, [str(tmp_path)])


class TestConnect:
    def test_an_unknown_key_is_refused_with_the_line_that_trusts_it(self, tmp_path):
        """Exit code 4, the fingerprint ssh-keygen shows, no user name sent, nothing written."""
        with running(tmp_path / "own") as own:  # in whose log no other connection ends late
            own.known_hosts.write_text("")
            with pytest.raises(HostKeyError) as caught:
                connect("box", config=own.config, ask=None)
            listed = subprocess.run(["ssh-keygen", "-lf", f"{own.host_keys[0]}.pub"], capture_output=True, text=True,
                                    check=True, timeout=20).stdout.split()[1]  # fmt: skip
            assert 4 == caught.value.exit_code
            assert f"nbkit trust box -F {own.config} {listed}" in caught.value.hint
            assert "" == own.known_hosts.read_text()
            until(lambda: "[preauth]" in own.log, "the end of the connection in the log")
            assert "user" not in own.log.lower().replace("preauth", "")

    @pytest.mark.parametrize("setting", ["no", "accept-new", "off"])
    def test_strict_host_key_checking_no_is_not_honoured(self, box, tmp_path, setting):
        """What sshpyk and others tell their users to set changes nothing here."""
        known = tmp_path / "kh"
        known.touch()
        config = box.write_config(f"StrictHostKeyChecking {setting}", path=tmp_path / "config", known=known)
        with pytest.raises(HostKeyError, match="is not known"):
            connect("box", config=config, ask=None)
        assert "" == known.read_text()

    def test_a_changed_key_is_refused_with_both_fingerprints(self, box, place):
        """CHANGED says where the other key stands, and has no override."""
        config, known = place
        known.write_text(public(box.key).line(names(box)) + "\n")
        with pytest.raises(HostKeyError, match="CHANGED") as caught:
            connect("box", config=config, ask=None)
        assert public(box.key).fingerprint in caught.value.message
        assert f"{known}, line 1" in caught.value.message
        removal = caught.value.hint.splitlines()[1].strip()
        assert removal.endswith(f"; nbkit trust box -F {config}")
        subprocess.run(shlex.split(removal.partition(";")[0]), check=True, capture_output=True)
        with pytest.raises(HostKeyError, match="is not known"):
            connect("box", config=config, ask=None)

    def test_a_revoked_key_is_refused(self, box, place):
        """@revoked wins over a line that trusts the same key."""
        config, known = place
        key = public(box.host_keys[0])
        known.write_text(f"{key.line(names(box))}\n@revoked {key.line('*')}\n")
        with pytest.raises(HostKeyError, match="REVOKED"):
            connect("box", config=config, ask=None)

    @pytest.mark.parametrize("krl", [False, True])
    def test_revoked_host_keys_is_read(self, box, tmp_path, krl):
        """RevokedHostKeys refuses, as a list of keys and as a KRL."""
        revoked = tmp_path / "revoked"
        public_file = Path(f"{box.host_keys[0]}.pub")
        if krl:
            subprocess.run(["ssh-keygen", "-q", "-k", "-f", str(revoked), str(public_file)], check=True, timeout=20)
        else:
            revoked.write_text(public_file.read_text())
        config = box.write_config(f"RevokedHostKeys {revoked}", path=tmp_path / "config")
        with pytest.raises(HostKeyError, match="REVOKED"):
            connect("box", config=config, ask=None)

    def test_the_key_that_is_known_is_asked_for(self, box, place):
        """A server with three keys, known by its RSA key only, shows that one."""
        config, known = place
        known.write_text(public(box.host_keys[2]).line(names(box)) + "\n")
        with connect("box", config=config, ask=None) as session:
            assert session.facts["host_key"].startswith("ssh-rsa SHA256:")


class TestTrust:
    def test_without_a_fingerprint_it_shows_and_writes_nothing(self, box, place):
        """The key, its fingerprint and the next command."""
        config, known = place
        seen = trust("box", config=config)
        assert (Verdict.UNKNOWN, "") == (seen.verdict, seen.written)
        assert f"nbkit trust box -F {config} {public(box.host_keys[0]).fingerprint}" in str(seen)
        assert "" == known.read_text()

    def test_the_right_fingerprint_lets_both_us_and_ssh_in(self, box, tmp_path):
        """The file is made 0600 under any umask, and the real ssh reads what was written."""
        known = tmp_path / "new" / "known_hosts"
        config = box.write_config(path=tmp_path / "config", known=known)
        before = os.umask(0)
        try:
            seen = trust("box", public(box.host_keys[0]).fingerprint, config=config)
        finally:
            os.umask(before)
        assert str(known) == seen.written
        assert 0o600 == known.stat().st_mode & 0o777
        assert 0o700 == known.parent.stat().st_mode & 0o777
        assert Verdict.OK is ask_ssh(box, [known], "127.0.0.1")
        with connect("box", config=config, ask=None) as session:
            assert "hi" == session.run(["echo", "hi"]).text
        assert Verdict.OK is trust("box", config=config).verdict

    def test_a_wrong_fingerprint_writes_nothing(self, box, place):
        """The fingerprint of another key is refused, with both shown."""
        config, known = place
        with pytest.raises(HostKeyError, match="Nothing was written") as caught:
            trust("box", public(box.key).fingerprint, config=config)
        assert 4 == caught.value.exit_code
        assert "" == known.read_text()

    def test_a_changed_key_cannot_be_trusted_over(self, box, place):
        """Not even with its right fingerprint."""
        config, known = place
        known.write_text(public(box.key).line(names(box)) + "\n")
        before = known.read_text()
        with pytest.raises(HostKeyError, match="CHANGED"):
            trust("box", public(box.host_keys[0]).fingerprint, config=config)
        assert before == known.read_text()

    def test_what_is_no_fingerprint_is_a_usage_error(self, place):
        """Exit code 2, before anything is dialled."""
        with pytest.raises(HostKeyError) as caught:
            trust("box", "yes", config=place[0])
        assert 2 == caught.value.exit_code

    def test_a_file_without_a_last_newline_keeps_its_line(self, box, place):
        """The old last line and the new one are both whole; HashKnownHosts is followed."""
        config, known = place
        other = public(box.key).line("elsewhere")
        known.write_text(other)
        config.write_text(config.read_text().replace("HostName", "HashKnownHosts yes\n  HostName"))
        trust("box", public(box.host_keys[0]).fingerprint, config=config)
        lines = known.read_text().splitlines()
        assert other == lines[0]
        assert lines[1].startswith("|1|")
        assert Verdict.OK is ask_nbkit(box, [known], "127.0.0.1")

    def test_many_at_once_write_one_line(self, box, place):
        """Six at once: the line stands once, whole."""
        config, known = place
        found: list[object] = []

        def go():
            try:
                found.append(trust("box", public(box.host_keys[0]).fingerprint, config=config))
            except BaseException as error:
                found.append(error)

        threads = [threading.Thread(target=go) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert ["Seen"] * 6 == [type(item).__name__ for item in found]
        assert [public(box.host_keys[0]).line(names(box))] == known.read_text().splitlines()


def test_hashed_names_are_those_of_ssh_keygen(tmp_path):
    """ssh-keygen finds a host under the name that nbkit hashed."""
    need("ssh-keygen")
    key = public(keygen(tmp_path / "k"))
    file = tmp_path / "kh"
    file.write_text(key.line(hashed("[gpu.lab]:24")) + "\n")
    found = subprocess.run(
        ["ssh-keygen", "-F", "[gpu.lab]:24", "-f", str(file)], capture_output=True, check=False, timeout=20
    )
    assert 0 == found.returncode


def test_importing_the_room_loads_no_paramiko():
    """`import nbkit.ssh` stays light; paramiko comes with the first connection."""
    code = "import sys, nbkit.ssh, nbkit.cli.ssh; sys.exit('paramiko' in sys.modules or 'cryptography' in sys.modules)"
    assert 0 == subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode


def test_check_host_ip_is_followed(box, tmp_path):
    """CheckHostIP yes: a key known by name and another by address is refused, as by ssh."""
    known, key = tmp_path / "kh", public(box.host_keys[0])
    known.write_text(f"{key.line(f'[localhost]:{box.port}')}\n{public(box.key).line(names(box))}\n")
    config = tmp_path / "config"
    box.write_config("HostName localhost", "CheckHostIP yes", "AddressFamily inet", path=config, known=known)
    assert resolve("box", config=config).target.check_host_ip
    with pytest.raises(HostKeyError, match="CHANGED"):
        connect("box", config=config, ask=None)
